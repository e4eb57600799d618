//! The Redis stream: every window once in a stream of the Redis that counts.
//!
//! An entry's id is its window's start in milliseconds. Redis takes ids only in ascending order. So the server refuses a
//! repeat, even of an entry that was read and deleted. The stream keeps as many entries as there are windows in
//! `--retention`.
//!
//! The counts of a window's counters go to a stream of their own, and before their window.

mod counters;
mod entry;

use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ::redis::{Value, from_redis_value_ref};
use async_trait::async_trait;

use self::counters::CounterStream;
pub(crate) use self::counters::key_of;
use self::entry::{Id, NAMESPACE, about, is_not_newer};
use super::{CountSink, Origin, SinkError};
use crate::coordination::ClosedWindow;
use crate::coordination::term::Term;
use crate::model::window::{UniqueCount, Window, WindowCount};
use crate::publish::record::{Record, WINDOW_SECONDS};
use crate::redis::{Call, Redis};

/// Clocks of instances may differ by so much, even if windows are shorter.
const CLOCKS_DIFFER: Duration = Duration::from_secs(5);

pub(crate) struct StreamSink {
    redis: Redis,
    key: String,
    origin: Origin,
    length: u64,
    counters: CounterStream,
}

/// An entry: its id and its fields.
type Entry = (Id, HashMap<String, String>);

/// What is in a stream. A stream that does not exist counts as one that never had an entry.
#[derive(Default)]
struct Contents {
    newest: Option<Entry>,
    /// The highest id that the stream ever had.
    remembered: Id,
}

/// What a check found in the stream.
pub(crate) struct StreamPreflight {
    pub(crate) last: Option<Window>,
    /// Why counts will have to wait, and what the user can do.
    pub(crate) holds_up: Option<String>,
}

impl StreamSink {
    pub(crate) fn new(
        redis: &Redis,
        key: String,
        origin: Origin,
        retention: Duration,
        counter_retention: Duration,
    ) -> Self {
        let length = retention.as_secs() / u64::from(origin.window.seconds());
        let redis = redis.another();
        let counters = CounterStream::new(redis.clone(), &key, counter_retention);
        Self { redis, key, origin, length, counters }
    }

    /// Reads the stream as the sink would, and changes nothing.
    pub(crate) async fn preflight(&self) -> Result<StreamPreflight, SinkError> {
        let contents = self.contents().await?;
        let last = self.last_of(&contents)?;
        let Contents { newest, remembered } = contents;
        let was_deleted = newest.is_none_or(|(newest, _)| newest != remembered);
        let in_the_future =
            self.window_of(remembered).is_none() && remembered.milliseconds > unix_milliseconds();
        let holds_up = (was_deleted && in_the_future).then(|| deleted_later(&self.key, remembered));
        Ok(StreamPreflight { last, holds_up })
    }

    /// Reads the stream. A key that holds something else is a fatal error.
    async fn contents(&self) -> Result<Contents, SinkError> {
        let about = about(&self.redis, &self.key).await.map_err(SinkError::unavailable)?;
        let about = about.map_err(|error| SinkError::Fatal(format!("{}: {error}", self.key)))?;
        let Some(remembered) = about.get("last-generated-id") else { return Ok(Contents::default()) };
        let newest = about.get("last-entry").unwrap_or(&Value::Nil);
        Ok(Contents {
            newest: from_redis_value_ref(newest).map_err(SinkError::unavailable)?,
            remembered: from_redis_value_ref(remembered).map_err(SinkError::unavailable)?,
        })
    }

    /// The last window that the stream had, even if its entry was deleted. A newest entry that is no count of this namespace
    /// is a fatal error.
    fn last_of(&self, Contents { newest, remembered }: &Contents) -> Result<Option<Window>, SinkError> {
        let foreign = |id: Id| {
            SinkError::Fatal(format!(
                "the stream {key} has an entry {id} that is no count of this namespace: delete it with \
                 XDEL {key} {id}, or give another key with --redis-stream",
                key = self.key
            ))
        };
        let newest = newest.as_ref();
        let there = newest.map(|entry| self.window(entry).ok_or_else(|| foreign(entry.0))).transpose()?;
        let is_deleted = newest.is_none_or(|(id, _)| id < remembered);
        let deleted = self.window_of(*remembered).filter(|_| is_deleted);
        Ok(there.max(deleted))
    }

    /// Says why the stream did not take a count, and sets the stream back if that helps. The caller tries again.
    ///
    /// A stream remembers the highest id that it ever had, and takes none before it. If that id can be a window's, the stream
    /// had that count, even if a consumer has deleted it since. Otherwise another program added an entry with a later id, and
    /// deleted it. That would stop the stream until that time comes. So the sink sets the remembered id back, but no further
    /// than to just before the count. The stream must go on to refuse older counts.
    async fn give_way(&self, count: &WindowCount) -> Result<String, SinkError> {
        let key = &self.key;
        let Contents { newest, remembered } = self.contents().await?;
        if remembered < Id::of(count.window) {
            return Ok(format!("the stream {key} was changed just now"));
        }
        if let Some(newest) = newest.as_ref().filter(|(id, _)| *id == remembered) {
            return Ok(match self.window(newest) {
                Some(_) => format!(
                    "the stream {key} already has a later count: another instance published it, or the clock was set back"
                ),
                None => format!(
                    "the stream {key} has an entry {remembered} that is later than the count: delete it with XDEL"
                ),
            });
        }
        if self.window_of(remembered).is_some() {
            return Ok(format!(
                "the stream {key} had the count {remembered}, which was deleted: it takes only later counts"
            ));
        }
        let set_back_to = newest.map_or(Id::FIRST, |(id, _)| id).max(Id::before(count.window));
        let mut set_back = ::redis::cmd("XSETID");
        set_back.arg(key).arg(set_back_to.to_string());
        let done = self
            .redis
            .run(Call::Publish, key, async |connection| set_back.exec_async(connection).await)
            .await;
        Ok(match done {
            Ok(()) => format!(
                "another program added an entry {remembered} to the stream {key}, and deleted it: \
                 the stream was set back to {set_back_to}"
            ),
            Err(error) => format!("{} ({error})", deleted_later(key, remembered)),
        })
    }

    /// The window of an entry. If windows had another length then, it is the one of today's length in which that window ends.
    fn window(&self, (id, fields): &Entry) -> Option<Window> {
        fields.get(NAMESPACE).filter(|namespace| **namespace == self.origin.namespace)?;
        let seconds = fields.get(WINDOW_SECONDS)?.parse::<u64>().ok()?;
        Some(self.origin.window.starting_at(id.milliseconds / 1000 + seconds.max(1) - 1))
    }

    /// The window that a deleted entry may have had, by its id alone. Windows may have had another length then. Windows of any
    /// length begin with a whole second. None begins in the future, except by as much as the clocks of instances differ.
    fn window_of(&self, id: Id) -> Option<Window> {
        let ahead = self.origin.window.duration().max(CLOCKS_DIFFER).as_millis() as u64;
        let can_be = id.sequence == 0
            && id.milliseconds > 0
            && id.milliseconds.is_multiple_of(1000)
            && id.milliseconds <= unix_milliseconds() + ahead;
        can_be.then(|| self.origin.window.starting_at(id.milliseconds / 1000))
    }
}

#[async_trait]
impl CountSink for StreamSink {
    fn name(&self) -> &'static str {
        "stream"
    }

    async fn resume(&mut self, _term: &Term) -> Result<Option<Window>, SinkError> {
        self.last_of(&self.contents().await?)
    }

    async fn publish(&mut self, window: &ClosedWindow, term: &Term) -> Result<(), SinkError> {
        let count = &window.count;
        if let Some(counters) = window.counters.counts() {
            self.counters.add(counters, &self.origin).await?;
        }
        let record = Record::new(window, &self.origin, term);
        let UniqueCount { timestamp, unique_request_count } = record.value();
        let mut add = ::redis::cmd("XADD");
        add.arg(&self.key).arg("MAXLEN").arg(self.length);
        add.arg(Id::of(count.window).to_string());
        add.arg("timestamp").arg(timestamp.to_string());
        add.arg("unique_request_count").arg(unique_request_count);
        add.arg(NAMESPACE).arg(&self.origin.namespace);
        for (field, value) in record.attributes() {
            add.arg(field).arg(value);
        }
        // Redis refuses an entry that is not newer than all before. The next resume finds out whether the newest entry
        // is this count.
        let answer = self.redis.run(Call::Publish, &self.key, async |connection| {
            match add.exec_async(connection).await {
                Err(error) if is_not_newer(&error) => Ok(false),
                done => done.map(|()| true),
            }
        });
        if answer.await.map_err(SinkError::unavailable)? {
            return Ok(());
        }
        Err(SinkError::unavailable(self.give_way(count).await?))
    }
}

/// The error for a stream whose entry `later` was deleted.
fn deleted_later(key: &str, later: Id) -> String {
    format!(
        "the stream {key} takes no entry before {later}, which another program added and deleted. If Redis refuses to \
         set the stream back, move it away with RENAME {key} {key}.old: headcount then begins a new one"
    )
}

fn unix_milliseconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}
