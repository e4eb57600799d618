//! Keys of headcount that another program has overwritten.
//!
//! A key of another type answers every command with an error, for ever. So an instance renames it, to a name that says where it
//! was. The work goes on, and the other program loses nothing. The data of headcount under that key is lost. The caller decides
//! what that means for the counts.

use std::sync::LazyLock;

use ::redis::{FromRedisValue, RedisError, Script, ScriptInvocation};
use tracing::error;

use super::call::Call;
use super::client::Redis;
use super::keys::Keys;
use super::routed::Routed;
use crate::platform::unavailable::Unavailable;

static PUT_ASIDE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("put_aside.lua")));

/// What a key should hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holds {
    /// A string that is a HyperLogLog.
    Sketch,
    /// A set.
    Set,
    /// A hash.
    Hash,
}

/// How long Redis keeps a key that is put aside, in milliseconds: a day.
pub const KEPT: u64 = 24 * 60 * 60 * 1000;

/// Whether a key has the wrong type for the command, or is a string that is no sketch.
pub fn is_damage(error: &RedisError) -> bool {
    // By the text, not the code: in a pipeline or a script, another error wraps this one.
    let text = error.to_string();
    text.contains("WRONGTYPE") || text.contains("INVALIDOBJ")
}

/// Puts aside those of the keys that hold something else than they should, and logs each. Returns them. All keys are in one slot.
///
/// # Errors
///
/// [`Unavailable`].
pub async fn put_aside(
    redis: &Redis,
    call: Call,
    holds: Holds,
    keys: &[String],
) -> Result<Vec<String>, Unavailable> {
    let Some(first) = keys.first() else { return Ok(Vec::new()) };
    let mut put = PUT_ASIDE.prepare_invoke();
    for key in keys {
        put.key(key).key(Keys::damaged(key));
    }
    put.arg(match holds {
        Holds::Sketch => "hll",
        Holds::Set => "set",
        Holds::Hash => "hash",
    });
    put.arg(KEPT);
    let aside: Vec<String> =
        redis.run(call, first, async |connection| put.invoke_async(connection).await).await?;
    for found in aside.chunks(2) {
        say(&found[0], &found[1]);
    }
    Ok(aside.into_iter().step_by(2).collect())
}

/// Runs a script on hashes, of which there is at least one. If one of them holds something else, puts that aside and runs it again. All hashes are in one slot.
///
/// # Errors
///
/// [`Unavailable`].
pub async fn invoke_mending<T: FromRedisValue>(
    redis: &Redis,
    call: Call,
    hashes: &[String],
    script: &ScriptInvocation<'_>,
) -> Result<T, Unavailable> {
    let key = hashes.first().map_or("", String::as_str);
    let run = async |connection: &mut Routed| match script.invoke_async(connection).await {
        Err(error) if is_damage(&error) => Ok(None),
        answer => answer.map(Some),
    };
    if let Some(answer) = redis.run(call, key, run).await? {
        return Ok(answer);
    }
    put_aside(redis, call, Holds::Hash, hashes).await?;
    redis.run(call, key, async |connection| script.invoke_async(connection).await).await
}

/// Logs that a key was put aside, and the type of what it held.
pub fn say(key: &str, found: &str) {
    let put_under = Keys::damaged(key);
    error!(
        key = %Keys::without_counter(key),
        found,
        put_under = %Keys::without_counter(&put_under),
        "another program wrote to a key of headcount: it is put aside, find out which program writes there"
    );
}
