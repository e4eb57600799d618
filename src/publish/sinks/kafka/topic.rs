//! A topic: how headcount makes it, and which of its settings keep records out.

use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rdkafka::admin::{AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::{Client, ClientContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::BaseRecord;
use tokio::runtime::Handle;
use tracing::{debug, info};

use super::client::{PARTITION, TIMEOUT, failure};
use super::settings::KafkaSettings;
use crate::publish::sinks::SinkError;

/// How long brokers may take to describe a topic. headcount can publish without the answer, so it does not wait longer.
const DESCRIBE_TIMEOUT: Duration = Duration::from_secs(2);
/// The most bytes that a record takes with its headers, even with the longest names.
const LARGEST_RECORD: u64 = 1024;

/// A topic that headcount publishes to.
#[derive(Clone, Copy)]
pub(super) struct Topic<'a> {
    pub(super) name: &'a str,
    content: Content,
    settings: &'a KafkaSettings,
}

/// What is in a topic.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Content {
    /// A record for each window, in one partition.
    Windows,
    /// A record for each counter of a window, in any partition.
    Counters,
}

/// The replicas of a partition that headcount uses.
struct Replicas {
    all: usize,
    in_sync: usize,
}

/// The settings of the topic. They are empty if the user may not read them, or the brokers cannot describe them. Then
/// headcount assumes that the topic takes records.
struct Described<'a> {
    topic: &'a str,
    content: Content,
    /// Bytes that headcount sends to a partition at once, at most.
    largest_batch: u64,
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
        let policy = self.setting("cleanup.policy").filter(|policy| policy.contains("compact"));
        policy.map(|policy| self.against_compaction(policy)).or_else(|| self.against_size())
    }

    fn against_compaction(&self, policy: &str) -> SinkError {
        let topic = self.topic;
        let compacted = |what: &str| {
            format!(
                "the topic {topic} has cleanup.policy={policy}, which would delete {what}: set it to delete"
            )
        };
        match self.content {
            // All records have the same key.
            Content::Windows => SinkError::Fatal(compacted("all windows but the last")),
            // They wait for at most `--counter-retention`, and keep no total back for ever.
            Content::Counters => SinkError::unavailable(compacted("all but the last window of each counter")),
        }
    }

    fn against_size(&self) -> Option<SinkError> {
        let (topic, needed) = (self.topic, self.largest_batch);
        let largest = self.number("max.message.bytes").filter(|largest| *largest < needed)?;
        let what = match self.content {
            Content::Windows => "a record",
            Content::Counters => "a batch of records",
        };
        let or_else = if largest < LARGEST_RECORD || self.content == Content::Windows {
            String::new()
        } else {
            format!(", or --kafka-option batch.size={largest}")
        };
        Some(SinkError::unavailable(format!(
            "the topic {topic} has max.message.bytes={largest}, too few for {what}: set it to {needed} or more{or_else}"
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
    /// The topic of windows.
    pub(super) fn windows(&self) -> Topic<'_> {
        Topic { name: &self.topic, content: Content::Windows, settings: self }
    }

    /// The topic of their counters.
    pub(super) fn counters(&self) -> Topic<'_> {
        Topic { name: &self.counters_topic, content: Content::Counters, settings: self }
    }
}

impl<'a> Topic<'a> {
    /// How many partitions the topic has; 0 if it does not exist. None if the user may not describe it: brokers do not say then
    /// whether it exists.
    pub(super) fn look(&self, client: &Client<impl ClientContext>) -> Result<Option<usize>, SinkError> {
        let metadata = client.fetch_metadata(Some(self.name), TIMEOUT).map_err(failure)?;
        let mut partitions = 0;
        for topic in metadata.topics() {
            match topic.error().map(RDKafkaErrorCode::from) {
                None => partitions += topic.partitions().len(),
                Some(RDKafkaErrorCode::TopicAuthorizationFailed) => return Ok(None),
                Some(_) => {}
            }
        }
        Ok(Some(partitions))
    }

    /// The same, with an error in place of none.
    pub(super) fn partitions(&self, client: &Client<impl ClientContext>) -> Result<usize, SinkError> {
        self.look(client)?.ok_or_else(|| self.hidden())
    }

    /// The error for a topic that the user may not describe.
    pub(super) fn hidden(&self) -> SinkError {
        let code = RDKafkaErrorCode::TopicAuthorizationFailed;
        SinkError::unavailable(format!(
            "the user lacks the right to describe the topic {} ({code})",
            self.name
        ))
    }

    /// Makes the topic with one partition if it does not exist. Otherwise checks that its settings let records in.
    pub(super) fn prepare(&self, client: &Client<impl ClientContext>) -> Result<(), SinkError> {
        if self.partitions(client)? > 0 {
            return self.see_that_it_takes_records();
        }
        self.make(&admin_options())?;
        info!(topic = self.name, "made a topic in Kafka");
        Ok(())
    }

    /// Asks the brokers whether headcount could make the topic, without making it.
    pub(super) fn try_to_make(&self) -> Result<(), SinkError> {
        self.make(&admin_options().validate_only(true))
    }

    fn make(&self, options: &AdminOptions) -> Result<(), SinkError> {
        // As many replicas as the brokers' default says.
        let topic = NewTopic::new(self.name, 1, TopicReplication::Fixed(-1)).set("cleanup.policy", "delete");
        let made = Handle::current().block_on(self.settings.admin()?.create_topics([&topic], options));
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
            return SinkError::unavailable(format!("the topic {} did not take a record: {error}", self.name));
        };
        debug!(topic = self.name, %error, "a record was not taken");
        named
    }

    /// A record for the topic with a time. Its key decides the partition, unless there is only one for all.
    pub(super) fn record<'b>(
        &self,
        key: &'b str,
        value: &'b [u8],
        time: SystemTime,
    ) -> BaseRecord<'b, str, [u8]>
    where
        'a: 'b,
    {
        let since_1970 = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let record =
            BaseRecord::to(self.name).key(key).payload(value).timestamp(since_1970.as_millis() as i64);
        match self.content {
            Content::Windows => record.partition(PARTITION),
            Content::Counters => record,
        }
    }

    /// Bytes that headcount sends to a partition at once, at most. A batch has one record at least.
    fn largest_batch(&self) -> u64 {
        match self.content {
            Content::Windows => LARGEST_RECORD,
            Content::Counters => self.settings.batch_bytes().max(LARGEST_RECORD),
        }
    }

    fn describe(&self) -> Result<Described<'a>, SinkError> {
        let topic = ResourceSpecifier::Topic(self.name);
        let options = AdminOptions::new().request_timeout(Some(DESCRIBE_TIMEOUT));
        let described =
            Handle::current().block_on(self.settings.admin()?.describe_configs([&topic], &options));
        let entries = described.into_iter().flatten().flatten().flat_map(|resource| resource.entries);
        let settings = entries.filter_map(|entry| Some((entry.name, entry.value?))).collect();
        Ok(Described {
            topic: self.name,
            content: self.content,
            largest_batch: self.largest_batch(),
            settings,
        })
    }

    /// Those of the partition with the fewest in sync. None if the brokers do not answer.
    fn replicas(&self, client: &Client<impl ClientContext>) -> Option<Replicas> {
        let metadata = client.fetch_metadata(Some(self.name), DESCRIBE_TIMEOUT).ok()?;
        let partitions = metadata.topics().first()?.partitions();
        let is_used = |id| self.content == Content::Counters || id == PARTITION;
        let used = partitions.iter().filter(|partition| is_used(partition.id()));
        let used = used.min_by_key(|partition| partition.isr().len())?;
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
        let settings = settings.collect();
        Described { topic: "counts", content: Content::Windows, largest_batch: LARGEST_RECORD, settings }
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
