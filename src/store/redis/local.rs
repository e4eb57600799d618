//! This instance's windows: what it added to each, and which of these ids are pending.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use ::metrics::Counter;
use tokio::sync::Mutex as AsyncMutex;
use tokio::task::spawn_blocking;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tracing::error;

use super::addition::Addition;
use super::config::RedisStoreConfig;
use super::counters::LocalCounters;
use super::pending::PendingIds;
use super::stats::WindowStats;
use super::target::{Knowledge, Registers, Target};
use crate::model::counter::CounterNames;
use crate::model::id::{Id, TextId};
use crate::model::mode::Mode;
use crate::model::window::Window;
use crate::platform::budget::Budget;
use crate::platform::unavailable::Unavailable;
use crate::store::answers::{AddError, Added};
use crate::store::ids::{IdSet, Ids};
use crate::store::import::Import;
use crate::store::places::{Before, LastNames};
use crate::store::windows::{Entry, WindowTable};

/// Memory for sealed windows that are not published: a day of minutes with one shard. The newest [`ALWAYS_KEPT`] are
/// kept in any case.
const BYTES_KEPT: usize = 64 << 20;
const ALWAYS_KEPT: usize = 8;
/// Windows without ids whose stats a seal stores, at most: the newest ones. It takes some seconds.
const MOST_IDLE: usize = 100_000;
/// Memory of a shard of a window. It is twice as much if acknowledged registers are remembered.
const BYTES_A_SHARD: usize = 16 << 10;

/// The windows that this instance has a part in.
pub(super) struct LocalWindows {
    config: Arc<RedisStoreConfig>,
    pending: Arc<PendingIds>,
    /// Accepted ids of windows that were given up.
    missed_ids: Counter,
    pub(super) table: WindowTable<LocalWindow, Sealed>,
    pub(super) counter_memory: Arc<Budget>,
    last_names: LastNames,
    /// A task frees counters.
    is_giving_up: AtomicBool,
}

/// A window that was sealed here.
#[derive(Clone)]
pub(super) enum Sealed {
    /// It can be replayed.
    Kept(Arc<LocalWindow>),
    /// Only its stats are left: too many windows were kept, or it had no ids.
    Dropped(WindowStats),
}

impl Sealed {
    fn kept(self) -> Option<Arc<LocalWindow>> {
        match self {
            Self::Kept(local) => Some(local),
            Self::Dropped(_) => None,
        }
    }
}

/// This instance's part of a window.
pub(super) struct LocalWindow {
    pub(super) window: Window,
    /// For each shard.
    pub(super) targets: Box<[Arc<Target>]>,
    /// In mode `hll` all that were added; in mode `exact` the pending ones.
    pub(super) ids: Ids,
    /// In mode `hll`, how many ids of each shard's sketch are pending.
    unmerged: Box<[AtomicU64]>,
    accepted: AtomicU64,
    imports: AtomicU64,
    /// Ids that were accepted while Redis was away.
    missed: AtomicU64,
    /// How many replayed exact ids Redis called new.
    replayed_new: AtomicU64,
    /// None if counters are off.
    pub(super) counters: Option<LocalCounters>,
    /// Redis lost exact ids of it, perhaps unnoticed, or their key held something else.
    is_damaged: AtomicBool,
    /// The number of the last loss that was noted; 0 for none.
    noted_loss: AtomicU64,
    /// Additions that have entered, and whose requests are not answered.
    under_way: TaskTracker,
    /// Held while it is replayed.
    pub(super) replaying: AsyncMutex<()>,
    /// Redis has this instance's [part](super::replay) of it.
    pub(super) has_part: AtomicBool,
    /// Shared by all windows.
    pending: Arc<PendingIds>,
}

impl LocalWindows {
    pub(super) fn new(config: Arc<RedisStoreConfig>, missed_ids: Counter) -> Self {
        let pending = Arc::new(PendingIds::new(config.pending_max));
        let counter_memory = Budget::new(config.counters.memory);
        let (table, last_names) = (WindowTable::default(), LastNames::default());
        let is_giving_up = AtomicBool::new(false);
        Self { config, pending, missed_ids, table, counter_memory, last_names, is_giving_up }
    }

    /// Enters a window: until the token is dropped, it cannot be sealed.
    pub(super) fn enter(&self, window: Window) -> Result<(Arc<LocalWindow>, TaskTrackerToken), AddError> {
        let new = || {
            self.give_up_oldest(window);
            let counters = (self.config.counters.most > 0).then(|| {
                let before = self.names_before(window);
                LocalCounters::new(&self.config, window, &self.counter_memory, before, &self.pending)
            });
            LocalWindow::new(&self.config, window, counters, &self.pending)
        };
        self.table.enter(window, new, |local| (Arc::clone(local), local.under_way.token()))
    }

    fn names_before(&self, window: Window) -> Before {
        match self.table.get(window.previous()) {
            Ok(Some(Entry::Open(local))) => {
                local.counters.as_ref().map_or(Before::Nothing, LocalCounters::as_before)
            }
            _ => self.last_names.before(window),
        }
    }

    /// Without this, an outage that does not end would use up the memory.
    fn give_up_oldest(&self, opening: Window) {
        for (window, local) in self.table.make_room(self.config.most_windows(opening)) {
            let accepted_ids = local.accepted.load(Ordering::Relaxed);
            self.missed_ids.increment(accepted_ids);
            error!(
                %window, accepted_ids,
                "Redis was away for longer than --retention: the oldest pending window is given up, and its ids are \
                 lost"
            );
        }
    }

    /// Windows up to this one that had no ids here, and whose stats Redis does not have.
    pub(super) fn idle_up_to(&self, window: Window) -> Vec<Window> {
        self.table.unopened_up_to(window, self.config.most_windows(window).min(MOST_IDLE))
    }

    /// Notes that Redis has the stats of windows without ids.
    pub(super) fn note_sealed_idle(&self, windows: &[Window]) {
        for window in windows {
            self.last_names.forget_before(*window);
            self.table.note_sealed(*window, Sealed::Dropped(WindowStats::default()));
        }
    }

    /// Notes that Redis has all of a window. The newest windows are kept, so that they can be merged again.
    pub(super) fn note_sealed(&self, local: Arc<LocalWindow>) {
        if let Some(counters) = &local.counters {
            self.last_names.note(local.window, counters.note_sealed());
        }
        self.table.note_sealed(local.window, Sealed::Kept(local));
        let copies = 1 + usize::from(self.config.remembers_acknowledged());
        let bytes_a_window = BYTES_A_SHARD * copies * usize::from(self.config.shards.count());
        let most = (BYTES_KEPT / bytes_a_window).max(ALWAYS_KEPT);
        // Windows before it were dropped earlier.
        if let Some(oldest) = self.kept().rev().nth(most) {
            // It was closed without a server that was away. What is still pending goes now.
            if matches!(&oldest.ids, Ids::Exact(pending) if pending.len() > 0) {
                oldest.note_damage();
            }
            self.table.note_sealed(oldest.window, Sealed::Dropped(oldest.stats()));
        }
    }

    /// Sealed windows up to `last` with counters, oldest first.
    fn counters_up_to(&self, last: Window) -> impl Iterator<Item = Arc<LocalWindow>> {
        let has_counters = |local: &LocalWindow| local.counters.as_ref().is_some_and(LocalCounters::has_some);
        self.kept().filter(move |local| local.window <= last && has_counters(local))
    }

    /// Whether ids of counters came here in a window.
    pub(super) fn had_counters(&self, window: Window) -> bool {
        let has_some = |local: &LocalWindow| local.counters.as_ref().is_some_and(LocalCounters::has_some);
        match self.table.get(window) {
            Ok(Some(Entry::Open(local) | Entry::Sealed(Sealed::Kept(local)))) => has_some(&local),
            _ => false,
        }
    }

    /// Evicts a window and all before it. Returns them.
    pub(super) fn evict(&self, window: Window) -> Vec<Window> {
        let with_counters: Vec<_> = self.counters_up_to(window).collect();
        let evicted = self.table.evict(window);
        if !with_counters.is_empty() {
            spawn_blocking(move || {
                with_counters
                    .iter()
                    .filter_map(|local| local.counters.as_ref())
                    .for_each(LocalCounters::give_up);
            });
        }
        evicted
    }

    /// Gives up counters of closed windows, the oldest first, while counters have more than half of their memory. Open windows
    /// need the memory, also when a sink is away for long.
    pub(super) fn give_up_counters(self: &Arc<Self>, closed: Window) {
        let is_scarce = |local: &Self| local.counter_memory.used() > local.counter_memory.most() / 2;
        if !is_scarce(self)
            || self.counters_up_to(closed).next().is_none()
            || self.is_giving_up.swap(true, Ordering::Relaxed)
        {
            return;
        }
        let local = Arc::clone(self);
        spawn_blocking(move || {
            for window in local.counters_up_to(closed).take_while(|_| is_scarce(&local)) {
                window.counters.iter().for_each(LocalCounters::give_up);
            }
            local.is_giving_up.store(false, Ordering::Relaxed);
        });
    }

    /// Windows up to `last` of which Redis has this instance's part.
    pub(super) fn with_part(&self, last: Window) -> impl Iterator<Item = Arc<LocalWindow>> {
        self.kept().filter(move |local| local.window <= last && local.has_part.load(Ordering::Relaxed))
    }

    /// Windows with ids that are not evicted, oldest first.
    pub(super) fn all(&self) -> Vec<Window> {
        let is_idle = |sealed: &Sealed| matches!(sealed, Sealed::Dropped(stats) if stats.accepted == 0);
        let sealed = self.table.sealed().into_iter().filter(|(_, sealed)| !is_idle(sealed));
        let sealed = sealed.map(|(window, _)| window);
        sealed.chain(self.open().iter().map(|local| local.window)).collect()
    }

    /// Windows that are not sealed, oldest first.
    pub(super) fn open(&self) -> Vec<Arc<LocalWindow>> {
        self.table.open().into_iter().map(|(_, local)| local).collect()
    }

    fn kept(&self) -> impl DoubleEndedIterator<Item = Arc<LocalWindow>> {
        self.table.sealed().into_iter().filter_map(|(_, sealed)| sealed.kept())
    }

    pub(super) fn pending_ids(&self) -> u64 {
        self.pending.count()
    }

    /// How many ids were accepted for these windows while Redis was away. Each id is returned only once.
    pub(super) fn take_missed(&self, first: Window, last: Window) -> u64 {
        let all = self.open().into_iter().chain(self.kept());
        let some = all.filter(|local| (first..=last).contains(&local.window));
        some.map(|local| local.missed.swap(0, Ordering::Relaxed)).sum()
    }
}

impl LocalWindow {
    fn new(
        config: &RedisStoreConfig,
        window: Window,
        counters: Option<LocalCounters>,
        pending: &Arc<PendingIds>,
    ) -> Self {
        let RedisStoreConfig { mode, shards, keys, .. } = config;
        let command = match mode {
            Mode::Hll => "PFADD",
            Mode::Exact => "SADD",
        };
        let target = |shard| {
            let key = keys.ids(*mode, shard, *shards, window);
            let knowledge = if config.remembers_acknowledged() {
                Knowledge::Registers(Registers::new())
            } else {
                Knowledge::Unknown
            };
            Arc::new(Target::new(command, key, config.keep_for(window), knowledge))
        };
        Self {
            window,
            targets: (0..usize::from(shards.count())).map(target).collect(),
            ids: Ids::new(*mode, *shards),
            counters,
            unmerged: (0..shards.count()).map(|_| AtomicU64::new(0)).collect(),
            accepted: AtomicU64::new(0),
            imports: AtomicU64::new(0),
            missed: AtomicU64::new(0),
            replayed_new: AtomicU64::new(0),
            is_damaged: AtomicBool::new(false),
            noted_loss: AtomicU64::new(0),
            under_way: TaskTracker::new(),
            replaying: AsyncMutex::new(()),
            has_part: AtomicBool::new(false),
            pending: Arc::clone(pending),
        }
    }

    pub(super) fn note_accepted(&self, ids: usize) {
        self.accepted.fetch_add(ids as u64, Ordering::Relaxed);
    }

    /// Keeps ids until Redis has them; it may have some already. Returns how many changed a sketch. For exact ids that is
    /// 0: Redis says which are new when they are replayed.
    pub(super) fn keep<I: Id>(&self, all: Addition<'_, '_, I>) -> Result<Added, Unavailable> {
        let counters = self.counters.as_ref().filter(|_| !all.counters.is_empty());
        let keep = |counters: &LocalCounters| counters.keep(all.to_counters, all.counters);
        let added = match &self.ids {
            Ids::Hll { shards, sketches } => {
                let mut changed = 0;
                // First, because the recovery may merge the first ids, and release them, before the last one is here.
                self.pending.add(all.ids.len() as u64);
                for id in all.ids.iter().map(AsRef::as_ref) {
                    let shard = shards.of(id);
                    changed += u64::from(sketches[shard].add(id));
                    // Ordered after the registers of the id.
                    self.unmerged[shard].fetch_add(1, Ordering::Release);
                }
                let (_, overflow) = counters.map_or((0, 0), keep);
                Added { changed, overflow }
            }
            Ids::Exact(pending) => {
                let reserved = self.reserve(pending, all)?;
                let in_total = all.ids.iter().filter(|id| pending.insert(id.as_ref())).count() as u64;
                let (in_counters, overflow) = counters.map_or((0, 0), keep);
                self.pending.settle(reserved, in_total + in_counters);
                Added { changed: 0, overflow }
            }
        };
        self.missed.fetch_add(all.ids.len() as u64, Ordering::Relaxed);
        Ok(added)
    }

    /// Merges sketches into the local ones. Redis lacks them until they are replayed. The caller holds [`Self::replaying`].
    pub(super) fn import(&self, import: &Import, counters: &CounterNames<'_>) -> Added {
        let Ids::Hll { sketches, .. } = &self.ids else { return Added::default() };
        for ((own, imported), unmerged) in sketches.iter().zip(import.of_shards()).zip(&self.unmerged) {
            if !imported.is_empty() {
                self.pending.add(1);
                unmerged.fetch_add(1, Ordering::Relaxed);
                own.merge(imported);
            }
        }
        let overflow = match &self.counters {
            Some(named) if !counters.is_empty() => named.import(import.union(), counters),
            _ => 0,
        };
        self.accepted.fetch_add(1, Ordering::Relaxed);
        self.imports.fetch_add(1, Ordering::Relaxed);
        Added { changed: 0, overflow }
    }

    /// Notes that an import was accepted while Redis was away.
    pub(super) fn note_missed_import(&self) {
        self.missed.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes room for all of these exact ids, in the total and in each counter, or for none. Ids that are pending already need
    /// none. To find out which are takes time, so it is done only if there is not room for all.
    fn reserve<I: Id>(&self, pending: &IdSet, all: Addition<'_, '_, I>) -> Result<u64, Unavailable> {
        let most = (all.ids.len() + all.to_counters.len() * all.counters.iter().count()) as u64;
        if self.pending.reserve(most) {
            return Ok(most);
        }
        let in_total = all.ids.iter().filter(|id| !pending.contains(id.as_ref())).count() as u64;
        let counters = self.counters.as_ref().filter(|_| !all.counters.is_empty());
        let needed =
            in_total + counters.map_or(0, |counters| counters.not_pending(all.to_counters, all.counters));
        if self.pending.reserve(needed) { Ok(needed) } else { Err(self.pending.full()) }
    }

    /// How many ids of a shard's sketch are pending. A sketch that is read afterwards has all of them.
    pub(super) fn unmerged(&self, shard: usize) -> u64 {
        // Ordered after the registers of these ids.
        self.unmerged[shard].load(Ordering::Acquire)
    }

    /// Notes that Redis has this many pending ids of a shard's sketch.
    pub(super) fn note_merged(&self, shard: usize, ids: u64) {
        self.unmerged[shard].fetch_sub(ids, Ordering::Relaxed);
        self.pending.release(ids);
    }

    /// Notes that Redis has these pending exact ids, and how many it called new.
    pub(super) fn note_replayed<'a>(&self, ids: impl Iterator<Item = &'a TextId>, new: u64) {
        self.replayed_new.fetch_add(new, Ordering::Relaxed);
        if let Ids::Exact(pending) = &self.ids {
            self.pending.release(pending.remove(ids));
        }
    }

    /// Notes that the server may have lost something, and is of this generation now. Of each loss, with its number, only the first
    /// call counts.
    pub(super) fn note_loss(&self, loss: u64, generation: u64) {
        if self.noted_loss.swap(loss, Ordering::Relaxed) == loss {
            return;
        }
        let may_hide_a_loss = |target: &Arc<Target>| target.may_hide_a_loss(generation);
        if matches!(self.ids, Ids::Exact(_)) && self.targets.iter().any(may_hide_a_loss) {
            self.note_damage();
        }
        if let Some(counters) = &self.counters {
            counters.note_loss(generation);
        }
    }

    /// Notes that Redis lost exact ids, or that their key held something else.
    pub(super) fn note_damage(&self) {
        self.is_damaged.store(true, Ordering::Relaxed);
    }

    /// The stats so far, with those of all counters.
    pub(super) fn stats(&self) -> WindowStats {
        let counters = self.counters.as_ref().map(LocalCounters::stats).unwrap_or_default();
        WindowStats { counters, ..self.stats_of_total() }
    }

    /// The stats so far, without those of counters, which may be many.
    pub(super) fn stats_of_total(&self) -> WindowStats {
        let lost = u64::from(self.is_damaged.load(Ordering::Relaxed));
        let written_new: u64 = self.targets.iter().map(|target| target.new_ids()).sum();
        let new = written_new + self.replayed_new.load(Ordering::Relaxed);
        let accepted = self.accepted.load(Ordering::Relaxed);
        let imports = self.imports.load(Ordering::Relaxed);
        WindowStats { accepted, new, lost, imports, ..WindowStats::default() }
    }

    /// Waits until all additions are answered. No more may enter.
    pub(super) async fn all_answered(&self, patience: Duration) -> Result<(), Unavailable> {
        self.under_way.close();
        tokio::time::timeout(patience, self.under_way.wait())
            .await
            .map_err(|_| Unavailable::because("the last writes of the window have no answer"))
    }
}

/// Ids that are still pending are given up.
impl Drop for LocalWindow {
    fn drop(&mut self) {
        self.pending.release(match &self.ids {
            Ids::Hll { .. } => self.unmerged.iter().map(|ids| ids.load(Ordering::Relaxed)).sum(),
            Ids::Exact(ids) => ids.len(),
        });
    }
}
