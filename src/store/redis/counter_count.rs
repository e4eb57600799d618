//! The count of counters, by the leader.
//!
//! There may be many, so they are counted in pipelines of few commands: Redis serves others in between. The keys of a pipeline are
//! in one slot.

use std::collections::{BTreeMap, BTreeSet};

use ::redis::Pipeline;

use super::config::RedisStoreConfig;
use super::replay::Replay;
use super::stats::{BucketStats, WindowStats};
use crate::model::counter::{BUCKETS, CounterCount, CounterCounts, CounterName, OTHER, bucket_of};
use crate::model::mode::Mode;
use crate::model::timing::closed_keys_live;
use crate::model::window::Window;
use crate::platform::unavailable::Unavailable;
use crate::redis::Call;
use crate::redis::damage::Holds;

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
    /// The final counts of the counters of a window that every instance has sealed.
    pub(super) async fn count_counters(
        &self,
        window: Window,
        stats: &BTreeMap<String, WindowStats>,
    ) -> Result<CounterCounts, Unavailable> {
        let overflow: u64 = stats.values().map(|stats| stats.counters.overflow).sum();
        let mut expected = vec![BucketStats::default(); BUCKETS];
        for (bucket, of_instance) in stats.values().flat_map(|stats| &stats.counters.buckets) {
            // Another program may have written another number.
            if let Some(of_all) = expected.get_mut(*bucket) {
                of_all.add(of_instance);
            }
        }
        let (mut counts, mut lacks_names) = (Vec::new(), stats.values().any(|stats| stats.counters.lost));
        if lacks_names {
            for expected in &mut expected {
                expected.lost = true;
            }
        }
        // All buckets: the stats of an instance may be lost, and its names not.
        for (bucket, names) in self.numbers_of_names(window).await?.into_iter().enumerate() {
            if names == 0 && expected[bucket] == BucketStats::default() {
                continue;
            }
            let of_bucket = self.count_bucket(window, bucket, &expected[bucket]).await?;
            lacks_names |= of_bucket.lacks_names;
            counts.extend(of_bucket.counts);
        }
        let has_overflowed = overflow > 0 || counts.iter().any(|count| *count.name == *OTHER);
        Ok(CounterCounts::new(counts, has_overflowed).lacking_names(lacks_names))
    }

    /// Whether Redis has names of counters.
    pub(super) async fn has_names(&self, window: Window) -> Result<bool, Unavailable> {
        Ok(self.numbers_of_names(window).await?.iter().any(|names| *names > 0))
    }

    /// How many names Redis has of each bucket.
    async fn numbers_of_names(&self, window: Window) -> Result<Vec<u64>, Unavailable> {
        let keys: Vec<_> = (0..BUCKETS).map(|bucket| self.config.keys.names(bucket, window)).collect();
        let mut ask = Pipeline::new();
        for key in &keys {
            ask.cmd("SCARD").arg(key);
        }
        let of_slots: Vec<_> = keys.into_iter().map(|key| vec![key]).collect();
        self.mending(Holds::Set, &of_slots, Call::Count, &ask).await
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
        let all: Vec<_> = of_names.chain(of_buckets).enumerate().collect();
        for some in all.chunks(EXPIRE_AT_ONCE) {
            let mut expire = Pipeline::new();
            for (number, key) in some {
                let keep_for = soon + later * *number as u64 / all.len() as u64;
                expire.cmd("PEXPIRE").arg(key).arg(keep_for.min(longest));
            }
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
