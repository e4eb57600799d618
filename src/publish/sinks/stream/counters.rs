//! The stream of counters: the counts of a window's counters, before the window's own entry in the other stream.
//!
//! An entry's id is its window's start in milliseconds and its place among the counters, by name. A try that ended in the
//! middle may have left some entries. The last id that the stream ever had says how many, even if a consumer has deleted them.
//! So the next try goes on after it, and no entry comes twice.

use std::time::Duration;

use ::redis::{Pipeline, from_redis_value_ref};

use super::entry::{Id, NAMESPACE, about, is_not_newer};
use crate::coordination::ClosedCounters;
use crate::model::window::Window;
use crate::publish::record::{CounterRecord, counter_attributes, counter_records};
use crate::publish::sinks::{Origin, SinkError};
use crate::redis::{Call, Redis};

/// Entries that are added at once.
const BATCH: usize = 200;

pub(super) struct CounterStream {
    redis: Redis,
    key: String,
    retention: Duration,
}

impl CounterStream {
    pub(super) fn new(redis: Redis, key: &str, retention: Duration) -> Self {
        Self { redis, key: key_of(key), retention }
    }

    /// Adds the counters that are not there yet. All errors leave a way out: after `--counter-retention` the window comes
    /// without its counters.
    pub(super) async fn add(&self, counters: &ClosedCounters, origin: &Origin) -> Result<(), SinkError> {
        let window = counters.window();
        let there = self.there(window).await?;
        let attributes = [false, true].map(|complete| counter_attributes(origin, complete));
        let mut entries = counter_records(counters).enumerate().skip(there).peekable();
        while entries.peek().is_some() {
            let mut add = Pipeline::with_capacity(BATCH);
            // All or none, so that no entry is left out in between.
            add.atomic();
            for (place, record) in entries.by_ref().take(BATCH) {
                let CounterRecord { timestamp, counter, unique_request_count, complete } = record;
                let is_first = add.is_empty();
                let entry = add.cmd("XADD").arg(&self.key);
                if is_first {
                    entry.arg("MINID").arg("~").arg(self.oldest(window).to_string());
                }
                entry.arg(Id { sequence: place as u64, ..Id::of(window) }.to_string());
                entry.arg("timestamp").arg(timestamp.to_string()).arg("counter").arg(counter);
                entry.arg("unique_request_count").arg(unique_request_count);
                entry.arg(NAMESPACE).arg(&origin.namespace);
                for (field, value) in &attributes[usize::from(complete)] {
                    entry.arg(field).arg(value);
                }
            }
            self.run(add).await?;
        }
        Ok(())
    }

    async fn run(&self, add: Pipeline) -> Result<(), SinkError> {
        let added = self.redis.run(Call::Publish, &self.key, async |connection| {
            match add.exec_async(connection).await {
                Err(error) if is_not_newer(&error) => Ok(false),
                done => done.map(|()| true),
            }
        });
        if added.await.map_err(SinkError::unavailable)? {
            return Ok(());
        }
        // The next try finds out what is there.
        Err(SinkError::unavailable(format!("the stream {} was changed just now", self.key)))
    }

    /// How many counters of a window the stream has or had.
    async fn there(&self, window: Window) -> Result<usize, SinkError> {
        let last = self.last().await?;
        let start = Id::of(window);
        if last < start {
            return Ok(0);
        }
        if last.milliseconds == start.milliseconds {
            return Ok(last.sequence as usize + 1);
        }
        Err(self.refusal(&format!(
            "has or had an entry {last}, and takes none of the counters of {window}, which are earlier: another program \
             wrote to it, or the clock was set back"
        )))
    }

    /// The last id that the stream ever had.
    async fn last(&self) -> Result<Id, SinkError> {
        let about = about(&self.redis, &self.key).await.map_err(SinkError::unavailable)?;
        let about = about.map_err(|_| self.refusal("is no stream"))?;
        let last = about.get("last-generated-id").map(from_redis_value_ref).transpose();
        Ok(last.map_err(SinkError::unavailable)?.unwrap_or_default())
    }

    /// The error for a key that cannot be used as it is.
    fn refusal(&self, what: &str) -> SinkError {
        let key = &self.key;
        SinkError::unavailable(format!(
            "the key {key} {what}. Move it away with RENAME {key} {key}.old: headcount then begins a new stream of counters"
        ))
    }

    /// The first id that the stream keeps.
    fn oldest(&self, window: Window) -> Id {
        let retention = self.retention.as_millis() as u64;
        Id { milliseconds: Id::of(window).milliseconds.saturating_sub(retention), sequence: 0 }
    }
}

/// The key of the stream of counters.
pub(crate) fn key_of(stream: &str) -> String {
    format!("{stream}:counters")
}
