//! Delivery: one sink, its queue, and the retries in between.

use std::sync::Arc;
use std::time::Duration;

use ::metrics::Counter;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::Publisher;
use crate::metrics::Metrics;
use crate::sink::CountSink;
use crate::window::{Clock, Window, WindowCount};

/// The first wait between two tries to hand a count to a sink; it doubles.
const RETRY_AFTER: Duration = Duration::from_millis(100);
/// The longest wait between two tries, and what it comes down to while stopping.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(10);
const RETRY_AFTER_MAX_STOPPING: Duration = Duration::from_millis(500);

/// The end of a sink's queue that counts are put into.
pub(super) struct Queue {
    counts: mpsc::Sender<WindowCount>,
    pub(super) skipped: Counter,
    index: usize,
    backlog: Arc<Backlog>,
}

impl Queue {
    /// A delivery skips what is past retention, so its queue is full only if its sink hangs.
    pub(super) fn push(&self, count: WindowCount) {
        if let Err(TrySendError::Full(count) | TrySendError::Closed(count)) = self.counts.try_send(count) {
            error!(window = %count.window, "a sink hangs and its queue is full: a window is skipped");
            self.skipped.increment(1);
            self.backlog.done(self.index, count.window);
        }
    }
}

/// The other end: hands the counts to the sink, one after another.
pub(super) struct Delivery {
    sink: Box<dyn CountSink>,
    counts: mpsc::Receiver<WindowCount>,
    index: usize,
    backlog: Arc<Backlog>,
    clock: Arc<dyn Clock>,
    retention: Duration,
    stop: CancellationToken,
    ok: Counter,
    retry: Counter,
    skipped: Counter,
}

impl Delivery {
    /// A queue and its delivery, for the sink that is number `index` of the publisher's.
    pub(super) fn new(
        sink: Box<dyn CountSink>,
        index: usize,
        publisher: &Publisher,
        backlog: &Arc<Backlog>,
        stop: &CancellationToken,
    ) -> (Queue, Self) {
        let Publisher { retention, window, .. } = *publisher;
        // All that a retention can hold, and room for those that go past it just now.
        let length = (retention.as_secs() / u64::from(window.seconds())) as usize + 2;
        let (sender, counts) = mpsc::channel(length);
        let counter = |result| publisher.metrics.published_windows(sink.name(), result);
        let (ok, retry, skipped) = (counter("ok"), counter("retry"), counter("skipped"));
        let queue = Queue { counts: sender, skipped: skipped.clone(), index, backlog: Arc::clone(backlog) };
        let (backlog, clock, stop) = (Arc::clone(backlog), Arc::clone(&publisher.clock), stop.clone());
        (queue, Self { sink, counts, index, backlog, clock, retention, stop, ok, retry, skipped })
    }

    /// Delivers until the queue is closed and empty.
    pub(super) async fn run(mut self) {
        while let Some(count) = self.counts.recv().await {
            self.deliver(&count).await;
            self.backlog.done(self.index, count.window);
        }
    }

    /// Tries until the sink has the count or the count is past retention. One line when a sink
    /// starts to fail, one when it is back: what lies between is in the metrics.
    async fn deliver(&mut self, count: &WindowCount) {
        let mut failures = 0_u32;
        let mut wait = RETRY_AFTER;
        loop {
            let Err(error) = self.sink.publish(count).await else { break };
            self.retry.increment(1);
            failures += 1;
            if failures == 1 {
                warn!(sink = self.sink.name(), window = %count.window, %error, "a sink fails, trying again");
            }
            if count.window.end() + self.retention < self.clock.now() {
                error!(sink = self.sink.name(), window = %count.window, %error, "window past retention is skipped");
                self.skipped.increment(1);
                return;
            }
            pause(&self.stop, wait).await;
            wait = (2 * wait).min(RETRY_AFTER_MAX);
        }
        self.ok.increment(1);
        if failures > 0 {
            info!(sink = self.sink.name(), window = %count.window, failures, "a sink is back");
        }
    }
}

/// Waits for the next try. A stop cuts that short: there may be little time left.
async fn pause(stop: &CancellationToken, wait: Duration) {
    if stop.is_cancelled() {
        tokio::time::sleep(wait.min(RETRY_AFTER_MAX_STOPPING)).await;
    } else {
        let _ = tokio::time::timeout(wait, stop.cancelled()).await;
    }
}

/// How far the sinks are behind.
pub(super) struct Backlog {
    metrics: Arc<Metrics>,
    /// Both are read together to know who is behind, so one lock; taken a few times a window.
    progress: Mutex<Progress>,
}

struct Progress {
    closed: u64,
    /// For each sink: windows it is done with, and the last of them.
    done: Vec<(u64, Option<Window>)>,
}

impl Backlog {
    pub(super) fn new(sinks: usize, metrics: Arc<Metrics>) -> Self {
        Self { metrics, progress: Mutex::new(Progress { closed: 0, done: vec![(0, None); sinks] }) }
    }

    /// Another window is closed.
    pub(super) fn closed(&self) {
        let mut progress = self.progress.lock();
        progress.closed += 1;
        self.show(&progress);
    }

    /// A sink has `window`, or will never have it.
    pub(super) fn done(&self, sink: usize, window: Window) {
        let mut progress = self.progress.lock();
        let (windows, last) = &mut progress.done[sink];
        *windows += 1;
        *last = Some(window);
        self.show(&progress);
    }

    fn show(&self, progress: &Progress) {
        let Some((slowest, last)) = progress.done.iter().min_by_key(|(windows, _)| *windows) else { return };
        self.metrics.unpublished_windows.set((progress.closed - slowest) as f64);
        if let Some(window) = last {
            self.metrics.last_published_window.set(window.unix_seconds() as f64);
        }
    }
}
