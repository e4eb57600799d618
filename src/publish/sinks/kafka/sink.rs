//! The sink: one transaction a window.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use rdkafka::producer::Producer as _;
use tokio::runtime::Handle;
use tracing::info;

use super::client::Watcher;
use super::ledger;
use super::settings::KafkaSettings;
use super::transaction;
use super::transaction::{Producer, Publication, headers};
use crate::coordination::ClosedWindow;
use crate::coordination::term::Term;
use crate::model::window::Window;
use crate::publish::record::Record;
use crate::publish::sinks::{CountSink, Origin, SinkError};
use crate::telemetry::metrics::Metrics;

/// How often the sink checks the settings of its topics while it publishes without errors.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// Publishes windows to a topic, and their counters to another one.
pub struct KafkaSink {
    settings: Arc<KafkaSettings>,
    origin: Arc<Origin>,
    watcher: Watcher,
    producer: Option<Arc<Producer>>,
    /// When the sink last checked the settings of the topics, which an operator may change.
    looked: Instant,
    /// The topic of counters is there. Where nobody uses counters, it is not needed.
    counters_are_prepared: bool,
}

impl KafkaSink {
    /// Does not connect yet.
    pub fn new(settings: KafkaSettings, origin: Origin, metrics: &Metrics) -> Self {
        let (settings, origin) = (Arc::new(settings), Arc::new(origin));
        let (watcher, looked) = (Watcher::new(metrics), Instant::now());
        Self { settings, origin, watcher, producer: None, looked, counters_are_prepared: false }
    }

    /// Runs calls of librdkafka, which block, on a thread of their own.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, SinkError> + Send + 'static,
    ) -> Result<T, SinkError> {
        self.watcher.begin();
        let done = tokio::task::spawn_blocking(work).await.map_err(SinkError::unavailable)?;
        done.map_err(|error| self.watcher.explain(error))
    }
}

#[async_trait]
impl CountSink for KafkaSink {
    fn name(&self) -> &'static str {
        "kafka"
    }

    async fn resume(&mut self, term: &Term) -> Result<Option<Window>, SinkError> {
        let old = self.producer.take();
        self.counters_are_prepared = false;
        let (settings, origin) = (Arc::clone(&self.settings), Arc::clone(&self.origin));
        let (watcher, term) = (self.watcher.another(), term.clone());
        let (producer, last) = self
            .blocking(move || {
                drop(old);
                let (producer, id) = transaction::create(&settings.producer(), watcher)?;
                // Each time, because the topic may have been deleted, or the brokers may have come back empty.
                settings.windows().prepare(producer.client())?;
                if !term.is_valid() {
                    return Err(SinkError::unavailable("the lease has ended"));
                }
                transaction::init(&producer, &id)?;
                let last = ledger::last(&settings, &origin)?;
                Ok((producer, last))
            })
            .await
            .inspect_err(|_| self.watcher.is_gone())?;
        self.looked = Instant::now();
        self.producer = Some(Arc::new(producer));
        let after = last.map(tracing::field::display);
        info!(topic = self.settings.topic, after, "publishing to Kafka");
        Ok(last)
    }

    async fn publish(&mut self, window: &ClosedWindow, term: &Term) -> Result<(), SinkError> {
        let Some(producer) = self.producer.clone() else {
            return Err(SinkError::unavailable("no connection to Kafka"));
        };
        let (settings, origin) = (Arc::clone(&self.settings), Arc::clone(&self.origin));
        let record = Record::new(window, &self.origin, term);
        let value = serde_json::to_vec(&record.value()).map_err(SinkError::unavailable)?;
        let (headers, ended) = (headers(&record.attributes()), window.count.window.end());
        let counters = window.counters.counts().cloned();
        let look = self.looked.elapsed() > LOOK_EVERY;
        if look {
            self.looked = Instant::now();
        }
        let (has_counters, are_prepared) = (counters.is_some(), self.counters_are_prepared);
        self.blocking(move || {
            if look {
                settings.windows().see_that_it_takes_records()?;
            }
            if has_counters && !are_prepared {
                settings.counters().prepare(producer.client())?;
            } else if has_counters && look {
                settings.counters().see_that_it_takes_records()?;
            }
            let time = ended.min(SystemTime::now());
            let (settings, origin, counters) = (&*settings, &*origin, counters.as_deref());
            let publication = Publication { settings, origin, value: &value, headers, counters, time };
            publication.publish(&producer)
        })
        .await?;
        self.counters_are_prepared |= has_counters;
        Ok(())
    }
}

/// Closing a client may take a while.
impl Drop for KafkaSink {
    fn drop(&mut self) {
        if let (Some(producer), Ok(runtime)) = (self.producer.take(), Handle::try_current()) {
            runtime.spawn_blocking(move || drop(producer));
        }
    }
}
