//! `headcount verify`: reads the topic as a consumer does, and says whether every window is in it once.

use std::collections::BTreeMap;
use std::io::{self, Write};

use ::redis::Pipeline;
use serde::Deserialize;

use crate::cli::backend::{Coordination, instance_id};
use crate::cli::findings::{Findings, Verdict};
use crate::cli::settings::Settings;
use crate::coordination::HeartbeatError;
use crate::platform::unavailable::Unavailable;
use crate::publish::sinks::SinkError;
use crate::publish::sinks::kafka::KafkaSettings;
use crate::publish::sinks::kafka::ledger::{self, Entry};
use crate::redis::keys::Keys;
use crate::redis::{self, Call, Redis, Text, Texts};
use crate::store::redis::{count_commands, sum_counts};
use crate::telemetry::metrics::Metrics;

/// Windows that a line names, at most.
const NAMED: usize = 5;

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
    if let Some(redis) = &settings.redis {
        compare(settings, redis, &entries, &mut findings).await?;
    }
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
    say(settings, findings, Verdict::Fail, "gaps", &gaps)?;
    if missing > 0 {
        findings.add(Verdict::Fail, "missing", format_args!("{missing} windows"))?;
    }
    say(settings, findings, Verdict::Fail, "repeats", &repeats)?;
    say(settings, findings, Verdict::Fail, "out of order", &backwards)?;
    say(settings, findings, Verdict::Warn, "incomplete", &incomplete)
}

fn say(
    settings: &Settings,
    findings: &mut Findings<impl Write>,
    verdict: Verdict,
    what: &str,
    starts: &[u64],
) -> io::Result<()> {
    if starts.is_empty() {
        return findings.add(Verdict::Ok, what, "none");
    }
    let named =
        starts.iter().take(NAMED).map(|start| settings.counting.window.starting_at(*start).to_string());
    let more = if starts.len() > NAMED { ", …" } else { "" };
    let named = named.collect::<Vec<_>>().join(", ");
    findings.add(verdict, what, format_args!("{}: {named}{more}", starts.len()))
}

/// Compares the counts of complete windows whose ids Redis still has. An incomplete window may differ: ids that came
/// after its close are in Redis too.
async fn compare(
    settings: &Settings,
    redis: &redis::Settings,
    entries: &[Entry],
    findings: &mut Findings<impl Write>,
) -> io::Result<()> {
    let redis = match redis.connect(&Metrics::new()).await {
        Ok(redis) => redis,
        Err(error) => return findings.add(Verdict::Fail, "counts", error),
    };
    if let Some(error) = other_layout(settings, &redis).await {
        return findings.add(Verdict::Fail, "settings", error);
    }
    let keys = Keys::new(&settings.namespace);
    let length = settings.counting.window;
    let mut ask = ::redis::cmd("HGET");
    ask.arg(keys.published()).arg("last");
    let published: Result<Option<u64>, Unavailable> =
        redis.run(Call::Ask, async |connection| ask.query_async(connection).await).await;
    let last = entries.last().map(|last| last.start);
    match published {
        Err(error) => return findings.add(Verdict::Fail, "published", error),
        Ok(Some(published)) if last < Some(published) => {
            let text = format_args!(
                "Redis says that {} is published, but the topic ends earlier",
                length.starting_at(published)
            );
            findings.add(Verdict::Fail, "published", text)?;
        }
        Ok(_) => findings.add(Verdict::Ok, "published", "the topic has all that Redis says is published")?,
    }
    let ours = entries.iter().filter(|entry| entry.complete && entry.seconds == u64::from(length.seconds()));
    let (mut compared, mut differ, mut fewer) = (0, Vec::new(), Vec::new());
    for entry in ours {
        let window = length.starting_at(entry.start);
        match compare_one(settings, &redis, &keys, entry).await {
            Ok(Compared::Gone) => {}
            Ok(Compared::Same) => compared += 1,
            Ok(Compared::Lost) => fewer.push(entry.start),
            Ok(Compared::Differs(there)) => {
                compared += 1;
                let published = entry.unique_request_count;
                differ.push(format!("{window} is {published} in Kafka and {there} in Redis"));
            }
            Err(error) => return findings.add(Verdict::Fail, "counts", error),
        }
    }
    if !fewer.is_empty() {
        let what = "lost by Redis since they were counted, so not compared";
        say(settings, findings, Verdict::Warn, what, &fewer)?;
    }
    if differ.is_empty() {
        let text = format_args!("{compared} complete windows are still in Redis, with the same counts");
        return findings.add(Verdict::Ok, "counts", text);
    }
    let named = differ.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
    findings.add(Verdict::Fail, "counts", format_args!("{} of {compared} differ: {named}", differ.len()))
}

/// The reason, if instances of another version use the namespace, so that its keys cannot be read.
async fn other_layout(settings: &Settings, redis: &Redis) -> Option<HeartbeatError> {
    let coordinator = Coordination::new(settings, redis, &instance_id()).coordinator;
    match coordinator.survey().await {
        Ok(survey) => {
            let mut disagreements = survey.disagreements.into_iter();
            disagreements.find(|error| matches!(error, HeartbeatError::Layout { .. }))
        }
        Err(error) => Some(error.into()),
    }
}

/// How the count of a window in Redis compares with the published one.
enum Compared {
    /// Redis does not have the window any more.
    Gone,
    Same,
    /// Redis has fewer ids than when they were counted. They expired, were evicted or deleted, or Redis came back with
    /// an older state. So its count says nothing about the record.
    Lost,
    /// Redis has all ids, and another count.
    Differs(u64),
}

async fn compare_one(
    settings: &Settings,
    redis: &Redis,
    keys: &Keys,
    entry: &Entry,
) -> Result<Compared, Unavailable> {
    let window = settings.counting.window.starting_at(entry.start);
    let (mode, shards) = (settings.counting.mode, settings.counting.shards);
    let mut answers: Vec<u64> = Vec::new();
    for (_, ask) in count_commands(keys, mode, shards, window) {
        let some: Vec<u64> =
            redis.run(Call::Ask, async |connection| ask.query_async(connection).await).await?;
        answers.extend(some);
    }
    let Some(there) = sum_counts(&answers) else { return Ok(Compared::Gone) };
    if there == entry.unique_request_count {
        return Ok(Compared::Same);
    }
    let mut ask = Pipeline::new();
    ask.cmd("HGET").arg(keys.counts()).arg(window.unix_seconds());
    ask.cmd("HGETALL").arg(keys.accepted(window));
    let (Text(stored), Texts(accepted)): (Text, Texts) =
        redis.run(Call::Ask, async |connection| ask.query_async(connection).await).await?;
    // The count that the leader stored before it published it. It never changes.
    let stored = stored.and_then(|count| serde_json::from_str::<StoredCount>(&count).ok());
    let is_as_stored = stored.is_some_and(|stored| stored.unique_request_count == entry.unique_request_count);
    // How many ids instances accepted, as Redis has it now. An older state of Redis has fewer than the record.
    let first_number = |said: &String| said.split(' ').next()?.parse::<u64>().ok();
    let accepted: u64 = accepted.values().filter_map(first_number).sum();
    let has_lost_some = entry.accepted_ids.is_some_and(|published| accepted < published);
    let lost = there < entry.unique_request_count && (is_as_stored || has_lost_some);
    Ok(if lost { Compared::Lost } else { Compared::Differs(there) })
}

#[derive(Deserialize)]
struct StoredCount {
    unique_request_count: u64,
}
