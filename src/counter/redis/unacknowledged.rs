//! Ids that were accepted and that Redis has not acknowledged: how many there are, and may be.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use ::metrics::Gauge;
use tracing::error;

use crate::metrics::Metrics;
use crate::unavailable::Unavailable;

/// Counts them over all windows.
pub(super) struct Unacknowledged {
    ids: AtomicU64,
    /// How many exact ids there may be.
    max: u64,
    was_full: AtomicBool,
    gauge: Gauge,
}

impl Unacknowledged {
    pub(super) fn new(max: u32, metrics: &Metrics) -> Self {
        let (ids, was_full) = (AtomicU64::new(0), AtomicBool::new(false));
        Self { ids, max: max.into(), was_full, gauge: metrics.unacknowledged_ids.clone() }
    }

    /// How many there are.
    pub(super) fn ids(&self) -> u64 {
        self.ids.load(Ordering::Relaxed)
    }

    /// Room for one exact id more, if there is.
    pub(super) fn reserve(&self) -> bool {
        let one_more = |ids| (ids < self.max).then_some(ids + 1);
        let reserved = self.ids.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok();
        if reserved {
            self.gauge.increment(1.0);
        }
        reserved
    }

    /// Ids that take no room: a sketch has them.
    pub(super) fn add(&self, ids: u64) {
        self.ids.fetch_add(ids, Ordering::Relaxed);
        self.gauge.increment(ids as f64);
    }

    /// Redis has them, or they are given up.
    pub(super) fn release(&self, ids: u64) {
        let before = self.ids.fetch_sub(ids, Ordering::Relaxed);
        self.gauge.decrement(ids as f64);
        if before == ids {
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
