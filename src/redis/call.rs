//! The purposes of calls.

use std::sync::Arc;
use std::time::Duration;

use ::metrics::{Counter, Histogram};

use crate::telemetry::metrics::Metrics;

/// The purpose of a call: a label in the metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// To see whether it answers, and what it is.
    Ask,
    /// To add ids.
    Write,
    /// To merge sketches and note accepted ids.
    Seal,
    /// To count a window.
    Count,
    /// To send a heartbeat, or to leave.
    Heartbeat,
    /// To resume as leader, store a count, or commit the published position.
    Close,
    /// To take, renew or release the lease.
    Lease,
    /// To add to the stream of counts.
    Publish,
}

impl Call {
    const ALL: [Self; 8] = [
        Self::Ask,
        Self::Write,
        Self::Seal,
        Self::Count,
        Self::Heartbeat,
        Self::Close,
        Self::Lease,
        Self::Publish,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::Ask => "ask",
            Self::Write => "write",
            Self::Seal => "seal",
            Self::Count => "count",
            Self::Heartbeat => "heartbeat",
            Self::Close => "close",
            Self::Lease => "lease",
            Self::Publish => "publish",
        }
    }
}

/// For each [`Call`]: the durations of calls that succeeded, and the number of those that failed.
#[derive(Clone)]
pub(super) struct CallMetrics(Arc<[(Histogram, Counter)]>);

impl CallMetrics {
    pub(super) fn new(metrics: &Metrics) -> Self {
        let of_call =
            |call: Call| (metrics.redis_command_duration(call.as_str()), metrics.redis_errors(call.as_str()));
        Self(Call::ALL.map(of_call).into())
    }

    pub(super) fn note_done(&self, call: Call, after: Duration) {
        self.0[call as usize].0.record(after);
    }

    pub(super) fn note_failed(&self, call: Call) {
        self.0[call as usize].1.increment(1);
    }
}
