//! What all clients of Kafka share: their limits, and what librdkafka tells of itself in its log, errors and statistics.

use std::sync::Arc;
use std::time::Duration;

use ::metrics::{Counter, Gauge};
use parking_lot::Mutex;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::statistics::Statistics;
use tracing::{debug, error};

use crate::publish::sinks::SinkError;
use crate::telemetry::metrics::Metrics;

/// How long a call to the brokers may take.
pub(super) const TIMEOUT: Duration = Duration::from_secs(10);
/// The only partition that is used.
pub(super) const PARTITION: i32 = 0;

/// What is left to say of most errors is that trying again may help.
pub(super) fn failure(error: KafkaError) -> SinkError {
    match error.rdkafka_error_code() {
        Some(
            RDKafkaErrorCode::Fenced
            | RDKafkaErrorCode::ProducerFenced
            | RDKafkaErrorCode::InvalidProducerEpoch,
        ) => SinkError::Fenced,
        _ => SinkError::unavailable(error),
    }
}

/// Listens to a client.
#[derive(Clone)]
pub(super) struct Watcher {
    up: Gauge,
    queue_length: Gauge,
    errors: Counter,
    /// The last thing that went wrong: what a call says itself is often only that it timed out.
    last_error: Arc<Mutex<Option<String>>>,
}

impl Watcher {
    pub(super) fn new(metrics: &Metrics) -> Self {
        Self {
            up: metrics.kafka_brokers_up.clone(),
            queue_length: metrics.kafka_queue_length.clone(),
            errors: metrics.kafka_errors.clone(),
            last_error: Arc::default(),
        }
    }

    /// What went wrong before is of no interest.
    pub(super) fn begin(&self) {
        *self.last_error.lock() = None;
    }

    /// There is no client that would tell.
    pub(super) fn is_gone(&self) {
        self.up.set(0.0);
        self.queue_length.set(0.0);
    }

    /// Adds what librdkafka said meanwhile.
    pub(super) fn explain(&self, error: SinkError) -> SinkError {
        let cause = self.last_error.lock().take();
        match (error, cause) {
            (SinkError::Unavailable(error), Some(cause)) => {
                SinkError::unavailable(format!("{error} ({cause})"))
            }
            (error, _) => error,
        }
    }
}

impl ClientContext for Watcher {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        match level {
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
                error!(target: "librdkafka", facility, "{message}");
            }
            // It repeats itself for as long as brokers are away. What matters of it comes with the errors.
            _ => debug!(target: "librdkafka", facility, "{message}"),
        }
    }

    fn stats(&self, statistics: Statistics) {
        let up = statistics.brokers.values().filter(|broker| broker.nodeid >= 0 && broker.state == "UP");
        self.up.set(up.count() as f64);
        self.queue_length.set(statistics.msg_cnt as f64);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.errors.increment(1);
        debug!(target: "librdkafka", %error, reason, "an error");
        // That all brokers are down follows the reason for it.
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::AllBrokersDown) {
            *self.last_error.lock() = Some(reason.to_owned());
        }
    }
}

impl ConsumerContext for Watcher {}
