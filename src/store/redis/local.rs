//! This instance's part of the windows: what it added, and what of that Redis does not have yet.

use std::collections::BTreeMap;
use std::fmt;
use std::iter::Sum;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use ::metrics::Counter;
use parking_lot::RwLock;
use tokio::sync::Mutex as AsyncMutex;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tracing::error;

use super::batch::Target;
use super::config::RedisCounterConfig;
use super::unacknowledged::Unacknowledged;
use crate::hll::{Observation, Sketch};
use crate::model::id::Id;
use crate::model::mode::Mode;
use crate::model::window::Window;
use crate::platform::unavailable::Unavailable;
use crate::store::AddError;
use crate::store::id_set::IdSet;

/// What sealed windows that are not published may take: a day of minutes with one shard. The newest
/// [`ALWAYS_KEPT`] are kept in any case.
const BYTES_KEPT: usize = 64 << 20;
const ALWAYS_KEPT: usize = 8;
/// Windows without ids that Redis is told of at a time: one after a pause of many is told by its neighbours.
const IDLE_TOLD: usize = 100;
/// What a shard of a window takes, twice if the registers that Redis has are remembered.
const BYTES_A_SHARD: usize = 16 << 10;

/// The windows that this instance has a part in.
pub(super) struct LocalWindows {
    config: Arc<RedisCounterConfig>,
    unacknowledged: Arc<Unacknowledged>,
    /// Accepted ids that are given up.
    missed_ids: Counter,
    state: RwLock<State>,
}

#[derive(Default)]
struct State {
    /// The oldest window that is not sealed; every window is open before the first seal.
    watermark: Option<Window>,
    /// Windows at or past the watermark, and those that are being sealed.
    open: BTreeMap<Window, Arc<LocalWindow>>,
    /// Sealed windows that are not forgotten.
    sealed: BTreeMap<Window, Sealed>,
    /// The last window that was forgotten.
    forgotten: Option<Window>,
    /// The last window that was given up with its ids.
    given_up: Option<Window>,
}

/// A window that was sealed here.
#[derive(Clone)]
pub(super) enum Sealed {
    /// It can be handed over again.
    Kept(Arc<LocalWindow>),
    /// There were too many of them, or nothing came for it: only how much came is known.
    Dropped(Window, Intake),
}

impl Sealed {
    /// Nothing came for it.
    fn is_idle(&self) -> bool {
        matches!(self, Self::Dropped(_, intake) if intake.accepted == 0)
    }
}

/// This instance's part of a window.
pub(super) struct LocalWindow {
    pub(super) window: Window,
    /// For each shard.
    pub(super) targets: Box<[Arc<Target>]>,
    pub(super) held: Held,
    accepted: AtomicU64,
    /// Exact ids of which Redis has said that they were new, of those that were kept for it.
    handed_over_new: AtomicU64,
    /// Something else was in the place of its ids, which are gone.
    is_damaged: AtomicBool,
    /// Ids that were accepted without Redis.
    apart: AtomicU64,
    /// Additions that have entered and not been answered.
    under_way: TaskTracker,
    /// Held while it is handed over.
    pub(super) handing_over: AsyncMutex<()>,
    /// Redis has this instance's part of it, as a key of its own.
    pub(super) has_part: AtomicBool,
    /// Counts what is kept, with that of all windows.
    pub(super) unacknowledged: Arc<Unacknowledged>,
}

/// What is kept here of a window.
pub(super) enum Held {
    /// All that was added, in a sketch for each shard; and how many ids of that are not in Redis yet.
    Sketches { sketches: Box<[Sketch]>, unmerged: AtomicU64 },
    /// Exact ids that are not in Redis yet.
    Ids(IdSet),
}

/// What came for a window, to one instance or to all.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Intake {
    /// Ids that were accepted, repeats among them.
    pub(super) accepted: u64,
    /// In mode `exact`: of how many Redis has said that they were new. If it has fewer of all instances in the
    /// end, it has lost some.
    pub(super) new: u64,
    /// Those that Redis has lost and nobody has any more.
    pub(super) lost: u64,
    /// In how many shards Redis was given this instance's part of the sketch, as a key of its own.
    pub(super) parts: u64,
}

impl Intake {
    /// Of an instance that nothing is known of: something may be missing.
    pub(super) const UNKNOWN: Self = Self { accepted: 0, new: 0, lost: 1, parts: 0 };

    /// As it is stored: `<accepted> <new> <lost> <parts>`. What is none of ours says nothing, so it is
    /// [`Self::UNKNOWN`].
    pub(super) fn read(text: &str) -> Self {
        let numbers: Result<Vec<u64>, _> = text.split(' ').map(str::parse).collect();
        match numbers.as_deref() {
            Ok(&[accepted, new, lost, parts]) => Self { accepted, new, lost, parts },
            _ => Self::UNKNOWN,
        }
    }
}

impl fmt::Display for Intake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {} {}", self.accepted, self.new, self.lost, self.parts)
    }
}

impl Sum for Intake {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, one| Self {
            accepted: sum.accepted + one.accepted,
            new: sum.new + one.new,
            lost: sum.lost + one.lost,
            parts: sum.parts + one.parts,
        })
    }
}

impl LocalWindows {
    /// None yet.
    pub(super) fn new(
        config: Arc<RedisCounterConfig>,
        unacknowledged: Arc<Unacknowledged>,
        missed_ids: Counter,
    ) -> Self {
        Self { config, unacknowledged, missed_ids, state: RwLock::default() }
    }

    /// Enters a window: until the token is dropped, it cannot be sealed.
    pub(super) fn enter(&self, window: Window) -> Result<(Arc<LocalWindow>, TaskTrackerToken), AddError> {
        loop {
            let state = self.state.read();
            if let Some(open) = state.watermark
                && window < open
            {
                return Err(AddError::Sealed { open });
            }
            if let Some(local) = state.open.get(&window) {
                return Ok((Arc::clone(local), local.under_way.token()));
            }
            drop(state);
            // Made before the lock is taken, and dropped again if another caller was faster.
            let new = Arc::new(LocalWindow::new(&self.config, window, &self.unacknowledged));
            let mut state = self.state.write();
            if state.watermark.is_none_or(|open| open <= window) {
                state.open.entry(window).or_insert(new);
                let given_up = state.drop_beyond(self.config.most_windows(window));
                drop(state);
                for local in given_up {
                    let accepted_ids = local.intake().accepted;
                    self.missed_ids.increment(accepted_ids);
                    error!(
                        window = %local.window, accepted_ids,
                        "Redis was away for longer than --retention: the oldest window that waits for it is given \
                         up, and its ids are lost"
                    );
                }
            }
        }
    }

    /// Keeps ids here, of which Redis has perhaps some. How many of them change a sketch; of exact ids Redis
    /// says so when it has them.
    pub(super) fn keep(&self, local: &LocalWindow, ids: &[Id]) -> Result<u64, Unavailable> {
        let changed = match &local.held {
            Held::Sketches { sketches, unmerged } => {
                let raises = |id: &&Id| {
                    let shard = self.config.shards.of(id.as_bytes());
                    sketches[shard].raise(Observation::of(id.as_bytes()))
                };
                let changed = ids.iter().filter(raises).count() as u64;
                self.unacknowledged.add(ids.len() as u64);
                unmerged.fetch_add(ids.len() as u64, Ordering::Release);
                changed
            }
            Held::Ids(kept) => {
                let room = || self.unacknowledged.reserve();
                if !ids.iter().all(|id| kept.insert_if(id, room)) {
                    return Err(self.unacknowledged.full());
                }
                0
            }
        };
        local.apart.fetch_add(ids.len() as u64, Ordering::Relaxed);
        Ok(changed)
    }

    /// No addition enters these windows any more.
    pub(super) fn close_up_to(&self, window: Window) -> Vec<Arc<LocalWindow>> {
        let mut state = self.state.write();
        state.watermark = state.watermark.max(Some(window.next()));
        state.open.range(..=window).map(|(_, local)| Arc::clone(local)).collect()
    }

    /// Windows up to this one, from the last that was sealed here, that nothing came for: the newest of them, oldest first.
    pub(super) fn idle_up_to(&self, window: Window) -> Vec<Window> {
        let state = self.state.read();
        let sealed = state.sealed.last_key_value().map(|(newest, _)| *newest);
        // Of those that were given up nothing is said either: ids did come for them.
        let sealed = sealed.max(state.forgotten).max(state.given_up);
        // An instance that has just come has no part in earlier ones.
        let Some(sealed) = sealed else {
            return if state.open.contains_key(&window) { Vec::new() } else { vec![window] };
        };
        let back = std::iter::successors(Some(window), |window| Some(window.previous()));
        let idle =
            back.take_while(|window| *window > sealed).filter(|window| !state.open.contains_key(window));
        let mut idle: Vec<_> = idle.take(IDLE_TOLD).collect();
        idle.reverse();
        idle
    }

    /// All of it is in Redis.
    pub(super) fn sealed(&self, local: Arc<LocalWindow>) {
        let mut state = self.state.write();
        state.open.remove(&local.window);
        let kept = (BYTES_KEPT / self.bytes_a_window()).max(ALWAYS_KEPT);
        state.sealed.insert(local.window, Sealed::Kept(local));
        let sketches = state.sealed.values_mut().rev().filter(|sealed| matches!(sealed, Sealed::Kept(_)));
        // Those before it were dropped earlier.
        if let Some(old) = sketches.into_iter().nth(kept)
            && let Sealed::Kept(local) = old
        {
            *old = Sealed::Dropped(local.window, local.intake());
        }
    }

    /// Redis knows that this instance has nothing of it.
    pub(super) fn sealed_idle(&self, window: Window) {
        let nothing = Sealed::Dropped(window, Intake::default());
        self.state.write().sealed.entry(window).or_insert(nothing);
    }

    /// About what one takes in memory when nothing is kept for Redis.
    fn bytes_a_window(&self) -> usize {
        let copies = 1 + usize::from(self.config.remembers_acknowledged());
        BYTES_A_SHARD * copies * usize::from(self.config.shards.count())
    }

    /// Forgets a window and all before it; those that it forgets.
    pub(super) fn forget(&self, window: Window) -> Vec<Window> {
        let mut state = self.state.write();
        state.forgotten = state.forgotten.max(Some(window));
        let kept = state.sealed.split_off(&window.next());
        std::mem::replace(&mut state.sealed, kept).into_keys().collect()
    }

    /// True when a window is forgotten. That it is old says nothing: the clock may have been set.
    pub(super) fn is_evicted(&self, window: Window) -> bool {
        self.state.read().forgotten >= Some(window)
    }

    /// Those up to a window of which Redis has this instance's part.
    pub(super) fn with_part(&self, last: Window) -> Vec<Arc<LocalWindow>> {
        let state = self.state.read();
        let kept = state.sealed.range(..=last).filter_map(|(_, sealed)| match sealed {
            Sealed::Kept(local) => Some(local),
            Sealed::Dropped(..) => None,
        });
        kept.filter(|local| local.has_part.load(Ordering::Relaxed)).cloned().collect()
    }

    /// Those that are not forgotten.
    pub(super) fn all(&self) -> Vec<Window> {
        let state = self.state.read();
        let sealed = state.sealed.iter().filter(|(_, sealed)| !sealed.is_idle()).map(|(window, _)| window);
        sealed.chain(state.open.keys()).copied().collect()
    }

    /// Those that are not sealed, oldest first.
    pub(super) fn open(&self) -> Vec<Arc<LocalWindow>> {
        self.state.read().open.values().cloned().collect()
    }

    /// Those that are sealed and not forgotten, oldest first.
    pub(super) fn all_sealed(&self) -> Vec<Sealed> {
        self.state.read().sealed.values().cloned().collect()
    }

    /// What came for a window that is not sealed.
    pub(super) fn intake(&self, window: Window) -> Option<Intake> {
        self.state.read().open.get(&window).map(|local| local.intake())
    }

    /// Accepted ids that Redis does not have yet.
    pub(super) fn unacknowledged_ids(&self) -> u64 {
        self.unacknowledged.ids()
    }

    /// Ids that were accepted without Redis for these windows; they are told once.
    pub(super) fn take_kept_apart(&self, first: Window, last: Window) -> u64 {
        let state = self.state.read();
        let sealed = state.sealed.range(first..=last).filter_map(|(_, sealed)| match sealed {
            Sealed::Kept(local) => Some(local),
            Sealed::Dropped(..) => None,
        });
        let open = state.open.range(first..=last).map(|(_, local)| local);
        open.chain(sealed).map(|local| local.apart.swap(0, Ordering::Relaxed)).sum()
    }
}

impl State {
    /// Keeps the newest. Without this an outage that does not end would take all memory. They are counted, and their
    /// age does not matter: a clock that was set makes no window old.
    fn drop_beyond(&mut self, most: usize) -> Vec<Arc<LocalWindow>> {
        while self.sealed.len() > most {
            self.sealed.pop_first();
        }
        let mut dropped = Vec::new();
        while self.open.len() > most
            && let Some((_, oldest)) = self.open.pop_first()
        {
            self.given_up = self.given_up.max(Some(oldest.window));
            dropped.push(oldest);
        }
        dropped
    }
}

impl LocalWindow {
    fn new(config: &RedisCounterConfig, window: Window, unacknowledged: &Arc<Unacknowledged>) -> Self {
        let RedisCounterConfig { mode, shards, keys, .. } = config;
        let command = match mode {
            Mode::Hll => "PFADD",
            Mode::Exact => "SADD",
        };
        let remember = config.remembers_acknowledged();
        let target = |shard| {
            let key = keys.ids(*mode, shard, *shards, window);
            Arc::new(Target::new(command, key, config.keep_for(window), remember))
        };
        Self {
            window,
            targets: (0..usize::from(shards.count())).map(target).collect(),
            held: match mode {
                Mode::Hll => Held::Sketches {
                    sketches: (0..shards.count()).map(|_| Sketch::new()).collect(),
                    unmerged: AtomicU64::new(0),
                },
                Mode::Exact => Held::Ids(IdSet::new()),
            },
            accepted: AtomicU64::new(0),
            handed_over_new: AtomicU64::new(0),
            is_damaged: AtomicBool::new(false),
            apart: AtomicU64::new(0),
            under_way: TaskTracker::new(),
            handing_over: AsyncMutex::new(()),
            has_part: AtomicBool::new(false),
            unacknowledged: Arc::clone(unacknowledged),
        }
    }

    /// Notes that ids were accepted.
    pub(super) fn accept(&self, ids: usize) {
        self.accepted.fetch_add(ids as u64, Ordering::Relaxed);
    }

    /// Notes that Redis has said that exact ids that were kept for it were new.
    pub(super) fn note_new(&self, ids: u64, generation: u64) {
        self.handed_over_new.fetch_add(ids, Ordering::Relaxed);
        for target in &self.targets {
            target.note_answer(generation);
        }
    }

    /// Notes that the server may have lost something, and is of this generation now.
    pub(super) fn note_loss(&self, generation: u64) {
        let may_hide_a_loss = |target: &Arc<Target>| target.may_hide_a_loss(generation);
        if matches!(self.held, Held::Ids(_)) && self.targets.iter().any(may_hide_a_loss) {
            self.note_damage();
        }
    }

    /// Notes that something else was in the place of exact ids.
    pub(super) fn note_damage(&self) {
        self.is_damaged.store(true, Ordering::Relaxed);
    }

    /// What came so far.
    pub(super) fn intake(&self) -> Intake {
        let lost = u64::from(self.is_damaged.load(Ordering::Relaxed));
        let by_writes: u64 = self.targets.iter().map(|target| target.new_ids()).sum();
        let new = by_writes + self.handed_over_new.load(Ordering::Relaxed);
        Intake { accepted: self.accepted.load(Ordering::Relaxed), new, lost, parts: 0 }
    }

    /// Waits until all additions are answered, after the last has entered.
    pub(super) async fn all_answered(&self, patience: Duration) -> Result<(), Unavailable> {
        self.under_way.close();
        tokio::time::timeout(patience, self.under_way.wait())
            .await
            .map_err(|_| Unavailable::because("writes of a window that is to be sealed do not end"))
    }
}

/// What is still kept for Redis then is given up.
impl Drop for LocalWindow {
    fn drop(&mut self) {
        self.unacknowledged.release(match &self.held {
            Held::Sketches { unmerged, .. } => unmerged.load(Ordering::Relaxed),
            Held::Ids(ids) => ids.len(),
        });
    }
}
