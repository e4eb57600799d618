//! How far the log has been written: lines wait for the thread that writes them, and die with the process.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;
use tracing_appender::non_blocking::ErrorCounter;

/// What closed windows are logged under, as in `--log-level warn,headcount::sink::log=info`.
pub const WINDOWS: &str = "headcount::sink::log";

/// Knows which lines have been written.
#[derive(Clone)]
pub struct LogProgress {
    /// Lines that were put into the queue, dropped ones among them; each is counted before it is there.
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

/// A line that was logged, and may not be written yet.
#[derive(Debug)]
pub struct Logged {
    /// Lines that were put into the queue up to this one, without those that were dropped: when so many are written, it is
    /// among them.
    place: u64,
    /// How many could not be written before.
    failures: u64,
    /// The queue was full when it was logged. Somebody else's was dropped, perhaps; it is better said twice than not at all.
    was_dropped: bool,
}

impl LogProgress {
    /// Logs a line.
    pub fn log(&self, log: impl FnOnce()) -> Logged {
        let dropped_before = self.dropped.dropped_lines();
        let failures = self.written.failures.load(Ordering::Acquire);
        log();
        // Before the queue: a line is counted there before it can be dropped.
        let dropped = self.dropped.dropped_lines();
        let place = self.queued.load(Ordering::Acquire).saturating_sub(dropped as u64);
        Logged { place, failures, was_dropped: dropped != dropped_before }
    }

    /// Waits until a line is written; false when it was dropped, or could not be written. To wait again is of use if this was
    /// given up.
    pub async fn written(&self, line: &Logged) -> bool {
        loop {
            let more = self.written.more.notified();
            if self.has_come_to(line) {
                // One of somebody else's, perhaps.
                let failures = self.written.failures.load(Ordering::Acquire);
                return !line.was_dropped && failures == line.failures;
            }
            more.await;
        }
    }

    fn has_come_to(&self, line: &Logged) -> bool {
        let written = self.written.lines.load(Ordering::Acquire);
        let dropped = self.dropped.dropped_lines() as u64;
        // Or to the end: others may have been dropped while this one was logged.
        written >= line.place || written + dropped >= self.queued.load(Ordering::Acquire)
    }
}
