//! Checks of Kafka: the brokers, the topic, its rights, and its last record.

use std::io::{self, Write};

use crate::cli::backend::instance_id;
use crate::cli::findings::{Findings, Verdict};
use crate::cli::settings::Settings;
use crate::publish::sinks::SinkError;
use crate::publish::sinks::kafka::{KafkaSettings, Preflight, preflight};

/// Looks at the topic as the sink would.
pub(super) async fn look(
    settings: &Settings,
    kafka: &KafkaSettings,
    findings: &mut Findings<impl Write>,
) -> io::Result<()> {
    let (origin, to_look_at) = (settings.origin(instance_id()), kafka.clone());
    let looked = tokio::task::spawn_blocking(move || preflight(&to_look_at, &origin)).await;
    let Preflight { partitions, last, writable } =
        match looked.unwrap_or_else(|error| Err(SinkError::unavailable(error))) {
            Ok(found) => found,
            Err(error) => {
                let text = format_args!("cannot use Kafka, is --kafka-brokers right? {error}");
                return findings.add(Verdict::Fail, "kafka", text);
            }
        };
    findings.add(Verdict::Ok, "kafka", "reachable")?;
    let topic = &kafka.topic;
    match partitions {
        0 => {
            return match writable {
                Ok(()) => findings.add(
                    Verdict::Ok,
                    "topic",
                    format_args!("{topic} does not exist, it will be made"),
                ),
                Err(error) => findings.add(
                    Verdict::Fail,
                    "topic",
                    format_args!("{topic} does not exist, and nothing could be published: {error}"),
                ),
            };
        }
        1 => findings.add(Verdict::Ok, "topic", format_args!("{topic} has one partition"))?,
        _ => {
            let text = format_args!("{topic} has {partitions} partitions, of which only the first is used");
            findings.add(Verdict::Warn, "topic", text)?;
        }
    }
    match writable {
        Ok(()) => findings.add(Verdict::Ok, "writing", format_args!("{topic} takes transactions"))?,
        Err(error) => findings.add(Verdict::Fail, "writing", format_args!("{topic} does not: {error}"))?,
    }
    match last {
        Ok(None) => findings.add(Verdict::Ok, "record", format_args!("{topic} has no window yet")),
        Ok(Some(last)) => findings.add(Verdict::Ok, "record", format_args!("{topic} goes on after {last}")),
        Err(error) => findings.add(Verdict::Fail, "record", error),
    }
}
