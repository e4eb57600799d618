//! What all clients of Kafka share: their limits, and a listener to librdkafka's log, errors and statistics.

use std::sync::Arc;
use std::time::Duration;

use ::metrics::{Counter, Gauge};
use parking_lot::Mutex;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{DeliveryResult, ProducerContext};
use rdkafka::statistics::Statistics;
use tracing::{debug, error};

use crate::publish::sinks::SinkError;
use crate::telemetry::metrics::Metrics;

/// How long a call to the brokers may take.
pub(super) const TIMEOUT: Duration = Duration::from_secs(10);
/// The only partition of windows. Counters may be in several.
pub(super) const PARTITION: i32 = 0;

/// librdkafka needs a group to read, but headcount commits no offsets for it.
pub(super) const GROUP: &str = "headcount.ledger";

/// What may help a client without TLS.
const WANTS_TLS: &str = "; if the brokers want TLS, set --kafka-option security.protocol=ssl or sasl_ssl";

/// After most errors another try may help, so only those that fence the producer are told apart.
pub(super) fn failure(error: KafkaError) -> SinkError {
    match error.rdkafka_error_code() {
        Some(
            RDKafkaErrorCode::Fenced
            | RDKafkaErrorCode::ProducerFenced
            | RDKafkaErrorCode::InvalidProducerEpoch,
        ) => SinkError::Fenced,
        Some(code @ RDKafkaErrorCode::GroupAuthorizationFailed) => {
            SinkError::unavailable(format!("the user lacks the right to read in the group {GROUP} ({code})"))
        }
        _ => SinkError::unavailable(error),
    }
}

/// Listens to librdkafka.
#[derive(Clone)]
pub(super) struct Watcher {
    up: Gauge,
    queue_length: Gauge,
    errors: Counter,
    /// The last error that librdkafka reported. The error of a call itself often says only that it timed out.
    last_error: Arc<Mutex<Option<String>>>,
    /// The first error of a record. There may be 100 000 records in a transaction, so none has a result of its own.
    undelivered: Arc<Mutex<Option<KafkaError>>>,
}

impl Watcher {
    pub(super) fn new(metrics: &Metrics) -> Self {
        Self {
            up: metrics.kafka_brokers_up.clone(),
            queue_length: metrics.kafka_queue_length.clone(),
            errors: metrics.kafka_errors.clone(),
            last_error: Arc::default(),
            undelivered: Arc::default(),
        }
    }

    /// A call begins: earlier errors do not explain its failure.
    pub(super) fn begin(&self) {
        *self.last_error.lock() = None;
    }

    /// For another producer: it keeps only the errors of its own records.
    pub(super) fn another(&self) -> Self {
        Self { undelivered: Arc::default(), ..self.clone() }
    }

    /// The first error of a record since the last time.
    pub(super) fn undelivered(&self) -> Option<KafkaError> {
        self.undelivered.lock().take()
    }

    /// There is no client any more, so no statistics will come.
    pub(super) fn is_gone(&self) {
        self.up.set(0.0);
        self.queue_length.set(0.0);
    }

    /// Adds the last error that librdkafka reported to the error of a call.
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
        // Why a broker closes a connection at once is only logged. One that wants TLS does so at the first request.
        if facility == "FAIL" {
            let reason = message.split_once("]: ").map_or(message, |(_thread, reason)| reason);
            let hint = if reason.contains("in state APIVERSION_QUERY") { WANTS_TLS } else { "" };
            self.last_error.lock().get_or_insert_with(|| format!("{reason}{hint}"));
        }
        match level {
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
                error!(target: "librdkafka", facility, "{message}");
            }
            // librdkafka repeats these lines while brokers are away. `error` gets the important ones too.
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
        // librdkafka reports that all brokers are down after the reason for it: the reason says more.
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::AllBrokersDown) {
            *self.last_error.lock() = Some(reason.to_owned());
        }
    }
}

impl ConsumerContext for Watcher {}

impl ProducerContext for Watcher {
    type DeliveryOpaque = ();

    /// Called only for records that failed.
    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, _)) = result {
            self.undelivered.lock().get_or_insert_with(|| error.clone());
        }
    }
}
