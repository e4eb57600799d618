//! The flags that say when windows are closed, and where their counts go.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::values;
use crate::model::timing::SHORTEST_LEASE;
use crate::publish::sinks::kafka::KafkaSettings;

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Publishing")]
pub(super) struct PublishingFlags {
    /// How long an instance leads without renewing its lease. When the leader dies, another instance takes
    /// over after this time
    #[arg(
        long, env = "HEADCOUNT_LEASE_TTL", value_name = "DURATION", default_value = "5s",
        value_parser = lease_ttl
    )]
    pub(super) lease_ttl: Duration,

    /// How long a window waits, after its end, for an instance that lives but makes no progress with it.
    /// Then the window is published without the rest of it, as incomplete
    #[arg(
        long, env = "HEADCOUNT_CLOSE_TIMEOUT", value_name = "DURATION", default_value = "10s",
        value_parser = values::positive_duration
    )]
    pub(super) close_timeout: Duration,

    /// Also write every closed window to a file in this directory, one JSON object a line, a new
    /// file every day (UTC)
    #[arg(long, env = "HEADCOUNT_LOG_DIR", value_name = "DIR")]
    pub(super) log_dir: Option<PathBuf>,
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Kafka")]
#[allow(clippy::struct_field_names, reason = "fields are named after their flags")]
pub(super) struct KafkaFlags {
    /// Publish to Kafka too, every window exactly once: addresses of brokers, as in kafka1:9092,kafka2:9092
    #[arg(long, env = "HEADCOUNT_KAFKA_BROKERS", value_name = "HOST:PORT,…")]
    kafka_brokers: Option<String>,

    // Not a doc comment: help has no Markdown.
    #[arg(
        long,
        env = "HEADCOUNT_KAFKA_TOPIC",
        value_name = "NAME",
        value_parser = topic,
        help = "The topic. Nothing else may be in it; headcount makes it if it does not exist [default: \
                <namespace>.unique-counts]"
    )]
    kafka_topic: Option<String>,

    // Not a doc comment: help has no Markdown.
    #[arg(
        long,
        env = "HEADCOUNT_KAFKA_COUNTERS_TOPIC",
        value_name = "NAME",
        value_parser = topic,
        help = "The topic of counters. Nothing else may be in it; headcount makes it when the first window has \
                counters [default: <namespace>.counter-counts]"
    )]
    kafka_counters_topic: Option<String>,

    // Not a doc comment: help has no Markdown.
    #[arg(
        long,
        env = "HEADCOUNT_KAFKA_OPTION",
        value_name = "KEY=VALUE",
        value_delimiter = ';',
        hide_env_values = true,
        help = "An option of librdkafka; separate several by semicolons. With file:PATH the value is read from \
                that file"
    )]
    kafka_option: Vec<String>,
}

impl KafkaFlags {
    /// None when nothing goes to Kafka.
    pub(super) fn settings(self, namespace: &str) -> Result<Option<KafkaSettings>, String> {
        let Some(brokers) = &self.kafka_brokers else {
            let topics = [&self.kafka_topic, &self.kafka_counters_topic];
            if topics.iter().all(|topic| topic.is_none()) && self.kafka_option.is_empty() {
                return Ok(None);
            }
            return Err(
                "'--kafka-topic', '--kafka-counters-topic' and '--kafka-option' require '--kafka-brokers'"
                    .to_owned(),
            );
        };
        let topic = self.kafka_topic.unwrap_or_else(|| format!("{namespace}.unique-counts"));
        let counters = self.kafka_counters_topic.unwrap_or_else(|| format!("{namespace}.counter-counts"));
        KafkaSettings::new(brokers, topic, counters, &self.kafka_option).map(Some)
    }
}

fn lease_ttl(text: &str) -> Result<Duration, String> {
    match values::duration(text) {
        Ok(ttl) if ttl >= SHORTEST_LEASE => Ok(ttl),
        _ => Err("expected a duration from 1s to 24h, such as 5s".to_owned()),
    }
}

fn topic(text: &str) -> Result<String, String> {
    let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let is_name = !text.is_empty() && text.len() <= 249 && text.chars().all(valid);
    if is_name && text != "." && text != ".." {
        return Ok(text.to_owned());
    }
    Err("expected up to 249 letters, digits, dots, hyphens and underscores".to_owned())
}
