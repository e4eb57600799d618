//! The settings of Kafka: brokers, topics, and options of librdkafka.

use std::time::Duration;

use rdkafka::admin::AdminClient;
use rdkafka::client::DefaultClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::KafkaError;
use rdkafka::producer::BaseProducer;
use tracing::warn;

use super::client::{GROUP, TIMEOUT, failure};
use crate::platform::secret;
use crate::publish::sinks::SinkError;

/// How often librdkafka sends its statistics.
const STATISTICS_EVERY: Duration = Duration::from_secs(5);

/// Records that wait in librdkafka for the brokers, at most. A window may have more counters: their records follow when there
/// is room. Each takes about a kilobyte there.
const QUEUED_RECORDS: u32 = 50_000;
/// The same in kilobytes of values. That is more than so many records have.
const QUEUED_KILOBYTES: u32 = 64 * 1024;
/// Bytes that librdkafka sends to a partition at once, without `--kafka-option batch.size`.
const BATCH_BYTES: u64 = 1_000_000;

/// Options that could break the promise of each window exactly once, or that have a flag of their own.
const OURS: [&str; 18] = [
    "acks",
    "allow.auto.create.topics",
    "auto.offset.reset",
    "bootstrap.servers",
    // With it, the ledger would read from a replica that may lag behind.
    "client.rack",
    "delivery.report.only.error",
    "enable.auto.commit",
    "enable.idempotence",
    "enable.partition.eof",
    "group.id",
    "isolation.level",
    "metadata.broker.list",
    // It decides in which partition a counter is.
    "partitioner",
    "queue.buffering.max.kbytes",
    "queue.buffering.max.messages",
    "request.required.acks",
    "test.mock.num.brokers",
    "transactional.id",
];

/// Settings that librdkafka has accepted.
#[derive(Debug, Clone)]
pub struct KafkaSettings {
    /// The topic of windows.
    pub topic: String,
    /// The topic of their counters.
    pub counters_topic: String,
    config: ClientConfig,
    /// Options whose values are in files, as `file:PATH`.
    files: Vec<(String, String)>,
}

/// Whether this is a host, with a port or without. librdkafka would only log a broker that it cannot parse, and ignore it.
fn is_broker(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    let in_brackets = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let is_host = match in_brackets {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => host.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_')),
    };
    !host.is_empty() && is_host && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
}

fn refused(key: &str, why: &str) -> String {
    format!("invalid option '{key}' for '--kafka-option <KEY=VALUE>': {why}")
}

/// Key and value of an option that the user may set. `has_tls` says whether this build has TLS for Kafka.
fn read_option(option: &str, has_tls: bool) -> Result<(&str, &str), String> {
    let (key, value) = option
        .split_once('=')
        .map(|(key, value)| (key.trim(), value.trim()))
        .filter(|(key, _)| !key.is_empty())
        .ok_or(
            "invalid value for '--kafka-option <KEY=VALUE>': expected an option of librdkafka, such as \
                security.protocol=sasl_ssl",
        )?;
    // librdkafka also takes options of topics with this prefix.
    if OURS.contains(&key.strip_prefix("topic.").unwrap_or(key)) {
        return Err(refused(key, "headcount sets it, so that every window is published exactly once"));
    }
    let is_tls =
        key.starts_with("ssl.") || key == "security.protocol" && value.to_lowercase().contains("ssl");
    if is_tls && !has_tls {
        return Err(refused(
            key,
            "this build has no TLS for Kafka: build it with --features kafka-tls, or use the Docker image",
        ));
    }
    Ok((key, value))
}

impl KafkaSettings {
    /// Checks brokers and options, as far as that can be done without asking a broker.
    ///
    /// # Errors
    ///
    /// A line for the user, without the value of an option.
    pub fn new(
        brokers: &str,
        topic: String,
        counters_topic: String,
        options: &[String],
    ) -> Result<Self, String> {
        if topic == counters_topic {
            return Err(format!(
                "'--kafka-topic <NAME>' and '--kafka-counters-topic <NAME>' are both '{topic}': they must differ"
            ));
        }
        if !brokers.split(',').all(|broker| is_broker(broker.trim())) {
            // The error does not quote a value that may contain a password.
            let value = if brokers.contains(['@', '/']) { String::new() } else { format!(" '{brokers}'") };
            return Err(format!(
                "invalid value{value} for '--kafka-brokers <HOST:PORT,…>': expected addresses of brokers and nothing \
                 else, such as kafka1:9092,kafka2:9092"
            ));
        }
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", brokers)
            .set("client.id", "headcount")
            .set("statistics.interval.ms", STATISTICS_EVERY.as_millis().to_string())
            .set("batch.size", BATCH_BYTES.to_string())
            // As long as all calls of one transaction: the counters, the window, the commit. If a leader dies and no
            // other follows, readers wait for so long.
            .set("transaction.timeout.ms", (3 * TIMEOUT).as_millis().to_string())
            .set("allow.auto.create.topics", "false")
            .set("socket.timeout.ms", TIMEOUT.as_millis().to_string())
            .set("reconnect.backoff.max.ms", "1000");
        let mut files = Vec::new();
        for option in options {
            let (key, given) = read_option(option, cfg!(feature = "kafka-tls"))?;
            let value = secret::resolve(given)
                .map_err(|(path, error)| refused(key, &format!("cannot read '{path}': {error}")))?;
            config.set(key, value);
            if given.starts_with(secret::FILE) {
                files.push((key.to_owned(), given.to_owned()));
            }
        }
        let settings = Self { topic, counters_topic, config, files };
        settings.try_out()?;
        Ok(settings)
    }

    /// Lets librdkafka check the options, each and together.
    fn try_out(&self) -> Result<(), String> {
        let mut config = self.producer();
        config.set_log_level(RDKafkaLogLevel::Emerg);
        match config.create::<BaseProducer>() {
            Err(KafkaError::ClientConfig(_, reason, key, _)) => {
                // The rest of the reason may quote the value, which may be a secret.
                let reason = reason.split(['"', ':']).next().unwrap_or_default().trim().to_owned();
                Err(format!(
                    "invalid option '{key}' for '--kafka-option <KEY=VALUE>': librdkafka says: {reason}"
                ))
            }
            Err(error) => Err(format!("'--kafka-option <KEY=VALUE>' cannot be used: {error}")),
            Ok(_) => Ok(()),
        }
    }

    /// Reads values from their files again, because a password may have changed. If a file cannot be read, its option keeps
    /// the value from the start.
    fn config(&self) -> ClientConfig {
        let mut config = self.config.clone();
        // By default librdkafka keeps the lines about connections that fail to itself.
        config.set_log_level(RDKafkaLogLevel::Info);
        for (key, given) in &self.files {
            match secret::resolve(given) {
                Ok(value) => _ = config.set(key, value),
                Err((path, error)) => warn!(key, path, %error, "an option of Kafka keeps its first value"),
            }
        }
        config
    }

    /// For the producer that publishes to the topic. It fences all that came before, so there is one at a time.
    pub(super) fn producer(&self) -> ClientConfig {
        self.transactional("headcount")
    }

    /// For a check, which must not fence the producer of an instance.
    pub(super) fn trial_producer(&self) -> ClientConfig {
        self.transactional("headcount-check")
    }

    fn transactional(&self, prefix: &str) -> ClientConfig {
        let mut config = self.config();
        config
            .set("transactional.id", format!("{prefix}.{}", self.topic))
            // As the Java client: a counter is always in the same partition.
            .set("partitioner", "murmur2")
            .set("queue.buffering.max.messages", QUEUED_RECORDS.to_string())
            .set("queue.buffering.max.kbytes", QUEUED_KILOBYTES.to_string())
            .set("delivery.report.only.error", "true");
        config
    }

    /// Bytes that librdkafka sends to a partition at once.
    pub(super) fn batch_bytes(&self) -> u64 {
        self.config.get("batch.size").and_then(|bytes| bytes.parse().ok()).unwrap_or(BATCH_BYTES)
    }

    /// For a reader: of committed records, or of all records.
    pub(super) fn consumer(&self, isolation: &str) -> ClientConfig {
        let mut config = self.config();
        config
            .set("group.id", GROUP)
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true")
            .set("auto.offset.reset", "error")
            .set("statistics.interval.ms", "0")
            .set("isolation.level", isolation);
        config
    }

    pub(super) fn admin(&self) -> Result<AdminClient<DefaultClientContext>, SinkError> {
        self.config().create().map_err(failure)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn new(options: &[String]) -> Result<KafkaSettings, String> {
        KafkaSettings::new("127.0.0.1:9092", "topic".to_owned(), "counters".to_owned(), options)
    }

    /// librdkafka takes options of topics with a prefix, too.
    #[test]
    fn options_that_headcount_needs_are_refused() {
        for key in OURS.iter().flat_map(|key| [(*key).to_owned(), format!("topic.{key}")]) {
            let error = new(&[format!("{key}=1")]).unwrap_err();
            assert!(error.contains(&key) && error.contains("exactly once"), "{error}");
        }
    }

    #[test]
    fn tls_needs_a_build_that_has_it() {
        for option in ["security.protocol=SASL_SSL", "ssl.ca.location=/etc/kafka/ca.pem"] {
            assert!(read_option(option, true).is_ok(), "{option}");
            let error = read_option(option, false).unwrap_err();
            assert!(error.contains("--kafka-option") && error.contains("--features kafka-tls"), "{error}");
        }
        assert!(read_option("security.protocol=sasl_plaintext", false).is_ok());
    }

    /// Each new client gets the value that is in the file by then. Without the file it gets the value from the start.
    #[test]
    fn values_in_files_are_read_again() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "first\n").unwrap();
        let option = format!("sasl.password=file:{}", file.path().display());
        let settings = new(&[option]).unwrap();
        let password = || settings.producer().get("sasl.password").map(str::to_owned);
        assert_eq!(password().as_deref(), Some("first"));
        fs::write(file.path(), "second\n").unwrap();
        assert_eq!(password().as_deref(), Some("second"));
        fs::remove_file(file.path()).unwrap();
        assert_eq!(password().as_deref(), Some("first"), "as it was at the start");
    }
}
