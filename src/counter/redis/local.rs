//! This instance's part of the windows: what it added, and what of that Redis does not have yet.

use std::collections::BTreeMap;
use std::fmt;
use std::iter::Sum;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::RwLock;
use tokio::sync::Mutex as AsyncMutex;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tracing::error;

use super::config::{RedisCounterConfig, RedisWrites};
use super::pipeline::Target;
use super::unacknowledged::Unacknowledged;
use crate::counter::AddError;
use crate::counter::id_set::IdSet;
use crate::id::Id;
use crate::mode::Mode;
use crate::sketch::{Observation, Sketch};
use crate::unavailable::Unavailable;
use crate::window::Window;

/// Sealed windows whose sketches are kept for as long as their counts are not stored.
const SKETCHES_KEPT: usize = 8;

/// The windows that this instance has a part in.
pub(super) struct LocalWindows {
    config: Arc<RedisCounterConfig>,
    unacknowledged: Arc<Unacknowledged>,
    state: RwLock<State>,
}

#[derive(Default)]
struct State {
    /// The oldest window that is not sealed; every window is open before the first seal.
    watermark: Option<Window>,
    /// Windows at or past the watermark, and those that are being sealed.
    open: BTreeMap<Window, Arc<LocalWindow>>,
    /// Sealed windows that are not forgotten; the newest few with what was added to them.
    sealed: BTreeMap<Window, Option<Arc<LocalWindow>>>,
    /// The last window that was forgotten.
    forgotten: Option<Window>,
}

/// This instance's part of a window.
pub(super) struct LocalWindow {
    pub(super) window: Window,
    /// For each shard.
    pub(super) targets: Box<[Arc<Target>]>,
    pub(super) held: Held,
    accepted: AtomicU64,
    /// Exact ids of which Redis has said that they were new.
    new: AtomicU64,
    /// Ids that were accepted without Redis.
    apart: AtomicU64,
    /// Additions that have entered and not been answered.
    under_way: TaskTracker,
    /// Held while it is handed over.
    pub(super) handing_over: AsyncMutex<()>,
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
}

impl Intake {
    /// As it is stored: `<accepted> <new>`.
    pub(super) fn read(text: &str) -> Self {
        let mut numbers = text.split(' ').map(|number| number.parse().unwrap_or_default());
        Self { accepted: numbers.next().unwrap_or_default(), new: numbers.next().unwrap_or_default() }
    }
}

impl fmt::Display for Intake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.accepted, self.new)
    }
}

impl Sum for Intake {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, one| Self {
            accepted: sum.accepted + one.accepted,
            new: sum.new + one.new,
        })
    }
}

impl LocalWindows {
    /// None yet.
    pub(super) fn new(config: Arc<RedisCounterConfig>, unacknowledged: Arc<Unacknowledged>) -> Self {
        Self { config, unacknowledged, state: RwLock::default() }
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
            let new = Arc::new(LocalWindow::new(&self.config, window));
            let mut state = self.state.write();
            if state.watermark.is_none_or(|open| open <= window) {
                let too_old = state.drop_older(window.start().checked_sub(self.config.retention));
                state.open.entry(window).or_insert(new);
                drop(state);
                for lost in &too_old {
                    self.give_up(lost);
                }
            }
        }
    }

    /// What has expired in Redis before it could be handed over.
    fn give_up(&self, local: &LocalWindow) {
        match &local.held {
            Held::Sketches { unmerged, .. } => {
                self.unacknowledged.release(merged(unmerged, u64::MAX));
            }
            Held::Ids(ids) => {
                for stripe in 0..IdSet::STRIPES {
                    self.unacknowledged.release(ids.remove(&ids.stripe_of(stripe)));
                }
            }
        }
        let accepted_ids = local.intake().accepted;
        error!(window = %local.window, accepted_ids, "a window past retention could not be sealed: it is lost");
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

    /// All of it is in Redis.
    pub(super) fn sealed(&self, local: Arc<LocalWindow>) {
        let mut state = self.state.write();
        let window = local.window;
        state.open.remove(&window);
        state.sealed.insert(window, Some(local));
        for old in state.sealed.values_mut().rev().skip(SKETCHES_KEPT) {
            *old = None;
        }
    }

    /// Forgets a window and all before it; those that it forgets.
    pub(super) fn forget(&self, window: Window) -> Vec<Window> {
        let mut state = self.state.write();
        state.forgotten = state.forgotten.max(Some(window));
        let kept = state.sealed.split_off(&window.next());
        std::mem::replace(&mut state.sealed, kept).into_keys().collect()
    }

    /// True when a window is forgotten or past retention.
    pub(super) fn is_evicted(&self, window: Window) -> bool {
        let state = self.state.read();
        let is_past_retention = |open: Window| window.end() + self.config.retention < open.start();
        state.forgotten >= Some(window) || state.watermark.is_some_and(is_past_retention)
    }

    /// Those that are not forgotten.
    pub(super) fn all(&self) -> Vec<Window> {
        let state = self.state.read();
        state.sealed.keys().chain(state.open.keys()).copied().collect()
    }

    /// Those that are not sealed, oldest first.
    pub(super) fn open(&self) -> Vec<Arc<LocalWindow>> {
        self.state.read().open.values().cloned().collect()
    }

    /// The last of those that are sealed, oldest first.
    pub(super) fn last_sealed(&self) -> Vec<Arc<LocalWindow>> {
        self.state.read().sealed.values().flatten().cloned().collect()
    }

    /// What came for a window that is not sealed.
    pub(super) fn intake(&self, window: Window) -> Option<Intake> {
        self.state.read().open.get(&window).map(|local| local.intake())
    }

    /// Ids that were accepted without Redis for windows up to `window` that are not sealed.
    pub(super) fn kept_apart(&self, window: Window) -> u64 {
        let state = self.state.read();
        state.open.range(..=window).map(|(_, local)| local.apart.load(Ordering::Relaxed)).sum()
    }
}

impl State {
    /// What could not be sealed within the retention has expired in Redis too. Without this an outage that does
    /// not end would take all memory.
    fn drop_older(&mut self, kept_since: Option<SystemTime>) -> Vec<Arc<LocalWindow>> {
        let is_past_retention = |window: &Window| kept_since.is_some_and(|since| window.end() < since);
        self.sealed.retain(|window, _| !is_past_retention(window));
        let mut dropped = Vec::new();
        while let Some(oldest) = self.open.first_entry().filter(|oldest| is_past_retention(oldest.key())) {
            dropped.push(oldest.remove());
        }
        dropped
    }
}

impl LocalWindow {
    fn new(config: &RedisCounterConfig, window: Window) -> Self {
        let RedisCounterConfig { mode, shards, retention, writes, keys, .. } = config;
        let command = match mode {
            Mode::Hll => "PFADD",
            Mode::Exact => "SADD",
        };
        let remember = *mode == Mode::Hll && *writes == RedisWrites::Changed;
        let target = |shard| {
            let key = keys.ids(*mode, shard, *shards, window);
            Arc::new(Target::new(command, key, expire_at(window, *retention), remember))
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
            new: AtomicU64::new(0),
            apart: AtomicU64::new(0),
            under_way: TaskTracker::new(),
            handing_over: AsyncMutex::new(()),
        }
    }

    /// Notes that ids were accepted.
    pub(super) fn accept(&self, ids: usize) {
        self.accepted.fetch_add(ids as u64, Ordering::Relaxed);
    }

    /// Notes that Redis has said that exact ids were new.
    pub(super) fn note_new(&self, ids: u64) {
        self.new.fetch_add(ids, Ordering::Relaxed);
    }

    /// What came so far.
    pub(super) fn intake(&self) -> Intake {
        Intake { accepted: self.accepted.load(Ordering::Relaxed), new: self.new.load(Ordering::Relaxed) }
    }

    /// Waits until all additions are answered, after the last has entered.
    pub(super) async fn all_answered(&self, patience: Duration) -> Result<(), Unavailable> {
        self.under_way.close();
        tokio::time::timeout(patience, self.under_way.wait())
            .await
            .map_err(|_| Unavailable::because("writes of a window that is to be sealed do not end"))
    }
}

/// Takes ids off that are merged, or given up; how many of them were on.
pub(super) fn merged(unmerged: &AtomicU64, ids: u64) -> u64 {
    let less = |before: u64| Some(before.saturating_sub(ids));
    let before = unmerged.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).unwrap_or_default();
    before.min(ids)
}

/// When a window's keys expire, in seconds since 1970.
pub(super) fn expire_at(window: Window, retention: Duration) -> u64 {
    (window.end() + retention).duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
