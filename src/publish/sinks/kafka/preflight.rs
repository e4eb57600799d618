//! A check of Kafka before the start. It uses Kafka as the sink would, without disturbing other instances.

use std::time::SystemTime;

use rdkafka::producer::{FutureProducer, Producer};
use tokio::runtime::Handle;

use super::client::{TIMEOUT, Watcher, failure};
use super::ledger;
use super::settings::KafkaSettings;
use crate::model::window::Window;
use crate::publish::sinks::{Origin, SinkError};
use crate::telemetry::metrics::Metrics;

/// What the check found.
pub(crate) struct Preflight {
    /// How many partitions the topic has; 0 if it does not exist.
    pub(crate) partitions: usize,
    /// The last published window.
    pub(crate) last: Result<Option<Window>, SinkError>,
    pub(crate) writable: Result<(), SinkError>,
}

/// Tries a transaction with another id than the sink's, and aborts it, so that readers do not see it. It fails if the
/// brokers do not answer.
pub(crate) fn preflight(settings: &KafkaSettings, origin: &Origin) -> Result<Preflight, SinkError> {
    let watcher = Watcher::new(&Metrics::new());
    let config = settings.trial_producer();
    let producer: FutureProducer<Watcher> = config.create_with_context(watcher.clone()).map_err(failure)?;
    let partitions = settings.partitions(producer.client()).map_err(|error| watcher.explain(error))?;
    if partitions == 0 {
        // Without a topic, this still shows whether transactions work and the advertised addresses can be reached.
        let can_begin = producer.init_transactions(TIMEOUT).map_err(failure);
        let writable = match can_begin {
            Ok(()) | Err(SinkError::Fenced) => settings.try_to_make_topic(),
            Err(error) => Err(error),
        };
        let writable = writable.map_err(|error| watcher.explain(error));
        return Ok(Preflight { partitions, last: Ok(None), writable });
    }
    // The time of a window that is published late.
    let time = origin.window.window_at(SystemTime::now()).previous().start();
    let writable = match try_to_write(settings, origin, &producer, time) {
        // Only another check can have fenced this one, so transactions work.
        Ok(()) | Err(SinkError::Fenced) => settings.see_that_it_takes_records(),
        Err(error) => Err(watcher.explain(settings.explain(producer.client(), time, error))),
    };
    let last = ledger::last(settings, origin).map_err(|error| watcher.explain(error));
    Ok(Preflight { partitions, last, writable })
}

fn try_to_write(
    settings: &KafkaSettings,
    origin: &Origin,
    producer: &FutureProducer<Watcher>,
    time: SystemTime,
) -> Result<(), SinkError> {
    producer.init_transactions(TIMEOUT).map_err(failure)?;
    producer.begin_transaction().map_err(failure)?;
    let record = settings.record(&origin.namespace, b"headcount check", time);
    let sent = producer.send_result(record).map_err(|(error, _)| failure(error));
    let flushed = producer.flush(TIMEOUT).map_err(failure);
    producer.abort_transaction(TIMEOUT).map_err(failure)?;
    let delivered = sent?;
    flushed?;
    // After the flush the result is there, so this does not wait.
    match Handle::current().block_on(delivered) {
        Ok(Ok(_)) => Ok(()),
        Ok(Err((error, _))) => Err(failure(error)),
        Err(error) => Err(SinkError::unavailable(error)),
    }
}
