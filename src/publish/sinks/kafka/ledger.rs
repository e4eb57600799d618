//! The ledger: what a topic says has been published.
//!
//! There are more offsets than records: a commit and an abort take one too, and aborted records stay. So the ledger looks for the
//! last committed record some offsets before the end, and further back if there is none. Readers of committed records cannot
//! read past another producer's open transaction, so the ledger waits for its end.

use std::thread;
use std::time::{Duration, Instant};

use rdkafka::message::{BorrowedMessage, Message};
use serde::Deserialize;
use tracing::warn;

use super::client::PARTITION;
use super::reader::{Isolation, Reader, header, seconds_of};
use super::settings::KafkaSettings;
use crate::model::window::Window;
use crate::publish::record::{ACCEPTED_IDS, COMPLETE, COUNTERS, SKIPPED, WINDOW_SECONDS};
use crate::publish::sinks::{Origin, SinkError};

/// How many offsets before the end the ledger first looks for the last record.
const FIRST_LOOK: i64 = 64;
/// How long the ledger waits at a time for another producer's open transaction.
const PATIENCE: Duration = Duration::from_secs(60);
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// A published window, as read from its record.
pub(crate) struct Entry {
    /// In seconds since 1970.
    pub(crate) start: u64,
    /// The window's length.
    pub(crate) seconds: u64,
    pub(crate) unique_request_count: u64,
    /// None if the record has no such header.
    pub(crate) accepted_ids: Option<u64>,
    pub(crate) complete: bool,
    pub(crate) counters: EntryCounters,
}

/// How many counters a published window has in the other topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EntryCounters {
    /// The window has so many; 0 if its record has no such header.
    Number(u64),
    /// They waited too long, so there are none.
    Skipped,
}

#[derive(Deserialize)]
struct Value {
    timestamp: String,
    unique_request_count: u64,
}

/// Reads the committed records that the topic has now, oldest first. A record of another namespace is a fatal error.
pub(crate) fn read(
    settings: &KafkaSettings,
    origin: &Origin,
    each: impl FnMut(Entry),
) -> Result<(), SinkError> {
    let ledger = Ledger::new(settings, origin)?;
    let (first, _) = ledger.committed.offsets(PARTITION)?;
    ledger.read_since(first, each)
}

/// The last committed window. The caller's producer has fenced all earlier producers. A later producer may fence it
/// meanwhile and add a window. Then the caller's producer can publish nothing.
pub(super) fn last(settings: &KafkaSettings, origin: &Origin) -> Result<Option<Window>, SinkError> {
    let (first, end) = Reader::new(settings, settings.windows(), Isolation::All)?.offsets(PARTITION)?;
    let ledger = Ledger::new(settings, origin)?;
    ledger.wait_for_transactions(end)?;
    let mut look = FIRST_LOOK;
    loop {
        let from = (end - look).max(first);
        let mut last = None;
        ledger.read_since(from, |entry| last = Some(entry))?;
        if let Some(Entry { start, seconds, .. }) = last {
            // If windows had another length then, this is the one of today's length in which that window ends.
            return Ok(Some(origin.window.starting_at(start + seconds.max(1) - 1)));
        }
        if from == first {
            return Ok(None);
        }
        look *= 8;
    }
}

struct Ledger<'a> {
    settings: &'a KafkaSettings,
    origin: &'a Origin,
    committed: Reader<'a>,
}

impl<'a> Ledger<'a> {
    fn new(settings: &'a KafkaSettings, origin: &'a Origin) -> Result<Self, SinkError> {
        let committed = Reader::new(settings, settings.windows(), Isolation::Committed)?;
        Ok(Self { settings, origin, committed })
    }

    /// Waits until this reader may read to `end`.
    fn wait_for_transactions(&self, end: i64) -> Result<(), SinkError> {
        let started = Instant::now();
        let mut warned = false;
        while self.committed.offsets(PARTITION)?.1 < end {
            if started.elapsed() > PATIENCE {
                return Err(SinkError::unavailable("another producer's open transaction blocks the topic"));
            }
            if !warned && started.elapsed() > Duration::from_secs(1) {
                warn!(
                    topic = self.settings.topic,
                    "another producer's open transaction blocks the topic, waiting for its end"
                );
                warned = true;
            }
            thread::sleep(ASK_AGAIN_AFTER);
        }
        Ok(())
    }

    fn read_since(&self, from: i64, mut each: impl FnMut(Entry)) -> Result<(), SinkError> {
        self.committed.read(PARTITION, from, |record| self.entry(record).map(&mut each))
    }

    fn entry(&self, record: &BorrowedMessage<'_>) -> Result<Entry, SinkError> {
        let foreign = |what: &str| {
            SinkError::Fatal(format!(
                "the topic {} has {what} at offset {}: give headcount a topic of its own, with --kafka-topic or another \
                 --namespace",
                self.settings.topic,
                record.offset()
            ))
        };
        let key = String::from_utf8_lossy(record.key().unwrap_or_default());
        if key != self.origin.namespace {
            return Err(foreign(&format!("a record with the key '{key}'")));
        }
        let value: Option<Value> = record.payload().and_then(|value| serde_json::from_slice(value).ok());
        let start = value.as_ref().and_then(|value| seconds_of(&value.timestamp));
        let Some((Value { unique_request_count, .. }, start)) = value.zip(start) else {
            return Err(foreign("a record that is no count"));
        };
        let header = |key: &str| header(record, key);
        let seconds = header(WINDOW_SECONDS).and_then(|seconds| seconds.parse().ok());
        Ok(Entry {
            start,
            seconds: seconds.unwrap_or_else(|| u64::from(self.origin.window.seconds())),
            unique_request_count,
            accepted_ids: header(ACCEPTED_IDS).and_then(|ids| ids.parse().ok()),
            complete: header(COMPLETE) == Some("true"),
            counters: match header(COUNTERS) {
                Some(SKIPPED) => EntryCounters::Skipped,
                number => EntryCounters::Number(number.and_then(|n| n.parse().ok()).unwrap_or_default()),
            },
        })
    }
}
