//! The outcomes of callbacks, as metrics.

use ::metrics::{Counter, Histogram};

use crate::telemetry::metrics::Metrics;

/// A counter for each outcome.
#[derive(Clone)]
pub(super) struct Outcomes {
    /// Answered with a status from 200 to 299.
    pub(super) ok: Counter,
    /// Answered with another status.
    pub(super) bad_status: Counter,
    pub(super) timeout: Counter,
    /// Not sent, or not answered, for another reason.
    pub(super) failed: Counter,
    /// The name led to an address that the guard forbids.
    pub(super) forbidden: Counter,
    /// Dropped: `--callback-queue` are pending.
    pub(super) queue_full: Counter,
    /// Dropped: the host is at its rate, or its queue is full.
    pub(super) host_limit: Counter,
    /// Dropped: the store had no count.
    pub(super) no_count: Counter,
    /// Dropped: the service stopped.
    pub(super) unsent: Counter,
    /// Of the callbacks that were sent.
    pub(super) duration: Histogram,
}

impl Outcomes {
    pub(super) fn new(metrics: &Metrics) -> Self {
        Self {
            ok: metrics.callbacks("ok"),
            bad_status: metrics.callbacks("bad_status"),
            timeout: metrics.callbacks("timeout"),
            failed: metrics.callbacks("failed"),
            forbidden: metrics.callbacks("forbidden"),
            queue_full: metrics.callbacks("queue_full"),
            host_limit: metrics.callbacks("host_limit"),
            no_count: metrics.callbacks("no_count"),
            unsent: metrics.callbacks("unsent"),
            duration: metrics.callback_duration.clone(),
        }
    }
}
