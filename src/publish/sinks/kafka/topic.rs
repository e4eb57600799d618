//! What a topic is set to, and what of that keeps our records out.

use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rdkafka::admin::{AdminOptions, ResourceSpecifier};
use rdkafka::client::{Client, ClientContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use tokio::runtime::Handle;
use tracing::debug;

use super::common::PARTITION;
use super::settings::KafkaSettings;
use crate::publish::sinks::SinkError;

/// How long brokers may take to describe a topic; it is not worth more.
const DESCRIBE_TIMEOUT: Duration = Duration::from_secs(2);
/// What a record takes at most with its headers, in bytes, as long as names are.
const LARGEST_BATCH: u64 = 1024;

/// The replicas of the partition that is used.
struct Replicas {
    all: usize,
    in_sync: usize,
}

/// What the brokers say of the settings. It is empty where they do not say: the user may not ask, or the brokers
/// do not know how to answer. The topic is believed then.
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

    /// Settings under which no record of ours is taken, or none stays.
    ///
    /// All records have the same key: compaction would leave the last one.
    fn see_that_it_takes_records(&self) -> Result<(), SinkError> {
        let topic = self.topic;
        if let Some(policy) = self.setting("cleanup.policy").filter(|policy| policy.contains("compact")) {
            return Err(SinkError::Fatal(format!(
                "the topic {topic} has cleanup.policy={policy}, which would delete all windows but the last: set it \
                 to delete"
            )));
        }
        let largest = self.number("max.message.bytes").filter(|largest| *largest < LARGEST_BATCH);
        largest.map_or(Ok(()), |largest| {
            Err(SinkError::unavailable(format!(
                "the topic {topic} has max.message.bytes={largest}, too few for a record: set it to {LARGEST_BATCH} \
                 or more"
            )))
        })
    }

    /// What kept a record out that is so old, if it is a setting. The brokers have the last word, whose clocks differ:
    /// so nobody asks before the record was refused.
    fn see_that_it_takes(&self, age: Duration) -> Result<(), SinkError> {
        self.see_that_it_takes_records()?;
        let of_writers = self.setting("message.timestamp.type") != Some("LogAppendTime");
        let oldest = self.number("message.timestamp.before.max.ms").filter(|_| of_writers);
        let age = age.as_millis();
        match oldest.filter(|oldest| u128::from(*oldest) < age) {
            None => Ok(()),
            Some(oldest) => Err(SinkError::unavailable(format!(
                "the topic {} has message.timestamp.before.max.ms={oldest}, too few for a window that ended {age} ms \
                 ago: set it to --retention or more",
                self.topic
            ))),
        }
    }

    /// What let the brokers wait with a record, if it is a lack of replicas.
    fn see_that_it_has(&self, Replicas { all, in_sync }: &Replicas) -> Result<(), SinkError> {
        let Some(needed) = self.number("min.insync.replicas") else { return Ok(()) };
        // Brokers since Kafka 3.7 ask for no more than there are. They take the record.
        let what = if needed > *all as u64 {
            format!("more than its replicas: set it to {all}, or give the topic more replicas")
        } else if needed > *in_sync as u64 {
            format!("and only {in_sync} of its {all} replicas in sync: start the brokers of the others")
        } else {
            return Ok(());
        };
        let topic = self.topic;
        Err(SinkError::unavailable(format!("the topic {topic} has min.insync.replicas={needed}, {what}")))
    }
}

impl KafkaSettings {
    /// Looks for settings under which no record of ours is taken, or none stays.
    pub(super) fn see_that_it_takes_records(&self) -> Result<(), SinkError> {
        self.describe()?.see_that_it_takes_records()
    }

    /// A record with this time was not taken. If a setting of the topic is the reason, it is named.
    pub(super) fn explain(
        &self,
        client: &Client<impl ClientContext>,
        time: SystemTime,
        error: SinkError,
    ) -> SinkError {
        let SinkError::Unavailable(error) = error else { return error };
        let age = SystemTime::now().duration_since(time).unwrap_or_default();
        let code = error.downcast_ref::<KafkaError>().and_then(KafkaError::rdkafka_error_code);
        let looked = self.describe().and_then(|described| {
            described.see_that_it_takes(age)?;
            // librdkafka does not say that it lacks replicas: it tries until the time is over.
            let replicas = match code {
                Some(RDKafkaErrorCode::OperationTimedOut) if !described.settings.is_empty() => {
                    self.replicas(client)
                }
                _ => None,
            };
            replicas.map_or(Ok(()), |replicas| described.see_that_it_has(&replicas))
        });
        match looked {
            Ok(()) => {
                SinkError::unavailable(format!("the topic {} did not take a record: {error}", self.topic))
            }
            Err(named) => {
                debug!(topic = self.topic, %error, "a record was not taken");
                named
            }
        }
    }

    fn describe(&self) -> Result<Described<'_>, SinkError> {
        let topic = ResourceSpecifier::Topic(&self.topic);
        let options = AdminOptions::new().request_timeout(Some(DESCRIBE_TIMEOUT));
        let described = Handle::current().block_on(self.admin()?.describe_configs([&topic], &options));
        let entries = described.into_iter().flatten().flatten().flat_map(|resource| resource.entries);
        let settings = entries.filter_map(|entry| Some((entry.name, entry.value?))).collect();
        Ok(Described { topic: &self.topic, settings })
    }

    /// None where the brokers do not say.
    fn replicas(&self, client: &Client<impl ClientContext>) -> Option<Replicas> {
        let metadata = client.fetch_metadata(Some(&self.topic), DESCRIBE_TIMEOUT).ok()?;
        let partitions = metadata.topics().first()?.partitions();
        let used = partitions.iter().find(|partition| partition.id() == PARTITION)?;
        Some(Replicas { all: used.replicas().len(), in_sync: used.isr().len() })
    }
}

/// A record's time as Kafka has it.
pub(super) fn millis(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described(settings: &[(&str, &str)]) -> Described<'static> {
        let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Described { topic: "counts", settings: settings.collect() }
    }

    fn said(looked: Result<(), SinkError>) -> String {
        looked.map_or_else(|error| error.to_string(), |()| String::new())
    }

    /// The broker of the other tests takes records where there are fewer replicas than asked for.
    #[test]
    fn replicas_that_are_not_there_are_named() {
        let two = described(&[("min.insync.replicas", "2")]);
        let looked = |all, in_sync| said(two.see_that_it_has(&Replicas { all, in_sync }));
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
            said(described.see_that_it_takes(Duration::from_millis(age)))
        };
        assert_eq!(looked("CreateTime", 1000), "");
        assert!(looked("CreateTime", 1001).contains("message.timestamp.before.max.ms=1000"));
        assert_eq!(looked("LogAppendTime", 1001), "");
    }
}
