//! Ids that were accepted and that Redis has not acknowledged: how many there are, and may be.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tracing::error;

use crate::platform::unavailable::Unavailable;

/// Counts them over all windows.
pub(super) struct Unacknowledged {
    ids: AtomicU64,
    /// How many exact ids there may be.
    max: u64,
    was_full: AtomicBool,
}

impl Unacknowledged {
    pub(super) fn new(max: u32) -> Self {
        Self { ids: AtomicU64::new(0), max: max.into(), was_full: AtomicBool::new(false) }
    }

    /// How many there are.
    pub(super) fn ids(&self) -> u64 {
        self.ids.load(Ordering::Relaxed)
    }

    /// Room for one exact id more, if there is.
    pub(super) fn reserve(&self) -> bool {
        let one_more = |ids| (ids < self.max).then_some(ids + 1);
        self.ids.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok()
    }

    /// Ids that take no room: a sketch has them.
    pub(super) fn add(&self, ids: u64) {
        self.ids.fetch_add(ids, Ordering::Relaxed);
    }

    /// Redis has them, or they are given up.
    pub(super) fn release(&self, ids: u64) {
        if self.ids.fetch_sub(ids, Ordering::Relaxed) == ids {
            self.was_full.store(false, Ordering::Relaxed);
        }
    }

    /// What a request is told for which there was no room. The log is told once.
    pub(super) fn full(&self) -> Unavailable {
        if !self.was_full.swap(true, Ordering::Relaxed) {
            error!(
                unacknowledged_max = self.max,
                "as many ids as may wait for Redis do: more are refused until it has them"
            );
        }
        Unavailable::because("--unacknowledged-max ids wait for Redis already")
    }
}
