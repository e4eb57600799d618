//! What all that talks to Kafka has in common.

use std::time::Duration;

use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use crate::publish::sinks::SinkError;

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
