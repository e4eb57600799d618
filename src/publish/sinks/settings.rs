//! Which sinks there are.

use std::path::PathBuf;
use std::time::Duration;

use crate::publish::sinks::file::FileSink;
use crate::publish::sinks::kafka::{KafkaSettings, KafkaSink};
use crate::publish::sinks::log::LogSink;
use crate::publish::sinks::stream::StreamSink;
use crate::publish::sinks::{CountSink, Origin, SinkError};
use crate::redis::Redis;
use crate::telemetry::logging::WindowLog;
use crate::telemetry::metrics::Metrics;

/// Where counts go.
#[derive(Debug, Clone)]
pub struct Sinks {
    /// The directory of files, if counts go there.
    pub log_dir: Option<PathBuf>,
    /// The settings of Kafka, if counts go there.
    pub kafka: Option<KafkaSettings>,
    /// The key of a Redis stream, if counts go there.
    pub stream: Option<String>,
}

impl Sinks {
    /// Whether counts go only to the log.
    pub fn is_only_the_log(&self) -> bool {
        self.log_dir.is_none() && self.kafka.is_none() && self.stream.is_none()
    }

    /// Opens the sinks. That of Kafka connects later.
    ///
    /// # Errors
    ///
    /// [`SinkError`] when files cannot be written in the directory.
    pub fn open(
        self,
        origin: &Origin,
        redis: Option<&Redis>,
        retention: Duration,
        counter_retention: Duration,
        log: Option<WindowLog>,
        metrics: &Metrics,
    ) -> Result<Vec<Box<dyn CountSink>>, SinkError> {
        let mut sinks: Vec<Box<dyn CountSink>> = Vec::new();
        if let Some(log) = log {
            sinks.push(Box::new(LogSink::new(origin.clone(), log)));
        }
        if let Some(dir) = &self.log_dir {
            sinks.push(Box::new(FileSink::open(dir, origin.clone())?));
        }
        if let Some(settings) = self.kafka {
            sinks.push(Box::new(KafkaSink::new(settings, origin.clone(), metrics)));
        }
        if let Some((key, redis)) = self.stream.zip(redis) {
            let sink = StreamSink::new(redis, key, origin.clone(), retention, counter_retention);
            sinks.push(Box::new(sink));
        }
        Ok(sinks)
    }
}
