//! Pending ids: accepted, and not acknowledged by Redis. This counts them, and holds the limit of exact ones.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tracing::error;

use crate::platform::unavailable::Unavailable;

/// Counts them over all windows.
pub(super) struct PendingIds {
    ids: AtomicU64,
    /// The limit of exact ids.
    max: u64,
    was_full: AtomicBool,
}

impl PendingIds {
    pub(super) fn new(max: u32) -> Self {
        Self { ids: AtomicU64::new(0), max: max.into(), was_full: AtomicBool::new(false) }
    }

    pub(super) fn count(&self) -> u64 {
        self.ids.load(Ordering::Relaxed)
    }

    /// Takes room for so many more exact ids, or for none.
    pub(super) fn reserve(&self, more: u64) -> bool {
        let with_them = |ids: u64| Some(ids + more).filter(|ids| *ids <= self.max);
        self.ids.fetch_update(Ordering::Relaxed, Ordering::Relaxed, with_them).is_ok()
    }

    /// Corrects a reservation to what was needed. That may be more, if others were replayed meanwhile.
    pub(super) fn settle(&self, reserved: u64, needed: u64) {
        if needed > reserved {
            self.add(needed - reserved);
        } else {
            self.release(reserved - needed);
        }
    }

    /// Counts ids of a sketch, which take no room.
    pub(super) fn add(&self, ids: u64) {
        self.ids.fetch_add(ids, Ordering::Relaxed);
    }

    /// Counts ids no more: Redis has them, or they are given up.
    pub(super) fn release(&self, ids: u64) {
        if self.ids.fetch_sub(ids, Ordering::Relaxed) == ids {
            self.was_full.store(false, Ordering::Relaxed);
        }
    }

    /// The error for a request whose ids find no room. It is logged once, until no id is pending.
    pub(super) fn full(&self) -> Unavailable {
        if !self.was_full.swap(true, Ordering::Relaxed) {
            error!(pending_max = self.max, "--pending-max reached: refusing new ids until Redis is back");
        }
        Unavailable::because("--pending-max reached")
    }
}
