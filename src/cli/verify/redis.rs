//! Compares published counts with those of Redis, for as long as Redis has the ids.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};

use ::redis::Pipeline;
use serde::Deserialize;

use super::periods::Periods;
use crate::cli::backend::{Coordination, instance_id};
use crate::cli::findings::{Findings, Verdict, some};
use crate::cli::settings::Settings;
use crate::coordination::HeartbeatError;
use crate::model::mode::Mode;
use crate::model::window::Window;
use crate::platform::unavailable::Unavailable;
use crate::publish::sinks::kafka::counters::CounterEntry;
use crate::publish::sinks::kafka::ledger::Entry;
use crate::redis::keys::Keys;
use crate::redis::{self, Call, Redis, Routed, Text, Texts};
use crate::store::redis::{accepted_ids, count_commands, sum_counts};
use crate::telemetry::metrics::Metrics;

const LOST: &str = "lost by Redis since they were counted, so not compared";
const LOST_COUNTERS: &str = "counters lost by Redis since they were counted, so not compared";

/// Compares what is published with what Redis has.
pub(super) struct Comparison<'a> {
    settings: &'a Settings,
    redis: Redis,
    keys: Keys,
    /// Windows whose total is as in Redis: how many ids their records say were accepted.
    same: BTreeMap<u64, Option<u64>>,
    counters: Counters,
}

/// What is known about counters.
#[derive(Default)]
struct Counters {
    same: u64,
    /// By the start of their window.
    differ: BTreeMap<u64, u64>,
    lost: BTreeSet<u64>,
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

#[derive(Deserialize)]
struct StoredCount {
    unique_request_count: u64,
}

impl<'a> Comparison<'a> {
    /// None if Redis is away, or if this version cannot read its keys.
    pub(super) async fn begin(
        settings: &'a Settings,
        server: &redis::Settings,
        findings: &mut Findings<impl Write>,
    ) -> io::Result<Option<Self>> {
        let redis = match server.connect(&Metrics::new()).await {
            Ok(redis) => redis,
            Err(error) => return findings.add(Verdict::Fail, "counts", error).map(|()| None),
        };
        if let Some(error) = other_layout(settings, &redis).await {
            return findings.add(Verdict::Fail, "settings", error).map(|()| None);
        }
        let keys = Keys::new(&settings.namespace);
        Ok(Some(Self { settings, redis, keys, same: BTreeMap::new(), counters: Counters::default() }))
    }

    /// Compares the counts of complete windows whose ids Redis still has. An incomplete window may differ: ids that came
    /// after its close are in Redis too.
    pub(super) async fn compare(
        &mut self,
        entries: &[Entry],
        findings: &mut Findings<impl Write>,
    ) -> io::Result<()> {
        if !self.compare_position(entries, findings).await? {
            return Ok(());
        }
        let length = self.settings.counting.window;
        let (mut compared, mut differ, mut fewer) = (0, Vec::new(), Vec::new());
        for entry in entries {
            if !self.is_comparable(entry.complete, entry.seconds) {
                continue;
            }
            match self.compare_one(entry).await {
                Ok(Compared::Gone) => {}
                Ok(Compared::Same) => {
                    compared += 1;
                    self.same.insert(entry.start, entry.accepted_ids);
                }
                Ok(Compared::Lost) => fewer.push(entry.start),
                Ok(Compared::Differs(there)) => {
                    compared += 1;
                    let (window, published) = (length.starting_at(entry.start), entry.unique_request_count);
                    differ.push(format!("{window} is {published} in Kafka and {there} in Redis"));
                }
                Err(error) => return findings.add(Verdict::Fail, "counts", error),
            }
        }
        if !fewer.is_empty() {
            findings.windows(Verdict::Warn, LOST, length, &fewer)?;
        }
        if differ.is_empty() {
            let text = format_args!("{compared} complete windows are still in Redis, with the same counts");
            return findings.add(Verdict::Ok, "counts", text);
        }
        let text = format!("{} of {compared} differ: {}", differ.len(), some(differ));
        findings.add(Verdict::Fail, "counts", text)
    }

    /// Compares hours and days with the windows that are still in Redis.
    pub(super) async fn compare_periods(
        &self,
        entries: &[Entry],
        findings: &mut Findings<impl Write>,
    ) -> io::Result<()> {
        Periods::new(self.settings, &self.redis, &self.keys).compare(entries, findings).await
    }

    /// Whether the topic has what Redis says is published. False if Redis does not answer.
    async fn compare_position(
        &self,
        entries: &[Entry],
        findings: &mut Findings<impl Write>,
    ) -> io::Result<bool> {
        let mut ask = ::redis::cmd("HGET");
        ask.arg(self.keys.published()).arg("last");
        let published: Result<Option<u64>, Unavailable> = self
            .redis
            .run(Call::Ask, &self.keys.published(), async |connection| ask.query_async(connection).await)
            .await;
        let last = entries.last().map(|last| last.start);
        match published {
            Err(error) => findings.add(Verdict::Fail, "published", error).map(|()| false),
            Ok(Some(published)) if last < Some(published) => {
                let text = format_args!(
                    "Redis says that {} is published, but the topic ends earlier",
                    self.settings.counting.window.starting_at(published)
                );
                findings.add(Verdict::Fail, "published", text).map(|()| true)
            }
            Ok(_) => {
                let text = "the topic has all that Redis says is published";
                findings.add(Verdict::Ok, "published", text).map(|()| true)
            }
        }
    }

    fn is_comparable(&self, complete: bool, seconds: u64) -> bool {
        complete && seconds == u64::from(self.settings.counting.window.seconds())
    }

    async fn compare_one(&self, entry: &Entry) -> Result<Compared, Unavailable> {
        let window = self.settings.counting.window.starting_at(entry.start);
        let (mode, shards) = (self.settings.counting.mode, self.settings.counting.shards);
        let mut answers: Vec<u64> = Vec::new();
        for (read, ask) in count_commands(&self.redis, &self.keys, mode, shards, window) {
            let ask = async |connection: &mut Routed| ask.query_async(connection).await;
            let some: Vec<u64> = self.redis.run(Call::Ask, &read[0], ask).await?;
            answers.extend(some);
        }
        let Some(there) = sum_counts(&answers) else { return Ok(Compared::Gone) };
        if there == entry.unique_request_count {
            return Ok(Compared::Same);
        }
        let mut ask = ::redis::cmd("HGET");
        ask.arg(self.keys.counts()).arg(window.unix_seconds());
        let asking = async |connection: &mut Routed| ask.query_async(connection).await;
        let Text(stored): Text = self.redis.run(Call::Ask, &self.keys.counts(), asking).await?;
        // The count that the leader stored before it published it. It never changes.
        let stored = stored.and_then(|count| serde_json::from_str::<StoredCount>(&count).ok());
        let is_as_stored =
            stored.is_some_and(|stored| stored.unique_request_count == entry.unique_request_count);
        let lost = there < entry.unique_request_count
            && (is_as_stored || self.has_lost_some(window, entry.accepted_ids).await?);
        Ok(if lost { Compared::Lost } else { Compared::Differs(there) })
    }

    /// Whether Redis knows of fewer accepted ids than the record of the window. Then it is in an older state.
    async fn has_lost_some(&self, window: Window, published: Option<u64>) -> Result<bool, Unavailable> {
        let mut ask = ::redis::cmd("HGETALL");
        ask.arg(self.keys.accepted(window));
        let asking = async |connection: &mut Routed| ask.query_async(connection).await;
        let Texts(accepted): Texts = self.redis.run(Call::Ask, &self.keys.accepted(window), asking).await?;
        let accepted: u64 = accepted.values().filter_map(|stats| accepted_ids(stats)).sum();
        Ok(published.is_some_and(|published| accepted < published))
    }

    /// Compares counters, one command for each. Those of which Redis has no ids any more are left out.
    pub(super) async fn compare_counters(&mut self, counters: &[CounterEntry]) -> Result<(), Unavailable> {
        let length = self.settings.counting.window;
        let seconds = |entry: &CounterEntry| entry.seconds.unwrap_or(u64::from(length.seconds()));
        let ours = counters.iter().filter(|entry| self.is_comparable(entry.complete, seconds(entry)));
        let ours: Vec<_> = ours.collect();
        if ours.is_empty() {
            return Ok(());
        }
        let mode = self.settings.counting.mode;
        let key =
            |entry: &CounterEntry| self.keys.counter(mode, &entry.counter, length.starting_at(entry.start));
        let mut ours: Vec<_> = ours.into_iter().map(|entry| (entry, key(entry))).collect();
        self.redis.sort_by_slot(&mut ours, |(_, key)| key);
        for some in self.redis.groups(&ours, |(_, key)| key, ours.len()) {
            let mut ask = Pipeline::with_capacity(some.len());
            for (_, key) in some {
                let count = match mode {
                    Mode::Hll => "PFCOUNT",
                    Mode::Exact => "SCARD",
                };
                ask.cmd(count).arg(key);
            }
            let ask = async |connection: &mut Routed| ask.query_async(connection).await;
            let there: Vec<u64> = self.redis.run(Call::Ask, &some[0].1, ask).await?;
            for ((entry, _), there) in some.iter().zip(there) {
                self.note(entry, there).await?;
            }
        }
        Ok(())
    }

    async fn note(&mut self, entry: &CounterEntry, there: u64) -> Result<(), Unavailable> {
        // A published counter had ids. So its key is gone.
        if there == 0 {
            return Ok(());
        }
        if there == entry.unique_request_count {
            self.counters.same += 1;
            return Ok(());
        }
        let window = self.settings.counting.window.starting_at(entry.start);
        // Redis has all ids of a counter only if it has all of the total.
        let has_all = match self.same.get(&entry.start) {
            Some(accepted) => !self.has_lost_some(window, *accepted).await?,
            None => false,
        };
        if there > entry.unique_request_count || has_all {
            *self.counters.differ.entry(entry.start).or_default() += 1;
        } else {
            self.counters.lost.insert(entry.start);
        }
        Ok(())
    }

    /// Says how the counters compared.
    pub(super) fn report_counters(&self, findings: &mut Findings<impl Write>) -> io::Result<()> {
        let (length, Counters { same, differ, lost }) = (self.settings.counting.window, &self.counters);
        if !lost.is_empty() {
            let lost: Vec<_> = lost.iter().copied().collect();
            findings.windows(Verdict::Warn, LOST_COUNTERS, length, &lost)?;
        }
        if differ.is_empty() {
            let text =
                format_args!("{same} complete counts of counters are still in Redis, with the same counts");
            return findings.add(Verdict::Ok, "counts of counters", text);
        }
        let all: u64 = same + differ.values().sum::<u64>();
        let named = some(differ.iter().map(|(start, n)| format!("{n} of {}", length.starting_at(*start))));
        let text = format_args!("{} of {all} differ from Redis: {named}", all - same);
        findings.add(Verdict::Fail, "counts of counters", text)
    }
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
