//! The Redis stream: every window once in a stream of the Redis that counts.
//!
//! An entry's id is made of its window's start, in milliseconds. Redis takes ids in ascending order only, so it is
//! the server that refuses a repeat. As many entries are kept as there are windows in `--retention`.

use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ::redis::{Cmd, RedisError, Value, from_redis_value_ref};
use async_trait::async_trait;
use clap::Args;

use super::{CountSink, Origin, SinkError};
use crate::coordination::grant::Grant;
use crate::model::window::{Window, WindowCount};
use crate::redis::{Call, Redis};

/// The field that says how long an entry's window is.
const WINDOW_SECONDS: &str = "window_seconds";

/// The field that says whose it is.
const NAMESPACE: &str = "namespace";

/// Which stream.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Redis")]
pub struct StreamArgs {
    /// Also publish to the stream with this key
    #[arg(long, env = "HEADCOUNT_REDIS_STREAM", value_name = "KEY")]
    pub redis_stream: Option<String>,
}

/// Publishes to a stream.
pub struct StreamSink {
    redis: Redis,
    key: String,
    origin: Origin,
    length: u64,
}

/// An entry: its id and its fields.
type Entry = (String, HashMap<String, String>);

/// What is in a stream.
struct Contents {
    newest: Option<Entry>,
    /// The highest id that it ever had.
    remembered: String,
}

/// What there is before the start.
#[derive(Debug)]
pub struct StreamPreflight {
    /// The last published window.
    pub last: Option<Window>,
    /// What will keep counts waiting, and what to do.
    pub holds_up: Option<String>,
}

impl StreamSink {
    /// Over a connection of its own.
    pub fn new(redis: &Redis, key: String, origin: Origin, retention: Duration) -> Self {
        let length = retention.as_secs() / u64::from(origin.window.seconds());
        Self { redis: redis.another(), key, origin, length }
    }

    /// Why the stream did not take a count. It is tried again.
    ///
    /// A stream remembers the highest id that it ever had, and takes none before it. An entry that somebody added with a
    /// later one, and deleted, would stop it until that time comes. So what the stream remembers is set back to the newest
    /// entry that is there.
    async fn give_way(&self) -> Result<SinkError, SinkError> {
        let Contents { newest, remembered } = self.contents().await?;
        let (newest, is_ours) = match &newest {
            Some(entry) => (&*entry.0, self.window(entry).is_some()),
            // The first that there can be.
            None => ("0-1", false),
        };
        let key = &self.key;
        if remembered == newest {
            return Ok(SinkError::unavailable(if is_ours {
                format!(
                    "the stream {key} has a later count already: another instance published it, or the clock was set back"
                )
            } else {
                format!(
                    "the stream {key} has an entry {newest} that is later than the count: delete it with XDEL"
                )
            }));
        }
        let mut set_back = ::redis::cmd("XSETID");
        set_back.arg(key).arg(newest);
        let done =
            self.redis.run(Call::Publish, async |connection| set_back.exec_async(connection).await).await;
        Ok(SinkError::unavailable(match done {
            Ok(()) => format!(
                "somebody added an entry {remembered} to the stream {key}, and deleted it: the stream was set back to \
                 {newest}"
            ),
            Err(error) => format!("{} ({error})", deleted_later(key, &remembered)),
        }))
    }

    /// What is in the stream, which has to be there.
    async fn contents(&self) -> Result<Contents, SinkError> {
        let mut about = ::redis::cmd("XINFO");
        about.arg("STREAM").arg(&self.key);
        let newest = self.newest();
        let asked = self.redis.run(Call::Publish, async |connection| {
            let newest: Vec<Entry> = newest.query_async(connection).await?;
            let about: HashMap<String, Value> = about.query_async(connection).await?;
            let remembered = about.get("last-generated-id").unwrap_or(&Value::Nil);
            Ok(Contents { newest: newest.into_iter().next(), remembered: from_redis_value_ref(remembered)? })
        });
        asked.await.map_err(SinkError::unavailable)
    }

    fn newest(&self) -> Cmd {
        let mut newest = ::redis::cmd("XREVRANGE");
        newest.arg(&self.key).arg("+").arg("-").arg("COUNT").arg(1);
        newest
    }

    /// The window that the stream has last; none if it is empty, or not there.
    ///
    /// # Errors
    ///
    /// [`SinkError`]; fatal where it has an entry that is not ours, or is no stream.
    async fn last(&self) -> Result<Option<Window>, SinkError> {
        let newest = self.newest();
        let answer =
            self.redis.run(Call::Publish, async |connection| match newest.query_async(connection).await {
                Err(error) if is_wrong_type(&error) => {
                    Ok(Err(SinkError::Fatal(format!("{}: {error}", self.key))))
                }
                entries => entries.map(Ok::<Vec<Entry>, _>),
            });
        let entries = answer.await.map_err(SinkError::unavailable)??;
        let Some(last) = entries.first() else { return Ok(None) };
        let foreign = || {
            SinkError::Fatal(format!(
                "the stream {key} has an entry {id} that is no count of this namespace: XDEL {key} {id}, or give \
                 another key with --redis-stream",
                key = self.key,
                id = last.0
            ))
        };
        self.window(last).map(Some).ok_or_else(foreign)
    }

    /// Looks at the stream as the sink would, and changes nothing.
    ///
    /// # Errors
    ///
    /// [`SinkError`]: no count could be published.
    pub async fn preflight(&self) -> Result<StreamPreflight, SinkError> {
        let last = self.last().await?;
        let mut there = ::redis::cmd("EXISTS");
        there.arg(&self.key);
        let there = self.redis.run(Call::Ask, async |connection| there.query_async(connection).await);
        if !there.await.map_err(SinkError::unavailable)? {
            return Ok(StreamPreflight { last, holds_up: None });
        }
        let Contents { newest, remembered } = self.contents().await?;
        let was_deleted = newest.is_none_or(|(newest, _)| newest != remembered);
        let in_the_future = milliseconds(&remembered).is_some_and(|time| time > unix_milliseconds());
        let holds_up = (was_deleted && in_the_future).then(|| deleted_later(&self.key, &remembered));
        Ok(StreamPreflight { last, holds_up })
    }

    /// The window of an entry or, if windows had another length then, the one of ours in which it ends.
    fn window(&self, (id, fields): &Entry) -> Option<Window> {
        fields.get(NAMESPACE).filter(|namespace| **namespace == self.origin.namespace)?;
        let start = milliseconds(id)? / 1000;
        let seconds = fields.get(WINDOW_SECONDS)?.parse::<u64>().ok()?;
        Some(self.origin.window.starting_at(start + seconds.max(1) - 1))
    }
}

#[async_trait]
impl CountSink for StreamSink {
    fn name(&self) -> &'static str {
        "stream"
    }

    async fn resume(&mut self, _grant: &Grant) -> Result<Option<Window>, SinkError> {
        self.last().await
    }

    async fn publish(&mut self, count: &WindowCount, grant: &Grant) -> Result<(), SinkError> {
        let Origin { namespace, instance, mode, standard_error, window } = &self.origin;
        let mut add = ::redis::cmd("XADD");
        add.arg(&self.key).arg("MAXLEN").arg(self.length);
        add.arg(format!("{}-0", count.window.unix_seconds() * 1000));
        add.arg("timestamp").arg(count.window.to_string());
        add.arg("unique_request_count").arg(count.unique_request_count);
        add.arg(NAMESPACE).arg(namespace);
        add.arg("mode").arg(mode.as_str());
        add.arg("standard_error").arg(standard_error);
        add.arg(WINDOW_SECONDS).arg(window.seconds());
        add.arg("accepted_ids").arg(count.accepted_ids);
        add.arg("complete").arg(count.complete.to_string());
        add.arg("instance").arg(instance);
        add.arg("fencing_token").arg(grant.token());
        // What is not newer is refused. Whose the newest entry is, and whether it is this one, is seen when the sink
        // is asked to resume.
        let answer =
            self.redis.run(Call::Publish, async |connection| match add.exec_async(connection).await {
                Err(error) if is_not_newer(&error) => Ok(false),
                done => done.map(|()| true),
            });
        if answer.await.map_err(SinkError::unavailable)? { Ok(()) } else { Err(self.give_way().await?) }
    }
}

/// What there is to say of a stream whose entry `later` was deleted.
fn deleted_later(key: &str, later: &str) -> String {
    format!(
        "the stream {key} takes nothing before {later}, an entry that somebody added and deleted. Where Redis does not \
         let it be set back, give it another name, RENAME {key} {key}.old, and it begins anew"
    )
}

/// The time of an entry's id.
fn milliseconds(id: &str) -> Option<u64> {
    id.split('-').next()?.parse().ok()
}

fn unix_milliseconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

fn is_not_newer(error: &RedisError) -> bool {
    error.detail().is_some_and(|detail| detail.contains("equal or smaller"))
}

fn is_wrong_type(error: &RedisError) -> bool {
    error.code() == Some("WRONGTYPE")
}
