//! Keys of ours that hold something else, because another program wrote there.
//!
//! A key of another type answers every command with an error, for ever. So an instance puts it aside, under a name that says
//! where it was. The work goes on, and nothing of the other program is lost. What the key held of ours is gone; the caller knows
//! what that means for the counts.

use std::sync::LazyLock;

use ::redis::{RedisError, Script};
use tracing::error;

use super::client::{Call, Redis};
use super::keys::Keys;
use crate::platform::unavailable::Unavailable;

/// Puts aside what is found where a key of a window belongs, if it is of no use.
static PUT_ASIDE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("put_aside.lua")));

/// What a key of ours is to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holds {
    /// A string that is a HyperLogLog.
    Sketch,
    /// A set.
    Set,
    /// A hash.
    Hash,
}

/// How long what is put aside is kept, in milliseconds: a day.
pub const KEPT: u64 = 24 * 60 * 60 * 1000;

/// Whether a key is of another type than the command is for, or holds no sketch though it is a string.
pub fn is_damage(error: &RedisError) -> bool {
    // Not by its code: in a pipeline, or from a script, it is a part of another one.
    let text = error.to_string();
    text.contains("WRONGTYPE") || text.contains("INVALIDOBJ")
}

/// Puts aside those of some keys, all in one slot, that hold something else than they should, and says so in the log.
///
/// # Errors
///
/// [`Unavailable`].
pub async fn put_aside(redis: &Redis, call: Call, holds: Holds, keys: &[String]) -> Result<(), Unavailable> {
    if keys.is_empty() {
        return Ok(());
    }
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
    let aside: Vec<String> = redis.run(call, async |connection| put.invoke_async(connection).await).await?;
    for found in aside.chunks(2) {
        say(&found[0], &found[1]);
    }
    Ok(())
}

/// Says that a key was put aside, and what it held.
pub fn say(key: &str, found: &str) {
    let put_under = Keys::damaged(key);
    error!(
        key,
        found,
        put_under,
        "something else was written to a key of headcount's: it is put aside, find out who writes there"
    );
}
