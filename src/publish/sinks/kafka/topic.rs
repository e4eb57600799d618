//! The topic: how headcount makes it, and which of its settings keep records out.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use rdkafka::admin::{AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::{Client, ClientContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use tokio::runtime::Handle;
use tracing::{debug, info};

use super::client::{PARTITION, TIMEOUT, failure};
use super::settings::KafkaSettings;
use crate::publish::sinks::SinkError;

/// How long brokers may take to describe a topic. headcount can publish without the answer, so it does not wait longer.
const DESCRIBE_TIMEOUT: Duration = Duration::from_secs(2);
/// The most bytes that a record takes with its headers, even with the longest names.
const LARGEST_BATCH: u64 = 1024;

/// The replicas of the partition that headcount uses.
struct Replicas {
    all: usize,
    in_sync: usize,
}

/// The settings of the topic. They are empty if the user may not read them, or the brokers cannot describe them. Then
/// headcount assumes that the topic takes records.
struct Described<'a> {
    topic: &'a str,
    settings: HashMap<String, String>,
}

impl Described<'_> {
    fn setting(&self, name: &str) -> Option<&str> {
        self.settings.get(name).map(String::as_str)
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.setting(name)?.parse().ok()
    }

    /// The error for a setting with which the topic takes no records, or keeps none.
    fn against_records(&self) -> Option<SinkError> {
        let topic = self.topic;
        // All records have the same key: compaction would leave only the last one.
        if let Some(policy) = self.setting("cleanup.policy").filter(|policy| policy.contains("compact")) {
            return Some(SinkError::Fatal(format!(
                "the topic {topic} has cleanup.policy={policy}, which would delete all windows but the last: set it \
                 to delete"
            )));
        }
        let largest = self.number("max.message.bytes").filter(|largest| *largest < LARGEST_BATCH)?;
        Some(SinkError::unavailable(format!(
            "the topic {topic} has max.message.bytes={largest}, too few for a record: set it to {LARGEST_BATCH} or more"
        )))
    }

    /// The error for a setting that keeps out a record of this age. The brokers decide by their own clocks. So this is
    /// checked only after they refused a record.
    fn against_age(&self, age: Duration) -> Option<SinkError> {
        if self.setting("message.timestamp.type") == Some("LogAppendTime") {
            return None;
        }
        let (topic, age) = (self.topic, age.as_millis());
        let oldest =
            self.number("message.timestamp.before.max.ms").filter(|oldest| u128::from(*oldest) < age)?;
        Some(SinkError::unavailable(format!(
            "the topic {topic} has message.timestamp.before.max.ms={oldest}, too few for a window that ended {age} ms \
             ago: set it to --retention or more"
        )))
    }

    /// The error for a setting that lets the brokers wait for replicas.
    fn against_replicas(&self, Replicas { all, in_sync }: &Replicas) -> Option<SinkError> {
        let (topic, needed) = (self.topic, self.number("min.insync.replicas")?);
        // Since Kafka 3.7, brokers ask for no more replicas than there are. Those take the record.
        let what = if needed > *all as u64 {
            format!("more than its replicas: set it to {all}, or give the topic more replicas")
        } else if needed > *in_sync as u64 {
            format!("and only {in_sync} of its {all} replicas in sync: start the brokers of the others")
        } else {
            return None;
        };
        Some(SinkError::unavailable(format!("the topic {topic} has min.insync.replicas={needed}, {what}")))
    }
}

impl KafkaSettings {
    /// How many partitions the topic has; 0 if it does not exist.
    pub(super) fn partitions(&self, client: &Client<impl ClientContext>) -> Result<usize, SinkError> {
        let metadata = client.fetch_metadata(Some(&self.topic), TIMEOUT).map_err(failure)?;
        let there = metadata.topics().iter().filter(|topic| topic.error().is_none());
        Ok(there.map(|topic| topic.partitions().len()).sum())
    }

    /// Makes the topic with one partition if it does not exist. Otherwise checks that its settings let records in.
    pub(super) fn prepare_topic(&self, client: &Client<impl ClientContext>) -> Result<(), SinkError> {
        if self.partitions(client)? > 0 {
            return self.see_that_it_takes_records();
        }
        self.make_topic(&admin_options())?;
        info!(topic = self.topic, "made a topic in Kafka");
        Ok(())
    }

    /// Asks the brokers whether headcount could make the topic, without making it.
    pub(super) fn try_to_make_topic(&self) -> Result<(), SinkError> {
        self.make_topic(&admin_options().validate_only(true))
    }

    fn make_topic(&self, options: &AdminOptions) -> Result<(), SinkError> {
        // As many replicas as the brokers' default says.
        let topic =
            NewTopic::new(&self.topic, 1, TopicReplication::Fixed(-1)).set("cleanup.policy", "delete");
        let made = Handle::current().block_on(self.admin()?.create_topics([&topic], options));
        for made in made.map_err(failure)? {
            match made {
                Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((topic, error)) => {
                    return Err(SinkError::unavailable(format!("cannot make the topic {topic}: {error}")));
                }
            }
        }
        Ok(())
    }

    /// Checks for settings with which the topic takes no records, or keeps none.
    pub(super) fn see_that_it_takes_records(&self) -> Result<(), SinkError> {
        self.describe()?.against_records().map_or(Ok(()), Err)
    }

    /// Explains why the topic did not take a record with this time. If a setting is the reason, the error names it.
    pub(super) fn explain(
        &self,
        client: &Client<impl ClientContext>,
        time: SystemTime,
        error: SinkError,
    ) -> SinkError {
        let SinkError::Unavailable(error) = error else { return error };
        let age = SystemTime::now().duration_since(time).unwrap_or_default();
        let code = error.downcast_ref::<KafkaError>().and_then(KafkaError::rdkafka_error_code);
        // If replicas are missing, librdkafka does not say so: it tries until it times out.
        let lacks_replicas = |described: &Described<'_>| {
            let is_late = code == Some(RDKafkaErrorCode::OperationTimedOut);
            let replicas = (is_late && !described.settings.is_empty()).then(|| self.replicas(client));
            described.against_replicas(&replicas.flatten()?)
        };
        let named = self.describe().ok().and_then(|described| {
            let named = described.against_records().or_else(|| described.against_age(age));
            named.or_else(|| lacks_replicas(&described))
        });
        let Some(named) = named else {
            return SinkError::unavailable(format!(
                "the topic {} did not take a record: {error}",
                self.topic
            ));
        };
        debug!(topic = self.topic, %error, "a record was not taken");
        named
    }

    fn describe(&self) -> Result<Described<'_>, SinkError> {
        let topic = ResourceSpecifier::Topic(&self.topic);
        let options = AdminOptions::new().request_timeout(Some(DESCRIBE_TIMEOUT));
        let described = Handle::current().block_on(self.admin()?.describe_configs([&topic], &options));
        let entries = described.into_iter().flatten().flatten().flat_map(|resource| resource.entries);
        let settings = entries.filter_map(|entry| Some((entry.name, entry.value?))).collect();
        Ok(Described { topic: &self.topic, settings })
    }

    /// None if the brokers do not answer.
    fn replicas(&self, client: &Client<impl ClientContext>) -> Option<Replicas> {
        let metadata = client.fetch_metadata(Some(&self.topic), DESCRIBE_TIMEOUT).ok()?;
        let partitions = metadata.topics().first()?.partitions();
        let used = partitions.iter().find(|partition| partition.id() == PARTITION)?;
        Some(Replicas { all: used.replicas().len(), in_sync: used.isr().len() })
    }
}

fn admin_options() -> AdminOptions {
    AdminOptions::new().operation_timeout(Some(TIMEOUT)).request_timeout(Some(TIMEOUT))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described(settings: &[(&str, &str)]) -> Described<'static> {
        let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Described { topic: "counts", settings: settings.collect() }
    }

    fn said(named: Option<SinkError>) -> String {
        named.map(|error| error.to_string()).unwrap_or_default()
    }

    /// The broker of the other tests takes records where there are fewer replicas than asked for.
    #[test]
    fn replicas_that_are_not_there_are_named() {
        let two = described(&[("min.insync.replicas", "2")]);
        let looked = |all, in_sync| said(two.against_replicas(&Replicas { all, in_sync }));
        assert_eq!(looked(2, 2), "");
        let expected = "the topic counts has min.insync.replicas=2, more than its replicas: set it to 1,";
        assert!(looked(1, 1).starts_with(expected), "{}", looked(1, 1));
        assert!(looked(3, 1).contains("only 1 of its 3 replicas in sync"), "{}", looked(3, 1));
    }

    #[test]
    fn only_times_of_writers_can_be_too_old() {
        let oldest = ("message.timestamp.before.max.ms", "1000");
        let looked = |kind: &str, age| {
            let described = described(&[oldest, ("message.timestamp.type", kind)]);
            said(described.against_age(Duration::from_millis(age)))
        };
        assert_eq!(looked("CreateTime", 1000), "");
        assert!(looked("CreateTime", 1001).contains("message.timestamp.before.max.ms=1000"));
        assert_eq!(looked("LogAppendTime", 1001), "");
    }
}
