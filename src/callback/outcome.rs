//! What becomes of callbacks.

use std::sync::Arc;
use std::time::Duration;

use ::metrics::{Counter, Histogram};

use crate::telemetry::metrics::Metrics;

/// What became of a callback: a label in the metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Answered with a status from 200 to 299.
    Ok,
    /// Answered with another one.
    BadStatus,
    /// Not answered in time.
    Timeout,
    /// Not answered for another reason.
    Failed,
    /// Its name led to an address where callbacks must not go.
    Forbidden,
    /// Dropped: too many wait.
    QueueFull,
    /// Dropped: its host has had its share.
    HostLimit,
    /// Dropped: there was no number to send.
    NoCount,
    /// Dropped: the service stopped.
    Unsent,
}

impl Outcome {
    const ALL: [Self; 9] = [
        Self::Ok,
        Self::BadStatus,
        Self::Timeout,
        Self::Failed,
        Self::Forbidden,
        Self::QueueFull,
        Self::HostLimit,
        Self::NoCount,
        Self::Unsent,
    ];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::BadStatus => "bad_status",
            Self::Timeout => "timeout",
            Self::Failed => "failed",
            Self::Forbidden => "forbidden",
            Self::QueueFull => "queue_full",
            Self::HostLimit => "host_limit",
            Self::NoCount => "no_count",
            Self::Unsent => "unsent",
        }
    }
}

/// Counts what became of callbacks.
#[derive(Clone)]
pub(super) struct Outcomes {
    counters: Arc<[Counter]>,
    duration: Histogram,
}

impl Outcomes {
    pub(super) fn new(metrics: &Metrics) -> Self {
        let counters = Outcome::ALL.map(|outcome| metrics.callbacks(outcome.as_str()));
        Self { counters: Arc::new(counters), duration: metrics.callback_duration.clone() }
    }

    /// One that was sent.
    pub(super) fn record(&self, outcome: Outcome, took: Duration) {
        self.duration.record(took);
        self.add(outcome, 1);
    }

    pub(super) fn add(&self, outcome: Outcome, callbacks: usize) {
        self.counters[outcome as usize].increment(callbacks as u64);
    }
}
