//! How far the log has been written: lines wait for the thread that writes them, and die with the process.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;
use tracing_appender::non_blocking::ErrorCounter;

/// What closed windows are logged under, as in `--log-level warn,headcount::publish::sinks::log=info`.
pub const WINDOWS: &str = "headcount::publish::sinks::log";

/// Knows which lines have been written.
#[derive(Clone)]
pub struct LogProgress {
    /// Lines that were put into the queue, dropped ones among them.
    pub queued: Arc<AtomicU64>,
    /// Lines that were dropped because the queue was full.
    pub dropped: ErrorCounter,
    /// Lines that were written.
    pub written: Arc<Written>,
    /// Closed windows are logged: the level says so, or counts go nowhere else.
    pub has_windows: bool,
}

/// Lines that are written, or could not be.
#[derive(Debug, Default)]
pub struct Written {
    /// How many.
    pub lines: AtomicU64,
    /// How many of them could not be.
    pub failures: AtomicU64,
    /// Told about each.
    pub more: Notify,
}

impl LogProgress {
    /// Logs, and waits until what was logged is written; false when it was dropped, or could not be written.
    pub async fn written(&self, log: impl FnOnce()) -> bool {
        let dropped = self.dropped.dropped_lines();
        let failures = self.written.failures.load(Ordering::Acquire);
        log();
        let queued = self.queued.load(Ordering::Acquire);
        loop {
            let more = self.written.more.notified();
            let dropped_now = self.dropped.dropped_lines();
            if self.written.lines.load(Ordering::Acquire) + dropped_now as u64 >= queued {
                // Somebody else's, perhaps; it is better said twice than not at all.
                return dropped_now == dropped && self.written.failures.load(Ordering::Acquire) == failures;
            }
            more.await;
        }
    }
}
