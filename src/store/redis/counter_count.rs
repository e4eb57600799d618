//! The count of counters, by the leader.
//!
//! There may be many, so they are counted in pipelines of few commands: Redis serves others in between. The keys of a pipeline are
//! in one slot.

use std::collections::{BTreeMap, BTreeSet};

use ::redis::Pipeline;

use super::around::Around;
use super::config::RedisStoreConfig;
use super::replay::Replay;
use super::stats::{BucketStats, WindowStats};
use crate::model::counter::{BUCKETS, CounterCount, CounterCounts, CounterName, OTHER, bucket_of};
use crate::model::mode::Mode;
use crate::model::timing::closed_keys_live;
use crate::model::window::Window;
use crate::platform::unavailable::Unavailable;
use crate::redis::damage::Holds;
use crate::redis::{Call, Routed};

/// Counters that are counted in one pipeline, with two commands each.
const COUNTED_AT_ONCE: usize = 100;
/// Keys that are told to expire in one pipeline.
const EXPIRE_AT_ONCE: usize = 200;
/// Names that one command returns, more or less.
const SCANNED_AT_ONCE: usize = 200;

/// The counters of a bucket.
struct CountedBucket {
    counts: Vec<CounterCount>,
    /// Redis may have lost names.
    lacks_names: bool,
}

impl Replay {
    /// The final counts of the counters of a window that every instance has sealed. Those of nodes that are away are missing.
    /// `had_counters`: this instance has seen some.
    pub(super) async fn count_counters(
        &self,
        window: Window,
        stats: &BTreeMap<String, WindowStats>,
        around: &mut Around,
        had_counters: bool,
    ) -> CounterCounts {
        let overflow: u64 = stats.values().map(|stats| stats.counters.overflow).sum();
        let mut expected = vec![BucketStats::default(); BUCKETS];
        for (bucket, of_instance) in stats.values().flat_map(|stats| &stats.counters.buckets) {
            // Another program may have written another number.
            if let Some(of_all) = expected.get_mut(*bucket) {
                of_all.add(of_instance);
            }
        }
        let (mut counts, mut lacks_names) = (Vec::new(), stats.values().any(|stats| stats.counters.lost));
        let had_counters = had_counters || stats.values().any(|stats| !stats.counters.buckets.is_empty());
        if lacks_names {
            for expected in &mut expected {
                expected.lost = true;
            }
        }
        // All buckets: the stats of an instance may be lost, and its names not.
        let numbers = self.numbers_of_names(window, around).await;
        for (bucket, expected) in expected.iter().enumerate() {
            let node = self.redis.number_for(&self.config.keys.names(bucket, window));
            if numbers.get(&bucket).is_none_or(|names| *names == 0) && *expected == BucketStats::default() {
                continue;
            }
            if around.skips(node) {
                continue;
            }
            if let Some(of_bucket) = around.note(node, self.count_bucket(window, bucket, expected).await) {
                lacks_names |= of_bucket.lacks_names;
                counts.extend(of_bucket.counts);
            }
        }
        // If nobody has seen a counter, those of a server that is away are not expected either.
        lacks_names |= around.lacks_some() && (had_counters || !counts.is_empty());
        let has_overflowed = overflow > 0 || counts.iter().any(|count| *count.name == *OTHER);
        CounterCounts::new(counts, has_overflowed).lacking_names(lacks_names)
    }

    /// Whether Redis has names of counters.
    pub(super) async fn has_names(&self, window: Window) -> Result<bool, Unavailable> {
        let mut around = Around::default();
        let numbers = self.numbers_of_names(window, &mut around).await;
        around.all_done()?;
        Ok(numbers.values().any(|names| *names > 0))
    }

    /// How many names Redis has of each bucket, as far as its node is there.
    async fn numbers_of_names(&self, window: Window, around: &mut Around) -> BTreeMap<usize, u64> {
        let keys: Vec<_> =
            (0..BUCKETS).map(|bucket| (bucket, self.config.keys.names(bucket, window))).collect();
        let mut numbers = BTreeMap::new();
        for some in self.redis.groups(&keys, |(_, key)| key, BUCKETS) {
            let node = self.redis.number_for(&some[0].1);
            if around.skips(node) {
                continue;
            }
            let mut ask = Pipeline::new();
            for (_, key) in some {
                ask.cmd("SCARD").arg(key);
            }
            let of_slots: Vec<_> = some.iter().map(|(_, key)| vec![key.clone()]).collect();
            let found: Option<Vec<u64>> =
                around.note(node, self.mending(Holds::Set, &of_slots, Call::Count, &ask).await);
            let found = found.unwrap_or_default();
            numbers.extend(some.iter().map(|(bucket, _)| *bucket).zip(found));
        }
        numbers
    }

    async fn count_bucket(
        &self,
        window: Window,
        bucket: usize,
        expected: &BucketStats,
    ) -> Result<CountedBucket, Unavailable> {
        let names = self.names_in(window, bucket).await?;
        let mut counts = Vec::with_capacity(names.len());
        for some in names.chunks(COUNTED_AT_ONCE) {
            counts.extend(self.count_some(window, some).await?);
        }
        let ids: u64 = counts.iter().map(|count| count.unique_ids).sum();
        let lacks_ids = self.config.mode == Mode::Exact && ids < expected.ids;
        let lacks_names = expected.lost || (names.len() as u64) < expected.names;
        for count in &mut counts {
            let is_damaged = expected.damaged.contains(&*count.name);
            count.is_whole &= !(lacks_ids || lacks_names || is_damaged);
        }
        Ok(CountedBucket { counts, lacks_names })
    }

    /// The names that Redis has of a bucket.
    async fn names_in(&self, window: Window, bucket: usize) -> Result<Vec<String>, Unavailable> {
        debug_assert!(bucket < BUCKETS);
        let key = self.config.keys.names(bucket, window);
        let (mut names, mut cursor) = (Vec::new(), 0_u64);
        loop {
            let mut scan = Pipeline::new();
            scan.cmd("SSCAN").arg(&key).arg(cursor).arg("COUNT").arg(SCANNED_AT_ONCE);
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
    async fn count_some(
        &self,
        window: Window,
        names: &[impl AsRef<str>],
    ) -> Result<Vec<CounterCount>, Unavailable> {
        let (mode, keys) = (self.config.mode, &self.config.keys);
        let (command, holds) = match mode {
            Mode::Hll => ("PFCOUNT", Holds::Sketch),
            Mode::Exact => ("SCARD", Holds::Set),
        };
        let of_names: Vec<_> = names.iter().map(|name| keys.counter(mode, name.as_ref(), window)).collect();
        let mut commands = Pipeline::new();
        for key in &of_names {
            commands.cmd("EXISTS").arg(key);
            commands.cmd(command).arg(key);
        }
        let answers: Vec<u64> = self.mending(holds, &[of_names], Call::Count, &commands).await?;
        let counted = names.iter().zip(answers.chunks_exact(2)).map(|(name, answers)| CounterCount {
            name: name.as_ref().into(),
            unique_ids: answers[1],
            is_whole: answers[0] == 1,
        });
        Ok(counted.collect())
    }

    /// Lets the counters of a closed window expire soon: their counts are stored. Until then `headcount verify` can compare them.
    ///
    /// They expire one after another, over the length of a window. Redis serves nobody while it deletes many keys at once: for up
    /// to 25 ms, ten times a second.
    pub(super) async fn let_counters_expire(
        &self,
        window: Window,
        counts: &CounterCounts,
    ) -> Result<(), Unavailable> {
        let RedisStoreConfig { mode, keys, retention, .. } = &*self.config;
        let soon = closed_keys_live(window.length()).as_millis() as u64;
        let later = window.length().duration().as_millis() as u64;
        let longest = retention.as_millis() as u64;
        let buckets: BTreeSet<_> = counts.all().iter().map(|count| bucket_of(&count.name)).collect();
        let of_names = counts.all().iter().map(|count| keys.counter(*mode, &count.name, window));
        let of_buckets = buckets.into_iter().map(|bucket| keys.names(bucket, window));
        let mut all: Vec<_> = of_names.chain(of_buckets).collect();
        self.redis.sort_by_slot(&mut all, String::as_str);
        let all: Vec<_> = all.into_iter().enumerate().collect();
        for some in self.redis.groups(&all, |(_, key)| key, EXPIRE_AT_ONCE) {
            let mut expire = Pipeline::new();
            for (number, key) in some {
                let keep_for = soon + later * *number as u64 / all.len() as u64;
                expire.cmd("PEXPIRE").arg(key).arg(keep_for.min(longest));
            }
            let expire = async |connection: &mut Routed| expire.exec_async(connection).await;
            self.redis.run(Call::Seal, &some[0].1, expire).await?;
        }
        Ok(())
    }

    /// The counts so far of some counters.
    pub(super) async fn counts_of(&self, window: Window, names: &[&str]) -> Result<Vec<u64>, Unavailable> {
        let key = |name: &str| self.config.keys.counter(self.config.mode, name, window);
        let keyed: Vec<_> = names.iter().map(|name| (*name, key(name))).collect();
        let mut counts = Vec::with_capacity(names.len());
        for some in self.redis.groups(&keyed, |(_, key)| key, COUNTED_AT_ONCE) {
            let some: Vec<_> = some.iter().map(|(name, _)| *name).collect();
            counts.extend(self.count_some(window, &some).await?.into_iter().map(|count| count.unique_ids));
        }
        Ok(counts)
    }
}
