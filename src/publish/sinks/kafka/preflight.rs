//! A check of Kafka before the start. It uses Kafka as the sink would, without disturbing other instances.

use std::time::SystemTime;

use rdkafka::error::KafkaError;
use rdkafka::producer::Producer as _;

use super::client::{TIMEOUT, Watcher, failure};
use super::ledger;
use super::settings::KafkaSettings;
use super::topic::Topic;
use super::transaction;
use super::transaction::Producer;
use crate::model::window::Window;
use crate::publish::sinks::{Origin, SinkError};
use crate::telemetry::metrics::Metrics;

/// What the check found.
pub(crate) struct Preflight {
    /// The topic of windows.
    pub(crate) windows: TopicPreflight,
    /// The last published window.
    pub(crate) last: Result<Option<Window>, SinkError>,
    /// The topic of their counters; none if it was not looked at.
    pub(crate) counters: Option<TopicPreflight>,
}

/// What the check found about a topic.
pub(crate) struct TopicPreflight {
    /// How many partitions it has; 0 if it does not exist, none if the user may not know.
    pub(crate) partitions: Option<usize>,
    pub(crate) writable: Result<(), SinkError>,
}

/// Tries transactions with another id than the sink's, and aborts them, so that readers do not see them. It fails if the
/// brokers do not answer.
pub(crate) fn preflight(
    settings: &KafkaSettings,
    origin: &Origin,
    with_counters: bool,
) -> Result<Preflight, SinkError> {
    let watcher = Watcher::new(&Metrics::new());
    let (producer, id) = transaction::create(&settings.trial_producer(), watcher.clone())?;
    // The time of a window that is published late.
    let time = origin.window.window_at(SystemTime::now()).previous().start();
    let trial = Trial { producer, origin, time };
    let windows = settings.windows();
    let partitions = windows.look(trial.producer.client()).map_err(|error| watcher.explain(error))?;
    // Without a topic, this still shows whether transactions work and the advertised addresses can be reached.
    let writable = match transaction::init(&trial.producer, &id) {
        // Only another check can have fenced this one, so transactions work.
        Ok(()) | Err(SinkError::Fenced) => trial.look_at(windows, partitions),
        Err(error) => {
            // Of several missing rights, that to see the topic comes first.
            let error = partitions.map_or_else(|| windows.hidden(), |_| watcher.explain(error));
            let windows = TopicPreflight { partitions, writable: Err(error) };
            return Ok(Preflight { windows, last: Ok(None), counters: None });
        }
    };
    let windows = TopicPreflight { partitions, writable: writable.map_err(|error| watcher.explain(error)) };
    let last = if partitions.is_none_or(|partitions| partitions == 0) {
        Ok(None)
    } else {
        ledger::last(settings, origin)
    };
    let last = last.map_err(|error| watcher.explain(error));
    let mut counters = None;
    if with_counters {
        watcher.begin();
        let topic = settings.counters();
        let partitions = topic.look(trial.producer.client()).map_err(|error| watcher.explain(error))?;
        let writable = trial.look_at(topic, partitions).map_err(|error| watcher.explain(error));
        counters = Some(TopicPreflight { partitions, writable });
    }
    Ok(Preflight { windows, last, counters })
}

struct Trial<'a> {
    producer: Producer,
    origin: &'a Origin,
    time: SystemTime,
}

impl Trial<'_> {
    /// Whether a topic takes records, or could be made.
    fn look_at(&self, topic: Topic<'_>, partitions: Option<usize>) -> Result<(), SinkError> {
        match partitions {
            None => return Err(topic.hidden()),
            Some(0) => return topic.try_to_make(),
            Some(_) => {}
        }
        match self.try_to_write(topic).map_err(failure) {
            Ok(()) | Err(SinkError::Fenced) => topic.see_that_it_takes_records(),
            Err(error) => Err(topic.explain(self.producer.client(), self.time, error)),
        }
    }

    fn try_to_write(&self, topic: Topic<'_>) -> Result<(), KafkaError> {
        let Self { producer, origin, time } = self;
        producer.begin_transaction()?;
        let sent = producer.send(topic.record(&origin.namespace, b"headcount check", *time));
        let flushed = producer.flush(TIMEOUT);
        let refused = producer.client().context().undelivered();
        let refused = refused.map(|error| transaction::reason(producer).unwrap_or(error));
        producer.abort_transaction(TIMEOUT)?;
        sent.map_err(|(error, _)| error)?;
        flushed?;
        refused.map_or(Ok(()), Err)
    }
}
