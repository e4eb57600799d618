//! The replay of counters: Redis gets what this instance has of them. And their count, by the leader.
//!
//! A counter is small and there may be many, so they go in chunks of few commands: Redis serves others in between. The keys of
//! a chunk are in one slot.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ::redis::Pipeline;

use super::config::{IDS_A_COMMAND, RedisStoreConfig};
use super::counters::{CounterIds, LocalCounter, LocalCounters};
use super::local::LocalWindow;
use super::replay::{MERGE_EXPIRES, Replay};
use super::stats::{BucketStats, WindowStats};
use super::target::Target;
use crate::model::counter::{BUCKETS, CounterCount, CounterCounts, CounterName, bucket_of};
use crate::model::id::TextId;
use crate::model::mode::Mode;
use crate::model::timing::closed_keys_live;
use crate::model::window::Window;
use crate::platform::unavailable::Unavailable;
use crate::redis::Call;
use crate::redis::damage::Holds;

/// Counters that are merged in one transaction, of four commands each.
const MERGED_AT_ONCE: usize = 16;
/// Counters that are counted in one pipeline, with two commands each.
const COUNTED_AT_ONCE: usize = 100;
/// Keys that are told to expire in one pipeline.
const EXPIRE_AT_ONCE: usize = 200;
/// Exact ids that are replayed in one pipeline.
const IDS_AT_ONCE: usize = 4 * 1024;

impl Replay {
    /// Gives Redis the pending ids of counters. At the seal it gives all that Redis may lack.
    pub(super) async fn give_counters(&self, local: &LocalWindow, at_seal: bool) -> Result<(), Unavailable> {
        let Some(counters) = &local.counters else { return Ok(()) };
        let epoch = self.epoch.load(Ordering::Relaxed);
        let is_lacking = |counter: &Arc<LocalCounter>| {
            if at_seal { counter.is_lacking(epoch) } else { counter.has_pending() }
        };
        let mut lacking = BTreeMap::<usize, Vec<_>>::new();
        for counter in counters.all().into_iter().filter(is_lacking) {
            lacking.entry(counter.bucket).or_default().push(counter);
        }
        for (bucket, of_bucket) in lacking {
            for some in of_bucket.chunks(MERGED_AT_ONCE) {
                self.list(counters.names_of(bucket), some).await?;
                match self.config.mode {
                    Mode::Hll => self.merge_counters(bucket, some, epoch).await?,
                    Mode::Exact => self.add_to_counters(counters, some, epoch).await?,
                }
            }
        }
        Ok(())
    }

    /// Merges the local sketches of counters of a bucket, whose names are listed.
    async fn merge_counters(
        &self,
        bucket: usize,
        some: &[Arc<LocalCounter>],
        epoch: u64,
    ) -> Result<(), Unavailable> {
        let mine = self.config.keys.merge_of_bucket(bucket, &self.config.instance_id);
        let (mut commands, mut keys, mut pending) = (Pipeline::new(), vec![mine.clone()], Vec::new());
        // No other merge may come in between, which uses the same key.
        commands.atomic();
        for counter in some {
            let CounterIds::Hll(sketch) = &counter.ids else { continue };
            // Before the registers are read: they have at least these ids.
            pending.push(counter.unmerged());
            let key = &counter.target.key;
            commands.cmd("SET").arg(&mine).arg(sketch.to_bytes()).arg("EX").arg(MERGE_EXPIRES).ignore();
            commands.cmd("PFMERGE").arg(key).arg(&mine).ignore();
            commands.cmd("PEXPIRE").arg(key).arg(counter.target.keep_for).ignore();
            keys.push(key.clone());
        }
        commands.cmd("DEL").arg(&mine).ignore();
        if self.unless_damaged::<()>(Call::Seal, &commands).await?.is_none() {
            // Another program replaced a sketch. What other instances had added to it is lost.
            for counter in some {
                counter.note_damage();
            }
            let () = self.mending(Holds::Sketch, &[keys], Call::Seal, &commands).await?;
        }
        for (counter, ids) in some.iter().zip(pending) {
            counter.note_merged(ids, epoch);
        }
        Ok(())
    }

    /// Adds the pending exact ids of counters, whose names are listed.
    async fn add_to_counters(
        &self,
        counters: &LocalCounters,
        some: &[Arc<LocalCounter>],
        epoch: u64,
    ) -> Result<(), Unavailable> {
        for counter in some {
            let CounterIds::Exact(pending) = &counter.ids else { continue };
            loop {
                let ids: Vec<TextId> = pending.lock().iter().take(IDS_AT_ONCE).cloned().collect();
                let new = if ids.is_empty() { 0 } else { self.add_ids(counter, &ids).await? };
                counters.note_replayed(counter, &ids, new, epoch);
                if ids.len() < IDS_AT_ONCE {
                    break;
                }
            }
        }
        Ok(())
    }

    async fn add_ids(&self, counter: &LocalCounter, ids: &[TextId]) -> Result<u64, Unavailable> {
        let mut commands = Pipeline::new();
        for some in ids.chunks(IDS_A_COMMAND) {
            let add = commands.cmd("SADD").arg(&counter.target.key);
            for id in some {
                add.arg(id.as_bytes());
            }
        }
        commands.cmd("PEXPIRE").arg(&counter.target.key).arg(counter.target.keep_for).ignore();
        let added: Vec<u64> = if let Some(added) = self.unless_damaged(Call::Seal, &commands).await? {
            added
        } else {
            counter.note_damage();
            self.mending(Holds::Set, &[vec![counter.target.key.clone()]], Call::Seal, &commands).await?
        };
        Ok(added.iter().sum())
    }

    /// Adds names to the set of their bucket.
    async fn list(&self, names: &Target, some: &[Arc<LocalCounter>]) -> Result<(), Unavailable> {
        let mut commands = Pipeline::new();
        let add = commands.cmd("SADD").arg(&names.key);
        for counter in some {
            add.arg(&*counter.name);
        }
        commands.cmd("PEXPIRE").arg(&names.key).arg(names.keep_for).ignore();
        let (new,): (u64,) =
            self.mending(Holds::Set, &[vec![names.key.clone()]], Call::Seal, &commands).await?;
        names.note_new(new);
        Ok(())
    }

    /// The final counts of the counters of a window that every instance has sealed.
    pub(super) async fn count_counters(
        &self,
        window: Window,
        stats: &BTreeMap<String, WindowStats>,
    ) -> Result<CounterCounts, Unavailable> {
        let overflow: u64 = stats.values().map(|stats| stats.counters.overflow).sum();
        let mut expected = BTreeMap::<usize, BucketStats>::new();
        for (bucket, of_instance) in stats.values().flat_map(|stats| &stats.counters.buckets) {
            let of_all = expected.entry(*bucket).or_default();
            of_all.names += of_instance.names;
            of_all.ids += of_instance.ids;
            of_all.lost |= of_instance.lost;
        }
        let (mut counts, mut lacks_names) = (Vec::new(), false);
        for (bucket, expected) in expected {
            let of_bucket = self.count_bucket(window, bucket, &expected).await?;
            lacks_names |= (of_bucket.len() as u64) < expected.names;
            counts.extend(of_bucket);
        }
        Ok(CounterCounts::new(counts, overflow > 0).lacking_names(lacks_names))
    }

    async fn count_bucket(
        &self,
        window: Window,
        bucket: usize,
        expected: &BucketStats,
    ) -> Result<Vec<CounterCount>, Unavailable> {
        let names = self.names_in(window, bucket).await?;
        let mut counts = Vec::with_capacity(names.len());
        for some in names.chunks(COUNTED_AT_ONCE) {
            counts.extend(self.count_some(window, some).await?);
        }
        let ids: u64 = counts.iter().map(|count| count.unique_ids).sum();
        let lacks_ids = self.config.mode == Mode::Exact && ids < expected.ids;
        if expected.lost || lacks_ids || (names.len() as u64) < expected.names {
            for count in &mut counts {
                count.is_whole = false;
            }
        }
        Ok(counts)
    }

    /// The names that Redis has of a bucket.
    async fn names_in(&self, window: Window, bucket: usize) -> Result<Vec<String>, Unavailable> {
        debug_assert!(bucket < BUCKETS);
        let key = self.config.keys.names(bucket, window);
        let (mut names, mut cursor) = (Vec::new(), 0_u64);
        loop {
            let mut scan = Pipeline::new();
            scan.cmd("SSCAN").arg(&key).arg(cursor).arg("COUNT").arg(500);
            let ((next, some),): ((u64, Vec<Vec<u8>>),) =
                self.mending(Holds::Set, &[vec![key.clone()]], Call::Count, &scan).await?;
            // Another program may have added what is no name.
            let is_name = |name: &String| CounterName::parse_for_reading(name.as_str().into()).is_ok();
            names.extend(some.into_iter().filter_map(|name| String::from_utf8(name).ok()).filter(is_name));
            cursor = next;
            if cursor == 0 {
                break;
            }
        }
        // A scan may return a name twice.
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }

    /// Counts counters of a bucket. One whose key is gone is not complete.
    async fn count_some(&self, window: Window, names: &[String]) -> Result<Vec<CounterCount>, Unavailable> {
        let (mode, keys) = (self.config.mode, &self.config.keys);
        let (command, holds) = match mode {
            Mode::Hll => ("PFCOUNT", Holds::Sketch),
            Mode::Exact => ("SCARD", Holds::Set),
        };
        let of_names: Vec<_> = names.iter().map(|name| keys.counter(mode, name, window)).collect();
        let mut commands = Pipeline::new();
        for key in &of_names {
            commands.cmd("EXISTS").arg(key);
            commands.cmd(command).arg(key);
        }
        let answers: Vec<u64> = self.mending(holds, &[of_names], Call::Count, &commands).await?;
        let counted = names.iter().zip(answers.chunks_exact(2)).map(|(name, answers)| CounterCount {
            name: name.as_str().into(),
            unique_ids: answers[1],
            is_whole: answers[0] == 1,
        });
        Ok(counted.collect())
    }

    /// Lets the counters of a closed window expire soon: their counts are stored. Until then `headcount verify` can compare them.
    pub(super) async fn let_counters_expire(
        &self,
        window: Window,
        counts: &CounterCounts,
    ) -> Result<(), Unavailable> {
        let RedisStoreConfig { mode, keys, retention, .. } = &*self.config;
        let soon = closed_keys_live(window.length()).min(*retention).as_millis() as u64;
        let buckets: BTreeSet<_> = counts.all().iter().map(|count| bucket_of(&count.name)).collect();
        let of_names = counts.all().iter().map(|count| keys.counter(*mode, &count.name, window));
        let of_buckets = buckets.into_iter().map(|bucket| keys.names(bucket, window));
        let all: Vec<_> = of_names.chain(of_buckets).collect();
        for some in all.chunks(EXPIRE_AT_ONCE) {
            let mut expire = Pipeline::new();
            some.iter().for_each(|key| _ = expire.cmd("PEXPIRE").arg(key).arg(soon));
            let () =
                self.redis.run(Call::Seal, async |connection| expire.query_async(connection).await).await?;
        }
        Ok(())
    }

    /// The counts so far of some counters.
    pub(super) async fn counts_of(&self, window: Window, names: &[&str]) -> Result<Vec<u64>, Unavailable> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut counts = Vec::with_capacity(names.len());
        for some in names.chunks(COUNTED_AT_ONCE) {
            counts.extend(self.count_some(window, some).await?.into_iter().map(|count| count.unique_ids));
        }
        Ok(counts)
    }
}
