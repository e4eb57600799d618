//! Checks of Kafka: the brokers, the topics, the user's rights to them, and the last record.

use std::io::{self, Write};

use crate::cli::backend::instance_id;
use crate::cli::findings::{Findings, Verdict};
use crate::cli::settings::Settings;
use crate::publish::sinks::SinkError;
use crate::publish::sinks::kafka::{KafkaSettings, Preflight, TopicPreflight, preflight};

/// A topic, and how findings call it.
struct Looked<'a> {
    name: &'a str,
    /// Of what it has.
    subject: &'a str,
    writing: &'a str,
    /// Only its first partition is used.
    has_one_partition: bool,
}

/// Looks at the topics as the sink would.
pub(super) async fn look(
    settings: &Settings,
    kafka: &KafkaSettings,
    findings: &mut Findings<impl Write>,
) -> io::Result<()> {
    let (origin, to_look_at) = (settings.origin(instance_id()), kafka.clone());
    let with_counters = settings.counting.may_count().is_ok();
    let look = move || preflight(&to_look_at, &origin, with_counters);
    let looked = tokio::task::spawn_blocking(look).await;
    let Preflight { windows, last, counters } =
        match looked.unwrap_or_else(|error| Err(SinkError::unavailable(error))) {
            Ok(found) => found,
            Err(error) => {
                let text = format_args!("cannot use Kafka, is --kafka-brokers right? {error}");
                return findings.add(Verdict::Fail, "kafka", text);
            }
        };
    findings.add(Verdict::Ok, "kafka", "reachable")?;
    let topic = Looked { name: &kafka.topic, subject: "topic", writing: "writing", has_one_partition: true };
    if topic.report(windows, findings)? {
        let name = &kafka.topic;
        match last {
            Ok(None) => findings.add(Verdict::Ok, "record", format_args!("{name} has no window yet")),
            Ok(Some(last)) => {
                findings.add(Verdict::Ok, "record", format_args!("{name} goes on after {last}"))
            }
            Err(error) => findings.add(Verdict::Fail, "record", error),
        }?;
    }
    let topic = Looked {
        name: &kafka.counters_topic,
        subject: "counters topic",
        writing: "counters writing",
        has_one_partition: false,
    };
    counters.map_or(Ok(()), |counters| topic.report(counters, findings).map(|_is_there| ()))
}

impl Looked<'_> {
    /// Returns whether the topic is there.
    fn report(&self, looked: TopicPreflight, findings: &mut Findings<impl Write>) -> io::Result<bool> {
        let TopicPreflight { partitions, writable } = looked;
        let &Self { name, subject, writing, has_one_partition } = self;
        let Some(partitions) = partitions else {
            writable.map_or_else(|error| findings.add(Verdict::Fail, subject, error), Ok)?;
            return Ok(false);
        };
        if partitions == 0 {
            let (verdict, what) = match writable {
                Ok(()) => (Verdict::Ok, "it will be made".to_owned()),
                Err(error) => (Verdict::Fail, format!("and nothing could be published: {error}")),
            };
            findings.add(verdict, subject, format_args!("{name} does not exist, {what}"))?;
            return Ok(false);
        }
        let (verdict, how_many) = match partitions {
            1 => (Verdict::Ok, "one partition".to_owned()),
            _ if has_one_partition => {
                (Verdict::Warn, format!("{partitions} partitions, of which only the first is used"))
            }
            _ => (Verdict::Ok, format!("{partitions} partitions")),
        };
        findings.add(verdict, subject, format_args!("{name} has {how_many}"))?;
        match writable {
            Ok(()) => findings.add(Verdict::Ok, writing, format_args!("{name} takes transactions"))?,
            Err(error) => findings.add(Verdict::Fail, writing, format_args!("{name} does not: {error}"))?,
        }
        Ok(true)
    }
}
