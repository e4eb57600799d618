//! What the topic of counters has, for `headcount verify`.

use rdkafka::message::{BorrowedMessage, Message};
use serde::Deserialize;

use super::reader::{Isolation, Reader, header, seconds_of};
use super::settings::KafkaSettings;
use crate::publish::record::{COMPLETE, WINDOW_SECONDS};
use crate::publish::sinks::SinkError;

/// A counter of a published window, as read from its record.
pub(crate) struct CounterEntry {
    pub(crate) partition: i32,
    /// The start of the window, in seconds since 1970.
    pub(crate) start: u64,
    /// The window's length; none if the record has no such header.
    pub(crate) seconds: Option<u64>,
    pub(crate) counter: String,
    pub(crate) unique_request_count: u64,
    pub(crate) complete: bool,
}

#[derive(Deserialize)]
struct Value<'a> {
    timestamp: &'a str,
    counter: &'a str,
    unique_request_count: u64,
}

/// Reads the committed records that the topic has now, one partition after the other, each from its beginning. Returns from
/// which start on the topic has all counters that it ever had: brokers delete the oldest. None if there is no topic. A record
/// that is no counter is a fatal error.
pub(crate) fn read(
    settings: &KafkaSettings,
    mut each: impl FnMut(CounterEntry) -> Result<(), SinkError>,
) -> Result<Option<u64>, SinkError> {
    let reader = Reader::new(settings, settings.counters(), Isolation::Committed)?;
    let partitions = reader.partitions()?;
    let (mut oldest, mut whole_from) = (None::<u64>, None::<u64>);
    for partition in 0..partitions {
        let partition = i32::try_from(partition).map_err(SinkError::unavailable)?;
        let (begin, end) = reader.offsets(partition)?;
        let mut first = None;
        if begin < end {
            reader.read(partition, begin, |record| {
                let entry = entry(settings, record)?;
                first.get_or_insert(entry.start);
                each(entry)
            })?;
        }
        if begin == 0 {
            oldest = [oldest, first].into_iter().flatten().min();
        } else {
            // Of the first window, some counters may be deleted.
            let whole = first.map_or(u64::MAX, |first| first + 1);
            whole_from = Some(whole_from.map_or(whole, |other| other.max(whole)));
        }
    }
    Ok((partitions > 0).then(|| whole_from.or(oldest).unwrap_or_default()))
}

/// Errors do not quote a record: its counter may be somebody's name.
fn entry(settings: &KafkaSettings, record: &BorrowedMessage<'_>) -> Result<CounterEntry, SinkError> {
    let value: Option<Value<'_>> = record.payload().and_then(|value| serde_json::from_slice(value).ok());
    let value = value.filter(|value| record.key() == Some(value.counter.as_bytes()));
    let start = value.as_ref().and_then(|value| seconds_of(value.timestamp));
    let Some((Value { counter, unique_request_count, .. }, start)) = value.zip(start) else {
        return Err(SinkError::Fatal(format!(
            "the topic {} has a record that is no counter, at offset {} of partition {}: give headcount a topic of its \
             own, with --kafka-counters-topic or another --namespace",
            settings.counters_topic,
            record.offset(),
            record.partition()
        )));
    };
    Ok(CounterEntry {
        partition: record.partition(),
        start,
        seconds: header(record, WINDOW_SECONDS).and_then(|seconds| seconds.parse().ok()),
        counter: counter.to_owned(),
        unique_request_count,
        complete: header(record, COMPLETE) == Some("true"),
    })
}
