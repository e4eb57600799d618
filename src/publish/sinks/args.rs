//! Which sinks there are, by the flags.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::publish::sinks::file::{FileSink, FileSinkArgs, UnwritableLogDir};
use crate::publish::sinks::kafka::{KafkaArgs, KafkaSettings, KafkaSink};
use crate::publish::sinks::log::LogSink;
use crate::publish::sinks::stream::{StreamArgs, StreamSink};
use crate::publish::sinks::{CountSink, Origin};
use crate::redis::Redis;
use crate::telemetry::log_progress::LogProgress;
use crate::telemetry::metrics::Metrics;

/// Where counts go.
#[derive(Debug, Clone, Args)]
pub struct SinkArgs {
    #[command(flatten)]
    file: FileSinkArgs,
    #[command(flatten)]
    kafka: KafkaArgs,
    #[command(flatten)]
    stream: StreamArgs,
}

/// Where counts go, with arguments that agree with each other.
#[derive(Debug, Clone)]
pub struct Sinks {
    /// The directory of files, if they go there.
    pub log_dir: Option<PathBuf>,
    /// How Kafka is reached, if they go there.
    pub kafka: Option<KafkaSettings>,
    /// A stream's key, if they go there.
    pub stream: Option<String>,
}

impl SinkArgs {
    /// Looks at what a single flag cannot know.
    ///
    /// # Errors
    ///
    /// A line for the user.
    pub fn validate(&self, namespace: &str, with_redis: bool) -> Result<Sinks, String> {
        let stream = self.stream.redis_stream.clone();
        if stream.is_some() && !with_redis {
            return Err("'--redis-stream <KEY>' says nothing without '--redis-url'".to_owned());
        }
        Ok(Sinks { log_dir: self.file.log_dir.clone(), kafka: self.kafka.settings(namespace)?, stream })
    }
}

impl Sinks {
    /// Whether counts go nowhere but to the log.
    pub fn is_only_the_log(&self) -> bool {
        self.log_dir.is_none() && self.kafka.is_none() && self.stream.is_none()
    }

    /// Makes them; those that are far away are connected to later.
    ///
    /// # Errors
    ///
    /// [`UnwritableLogDir`].
    pub fn open(
        self,
        origin: &Origin,
        redis: Option<&Redis>,
        retention: Duration,
        log: LogProgress,
        metrics: &Metrics,
    ) -> Result<Vec<Box<dyn CountSink>>, UnwritableLogDir> {
        let mut sinks: Vec<Box<dyn CountSink>> = Vec::new();
        if log.has_windows {
            sinks.push(Box::new(LogSink::new(origin.clone(), log)));
        }
        if let Some(dir) = &self.log_dir {
            sinks.push(Box::new(FileSink::open(dir, origin.clone())?));
        }
        if let Some(settings) = self.kafka {
            sinks.push(Box::new(KafkaSink::new(settings, origin.clone(), metrics)));
        }
        if let Some((key, redis)) = self.stream.zip(redis) {
            sinks.push(Box::new(StreamSink::new(redis, key, origin.clone(), retention)));
        }
        Ok(sinks)
    }
}
