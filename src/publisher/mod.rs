//! The publisher: closes windows in order and hands each count to every sink.
//!
//! One loop closes: when a window has ended it is sealed, counted once, and the count put into the
//! queue of each sink. Every sink has a task of its own (`delivery`) that tries until the sink has the
//! count, so a sink that is away holds up nobody but itself. Queues are bounded by the retention: a
//! count that goes past it is skipped, which is logged as an error and counted in
//! `headcount_published_windows_total`.
//!
//! Empty windows are closed like all others, as 0.

mod delivery;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use thiserror::Error;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::error;

use self::delivery::{Backlog, Delivery, Queue};
use crate::counter::{Evicted, UniqueCounter};
use crate::metrics::Metrics;
use crate::sink::CountSink;
use crate::window::{Clock, Window, WindowCount, WindowLength};

/// The longest sleep before the clock is asked again: it may have been set.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);
/// A window that is closed later than this after its end was not lived through: the process was stopped
/// or the clock was set.
const LATE: Duration = Duration::from_secs(5);

/// What a publisher works with.
pub struct Publisher {
    /// Says when a window has ended.
    pub clock: Arc<dyn Clock>,
    /// Counts it.
    pub counter: Arc<dyn UniqueCounter>,
    /// Are handed the counts.
    pub sinks: Vec<Box<dyn CountSink>>,
    /// The length of windows.
    pub window: WindowLength,
    /// How long after its end a window may still be published.
    pub retention: Duration,
    /// Told about every window.
    pub metrics: Arc<Metrics>,
    /// Shows the last closed window.
    pub last: watch::Sender<Option<WindowCount>>,
    /// When ids began to be accepted: the window that this falls in is the first, and incomplete
    /// unless it is that window's very start.
    pub started: SystemTime,
    /// Cancelled when ids are no longer accepted from everybody: windows that are closed from then on
    /// are incomplete.
    pub draining: CancellationToken,
}

/// A sink panicked.
#[derive(Debug, Error)]
#[error("the task of a sink ended: {0}")]
pub struct SinkEnded(#[from] JoinError);

impl Publisher {
    /// Publishes every window from the first on, until `stop`. Then the running window is
    /// closed too, as incomplete, and this returns when every sink has every count. Nothing may be
    /// added to the counter after `stop`: it would be counted in no window.
    ///
    /// # Errors
    ///
    /// [`SinkEnded`] when a sink panicked.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), SinkEnded> {
        let backlog = Arc::new(Backlog::new(self.sinks.len(), Arc::clone(&self.metrics)));
        let mut deliveries = JoinSet::new();
        let mut queues = Vec::new();
        for (index, sink) in std::mem::take(&mut self.sinks).into_iter().enumerate() {
            let (queue, delivery) = Delivery::new(sink, index, &self, &backlog, &stop);
            queues.push(queue);
            deliveries.spawn(delivery.run());
        }
        let next = self.window.window_at(self.started);
        let mut closing = Closing { publisher: self, next, backlog, queues, clock_was_behind: false };

        loop {
            closing.close_ended().await;
            tokio::select! {
                () = tokio::time::sleep(closing.until_next_end()) => {}
                () = stop.cancelled() => break,
                Some(ended) = deliveries.join_next() => ended?,
            }
        }
        closing.close_all().await;
        // Queues without a sender tell the deliveries that this was all.
        drop(closing);
        while let Some(ended) = deliveries.join_next().await {
            ended?;
        }
        Ok(())
    }
}

/// The loop that closes windows.
struct Closing {
    /// Its sinks are with their deliveries.
    publisher: Publisher,
    /// The oldest window that is not closed.
    next: Window,
    backlog: Arc<Backlog>,
    queues: Vec<Queue>,
    /// The next window has taken ids of a time before it.
    clock_was_behind: bool,
}

impl Closing {
    /// How long to sleep: until the next window ends, but never long, because the clock may be set.
    fn until_next_end(&self) -> Duration {
        self.next.end().duration_since(self.publisher.clock.now()).unwrap_or_default().min(LONGEST_SLEEP)
    }

    /// Closes every window that has ended.
    async fn close_ended(&mut self) {
        self.watch_the_clock();
        while self.next.end() <= self.publisher.clock.now() {
            self.skip_past_retention().await;
            self.close_next().await;
        }
    }

    /// Closes every window that has ended, the running one, and those that have ids though by the clock
    /// as it is now they are yet to come.
    async fn close_all(&mut self) {
        self.close_ended().await;
        self.close_next().await;
        for window in self.publisher.counter.open_windows().await {
            self.next = window;
            self.close_next().await;
        }
    }

    async fn close_next(&mut self) {
        let window = self.next;
        self.publisher.counter.seal(window).await;
        match self.publisher.counter.count(window).await {
            Ok(tally) => self.hand_over(WindowCount {
                window,
                unique_request_count: tally.unique_ids,
                accepted_ids: tally.accepted_ids,
                complete: self.is_complete(window),
            }),
            Err(Evicted(_)) => self.skip(1),
        }
        self.next = window.next();
        self.clock_was_behind = false;
    }

    /// Whether ids were accepted from the window's start to its end, and at the pace of the clock.
    fn is_complete(&self, window: Window) -> bool {
        let late = self.publisher.clock.now().duration_since(window.end());
        self.publisher.started <= window.start()
            && late.is_ok_and(|late| late <= LATE)
            && !self.publisher.draining.is_cancelled()
            && !self.clock_was_behind
    }

    /// Says so when the clock is set back behind the windows that are closed: ids are counted in the
    /// next window until the clock has caught up, because the others are published already.
    fn watch_the_clock(&mut self) {
        let behind = self.next.start().duration_since(self.publisher.clock.now()).unwrap_or_default();
        if behind > self.publisher.window.duration() && !self.clock_was_behind {
            self.clock_was_behind = true;
            error!(
                behind = %humantime::format_duration(Duration::from_secs(behind.as_secs())),
                window = %self.next,
                "the clock was set back: all ids are counted in one window until it has caught up"
            );
        }
    }

    /// Goes past empty windows that ended too long ago, to the next one that has ids or is within
    /// retention. There are some when the clock was set forward or the process was stopped for longer
    /// than the retention; closing them one by one could take as long.
    async fn skip_past_retention(&mut self) {
        let Some(oldest) = self.publisher.clock.now().checked_sub(self.publisher.retention) else { return };
        let kept = self.publisher.window.window_at(oldest);
        let open =
            self.publisher.counter.open_windows().await.into_iter().find(|window| *window >= self.next);
        let target = open.map_or(kept, |open| open.min(kept));
        if self.next < target {
            let missed = target.unix_seconds() - self.next.unix_seconds();
            self.skip(missed / u64::from(self.publisher.window.seconds()));
            self.next = target;
        }
    }

    fn skip(&self, windows: u64) {
        error!(windows, first = %self.next, "windows past retention are skipped; was the clock set?");
        for queue in &self.queues {
            queue.skipped.increment(windows);
        }
    }

    fn hand_over(&self, count: WindowCount) {
        self.publisher.metrics.unique_ids.set(count.unique_request_count as f64);
        self.publisher.metrics.window_accepted_ids.set(count.accepted_ids as f64);
        self.backlog.closed();
        for queue in &self.queues {
            queue.push(count);
        }
        self.publisher.last.send_replace(Some(count));
    }
}
