//! The store in this instance's memory, for a service that runs standalone. What it holds is gone with the instance.
//!
//! Ids and registers live until the seal. Of a sealed window only its [`StoreCount`] stays, until it is evicted: nothing can
//! be added to it, so there is nothing else to know.

use std::sync::atomic::{AtomicU64, Ordering};

use super::answers::{AddError, Added, CountError, StoreCount};
use super::ids::Ids;
use super::windows::{Entry, WindowTable};
use crate::model::id::Id;
use crate::model::mode::Mode;
use crate::model::shard::Shards;
use crate::model::window::Window;

/// Counts in memory.
pub struct MemoryStore {
    mode: Mode,
    shards: Shards,
    windows: WindowTable<OpenWindow, StoreCount>,
}

struct OpenWindow {
    ids: Ids,
    accepted: AtomicU64,
}

impl MemoryStore {
    /// An empty store. In mode `hll` every open window takes 16 KiB a shard, in mode `exact` 25
    /// to 50 bytes an id.
    pub fn new(mode: Mode, shards: Shards) -> Self {
        Self { mode, shards, windows: WindowTable::default() }
    }

    pub(super) fn add<I: Id>(&self, window: Window, ids: &[I]) -> Result<Added, AddError> {
        let new = || OpenWindow { ids: Ids::new(self.mode, self.shards), accepted: AtomicU64::new(0) };
        self.windows.enter(window, new, |open| open.add(ids))
    }

    pub(super) fn seal(&self, window: Window) {
        // The ids are counted and freed outside the lock, so that no addition waits for it.
        for (window, open) in self.windows.close_up_to(window) {
            self.windows.note_sealed(window, open.counted());
        }
    }

    pub(super) fn windows(&self) -> Vec<Window> {
        let sealed = self.windows.sealed().into_iter().map(|(window, _)| window);
        sealed.chain(self.windows.open().into_iter().map(|(window, _)| window)).collect()
    }

    pub(super) fn count(&self, window: Window) -> Result<StoreCount, CountError> {
        Ok(match self.windows.get(window)? {
            Some(Entry::Open(open)) => open.counted(),
            Some(Entry::Sealed(counted)) => counted,
            None => StoreCount::default(),
        })
    }

    pub(super) fn evict(&self, window: Window) {
        self.windows.evict(window);
    }
}

impl OpenWindow {
    fn add<I: Id>(&self, ids: &[I]) -> Added {
        let changed = ids.iter().filter(|id| self.ids.add(id.as_ref())).count();
        // Ordered before the seal by the lock of the table.
        self.accepted.fetch_add(ids.len() as u64, Ordering::Relaxed);
        Added { changed: changed as u64 }
    }

    fn counted(&self) -> StoreCount {
        let accepted_ids = self.accepted.load(Ordering::Relaxed);
        StoreCount { unique_ids: self.ids.count(), accepted_ids, lost_ids: 0 }
    }
}
