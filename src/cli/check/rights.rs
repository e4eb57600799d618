//! Whether a user may use every command that an instance uses, on keys with its names.
//!
//! Redis cannot be asked for that: `ACL DRYRUN` is itself a right, came with Redis 7, and knows nothing of a full memory or a
//! replica. So each command is tried, on keys of its own. Most do nothing where there is no key. Those that make one are followed
//! by a `DEL` in the same pipeline, and are left out if that is refused.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};

use ::redis::{Cmd, Pipeline, Script, ServerError, Value};

use crate::model::counter::BUCKETS;
use crate::model::mode::Mode;
use crate::platform::unavailable::Unavailable;
use crate::publish::sinks::stream::key_of;
use crate::redis::keys::Keys;
use crate::redis::{Call, Redis, Routed};

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
struct Try {
    name: &'static str,
    /// None if it goes with the one before it.
    key: Option<String>,
    command: Cmd,
}

/// Keys to try commands on.
struct TrialKeys {
    ids: String,
    shared: String,
    counter: String,
}

const NOT_TRIED: &str = "; without DEL, commands that make keys are not tried";

/// Tries every command that an instance would use.
pub(super) async fn of(
    redis: &Redis,
    namespace: &str,
    Uses { mode, counters, stream }: Uses<'_>,
) -> Result<Rights, Unavailable> {
    let name = format!("{:016x}", RandomState::new().hash_one(namespace));
    let keys = Keys::new(namespace);
    let (ids, shared) = (keys.trial_of_shard(&name), keys.trial(&name));
    let usual = TrialKeys { ids, shared, counter: keys.trial_of_bucket(0, &name) };
    let mut rights = Rights::default();
    rights.try_on(redis, &usual, mode, counters).await?;
    if redis.is_cluster() {
        rights
            .try_all(
                redis,
                vec![Try { name: "ASKING", key: Some(usual.shared), command: ::redis::cmd("ASKING") }],
            )
            .await?;
        // Each server has its own users.
        for node in redis.nodes_with_slots() {
            let mut of_buckets = (0..BUCKETS).map(|bucket| keys.trial_of_bucket(bucket, &name));
            if let Some(key) = of_buckets.find(|key| redis.number_for(key) == node.number()) {
                let all = TrialKeys { ids: key.clone(), shared: key.clone(), counter: key };
                rights.try_on(redis, &all, mode, counters).await?;
            }
        }
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
    Try { name, key: Some(key.to_owned()), command }
}

/// A command without a key.
fn keyless(name: &'static str) -> Try {
    Try { name, key: None, command: ::redis::cmd(name) }
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
        Try { name: "SCRIPT LOAD", key: Some(shared.to_owned()), command: load },
        Try { name: "EVALSHA", key: Some(shared.to_owned()), command: run },
        keyless("TIME"),
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
            keyless("MULTI"),
            keyless("EXEC"),
        ],
        Mode::Exact => vec![command("SCARD", ids, &[]), command("EXPIRE", ids, &["1"])],
    });
    tries
}

/// The same of counters.
fn harmless_of_counters(mode: Mode, counter: &str, shared: &str) -> Vec<Try> {
    let mut tries = vec![
        keyless("MULTI"),
        keyless("EXEC"),
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
        Try { name: "XINFO STREAM", key: Some(key.to_owned()), command: about },
        command("XSETID", key, &[NO_ID]),
    ]
}

/// The commands of the stream sink on the stream of counters.
fn on_stream_of_counters(key: &str) -> Vec<Try> {
    let mut tries = on_stream(key);
    tries.retain(|one| one.name != "XSETID");
    tries.extend([keyless("MULTI"), keyless("EXEC")]);
    tries
}

/// Whether the user may use a command on a stream: Redis refused only its arguments.
fn was_let_through(error: &ServerError) -> bool {
    let details = error.details().unwrap_or_default();
    error.code() == "WRONGTYPE" || ["Invalid stream ID", "no such key"].iter().any(|it| details.contains(it))
}

impl Rights {
    async fn try_on(
        &mut self,
        redis: &Redis,
        TrialKeys { ids, shared, counter }: &TrialKeys,
        mode: Mode,
        counters: bool,
    ) -> Result<(), Unavailable> {
        self.try_all(redis, vec![delete(ids), delete(shared), delete(counter)]).await?;
        let may_delete = self.refused.is_empty();
        self.try_all(redis, harmless(mode, ids, shared)).await?;
        // Every leader asks for them. Whether there are any, other instances decide too.
        self.try_all(redis, vec![command("SCARD", counter, &[])]).await?;
        if counters {
            self.try_all(redis, harmless_of_counters(mode, counter, shared)).await?;
        }
        if may_delete {
            self.try_all(redis, writing(mode, ids, shared)).await?;
            if counters {
                self.try_all(redis, writing_counters(mode, counter, shared)).await?;
            }
        } else if !self.reason.contains(NOT_TRIED) {
            self.reason += NOT_TRIED;
        }
        Ok(())
    }

    /// Tries commands in their order: those on one key, or on keys of one server, together.
    async fn try_all(&mut self, redis: &Redis, mut tries: Vec<Try>) -> Result<(), Unavailable> {
        let mut last = String::new();
        for one in &mut tries {
            last = one.key.take().unwrap_or(last);
            one.key = Some(last.clone());
        }
        let key = |one: &Try| one.key.clone().unwrap_or_default();
        for some in tries.chunk_by(|one, other| !redis.is_cluster() || key(one) == key(other)) {
            let mut commands = Pipeline::with_capacity(some.len());
            for one in some {
                commands.add_command(one.command.clone());
            }
            let send = async |connection: &mut Routed| connection.answers(&commands).await;
            let replies = redis.run(Call::Ask, &key(&some[0]), send).await?;
            for (one, reply) in some.iter().zip(replies) {
                self.note(one.name, &reply);
            }
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
