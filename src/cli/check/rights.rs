//! Whether a user may use every command that an instance uses, on keys with its names.
//!
//! Redis cannot be asked for that: `ACL DRYRUN` is itself a right, came with Redis 7, and knows nothing of a full memory or a
//! replica. So each command is tried, on keys of its own. Most do nothing where there is no key. Those that make one are followed
//! by a `DEL` in the same pipeline, and are left out if that is refused.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};

use ::redis::aio::MultiplexedConnection;
use ::redis::{Cmd, Pipeline, RedisResult, Script, ServerError, Value};

use crate::model::mode::Mode;
use crate::platform::unavailable::Unavailable;
use crate::publish::sinks::stream::key_of;
use crate::redis::keys::Keys;
use crate::redis::{Call, Redis};

/// What a user may do.
#[derive(Default)]
pub(super) struct Rights {
    pub(super) tried: BTreeSet<&'static str>,
    pub(super) refused: Vec<&'static str>,
    /// The server's answer to the first refused command.
    pub(super) reason: String,
}

/// What an instance uses Redis for.
pub(super) struct Uses<'a> {
    pub(super) mode: Mode,
    pub(super) counters: bool,
    /// The key of the stream that it writes to. Counters go to a stream of their own.
    pub(super) stream: Option<&'a str>,
}

/// A command, with the name that access rules use.
type Try = (&'static str, Cmd);

/// Tries every command that an instance would use.
pub(super) async fn of(
    redis: &Redis,
    namespace: &str,
    Uses { mode, counters, stream }: Uses<'_>,
) -> Result<Rights, Unavailable> {
    let name = format!("{:016x}", RandomState::new().hash_one(namespace));
    let keys = Keys::new(namespace);
    let (ids, shared, counter) = (keys.trial_of_shard(&name), keys.trial(&name), keys.trial_of_bucket(&name));
    let mut rights = Rights::default();
    let delete = vec![delete(&ids), delete(&shared), delete(&counter)];
    rights.try_all(redis, delete).await?;
    let may_delete = rights.refused.is_empty();
    rights.try_all(redis, harmless(mode, &ids, &shared)).await?;
    // Every leader asks for them. Whether there are any, other instances decide too.
    rights.try_all(redis, vec![command("SCARD", &counter, &[])]).await?;
    if counters {
        rights.try_all(redis, harmless_of_counters(mode, &counter, &shared)).await?;
    }
    if may_delete {
        rights.try_all(redis, writing(mode, &ids, &shared)).await?;
        if counters {
            rights.try_all(redis, writing_counters(mode, &counter, &shared)).await?;
        }
    } else {
        rights.reason += "; without DEL, commands that make keys are not tried";
    }
    if let Some(key) = stream {
        rights.try_all(redis, on_stream(key)).await?;
        if counters {
            rights.try_all(redis, on_stream_of_counters(&key_of(key))).await?;
        }
    }
    Ok(rights)
}

fn command(name: &'static str, key: &str, args: &[&str]) -> Try {
    let mut command = ::redis::cmd(name);
    command.arg(key).arg(args);
    (name, command)
}

fn delete(key: &str) -> Try {
    command("DEL", key, &[])
}

/// Commands that do nothing to keys that do not exist.
fn harmless(mode: Mode, ids: &str, shared: &str) -> Vec<Try> {
    const NOTHING: &str = "return 1";
    let mut load = ::redis::cmd("SCRIPT");
    load.arg("LOAD").arg(NOTHING);
    let mut run = ::redis::cmd("EVALSHA");
    run.arg(Script::new(NOTHING).get_hash()).arg(1).arg(shared);
    let mut tries = vec![
        ("SCRIPT LOAD", load),
        ("EVALSHA", run),
        ("TIME", ::redis::cmd("TIME")),
        command("PEXPIRE", ids, &["1"]),
        command("PEXPIRE", shared, &["1"]),
        command("PTTL", shared, &[]),
        command("EXISTS", ids, &[]),
        command("EXISTS", shared, &[]),
        command("TYPE", ids, &[]),
        command("TYPE", shared, &[]),
        command("GET", shared, &[]),
        command("HGET", shared, &["field"]),
        command("HMGET", shared, &["field"]),
        command("HGETALL", shared, &[]),
        command("HEXISTS", shared, &["field"]),
        command("HKEYS", shared, &[]),
        command("HDEL", shared, &["field"]),
    ];
    tries.extend(match mode {
        Mode::Hll => vec![
            command("PFCOUNT", ids, &[]),
            command("EXPIREAT", ids, &["1"]),
            ("MULTI", ::redis::cmd("MULTI")),
            ("EXEC", ::redis::cmd("EXEC")),
        ],
        Mode::Exact => vec![command("SCARD", ids, &[]), command("EXPIRE", ids, &["1"])],
    });
    tries
}

/// The same of counters.
fn harmless_of_counters(mode: Mode, counter: &str, shared: &str) -> Vec<Try> {
    let mut tries = vec![
        ("MULTI", ::redis::cmd("MULTI")),
        ("EXEC", ::redis::cmd("EXEC")),
        command("PEXPIRE", counter, &["1"]),
        command("EXISTS", counter, &[]),
        command("TYPE", counter, &[]),
        command("SSCAN", counter, &["0"]),
        command("LRANGE", shared, &["0", "1"]),
    ];
    tries.extend(match mode {
        Mode::Hll => vec![
            command("PFCOUNT", counter, &[]),
            command("MGET", counter, &[]),
            command("STRLEN", counter, &[]),
            command("EXPIREAT", counter, &["1"]),
            command("HGET", counter, &["field"]),
        ],
        Mode::Exact => Vec::new(),
    });
    tries
}

/// The commands for counters that make a key, followed by `DEL`.
fn writing_counters(mode: Mode, counter: &str, shared: &str) -> Vec<Try> {
    let mut tries = vec![
        command("RPUSH", shared, &["1"]),
        delete(shared),
        command("SADD", counter, &["1"]),
        delete(counter),
        command("SET", counter, &["1", "PX", "1000"]),
        command("RENAME", counter, &[counter]),
        delete(counter),
    ];
    tries.extend(match mode {
        Mode::Hll => {
            vec![command("PFADD", counter, &["1"]), command("PFMERGE", counter, &[counter]), delete(counter)]
        }
        Mode::Exact => Vec::new(),
    });
    tries
}

/// Commands that make a key, followed by `DEL`.
fn writing(mode: Mode, ids: &str, shared: &str) -> Vec<Try> {
    let mut tries = vec![
        command("SET", shared, &["1", "PX", "1000"]),
        delete(shared),
        command("HSET", shared, &["field", "1"]),
        command("HSETNX", shared, &["field", "1"]),
        delete(shared),
    ];
    tries.extend(match mode {
        Mode::Hll => vec![
            command("SET", ids, &["1", "PX", "1000"]),
            command("RENAME", ids, &[ids]),
            delete(ids),
            command("PFADD", ids, &["1"]),
            command("PFMERGE", ids, &[ids]),
            delete(ids),
        ],
        Mode::Exact => vec![
            command("SET", ids, &["1", "PX", "1000"]),
            command("RENAME", ids, &[ids]),
            delete(ids),
            command("SADD", ids, &["1"]),
            delete(ids),
        ],
    });
    tries
}

/// The commands of the stream sink, on its own key. Their entry ids are invalid, so nothing is added. Redis looks at
/// the rights of the user first.
fn on_stream(key: &str) -> Vec<Try> {
    const NO_ID: &str = "none";
    let mut about = ::redis::cmd("XINFO");
    about.arg("STREAM").arg(key);
    vec![
        command("XADD", key, &[NO_ID, "field", "value"]),
        ("XINFO STREAM", about),
        command("XSETID", key, &[NO_ID]),
    ]
}

/// The commands of the stream sink on the stream of counters.
fn on_stream_of_counters(key: &str) -> Vec<Try> {
    let mut tries = on_stream(key);
    tries.retain(|(name, _)| *name != "XSETID");
    tries.extend([("MULTI", ::redis::cmd("MULTI")), ("EXEC", ::redis::cmd("EXEC"))]);
    tries
}

/// Whether the user may use a command on a stream: Redis refused only its arguments.
fn was_let_through(error: &ServerError) -> bool {
    let details = error.details().unwrap_or_default();
    error.code() == "WRONGTYPE" || ["Invalid stream ID", "no such key"].iter().any(|it| details.contains(it))
}

impl Rights {
    async fn try_all(&mut self, redis: &Redis, tries: Vec<Try>) -> Result<(), Unavailable> {
        let mut commands = Pipeline::with_capacity(tries.len());
        for (_, command) in &tries {
            commands.add_command(command.clone());
        }
        let send = async |connection: &mut MultiplexedConnection| -> RedisResult<Vec<Value>> {
            connection.send_packed_commands(&commands, 0, tries.len()).await
        };
        let replies = redis.run(Call::Ask, send).await?;
        for ((name, _), reply) in tries.iter().zip(replies) {
            self.note(name, &reply);
        }
        Ok(())
    }

    fn note(&mut self, name: &'static str, reply: &Value) {
        self.tried.insert(name);
        let Value::ServerError(error) = reply else { return };
        if was_let_through(error) {
            return;
        }
        if self.refused.is_empty() {
            self.reason = format!("{} {}", error.code(), error.details().unwrap_or_default());
        }
        if !self.refused.contains(&name) {
            self.refused.push(name);
        }
    }
}
