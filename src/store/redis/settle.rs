//! What a window holds: while it is open, when the leader settles it, and when a later leader asks what was counted.
//!
//! In a cluster, shards and buckets of servers that are away are left out. Then the count says what it lacks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::around::Around;
use super::config::RedisStoreConfig;
use super::stats::WindowStats;
use super::{RedisStore, count_commands, sum_counts};
use crate::model::mode::Mode;
use crate::model::window::Window;
use crate::platform::unavailable::Unavailable;
use crate::redis::Call;
use crate::store::answers::{Compared, CountError, Recalled, Settled, StoreCount};
use crate::store::windows::Entry;

impl RedisStore {
    pub(in crate::store) async fn count(&self, window: Window) -> Result<StoreCount, CountError> {
        self.local.table.get(window)?;
        let stats = self.replay.stats(window).await?;
        Ok(self.counted_whole(window, stats).await?)
    }

    pub(in crate::store) async fn settle(
        &self,
        window: Window,
        parties: &BTreeSet<String>,
        away_for: Duration,
    ) -> Result<Settled, CountError> {
        self.local.table.get(window)?;
        // First, because a window that is closed by force may still grow.
        let mut stats = self.replay.stats(window).await?;
        for party in parties {
            // It has sealed the window, but its stats are gone.
            stats.entry(party.clone()).or_insert_with(WindowStats::unknown);
        }
        let mut around = Around::default();
        let in_doubt = match self.config.mode {
            Mode::Hll => self.replay.gather(window, &stats, &mut around).await,
            Mode::Exact => 0,
        };
        // First, because a bucket that is away takes nothing from the total.
        let mut total = self.counted(window, stats.clone(), &mut around).await;
        let counters = Arc::new(
            self.replay.count_counters(window, &stats, &mut around, self.local.had_counters(window)).await,
        );
        self.leave_out(&around, away_for)?;
        total.lost_ids += in_doubt;
        Ok(Settled { total, counters, lacks_some: around.lacks_some() })
    }

    /// An error, unless each server that has failed has been away for so long. The one of the namespace is never left out.
    fn leave_out(&self, around: &Around, away_for: Duration) -> Result<(), Unavailable> {
        let home = self.redis.number_for(&self.config.keys.lease());
        let now = Instant::now();
        self.uncounted.note(around, now);
        self.uncounted.all_last_for(around, away_for, now)?;
        around.error_of(home).map_or(Ok(()), |error| Err(error.clone()))
    }

    /// How many different ids counters have so far.
    pub(in crate::store) async fn counts_of(
        &self,
        window: Window,
        names: &[&str],
    ) -> Result<Vec<u64>, CountError> {
        self.local.table.get(window)?;
        Ok(self.replay.counts_of(window, names).await?)
    }

    /// Compares the sets of counters.
    pub(in crate::store) async fn compare(
        &self,
        window: Window,
        counters: &[&str],
    ) -> Result<Compared, CountError> {
        Ok(self.replay.compare(window, counters).await?)
    }

    pub(in crate::store) async fn recall(&self, window: Window) -> Result<Option<Recalled>, Unavailable> {
        let mut around = Around::default();
        let (unique_ids, _) = self.unique_ids(window, &mut around).await;
        around.all_done()?;
        if unique_ids.is_none() {
            return Ok(None);
        }
        let stats = self.replay.stats(window).await?;
        let had_counters = self.replay.has_names(window).await?;
        Ok(Some(Recalled { count: self.counted_whole(window, stats).await?, had_counters }))
    }

    /// [`Self::counted`], if no server is away.
    async fn counted_whole(
        &self,
        window: Window,
        stats: BTreeMap<String, WindowStats>,
    ) -> Result<StoreCount, Unavailable> {
        let mut around = Around::default();
        let counted = self.counted(window, stats, &mut around).await;
        around.all_done().map(|()| counted)
    }

    /// What a window holds, by the stats of the instances that sealed it, and those of this one so far. Shards of servers that are
    /// away are left out.
    async fn counted(
        &self,
        window: Window,
        mut stats: BTreeMap<String, WindowStats>,
        around: &mut Around,
    ) -> StoreCount {
        if let Ok(Some(Entry::Open(local))) = self.local.table.get(window) {
            stats.insert(self.config.instance_id.clone(), local.stats_of_total());
        }
        let sum = |number: fn(&WindowStats) -> u64| stats.values().map(number).sum::<u64>();
        let (accepted_ids, new) = (sum(|one| one.accepted), sum(|one| one.new));
        let (unique_ids, lacks_shards) = self.unique_ids(window, around).await;
        let unique_ids = unique_ids.unwrap_or_default();
        let missing = match self.config.mode {
            Mode::Exact if !lacks_shards => new.saturating_sub(unique_ids),
            _ => 0,
        };
        // There were some, even if nothing else is known.
        let none_left = u64::from(unique_ids == 0 && accepted_ids > 0 && !lacks_shards);
        let lost_ids = (sum(|one| one.lost) + missing).max(none_left);
        let has_imports = sum(|one| one.imports) > 0;
        StoreCount { unique_ids, accepted_ids, has_imports, lost_ids, lacks_shards }
    }

    /// The different ids of all shards, and whether some are left out because their server is away. None if Redis has no key of the
    /// window.
    async fn unique_ids(&self, window: Window, around: &mut Around) -> (Option<u64>, bool) {
        let RedisStoreConfig { mode, shards, keys, .. } = &*self.config;
        let (mut answers, mut lacks_shards) = (Vec::<u64>::new(), false);
        for (of_shards, commands) in count_commands(&self.redis, keys, *mode, *shards, window) {
            let node = self.redis.number_for(&of_shards[0]);
            let of_shards: Vec<_> = of_shards.into_iter().map(|key| vec![key]).collect();
            let some: Option<Vec<u64>> = if around.skips(node) {
                None
            } else {
                around.note(node, self.replay.mending_ids(&of_shards, Call::Count, &commands).await)
            };
            lacks_shards |= some.is_none();
            answers.extend(some.unwrap_or_default());
        }
        (sum_counts(&answers), lacks_shards)
    }
}
