//! The counter in this process's memory: for a service that runs alone.
//!
//! # One lock, read by all, written once a window
//!
//! An addition holds the read half of `MemoryCounter::state` from looking at the watermark until
//! the last id is in. [`UniqueCounter::seal`] moves the watermark under the write half. So when it
//! has moved, every addition to the windows before it is finished, and any later one sees that they
//! are sealed: no id can slip in between a window's count and its end.
//!
//! Behind the lock, additions do not wait for each other: the registers of a sketch are atomics, and
//! exact ids are spread over many sets with a lock each.
//!
//! # What is kept
//!
//! Ids and registers live until the seal; of a sealed window only its [`Tally`] stays, until it is
//! forgotten. Nothing can be added to it, so there is nothing else to know.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use parking_lot::RwLock;

use super::id_set::IdSet;
use super::{AddError, Added, Adding, CountError, Tally, UniqueCounter};
use crate::hll::Sketch;
use crate::model::id::Id;
use crate::model::mode::Mode;
use crate::model::shard::Shards;
use crate::model::window::Window;
use crate::platform::unavailable::Unavailable;

/// Counts in memory. What it holds is gone with the process.
pub struct MemoryCounter {
    mode: Mode,
    shards: Shards,
    state: RwLock<State>,
}

#[derive(Default)]
struct State {
    /// The oldest window that is not sealed; every window is open before the first seal.
    watermark: Option<Window>,
    /// Windows at or past the watermark, and for a moment those that are being sealed.
    open: BTreeMap<Window, Arc<OpenWindow>>,
    /// Windows before the watermark that are not forgotten; one that had no ids is not here.
    sealed: BTreeMap<Window, Tally>,
    /// The last window that was forgotten.
    forgotten: Option<Window>,
}

struct OpenWindow {
    ids: Ids,
    accepted: AtomicU64,
}

enum Ids {
    /// A sketch for each shard.
    Hll { shards: Shards, sketches: Box<[Sketch]> },
    /// One set: the truth does not get truer by `--shards`.
    Exact(IdSet),
}

impl MemoryCounter {
    /// An empty counter. In mode `hll` every open window takes 16 KiB a shard, in mode `exact` 25
    /// to 50 bytes an id.
    pub fn new(mode: Mode, shards: Shards) -> Self {
        Self { mode, shards, state: RwLock::default() }
    }
}

impl State {
    /// Opens a window unless it is open or sealed already.
    fn open(&mut self, window: Window, new: Arc<OpenWindow>) {
        if self.watermark.is_none_or(|open| open <= window) {
            self.open.entry(window).or_insert(new);
        }
    }
}

#[async_trait]
impl UniqueCounter for MemoryCounter {
    fn add<'a>(&'a self, window: Window, ids: &'a [Id]) -> Adding<'a> {
        loop {
            let state = self.state.read();
            if let Some(open) = state.watermark
                && window < open
            {
                return Adding::done(Err(AddError::Sealed { open }));
            }
            if let Some(open) = state.open.get(&window) {
                // Under the read half of the lock, which is what makes a seal wait for it.
                return Adding::done(Ok(open.add(ids)));
            }
            drop(state);
            // Made before the lock is taken, and dropped again if another caller was faster.
            let new = Arc::new(OpenWindow::new(self.mode, self.shards));
            self.state.write().open(window, new);
        }
    }

    async fn seal(&self, window: Window) -> Result<(), Unavailable> {
        // Three steps, so that nobody waits for the counting: seal under the lock, count without
        // it, put the count in the window's place under the lock.
        let sealing: Vec<_> = {
            let mut state = self.state.write();
            state.watermark = state.watermark.max(Some(window.next()));
            state.open.range(..=window).map(|(window, open)| (*window, Arc::clone(open))).collect()
        };
        let tallies: Vec<_> = sealing.iter().map(|(window, open)| (*window, open.tally())).collect();
        let mut state = self.state.write();
        for (window, tally) in tallies {
            state.open.remove(&window);
            state.sealed.insert(window, tally);
        }
        drop(state);
        // The last owner of the ids: they are freed here, outside the lock.
        drop(sealing);
        Ok(())
    }

    fn windows(&self) -> Vec<Window> {
        let state = self.state.read();
        // For a moment a window may be in both.
        state.sealed.keys().chain(state.open.keys()).copied().collect::<BTreeSet<_>>().into_iter().collect()
    }

    async fn count(&self, window: Window) -> Result<Tally, CountError> {
        let state = self.state.read();
        if state.forgotten >= Some(window) {
            return Err(CountError::Evicted(window));
        }
        if let Some(tally) = state.sealed.get(&window) {
            return Ok(*tally);
        }
        let open = state.open.get(&window).map(Arc::clone);
        drop(state);
        Ok(open.map(|open| open.tally()).unwrap_or_default())
    }

    async fn forget(&self, window: Window) {
        let mut state = self.state.write();
        state.forgotten = state.forgotten.max(Some(window));
        state.sealed.retain(|sealed, _| *sealed > window);
    }
}

impl OpenWindow {
    fn new(mode: Mode, shards: Shards) -> Self {
        let ids = match mode {
            Mode::Hll => Ids::Hll { shards, sketches: (0..shards.count()).map(|_| Sketch::new()).collect() },
            Mode::Exact => Ids::Exact(IdSet::new()),
        };
        Self { ids, accepted: AtomicU64::new(0) }
    }

    fn add(&self, ids: &[Id]) -> Added {
        let changed = ids.iter().filter(|id| self.ids.add(id)).count();
        // Ordered before the seal by the lock that the caller holds.
        self.accepted.fetch_add(ids.len() as u64, Ordering::Relaxed);
        Added { changed: changed as u64 }
    }

    fn tally(&self) -> Tally {
        let accepted_ids = self.accepted.load(Ordering::Relaxed);
        Tally { unique_ids: self.ids.count(), accepted_ids, lost_ids: 0 }
    }
}

impl Ids {
    /// True when the id changed anything.
    fn add(&self, id: &Id) -> bool {
        match self {
            Self::Hll { shards, sketches } => sketches[shards.of(id.as_bytes())].add(id.as_bytes()),
            Self::Exact(ids) => ids.insert(id),
        }
    }

    fn count(&self) -> u64 {
        match self {
            Self::Hll { sketches, .. } => sketches.iter().map(Sketch::estimate).sum(),
            Self::Exact(ids) => ids.len(),
        }
    }
}
