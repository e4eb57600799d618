//! The store: it remembers the ids of each window, in memory, or in Redis together with the other instances.

mod answers;
mod counter_history;
mod counters;
mod history;
mod ids;
mod import;
mod keep;
pub mod memory;
mod places;
pub mod redis;
mod windows;

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

pub use self::answers::{
    AddError, Added, Compared, CountError, CounterRecord, Grown, Recalled, RolledUp, Settled, StoreCount,
    Union, pairs,
};
pub use self::import::{Import, WrongShards};
pub use self::keep::{Keep, KeepPeriods};
use self::memory::MemoryStore;
use self::redis::RedisStore;
use crate::hll::Sketch;
use crate::model::counter::{
    CounterCount, CounterCounts, CounterLimits, CounterNames, InvalidCounter, Subject,
};
use crate::model::id::{Id, IdKind};
use crate::model::id_key::IdKey;
use crate::model::mode::Mode;
use crate::model::parts::Part;
use crate::model::period::{Level, Period};
use crate::model::shard::Shards;
use crate::model::window::{Window, WindowLength};
use crate::platform::unavailable::Unavailable;

/// The standard error of a count over `shards`, relative to the truth.
///
/// Shards hold disjoint sets, so their errors are independent and add up as squares.
pub fn standard_error(mode: Mode, shards: Shards) -> f64 {
    match mode {
        Mode::Hll => Sketch::STANDARD_ERROR / f64::from(shards.count()).sqrt(),
        Mode::Exact => 0.0,
    }
}

/// A sketch in Redis, with its key.
const BYTES_A_SKETCH: u64 = 12_400;

/// What is counted, and how.
#[derive(Debug, Clone)]
pub struct Counting {
    /// What clients count.
    pub ids: IdKind,
    /// How ids are remembered.
    pub mode: Mode,
    /// The length of a window.
    pub window: WindowLength,
    /// Sketches that the ids of a window are split over.
    pub shards: Shards,
    /// How long windows are kept after their end.
    pub retention: Duration,
    /// How long the counts of their counters are kept for a sink.
    pub counter_retention: Duration,
    /// How long hours and days are kept.
    pub keep: Keep,
    /// The key that ids are hashed with before they are counted; none if they are not hashed.
    pub id_key: Option<IdKey>,
    /// How many counters clients may name.
    pub counters: CounterLimits,
    /// Counters whose counts are metrics, too.
    pub exported_counters: Vec<String>,
}

impl Counting {
    /// Whether clients may name counters.
    ///
    /// # Errors
    ///
    /// [`InvalidCounter`]: why not.
    pub(crate) fn may_count(&self) -> Result<(), InvalidCounter> {
        if self.counters.most == 0 { Err(InvalidCounter::Off) } else { Ok(()) }
    }

    pub(crate) fn standard_error(&self) -> f64 {
        standard_error(self.mode, self.shards)
    }

    /// A warning, if hours and days may take more memory than Redis has.
    pub(crate) fn too_much_history(&self, max_memory: Option<u64>) -> Option<String> {
        let sketches = self.keep.total.most_periods() * u64::from(self.shards.count())
            + self.keep.counters.most_periods() * self.counters.most as u64;
        let bytes = if self.mode == Mode::Hll { sketches * BYTES_A_SKETCH } else { 0 };
        let max_memory = max_memory.filter(|most| *most < bytes)?;
        Some(format!(
            "hours and days may take {} MB, but the maxmemory of Redis is {} MB: give it more, or lower --max-counters, \
             --counter-keep-hours, --counter-keep-days, --keep-hours or --keep-days",
            bytes / 1_000_000,
            max_memory / 1_000_000,
        ))
    }
}

/// Remembers the ids of each window.
///
/// A window goes through three states: *open*, it takes ids; *sealed*, this instance adds nothing more to it
/// and all that it accepted is in the count; *evicted*, its count is stored elsewhere. Windows are sealed
/// in order. A store never looks at a clock: the caller names the window, and says when it is over.
///
/// In Redis, all instances of a namespace share the ids. A count is then that of all instances, but each instance seals
/// for itself. The store in memory is not shared, so it is never away, and it loses nothing while the instance lives.
pub enum Store {
    /// In this instance's memory.
    Memory(MemoryStore),
    /// In Redis.
    Redis(RedisStore),
}

impl Store {
    /// Adds ids to a window: all of them, or none if the window is sealed. Memory never waits.
    ///
    /// When this returns `Ok`, the ids are in every count of the window that starts later. Adding an
    /// id again changes nothing but [`StoreCount::accepted_ids`]. Callers split long lists, so that other callers do not
    /// wait for one.
    ///
    /// # Errors
    ///
    /// [`AddError::Sealed`]: no id was added. [`AddError::Unavailable`]: some ids may have been added.
    pub async fn add<I: Id>(&self, window: Window, ids: &[I]) -> Result<Added, AddError> {
        self.add_to(window, ids, &CounterNames::default()).await
    }

    /// Adds ids as [`Self::add`] does, and to counters in the same window.
    ///
    /// # Errors
    ///
    /// As [`Self::add`].
    pub async fn add_to<I: Id>(
        &self,
        window: Window,
        ids: &[I],
        counters: &CounterNames<'_>,
    ) -> Result<Added, AddError> {
        match self {
            Self::Memory(store) => store.add(window, ids, counters),
            Self::Redis(store) => store.add(window, ids, counters).await,
        }
    }

    /// Merges sketches into a window, and into counters in the same window, in mode `hll`. As [`Self::add_to`] adds ids: when this
    /// returns `Ok`, they are in every count of the window that starts later. To do it twice changes nothing but
    /// [`StoreCount::accepted_ids`].
    ///
    /// # Errors
    ///
    /// As [`Self::add`].
    pub async fn import(
        &self,
        window: Window,
        import: &Import,
        counters: &CounterNames<'_>,
    ) -> Result<Added, AddError> {
        match self {
            Self::Memory(store) => store.import(window, import, counters),
            Self::Redis(store) => store.import(window, import, counters).await,
        }
    }

    /// How many different ids counters have in a window so far: 0 for one that nobody named.
    ///
    /// # Errors
    ///
    /// As [`Self::count`].
    pub async fn counts_of(&self, window: Window, counters: &[&str]) -> Result<Vec<u64>, CountError> {
        match self {
            Self::Memory(store) => store.counts_of(window, counters),
            Self::Redis(store) => store.counts_of(window, counters).await,
        }
    }

    /// Compares the sets of counters in a window, in mode `exact`.
    ///
    /// # Errors
    ///
    /// As [`Self::count`].
    pub async fn compare(&self, window: Window, counters: &[&str]) -> Result<Compared, CountError> {
        match self {
            Self::Memory(store) => store.compare(window, counters),
            Self::Redis(store) => store.compare(window, counters).await,
        }
    }

    /// Bytes that counters take in this instance.
    pub fn counter_memory(&self) -> u64 {
        match self {
            Self::Memory(store) => store.counter_memory(),
            Self::Redis(store) => store.counter_memory(),
        }
    }

    /// Seals a window and all before it. When this returns `Ok`, no addition to them is under way on this
    /// instance, none will succeed, and all that succeeded are in the count.
    ///
    /// # Errors
    ///
    /// [`Unavailable`]: the window refuses additions all the same. Another call finishes the seal.
    pub async fn seal(&self, window: Window) -> Result<(), Unavailable> {
        match self {
            Self::Memory(store) => store.seal(window).await,
            Self::Redis(store) => store.seal(window).await,
        }
    }

    /// Seals windows up to this one, which the leader has closed without this instance. In a Redis Cluster it succeeds even if a
    /// server is away.
    ///
    /// # Errors
    ///
    /// As [`Self::seal`].
    pub(crate) async fn seal_closed(&self, window: Window) -> Result<(), Unavailable> {
        match self {
            Self::Memory(store) => store.seal(window).await,
            Self::Redis(store) => store.seal_closed(window).await,
        }
    }

    /// Whether some of its servers may be away while others are there.
    pub(crate) fn goes_on_without_some(&self) -> bool {
        self.redis().is_some_and(RedisStore::goes_on_without_some)
    }

    /// The windows that this instance added to and that are not evicted, oldest first. Some may lie in the future, by
    /// the clock as it is now: it may have been set back.
    pub fn windows(&self) -> Vec<Window> {
        match self {
            Self::Memory(store) => store.windows(),
            Self::Redis(store) => store.windows(),
        }
    }

    /// How many different ids a window has: final once every instance has sealed it. A window that was
    /// never added to has none.
    ///
    /// # Errors
    ///
    /// [`CountError::Evicted`] when the window is evicted.
    pub async fn count(&self, window: Window) -> Result<StoreCount, CountError> {
        match self {
            Self::Memory(store) => store.count(window),
            Self::Redis(store) => store.count(window).await,
        }
    }

    /// The final counts of a window that every instance has sealed, and of its counters. Before it counts, the store gives Redis
    /// back what Redis lost, as far as the parts of the instances have it. `parties` are the instances that are known to have sealed the
    /// window: without the stats of one of them, its ids may be missing. [`StoreCount::lost_ids`] says whether any may be. A
    /// primary of a Redis Cluster that has been away for so long is left out.
    ///
    /// # Errors
    ///
    /// As [`Self::count`].
    pub async fn settle(
        &self,
        window: Window,
        parties: &BTreeSet<String>,
        away_for: Duration,
    ) -> Result<Settled, CountError> {
        match self {
            Self::Memory(store) => store.settle(window),
            Self::Redis(store) => store.settle(window, parties, away_for).await,
        }
    }

    /// Removes what was kept only to count a window and those before it. The caller has stored their counts.
    pub(crate) async fn closed(&self, window: Window) {
        if let Self::Redis(store) = self {
            store.closed(window).await;
        }
    }

    /// Lets what a closed window's counters were counted from expire soon. The caller has stored these counts.
    ///
    /// # Errors
    ///
    /// [`Unavailable`]: some expire later.
    pub(crate) async fn let_counters_expire(
        &self,
        window: Window,
        counts: &CounterCounts,
    ) -> Result<(), Unavailable> {
        match self {
            Self::Memory(_) => Ok(()),
            Self::Redis(store) => store.let_counters_expire(window, counts).await,
        }
    }

    /// What Redis still knows of a window that an instance counted before, perhaps long ago. Memory knows nothing of such a
    /// window.
    ///
    /// # Errors
    ///
    /// [`Unavailable`].
    pub async fn recall(&self, window: Window) -> Result<Option<Recalled>, Unavailable> {
        match self {
            Self::Memory(_) => Ok(None),
            Self::Redis(store) => store.recall(window).await,
        }
    }

    /// Whether there are sketches, which can be merged.
    pub fn has_sketches(&self) -> bool {
        match self {
            Self::Memory(store) => store.has_sketches(),
            Self::Redis(store) => store.has_sketches(),
        }
    }

    /// Merges a closed window into hours and days. To do it twice changes nothing.
    ///
    /// # Errors
    ///
    /// [`Unavailable`]: some may have it.
    pub async fn roll_up(&self, window: Window, periods: &[Period]) -> Result<RolledUp, Unavailable> {
        match self {
            Self::Memory(store) => Ok(store.roll_up(window, periods)),
            Self::Redis(store) => store.roll_up(window, periods).await,
        }
    }

    /// Merges counters of a closed window into hours and days. To do it twice changes nothing.
    ///
    /// # Errors
    ///
    /// [`Unavailable`]: some may have it.
    pub async fn roll_up_counters(
        &self,
        window: Window,
        counters: &[CounterCount],
        periods: &[Period],
    ) -> Result<(), Unavailable> {
        match self {
            Self::Memory(store) => {
                store.roll_up_counters(window, counters, periods);
                // There may be very many.
                tokio::task::yield_now().await;
                Ok(())
            }
            Self::Redis(store) => store.roll_up_counters(window, counters, periods).await,
        }
    }

    /// What is known of the sketches of a counter in hours and days. None where all of it is gone, or where no counter had ids.
    ///
    /// # Errors
    ///
    /// [`Unavailable`].
    pub async fn counter_records(
        &self,
        counter: &str,
        periods: &[Period],
    ) -> Result<Vec<Option<CounterRecord>>, Unavailable> {
        match self {
            Self::Memory(store) => Ok(store.counter_records(counter, periods)),
            Self::Redis(store) => store.counter_records(counter, periods).await,
        }
    }

    /// The union of parts of a range. A part that is not kept has no ids. To read and merge many sketches keeps a thread busy for
    /// milliseconds.
    ///
    /// # Errors
    ///
    /// [`Unavailable`].
    pub async fn union(&self, of: &Subject, parts: &[Part]) -> Result<Union, Unavailable> {
        match self {
            Self::Memory(store) => Ok(store.union(of, parts)),
            Self::Redis(store) => store.union(of, parts).await,
        }
    }

    /// The start of the oldest period of a level whose sketch is kept. None if none are.
    pub fn oldest_period(&self, of: &Subject, level: Level, keep: &Keep, now: SystemTime) -> Option<u64> {
        let oldest = keep.of(of).oldest(level, now);
        match self {
            Self::Memory(store) => oldest.map(|oldest| oldest.max(store.gone_period(of, level))),
            Self::Redis(_) => oldest,
        }
    }

    /// The oldest window whose sketch is kept.
    pub fn oldest_window(&self, now: SystemTime, retention: Duration, length: WindowLength) -> Window {
        let oldest = length.window_at(now.checked_sub(retention).unwrap_or(SystemTime::UNIX_EPOCH));
        match self {
            // Only that of the running window.
            Self::Memory(store) if !store.keeps_sealed() => length.window_at(now),
            Self::Memory(store) => store.gone().map_or(oldest, |gone| oldest.max(gone.next())),
            Self::Redis(_) => oldest,
        }
    }

    /// Evicts a window and all before it, because their counts are stored.
    pub async fn evict(&self, window: Window) {
        match self {
            Self::Memory(store) => store.evict(window),
            Self::Redis(store) => store.evict(window).await,
        }
    }

    /// Adds once more what this instance has of windows that are not evicted, because Redis lost data. In mode `exact`
    /// that is only the pending ids: no instance has the other ones any more. `loss` is the number of the loss, from 1: the same if
    /// an earlier call failed.
    ///
    /// # Errors
    ///
    /// [`Unavailable`]: Redis may have some of it again.
    pub async fn restore(&self, loss: u64) -> Result<(), Unavailable> {
        match self {
            Self::Memory(_) => Ok(()),
            Self::Redis(store) => store.restore(loss).await,
        }
    }

    /// Whether Redis is away, so that this instance keeps ids for now, or refuses them.
    pub fn is_degraded(&self) -> bool {
        self.redis().is_some_and(RedisStore::is_degraded)
    }

    /// Pending ids: accepted, and not in Redis yet.
    pub(crate) fn pending_ids(&self) -> u64 {
        self.redis().map_or(0, RedisStore::pending_ids)
    }

    /// How many counters the replay under way has left to give to Redis. While that changes, this instance makes progress.
    pub(crate) fn counters_left(&self) -> u64 {
        self.redis().map_or(0, RedisStore::counters_left)
    }

    /// How many ids this instance accepted for the windows from `first` to `last` while Redis was away. Each id is returned
    /// only once.
    pub(crate) fn take_missed(&self, first: Window, last: Window) -> u64 {
        self.redis().map_or(0, |store| store.take_missed(first, last))
    }

    fn redis(&self) -> Option<&RedisStore> {
        match self {
            Self::Memory(_) => None,
            Self::Redis(store) => Some(store),
        }
    }
}
