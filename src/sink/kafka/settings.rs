//! How Kafka is reached: flags, what librdkafka makes of them, and the topic.

use std::fs;
use std::time::Duration;

use clap::Args;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::{Client, ClientContext};
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use tokio::runtime::Handle;
use tracing::info;

use super::{SinkError, TIMEOUT, failure};

/// How often librdkafka says how it is.
const STATISTICS_EVERY: Duration = Duration::from_secs(5);

/// Options that would break the promise, or that have a flag of their own.
const OURS: [&str; 10] = [
    "acks",
    "bootstrap.servers",
    "enable.auto.commit",
    "enable.idempotence",
    "enable.partition.eof",
    "group.id",
    "isolation.level",
    "metadata.broker.list",
    "request.required.acks",
    "transactional.id",
];

/// Where counts are published in Kafka.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Kafka")]
#[allow(clippy::struct_field_names, reason = "fields are named after their flags")]
pub struct KafkaArgs {
    /// Publish to Kafka too, every window exactly once: addresses of brokers, as in kafka1:9092,kafka2:9092
    #[arg(long, env = "HEADCOUNT_KAFKA_BROKERS", value_name = "HOST:PORT,…")]
    kafka_brokers: Option<String>,

    /// The topic, which has nothing else in it; it is made if it does not exist
    /// [default: <namespace>.unique-counts]
    #[arg(long, env = "HEADCOUNT_KAFKA_TOPIC", value_name = "NAME", value_parser = parse_topic)]
    kafka_topic: Option<String>,

    // Not a doc comment: help has no Markdown.
    #[arg(
        long,
        env = "HEADCOUNT_KAFKA_OPTION",
        value_name = "KEY=VALUE",
        value_delimiter = ';',
        hide_env_values = true,
        help = "Options of librdkafka, also several with semicolons in between; file:PATH is the value that \
                a file has"
    )]
    kafka_option: Vec<String>,
}

/// Settings that librdkafka takes.
#[derive(Debug, Clone)]
pub struct KafkaSettings {
    /// The topic.
    pub topic: String,
    config: ClientConfig,
}

fn parse_topic(text: &str) -> Result<String, String> {
    let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let is_name = !text.is_empty() && text.len() <= 249 && text.chars().all(valid);
    if is_name && text != "." && text != ".." {
        return Ok(text.to_owned());
    }
    Err("expected up to 249 letters, digits, dots, hyphens and underscores".to_owned())
}

impl KafkaArgs {
    /// None when nothing is to be published to Kafka.
    ///
    /// # Errors
    ///
    /// A line for the user, without the value of an option.
    pub fn settings(&self, namespace: &str) -> Result<Option<KafkaSettings>, String> {
        let Some(brokers) = &self.kafka_brokers else { return self.without_brokers() };
        if brokers.split(',').any(|broker| broker.trim().is_empty()) {
            return Err(format!(
                "invalid value '{brokers}' for '--kafka-brokers <HOST:PORT,…>': expected addresses of brokers, such \
                 as kafka1:9092,kafka2:9092"
            ));
        }
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", brokers)
            .set("client.id", "headcount")
            .set("statistics.interval.ms", STATISTICS_EVERY.as_millis().to_string())
            // A leader that died holds up the readers no longer than this, should there be no next one.
            .set("transaction.timeout.ms", TIMEOUT.as_millis().to_string())
            .set("socket.timeout.ms", TIMEOUT.as_millis().to_string())
            .set("reconnect.backoff.max.ms", "1000");
        for option in &self.kafka_option {
            let (key, value) = read_option(option)?;
            config.set(key, value);
        }
        let topic = self.kafka_topic.clone().unwrap_or_else(|| format!("{namespace}.unique-counts"));
        let settings = KafkaSettings { topic, config };
        settings.try_out(namespace)?;
        Ok(Some(settings))
    }

    fn without_brokers(&self) -> Result<Option<KafkaSettings>, String> {
        if self.kafka_topic.is_some() || !self.kafka_option.is_empty() {
            return Err(
                "'--kafka-topic' and '--kafka-option' say nothing without '--kafka-brokers'".to_owned()
            );
        }
        Ok(None)
    }
}

/// Key and value of an option that the user may set.
fn read_option(option: &str) -> Result<(&str, String), String> {
    let refused =
        |key: &str, why: &str| format!("invalid option '{key}' for '--kafka-option <KEY=VALUE>': {why}");
    let (key, value) = option
        .split_once('=')
        .map(|(key, value)| (key.trim(), value.trim()))
        .filter(|(key, _)| !key.is_empty())
        .ok_or(
            "invalid value for '--kafka-option <KEY=VALUE>': expected an option of librdkafka, such as \
                security.protocol=sasl_ssl",
        )?;
    if OURS.contains(&key) {
        return Err(refused(key, "every window exactly once needs it as it is"));
    }
    let is_tls =
        key.starts_with("ssl.") || key == "security.protocol" && value.to_lowercase().contains("ssl");
    if is_tls && !cfg!(feature = "kafka-tls") {
        return Err(refused(
            key,
            "this build has no TLS for Kafka: build it with --features kafka-tls, or use the Docker image",
        ));
    }
    let value = match value.strip_prefix("file:") {
        None => value.to_owned(),
        Some(path) => fs::read_to_string(path)
            .map_err(|error| refused(key, &format!("cannot read '{path}': {error}")))?
            .trim()
            .to_owned(),
    };
    Ok((key, value))
}

impl KafkaSettings {
    /// Lets librdkafka say what it thinks of the options.
    fn try_out(&self, namespace: &str) -> Result<(), String> {
        match self.producer(namespace).create_native_config() {
            Err(KafkaError::ClientConfig(_, reason, key, _)) => {
                // It may quote the value.
                let reason = reason.split(['"', ':']).next().unwrap_or_default().trim().to_owned();
                Err(format!(
                    "invalid option '{key}' for '--kafka-option <KEY=VALUE>': librdkafka says: {reason}"
                ))
            }
            Err(error) => Err(format!("invalid '--kafka-option <KEY=VALUE>': {error}")),
            Ok(_) => Ok(()),
        }
    }

    /// For the one who publishes a namespace's windows: there is one at a time.
    pub(super) fn producer(&self, namespace: &str) -> ClientConfig {
        let mut config = self.config.clone();
        config.set("transactional.id", format!("headcount.{namespace}"));
        config
    }

    /// For reading committed records, or to see all there is.
    pub(super) fn consumer(&self, isolation: &str) -> ClientConfig {
        let mut config = self.config.clone();
        config
            // Nothing is ever committed for it.
            .set("group.id", "headcount.ledger")
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true")
            .set("statistics.interval.ms", "0")
            .set("isolation.level", isolation);
        config
    }

    /// With one partition, if there is none.
    pub(super) fn make_topic(&self, client: &Client<impl ClientContext>) -> Result<(), SinkError> {
        let metadata = client.fetch_metadata(Some(&self.topic), TIMEOUT).map_err(failure)?;
        if metadata.topics().iter().any(|topic| topic.error().is_none() && !topic.partitions().is_empty()) {
            return Ok(());
        }
        let admin: AdminClient<_> = self.config.create().map_err(failure)?;
        // As many replicas as the brokers' default says.
        let topic = NewTopic::new(&self.topic, 1, TopicReplication::Fixed(-1));
        let options = AdminOptions::new().operation_timeout(Some(TIMEOUT)).request_timeout(Some(TIMEOUT));
        let made = Handle::current().block_on(admin.create_topics([&topic], &options)).map_err(failure)?;
        for made in made {
            match made {
                Ok(topic) => info!(topic, "made a topic in Kafka"),
                Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((topic, error)) => {
                    return Err(SinkError::unavailable(format!("cannot make the topic {topic}: {error}")));
                }
            }
        }
        Ok(())
    }
}
