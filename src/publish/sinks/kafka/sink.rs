//! The sink: one transaction a window.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, Producer};
use tokio::runtime::Handle;
use tracing::info;

use super::client::{TIMEOUT, Watcher, failure};
use super::ledger;
use super::settings::KafkaSettings;
use crate::coordination::ClosedWindow;
use crate::coordination::term::Term;
use crate::model::window::Window;
use crate::publish::record::Record;
use crate::publish::sinks::{CountSink, Origin, SinkError};
use crate::telemetry::metrics::Metrics;

/// How often the sink checks the settings of the topic while it publishes without errors.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// Publishes to a topic.
pub struct KafkaSink {
    settings: Arc<KafkaSettings>,
    origin: Arc<Origin>,
    watcher: Watcher,
    producer: Option<Arc<FutureProducer<Watcher>>>,
    /// When the sink last checked the settings of the topic, which an operator may change.
    looked: Instant,
}

impl KafkaSink {
    /// Does not connect yet.
    pub fn new(settings: KafkaSettings, origin: Origin, metrics: &Metrics) -> Self {
        let (settings, origin) = (Arc::new(settings), Arc::new(origin));
        Self { settings, origin, watcher: Watcher::new(metrics), producer: None, looked: Instant::now() }
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
        let (settings, origin) = (Arc::clone(&self.settings), Arc::clone(&self.origin));
        let (watcher, term) = (self.watcher.clone(), term.clone());
        let (producer, last) = self
            .blocking(move || {
                drop(old);
                let producer: FutureProducer<Watcher> =
                    settings.producer().create_with_context(watcher).map_err(failure)?;
                // Each time, because the topic may have been deleted, or the brokers may have come back empty.
                settings.prepare_topic(producer.client())?;
                if !term.is_valid() {
                    return Err(SinkError::unavailable("the lease has ended"));
                }
                producer.init_transactions(TIMEOUT).map_err(failure)?;
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
        let (headers, ended) = (headers(&record), window.count.window.end());
        let look = self.looked.elapsed() > LOOK_EVERY;
        if look {
            self.looked = Instant::now();
        }
        self.blocking(move || {
            if look {
                settings.see_that_it_takes_records()?;
            }
            let time = ended.min(SystemTime::now());
            let record = settings.record(&origin.namespace, &value, time).headers(headers);
            producer.begin_transaction().map_err(failure)?;
            // The commit waits for the record, and fails if the record does. So the record's own result is not needed.
            let sent = producer.send_result(record).map_err(|(error, _)| error);
            let done = sent.and_then(|_delivered| producer.commit_transaction(TIMEOUT));
            done.map_err(|error| settings.explain(producer.client(), time, failure(error)))
        })
        .await
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

fn headers(record: &Record<'_>) -> OwnedHeaders {
    let attributes = record.attributes();
    attributes.iter().fold(OwnedHeaders::new_with_capacity(attributes.len()), |headers, (key, value)| {
        headers.insert(Header { key, value: Some(value) })
    })
}
