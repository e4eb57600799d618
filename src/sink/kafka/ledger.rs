//! The ledger: what a topic says has been published.
//!
//! Offsets count more than records: a commit and an abort take one too, and aborted records stay where they are.
//! So the last committed record is looked for from some offsets before the end, and further back if there is
//! none. Another producer's open transaction holds committed readers back; it is waited for.

use std::thread;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::{Offset, TopicPartitionList};
use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tracing::warn;

use super::{KafkaSettings, Origin, PARTITION, SinkError, TIMEOUT, failure};
use crate::window::Window;

/// The header that says how long the record's window is.
pub(super) const WINDOW_SECONDS: &str = "window_seconds";
/// How far before the end the last record is looked for at first.
const FIRST_LOOK: i64 = 64;
/// How long another producer's open transaction is waited for: longer than most are given.
const PATIENCE: Duration = Duration::from_secs(60);
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// A record's value, as far as it is of interest.
#[derive(Deserialize)]
struct Value {
    timestamp: String,
}

/// The last committed window. Nobody may be able to add one meanwhile.
pub(super) fn last(settings: &KafkaSettings, origin: &Origin) -> Result<Option<Window>, SinkError> {
    let all: BaseConsumer = settings.consumer("read_uncommitted").create().map_err(failure)?;
    let (low, end) = all.fetch_watermarks(&settings.topic, PARTITION, TIMEOUT).map_err(failure)?;
    let committed: BaseConsumer = settings.consumer("read_committed").create().map_err(failure)?;
    wait_for_transactions(settings, &committed, end)?;
    let mut look = FIRST_LOOK;
    loop {
        let from = (end - look).max(low);
        if let Some(window) = last_since(settings, origin, &committed, from)? {
            return Ok(Some(window));
        }
        if from == low {
            return Ok(None);
        }
        look *= 8;
    }
}

/// Until committed readers can read to `end`.
fn wait_for_transactions(
    settings: &KafkaSettings,
    committed: &BaseConsumer,
    end: i64,
) -> Result<(), SinkError> {
    let started = Instant::now();
    let mut warned = false;
    loop {
        let (_, stable) = committed.fetch_watermarks(&settings.topic, PARTITION, TIMEOUT).map_err(failure)?;
        if stable >= end {
            return Ok(());
        }
        if started.elapsed() > PATIENCE {
            return Err(SinkError::unavailable("another producer's open transaction holds the topic up"));
        }
        if !warned && started.elapsed() > Duration::from_secs(1) {
            warn!(
                topic = settings.topic,
                "another producer's open transaction holds the topic up, waiting for it"
            );
            warned = true;
        }
        thread::sleep(ASK_AGAIN_AFTER);
    }
}

/// The last one from an offset on.
fn last_since(
    settings: &KafkaSettings,
    origin: &Origin,
    committed: &BaseConsumer,
    from: i64,
) -> Result<Option<Window>, SinkError> {
    let mut partitions = TopicPartitionList::new();
    partitions.add_partition_offset(&settings.topic, PARTITION, Offset::Offset(from)).map_err(failure)?;
    committed.assign(&partitions).map_err(failure)?;
    let mut last = None;
    loop {
        match committed.poll(TIMEOUT) {
            None => return Err(SinkError::unavailable("Kafka does not answer in time")),
            Some(Err(KafkaError::PartitionEOF(_))) => return Ok(last),
            Some(Err(error)) if is_passing(&error) => {}
            Some(Err(error)) => return Err(failure(error)),
            Some(Ok(record)) => last = Some(window_of(settings, origin, &record)?),
        }
    }
}

/// Errors of single brokers that librdkafka deals with itself.
fn is_passing(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(RDKafkaErrorCode::BrokerTransportFailure | RDKafkaErrorCode::AllBrokersDown)
    )
}

/// The record's window or, if windows had another length then, the one of ours in which it ends.
fn window_of(
    settings: &KafkaSettings,
    origin: &Origin,
    record: &BorrowedMessage<'_>,
) -> Result<Window, SinkError> {
    let foreign = |what: String| {
        SinkError::Fatal(format!(
            "the topic {} has {what}: it needs a topic of its own, with --kafka-topic or another --namespace",
            settings.topic
        ))
    };
    let key = String::from_utf8_lossy(record.key().unwrap_or_default());
    if key != origin.namespace {
        return Err(foreign(format!("a last record with the key '{key}'")));
    }
    let value: Option<Value> = record.payload().and_then(|value| serde_json::from_slice(value).ok());
    let start = value.and_then(|value| OffsetDateTime::parse(&value.timestamp, &Rfc3339).ok());
    let Some(start) = start else { return Err(foreign("a last record that is no count".to_owned())) };
    let seconds = record.headers().and_then(|headers| {
        let header = headers.iter().find(|header| header.key == WINDOW_SECONDS)?;
        std::str::from_utf8(header.value?).ok()?.parse::<u64>().ok()
    });
    let seconds = seconds.unwrap_or_else(|| u64::from(origin.window.seconds()));
    let last_moment = u64::try_from(start.unix_timestamp()).unwrap_or_default() + seconds.max(1) - 1;
    Ok(origin.window.starting_at(last_moment))
}
