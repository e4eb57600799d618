//! A transaction: the counts of a window's counters, then the window. Readers get both or none.

use std::time::{Duration, Instant, SystemTime};

use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer as _, ThreadedProducer};

use super::client::{TIMEOUT, Watcher, failure};
use super::settings::KafkaSettings;
use crate::coordination::ClosedCounters;
use crate::publish::record::{self, CounterRecord};
use crate::publish::sinks::{Origin, SinkError};

/// How long to wait for room in librdkafka's queue before the next try.
const ROOM_AFTER: Duration = Duration::from_millis(10);

/// Its thread notes the records that failed, and gets librdkafka's statistics.
pub(super) type Producer = ThreadedProducer<Watcher>;

/// A producer with these settings, and its transactional id.
pub(super) fn create(config: &ClientConfig, watcher: Watcher) -> Result<(Producer, String), SinkError> {
    let id = config.get("transactional.id").unwrap_or_default().to_owned();
    Ok((config.create_with_context(watcher).map_err(failure)?, id))
}

/// Fences all producers that had this id before.
pub(super) fn init(producer: &Producer, id: &str) -> Result<(), SinkError> {
    producer.init_transactions(TIMEOUT).map_err(|error| match error.rdkafka_error_code() {
        Some(code @ RDKafkaErrorCode::TransactionalIdAuthorizationFailed) => {
            let lacks = format!("the user lacks the right to write with the transactional id {id} ({code})");
            SinkError::unavailable(lacks)
        }
        _ => failure(error),
    })
}

/// What a transaction writes.
pub(super) struct Publication<'a> {
    pub(super) settings: &'a KafkaSettings,
    pub(super) origin: &'a Origin,
    pub(super) value: &'a [u8],
    pub(super) headers: OwnedHeaders,
    pub(super) counters: Option<&'a ClosedCounters>,
    /// Of all its records.
    pub(super) time: SystemTime,
}

impl Publication<'_> {
    /// Returns once the brokers have committed it. An error names the topic that did not take its records.
    pub(super) fn publish(self, producer: &Producer) -> Result<(), SinkError> {
        let Self { settings, origin, time, .. } = self;
        producer.begin_transaction().map_err(failure)?;
        if let Some(counters) = self.counters {
            self.send_counters(producer, counters).map_err(|error| {
                let error = reason(producer).map_or(error, failure);
                settings.counters().explain(producer.client(), time, error)
            })?;
        }
        let topic = settings.windows();
        let record = topic.record(&origin.namespace, self.value, time).headers(self.headers);
        // The commit waits for the record, and fails if the record does. So the record's own result is not needed.
        let sent = producer.send(record).map_err(|(error, _)| error);
        let done = sent.and_then(|()| producer.commit_transaction(TIMEOUT));
        done.map_err(|error| topic.explain(producer.client(), time, failure(error)))
    }

    /// Returns once the brokers have all counters. So a later error is not about their topic.
    fn send_counters(&self, producer: &Producer, counters: &ClosedCounters) -> Result<(), SinkError> {
        let deadline = Instant::now() + TIMEOUT;
        let topic = self.settings.counters();
        let headers =
            [false, true].map(|complete| headers(&record::counter_attributes(self.origin, complete)));
        for record in record::counter_records(counters) {
            let CounterRecord { counter, complete, .. } = record;
            let value = serde_json::to_vec(&record).map_err(SinkError::unavailable)?;
            let record = topic.record(counter, &value, self.time);
            let record = record.headers(headers[usize::from(complete)].clone());
            send(producer, record, deadline).map_err(failure)?;
        }
        producer.flush(deadline.saturating_duration_since(Instant::now())).map_err(failure)?;
        producer.client().context().undelivered().map_or(Ok(()), |error| Err(failure(error)))
    }
}

/// Hands a record to librdkafka. If its queue is full, this waits until the brokers have taken some records.
fn send(
    producer: &Producer,
    mut record: BaseRecord<'_, str, [u8]>,
    deadline: Instant,
) -> Result<(), KafkaError> {
    while let Err((error, refused)) = producer.send(record) {
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::QueueFull) {
            return Err(error);
        }
        if Instant::now() > deadline {
            return Err(KafkaError::Flush(RDKafkaErrorCode::OperationTimedOut));
        }
        record = refused;
        // Sends what waits, and returns early if nothing does. Only its time is up otherwise.
        let _ = producer.flush(ROOM_AFTER);
    }
    Ok(())
}

/// Why librdkafka will not commit the transaction under way: it says so to an attempt to begin another one. A record's own error
/// says only that librdkafka dropped it.
pub(super) fn reason(producer: &Producer) -> Option<KafkaError> {
    let error = producer.begin_transaction().err()?;
    (error.rdkafka_error_code() != Some(RDKafkaErrorCode::State)).then_some(error)
}

pub(super) fn headers(attributes: &[(&'static str, String)]) -> OwnedHeaders {
    attributes.iter().fold(OwnedHeaders::new_with_capacity(attributes.len()), |headers, (key, value)| {
        headers.insert(Header { key, value: Some(value) })
    })
}
