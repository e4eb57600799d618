//! The store in this instance's memory, for a service that runs standalone. What it holds is gone with the instance.
//!
//! Ids and registers live until the seal. Of a sealed window only its counts stay, until it is evicted: nothing can be added to
//! it, so there is nothing else to know.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::answers::{
    AddError, Added, Compared, CountError, CounterRecord, RolledUp, Settled, StoreCount, Union,
};
use super::counter_history;
use super::counters::{Counters, OVER};
use super::history::{History, MOST_BYTES};
use super::ids::Ids;
use super::import::Import;
use super::keep::Keep;
use super::places::{Before, LastNames};
use super::windows::{Entry, WindowTable};
use crate::hll::Sketch;
use crate::model::counter::{CounterCount, CounterCounts, CounterLimits, CounterNames, Subject};
use crate::model::id::Id;
use crate::model::mode::Mode;
use crate::model::parts::Part;
use crate::model::period::{Level, Period};
use crate::model::shard::Shards;
use crate::model::window::Window;
use crate::platform::budget::Budget;
use crate::platform::unavailable::Unavailable;

/// Counts in memory.
pub struct MemoryStore {
    mode: Mode,
    shards: Shards,
    limits: CounterLimits,
    memory: Arc<Budget>,
    windows: WindowTable<OpenWindow, SealedWindow>,
    last_names: LastNames,
    history: Arc<History>,
}

struct OpenWindow {
    ids: Ids,
    accepted: AtomicU64,
    has_imports: AtomicBool,
    /// None if counters are off.
    counters: Option<Counters>,
}

#[derive(Clone)]
struct SealedWindow {
    count: StoreCount,
    counters: Arc<CounterCounts>,
}

impl MemoryStore {
    /// An empty store. In mode `hll` every open window takes 16 KiB a shard, in mode `exact` 25
    /// to 55 bytes an id. It takes no counters.
    pub fn new(mode: Mode, shards: Shards) -> Self {
        Self::with_counters(mode, shards, CounterLimits::default())
    }

    /// An empty store that also takes counters.
    pub fn with_counters(mode: Mode, shards: Shards, limits: CounterLimits) -> Self {
        let memory = Budget::new(limits.memory);
        Self {
            mode,
            shards,
            limits,
            memory,
            windows: WindowTable::default(),
            last_names: LastNames::default(),
            history: Arc::new(History::new(Keep::default(), shards)),
        }
    }

    /// Keeps hours and days for so long.
    #[must_use]
    pub fn keeping(self, keep: Keep) -> Self {
        Self { history: Arc::new(History::new(keep, self.shards)), ..self }
    }

    pub(super) fn add<I: Id>(
        &self,
        window: Window,
        ids: &[I],
        counters: &CounterNames<'_>,
    ) -> Result<Added, AddError> {
        self.windows.enter(window, || self.open(window), |open| open.add(ids, counters))
    }

    pub(super) fn import(
        &self,
        window: Window,
        import: &Import,
        counters: &CounterNames<'_>,
    ) -> Result<Added, AddError> {
        self.windows.enter(window, || self.open(window), |open| open.import(import, counters))
    }

    fn open(&self, window: Window) -> OpenWindow {
        let (ids, accepted) = (Ids::new(self.mode, self.shards), AtomicU64::new(0));
        let counters = (self.limits.most > 0)
            .then(|| Counters::new(window, self.mode, self.limits, &self.memory, self.names_before(window)));
        OpenWindow { ids, accepted, has_imports: AtomicBool::new(false), counters }
    }

    fn names_before(&self, window: Window) -> Before {
        match self.windows.get(window.previous()) {
            Ok(Some(Entry::Open(open))) => {
                open.counters.as_ref().map_or(Before::Nothing, Counters::as_before)
            }
            _ => self.last_names.before(window),
        }
    }

    pub(super) async fn seal(&self, window: Window) -> Result<(), Unavailable> {
        self.memory.give_back_after_peak();
        // The ids are counted and freed outside the lock, so that no addition waits for it. Counters may be many: that takes time.
        for (window, open) in self.windows.close_up_to(window) {
            let history = Arc::clone(&self.history);
            let counting = tokio::task::spawn_blocking(move || {
                let sealed = open.seal();
                if history.keeps_counters()
                    && !sealed.counters.all().is_empty()
                    && let Some(counters) = &open.counters
                    && let Some(sketches) = counters.sketches(MOST_BYTES)
                {
                    history.note_counters(window, sketches);
                }
                (sealed, open)
            });
            let (sealed, open) = counting.await.map_err(Unavailable::because)?;
            if let Ids::Hll { sketches, .. } = &open.ids {
                self.history.note(window, sketches);
            }
            let counts = Arc::clone(&sealed.counters);
            self.last_names.note(window, Arc::clone(&counts) as _);
            self.windows.note_sealed(window, sealed);
            // Nobody waits for this.
            drop(tokio::task::spawn_blocking(move || open.free(&counts)));
        }
        self.last_names.forget_before(window);
        Ok(())
    }

    pub(super) fn windows(&self) -> Vec<Window> {
        let sealed = self.windows.sealed().into_iter().map(|(window, _)| window);
        sealed.chain(self.windows.open().into_iter().map(|(window, _)| window)).collect()
    }

    pub(super) fn count(&self, window: Window) -> Result<StoreCount, CountError> {
        Ok(match self.windows.get(window)? {
            Some(Entry::Open(open)) => open.count(),
            Some(Entry::Sealed(sealed)) => sealed.count,
            None => StoreCount::default(),
        })
    }

    /// The counts of counters so far.
    pub(super) fn counts_of(&self, window: Window, counters: &[&str]) -> Result<Vec<u64>, CountError> {
        let entry = self.windows.get(window)?;
        let count = |counter: &&str| match &entry {
            Some(Entry::Open(open)) => open.counters.as_ref().map_or(0, |open| open.count(counter)),
            Some(Entry::Sealed(sealed)) => sealed.counters.get(counter),
            None => 0,
        };
        Ok(counters.iter().map(count).collect())
    }

    /// Compares two counters of an open window. It takes a while.
    pub(super) fn compare(&self, window: Window, names: &[&str]) -> Result<Compared, CountError> {
        let open = match self.windows.get(window)? {
            Some(Entry::Sealed(_)) => return Ok(Compared::Not(OVER)),
            Some(Entry::Open(open)) => Some(open),
            None => None,
        };
        let counters = open.as_ref().and_then(|open| open.counters.as_ref());
        Ok(counters.map_or_else(|| Compared::nothing(names.len()), |counters| counters.compare(names)))
    }

    pub(super) fn settle(&self, window: Window) -> Result<Settled, CountError> {
        let counters = match self.windows.get(window)? {
            Some(Entry::Open(open)) => {
                Arc::new(open.counters.as_ref().map(Counters::counts).unwrap_or_default())
            }
            Some(Entry::Sealed(sealed)) => sealed.counters,
            None => Arc::default(),
        };
        Ok(Settled { total: self.count(window)?, counters, lacks_some: false })
    }

    pub(super) fn has_sketches(&self) -> bool {
        self.mode == Mode::Hll
    }

    pub(super) fn roll_up(&self, window: Window, periods: &[Period]) -> RolledUp {
        self.history.roll_up(window, periods)
    }

    pub(super) fn roll_up_counters(&self, window: Window, counters: &[CounterCount], periods: &[Period]) {
        self.history.roll_up_counters(window, counters, periods);
    }

    pub(super) fn counter_records(&self, counter: &str, periods: &[Period]) -> Vec<Option<CounterRecord>> {
        self.history.counter_records(counter, periods)
    }

    /// The end of the last period of a level that is gone.
    pub(super) fn gone_period(&self, of: &Subject, level: Level) -> u64 {
        self.history.gone_period(of, level)
    }

    /// Whether the sketches of sealed windows are kept.
    pub(super) fn keeps_sealed(&self) -> bool {
        self.history.keeps_windows()
    }

    /// The last window whose sketches are gone.
    pub(super) fn gone(&self) -> Option<Window> {
        self.history.gone()
    }

    /// The union of parts, and of open windows so far. It takes a while.
    pub(super) fn union(&self, of: &Subject, parts: &[Part]) -> Union {
        let shards = match of {
            Subject::Total => self.shards.count(),
            Subject::Counter(_) => 1,
        };
        let mut sketches: Vec<_> = (0..shards).map(|_| Sketch::new()).collect();
        let mut of_parts = Vec::with_capacity(parts.len());
        // First those that are open: one that is sealed meanwhile is in the history then.
        let open: Vec<_> = parts.iter().map(|part| self.open_sketches(of, *part)).collect();
        for (mut of_part, kept) in open.into_iter().zip(self.history.get(of, parts)) {
            let kept = kept.iter().flatten().map(|stored| counter_history::read(stored));
            for (shard, kept) in kept.enumerate() {
                match of_part.get_mut(shard) {
                    Some(open) => open.absorb(&kept),
                    None => of_part.push(kept),
                }
            }
            let merge = |(union, sketch): (&mut Sketch, &Sketch)| {
                union.absorb(sketch);
                sketch.estimate()
            };
            of_parts.push(sketches.iter_mut().zip(&of_part).map(merge).sum());
        }
        Union { sketches, of_parts }
    }

    /// The sketches of a window so far. None if it is not open.
    fn open_sketches(&self, of: &Subject, part: Part) -> Vec<Sketch> {
        let mut sketches = Vec::new();
        if let Part::Window(window) = part
            && let Ok(Some(Entry::Open(open))) = self.windows.get(window)
        {
            open.add_sketches(of, &mut sketches);
        }
        sketches
    }

    /// Bytes that counters take.
    pub(super) fn counter_memory(&self) -> u64 {
        self.memory.used()
    }

    pub(super) fn evict(&self, window: Window) {
        self.windows.evict(window);
    }
}

impl OpenWindow {
    fn add<I: Id>(&self, ids: &[I], counters: &CounterNames<'_>) -> Added {
        let changed = self.ids.add(ids);
        // Ordered before the seal by the lock of the table.
        self.accepted.fetch_add(ids.len() as u64, Ordering::Relaxed);
        let overflow = match &self.counters {
            Some(named) if !counters.is_empty() => named.add(ids, counters),
            _ => 0,
        };
        Added { changed: changed as u64, overflow }
    }

    fn import(&self, import: &Import, counters: &CounterNames<'_>) -> Added {
        if let Ids::Hll { sketches, .. } = &self.ids {
            sketches.iter().zip(import.of_shards()).for_each(|(sketch, imported)| sketch.merge(imported));
        }
        // As with ids.
        self.accepted.fetch_add(1, Ordering::Relaxed);
        self.has_imports.store(true, Ordering::Relaxed);
        let overflow = match &self.counters {
            Some(named) if !counters.is_empty() => named.import(import.union(), counters),
            _ => 0,
        };
        Added { changed: 0, overflow }
    }

    /// Adds the ids so far to a sketch for each shard, or for a counter to its only one.
    fn add_sketches(&self, of: &Subject, sketches: &mut Vec<Sketch>) {
        match (of, &self.ids, &self.counters) {
            (Subject::Total, Ids::Hll { sketches: so_far, .. }, _) => {
                sketches.resize_with(so_far.len(), Sketch::new);
                sketches.iter().zip(so_far).for_each(|(sketch, so_far)| sketch.merge(so_far));
            }
            (Subject::Counter(name), _, Some(counters)) => {
                sketches.resize_with(1, Sketch::new);
                counters.merge_into(name, &sketches[0]);
            }
            _ => {}
        }
    }

    /// Counts the ids. The caller has seen to it that nothing is added any more.
    fn seal(&self) -> SealedWindow {
        let counters = self.counters.as_ref().map(Counters::seal).unwrap_or_default();
        SealedWindow { count: self.count(), counters }
    }

    /// Frees the counters, once the window is sealed.
    fn free(&self, counts: &CounterCounts) {
        if let Some(counters) = &self.counters {
            counters.free(counts);
        }
    }

    fn count(&self) -> StoreCount {
        let accepted_ids = self.accepted.load(Ordering::Relaxed);
        let has_imports = self.has_imports.load(Ordering::Relaxed);
        StoreCount {
            unique_ids: self.ids.count(),
            accepted_ids,
            has_imports,
            lost_ids: 0,
            lacks_shards: false,
        }
    }
}
