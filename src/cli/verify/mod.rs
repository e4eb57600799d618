//! `headcount verify`: reads the topics as a consumer does, and says whether every window is there once, with its counters.
//! With Redis it also says whether hours and days have the ids of their windows.

mod counters;
mod periods;
mod redis;

use std::collections::BTreeMap;
use std::io::{self, Write};

use crate::cli::backend::instance_id;
use crate::cli::findings::{Findings, Verdict};
use crate::cli::settings::Settings;
use crate::publish::sinks::SinkError;
use crate::publish::sinks::kafka::KafkaSettings;
use crate::publish::sinks::kafka::ledger::{self, Entry};

/// Writes what it finds to `out`; true if nothing is wrong.
pub(super) async fn run(settings: &Settings, kafka: &KafkaSettings, out: impl Write) -> io::Result<bool> {
    let mut findings = Findings::new(out);
    let entries = match read(settings, kafka).await {
        Ok(entries) => entries,
        Err(error) => {
            findings.add(Verdict::Fail, "topic", format_args!("{} cannot be read: {error}", kafka.topic))?;
            return Ok(false);
        }
    };
    let (Some(first), Some(last)) = (entries.first(), entries.last()) else {
        findings.add(Verdict::Warn, "topic", format_args!("{} has no windows", kafka.topic))?;
        return Ok(true);
    };
    let window = |start| settings.counting.window.starting_at(start);
    let span = format_args!(
        "{} has {} windows, from {} to {}",
        kafka.topic,
        entries.len(),
        window(first.start),
        window(last.start)
    );
    findings.add(Verdict::Ok, "topic", span)?;
    look_at_order(settings, &entries, &mut findings)?;
    let mut redis = None;
    if let Some(server) = &settings.redis {
        redis = redis::Comparison::begin(settings, server, &mut findings).await?;
    }
    if let Some(redis) = &mut redis {
        redis.compare(&entries, &mut findings).await?;
        redis.compare_periods(&entries, &mut findings).await?;
    }
    counters::look(settings, kafka, &entries, redis, &mut findings).await?;
    Ok(!findings.failed())
}

async fn read(settings: &Settings, kafka: &KafkaSettings) -> Result<Vec<Entry>, SinkError> {
    let (origin, kafka) = (settings.origin(instance_id()), kafka.clone());
    let read = move || {
        let mut entries = Vec::new();
        ledger::read(&kafka, &origin, |entry| entries.push(entry)).map(|()| entries)
    };
    tokio::task::spawn_blocking(read).await.unwrap_or_else(|error| Err(SinkError::unavailable(error)))
}

/// Looks for gaps, repeats, windows out of order, and incomplete ones.
fn look_at_order(
    settings: &Settings,
    entries: &[Entry],
    findings: &mut Findings<impl Write>,
) -> io::Result<()> {
    let (mut gaps, mut repeats, mut backwards) = (Vec::new(), Vec::new(), Vec::new());
    let mut seen: BTreeMap<u64, u64> = BTreeMap::new();
    for entry in entries {
        if seen.contains_key(&entry.start) {
            repeats.push(entry.start);
        } else if seen.last_key_value().is_some_and(|(newest, _)| entry.start < *newest) {
            backwards.push(entry.start);
        }
        seen.insert(entry.start, entry.seconds);
    }
    let (mut expected, mut missing) = (None, 0);
    for (start, seconds) in seen {
        // A window of another length may begin a little later than the last one of the old length ends.
        if let Some(expected) = expected.filter(|expected| start >= expected + seconds) {
            missing += (start - expected) / seconds.max(1);
            gaps.push(expected);
        }
        expected = Some(start + seconds);
    }
    let incomplete: Vec<_> =
        entries.iter().filter(|entry| !entry.complete).map(|entry| entry.start).collect();
    let length = settings.counting.window;
    findings.windows(Verdict::Fail, "gaps", length, &gaps)?;
    if missing > 0 {
        findings.add(Verdict::Fail, "missing", format_args!("{missing} windows"))?;
    }
    findings.windows(Verdict::Fail, "repeats", length, &repeats)?;
    findings.windows(Verdict::Fail, "out of order", length, &backwards)?;
    findings.windows(Verdict::Warn, "incomplete", length, &incomplete)
}
