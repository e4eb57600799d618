//! The Redis stream: every window once in a stream of the Redis that counts.
//!
//! An entry's id is made of its window's start, in milliseconds. Redis takes ids in ascending order only, so it is
//! the server that refuses a repeat. As many entries are kept as there are windows in `--retention`.

use std::collections::HashMap;
use std::time::Duration;

use ::redis::{RedisError, Value, from_redis_value_ref};
use async_trait::async_trait;
use clap::Args;

use super::{CountSink, Origin, SinkError};
use crate::grant::Grant;
use crate::redis::{Call, Redis};
use crate::window::{Window, WindowCount};

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

impl StreamSink {
    /// Over a connection of its own.
    pub fn new(redis: &Redis, key: String, origin: Origin, retention: Duration) -> Self {
        let length = retention.as_secs() / u64::from(origin.window.seconds());
        Self { redis: redis.another(), key, origin, length }
    }

    /// A stream remembers the highest id that it ever had, and takes none before it. An entry that somebody added with a
    /// later one, and deleted, would stop it until that time comes. So what the stream remembers is set back to the newest
    /// entry that is there. Returns why the count was not taken; it is tried again.
    async fn give_way(&self) -> Result<SinkError, SinkError> {
        let (mut newest, mut about) = (::redis::cmd("XREVRANGE"), ::redis::cmd("XINFO"));
        newest.arg(&self.key).arg("+").arg("-").arg("COUNT").arg(1);
        about.arg("STREAM").arg(&self.key);
        let asked = self.redis.run(Call::Publish, async |connection| {
            let newest: Vec<Entry> = newest.query_async(connection).await?;
            let about: HashMap<String, Value> = about.query_async(connection).await?;
            Ok((
                newest,
                about.get("last-generated-id").and_then(|id| from_redis_value_ref::<String>(id).ok()),
            ))
        });
        let (newest, remembered) = asked.await.map_err(SinkError::unavailable)?;
        if newest.first().is_some_and(|entry| self.window(entry).is_some())
            && remembered == newest.first().map(|e| e.0.clone())
        {
            return Ok(SinkError::unavailable(format!(
                "the stream {} has a later count already: another instance published it, or the clock was set back",
                self.key
            )));
        }
        let newest = newest.first().map_or("0-1", |(id, _)| id);
        let Some(remembered) = remembered.filter(|remembered| remembered != newest) else {
            return Ok(SinkError::unavailable(format!(
                "the stream {} has an entry {newest} that is later than the count: delete it with XDEL",
                self.key
            )));
        };
        let mut set_back = ::redis::cmd("XSETID");
        set_back.arg(&self.key).arg(newest);
        let done =
            self.redis.run(Call::Publish, async |connection| set_back.exec_async(connection).await).await;
        Ok(SinkError::unavailable(match done {
            Ok(()) => format!(
                "somebody added an entry {remembered} to the stream {}, and deleted it: the stream was set back to \
                 {newest}",
                self.key
            ),
            Err(error) => format!(
                "the stream {key} takes nothing before {remembered}, an entry that somebody added and deleted, and \
                 cannot be set back to {newest} ({error}): give it another name, RENAME {key} {key}.old, and it begins \
                 anew",
                key = self.key
            ),
        }))
    }

    /// The window of an entry or, if windows had another length then, the one of ours in which it ends.
    fn window(&self, (id, fields): &Entry) -> Option<Window> {
        fields.get(NAMESPACE).filter(|namespace| **namespace == self.origin.namespace)?;
        let start = id.split('-').next()?.parse::<u64>().ok()? / 1000;
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
        let mut ask = ::redis::cmd("XREVRANGE");
        ask.arg(&self.key).arg("+").arg("-").arg("COUNT").arg(1);
        let answer =
            self.redis.run(Call::Publish, async |connection| match ask.query_async(connection).await {
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

fn is_not_newer(error: &RedisError) -> bool {
    error.detail().is_some_and(|detail| detail.contains("equal or smaller"))
}

fn is_wrong_type(error: &RedisError) -> bool {
    error.code() == Some("WRONGTYPE")
}
