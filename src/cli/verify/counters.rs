//! Whether every window has its counters in the other topic, each once. No line names a counter: it may be somebody's name.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Write};

use tokio::sync::mpsc::{self, Sender};

use super::redis::Comparison;
use crate::cli::findings::{Findings, Verdict, some};
use crate::cli::settings::Settings;
use crate::model::window::WindowLength;
use crate::publish::sinks::SinkError;
use crate::publish::sinks::kafka::KafkaSettings;
use crate::publish::sinks::kafka::counters::{self, CounterEntry};
use crate::publish::sinks::kafka::ledger::{Entry, EntryCounters};

/// Counters that are handed over at once: as many as one call asks Redis for.
const BATCH: usize = 200;
/// Batches that wait. The reader waits too when there are more.
const BATCHES: usize = 4;

/// Reads the topic of counters, and compares it with the windows of the other topic.
pub(super) async fn look(
    settings: &Settings,
    kafka: &KafkaSettings,
    windows: &[Entry],
    mut redis: Option<Comparison<'_>>,
    findings: &mut Findings<impl Write>,
) -> io::Result<()> {
    let (sender, mut batches) = mpsc::channel(BATCHES);
    let to_read = kafka.clone();
    let reading = tokio::task::spawn_blocking(move || read(&to_read, &sender));
    let mut tally = Tally::default();
    while let Some(batch) = batches.recv().await {
        for entry in &batch {
            tally.add(entry);
        }
        if let Some(comparison) = &mut redis
            && let Err(error) = comparison.compare_counters(&batch).await
        {
            findings.add(Verdict::Fail, "counts of counters", error)?;
            redis = None;
        }
    }
    let topic = &kafka.counters_topic;
    let whole_from = match reading.await.unwrap_or_else(|error| Err(SinkError::unavailable(error))) {
        Ok(Some(whole_from)) => whole_from,
        Ok(None) => {
            report_no_topic(topic, windows, findings)?;
            return report_skipped(windows, settings.counting.window, findings);
        }
        Err(error) => {
            return findings.add(Verdict::Fail, "counters", format_args!("{topic} cannot be read: {error}"));
        }
    };
    let (all, in_windows) = (tally.windows.values().sum::<u64>(), tally.windows.len());
    let text = format_args!("{topic} has {all} counts of counters, in {in_windows} windows");
    findings.add(Verdict::Ok, "counters", text)?;
    tally.report(windows, whole_from, settings.counting.window, findings)?;
    report_skipped(windows, settings.counting.window, findings)?;
    redis.map_or(Ok(()), |comparison| comparison.report_counters(findings))
}

/// Hands over what the topic has. Returns from which start on it has everything; none if there is no topic.
fn read(kafka: &KafkaSettings, batches: &Sender<Vec<CounterEntry>>) -> Result<Option<u64>, SinkError> {
    let mut batch = Vec::with_capacity(BATCH);
    let whole_from = counters::read(kafka, |entry| {
        batch.push(entry);
        if batch.len() < BATCH {
            return Ok(());
        }
        let full = std::mem::replace(&mut batch, Vec::with_capacity(BATCH));
        batches.blocking_send(full).map_err(SinkError::unavailable)
    })?;
    batches.blocking_send(batch).map_err(SinkError::unavailable)?;
    Ok(whole_from)
}

fn report_no_topic(topic: &str, windows: &[Entry], findings: &mut Findings<impl Write>) -> io::Result<()> {
    let with_counters = windows.iter().filter(|entry| matches!(entry.counters, EntryCounters::Number(1..)));
    match with_counters.count() {
        0 => findings.add(Verdict::Ok, "counters", "none"),
        some => {
            let text =
                format_args!("{topic} does not exist, or may not be read, but {some} windows had counters");
            findings.add(Verdict::Fail, "counters", text)
        }
    }
}

fn report_skipped(
    windows: &[Entry],
    length: WindowLength,
    findings: &mut Findings<impl Write>,
) -> io::Result<()> {
    let skipped = windows.iter().filter(|entry| entry.counters == EntryCounters::Skipped);
    let skipped: Vec<_> = skipped.map(|entry| entry.start).collect();
    findings.windows(Verdict::Warn, "skipped counters", length, &skipped)
}

/// What the topic of counters has. It remembers numbers of all windows, and the names of one.
#[derive(Default)]
struct Tally {
    /// How many different counters each window has, by its start.
    windows: BTreeMap<u64, u64>,
    repeated: BTreeSet<u64>,
    /// Windows that come again after a later one of their partition.
    backwards: BTreeSet<u64>,
    /// The partition, and the start of the window that is being read.
    at: Option<(i32, u64)>,
    /// Hashes of the names in it.
    names: HashSet<u64>,
    hasher: RandomState,
}

impl Tally {
    fn add(&mut self, entry: &CounterEntry) {
        let at = (entry.partition, entry.start);
        if self.at != Some(at) {
            let before = self.at.filter(|(partition, _)| *partition == entry.partition);
            if before.is_some_and(|(_, start)| start > entry.start) {
                self.backwards.insert(entry.start);
            }
            self.at = Some(at);
            self.names.clear();
        }
        if self.names.insert(self.hasher.hash_one(&entry.counter)) {
            *self.windows.entry(entry.start).or_default() += 1;
        } else {
            self.repeated.insert(entry.start);
        }
    }

    /// Compares with the windows of the other topic. Brokers delete the oldest records of each topic by itself, so windows
    /// that are older than one of them are not compared. Nor are counters that were published after the windows were read.
    fn report(
        &self,
        windows: &[Entry],
        whole_from: u64,
        length: WindowLength,
        findings: &mut Findings<impl Write>,
    ) -> io::Result<()> {
        let said: BTreeMap<_, _> = windows.iter().map(|entry| (entry.start, entry.counters)).collect();
        let (Some((&first, _)), Some((&last, _))) = (said.first_key_value(), said.last_key_value()) else {
            return Ok(());
        };
        let of_both = |start: &u64| (first.max(whole_from)..=last).contains(start);
        let is_without = |start: &&u64| of_both(start) && !said.contains_key(start);
        let without: Vec<_> = self.windows.keys().filter(is_without).copied().collect();
        let mut differ = Vec::new();
        for (&start, counters) in said.iter().filter(|(start, _)| of_both(start)) {
            let there = self.windows.get(&start).copied().unwrap_or_default();
            let window = length.starting_at(start);
            match counters {
                EntryCounters::Number(expected) if there != *expected => {
                    differ.push(format!("{window} has {there} of {expected}"));
                }
                EntryCounters::Skipped if there > 0 => {
                    differ.push(format!("{window} has {there}, but says that they were skipped"));
                }
                _ => {}
            }
        }
        let not_compared = said
            .iter()
            .filter(|(start, counters)| !of_both(start) && matches!(counters, EntryCounters::Number(1..)));
        let not_compared = match not_compared.count() {
            0 => String::new(),
            older => format!("; {older} older windows are not compared, their counters are deleted"),
        };
        if differ.is_empty() {
            let text = format_args!("as many as the windows say{not_compared}");
            findings.add(Verdict::Ok, "numbers of counters", text)?;
        } else {
            let text = format!("{} windows differ: {}{not_compared}", differ.len(), some(differ));
            findings.add(Verdict::Fail, "numbers of counters", text)?;
        }
        let starts = |windows: &BTreeSet<u64>| windows.iter().copied().collect::<Vec<_>>();
        findings.windows(Verdict::Fail, "repeated counters", length, &starts(&self.repeated))?;
        findings.windows(Verdict::Fail, "counters out of order", length, &starts(&self.backwards))?;
        findings.windows(Verdict::Fail, "counters without a window", length, &without)
    }
}
