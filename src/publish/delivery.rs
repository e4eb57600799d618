//! Delivery: one sink, its queue, and the retries in between.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ::metrics::{Counter, Histogram};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::dependencies::Publisher;
use crate::coordination::grant::Grant;
use crate::model::window::{Clock, Window, WindowCount};
use crate::publish::sinks::{CountSink, SinkError};
use crate::store::UniqueCounter;
use crate::telemetry::metrics::Metrics;

/// The first wait between two tries to hand a count to a sink; it doubles.
const RETRY_AFTER: Duration = Duration::from_millis(100);
/// The longest wait between two tries, and what it comes down to while stopping.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(10);
const RETRY_AFTER_MAX_STOPPING: Duration = Duration::from_millis(500);

/// A process that is alone and is fenced again within this time has a rival.
const FENCED_AGAIN: Duration = Duration::from_secs(60);

/// A count, and the right to publish it.
struct Granted {
    count: WindowCount,
    grant: Grant,
    /// Since when it waits. A clock that was wrong by then makes no count old.
    since: SystemTime,
}

/// Counts that wait for a sink, oldest first.
struct Waiting {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    counts: VecDeque<Granted>,
    /// One more is with the sink.
    with_sink: bool,
    /// There will be no more.
    closed: bool,
}

/// The end of a sink's queue that counts are put into. Dropped, it says that this was all.
pub(super) struct Queue {
    waiting: Arc<Waiting>,
    /// All that a retention can hold.
    length: usize,
    pub(super) skipped: Counter,
    index: usize,
    backlog: Arc<Backlog>,
}

impl Queue {
    pub(super) fn push(&self, count: WindowCount, grant: &Grant, since: SystemTime) {
        let mut state = self.waiting.state.lock();
        // What an earlier term left is for the leader to hand over again, as this one does.
        state.counts.retain(|granted| granted.grant.is_valid());
        while state.counts.len() >= self.length
            && let Some(oldest) = state.counts.pop_front()
        {
            error!(window = %oldest.count.window, "a sink hangs: a window past retention is skipped");
            self.skipped.increment(1);
            self.backlog.done(self.index, oldest.count.window);
        }
        state.counts.push_back(Granted { count, grant: grant.clone(), since });
        self.backlog.waits(self.index, state.len());
        self.waiting.changed.notify_one();
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.waiting.state.lock().closed = true;
        self.waiting.changed.notify_one();
    }
}

impl State {
    fn len(&self) -> usize {
        self.counts.len() + usize::from(self.with_sink)
    }
}

/// The other end: hands the counts to the sink, one after another.
pub(super) struct Delivery {
    sink: Box<dyn CountSink>,
    waiting: Arc<Waiting>,
    /// The last window that the sink has.
    last: Option<Window>,
    /// The fencing token that the sink has resumed under; none before, and after an error.
    term: Option<u64>,
    /// The fencing token under which it said that trying again is of no use.
    stopped: Option<u64>,
    index: usize,
    backlog: Arc<Backlog>,
    clock: Arc<dyn Clock>,
    counter: Arc<dyn UniqueCounter>,
    retention: Duration,
    stop: CancellationToken,
    /// When somebody else published to it last.
    fenced: Option<Instant>,
    ok: Counter,
    retry: Counter,
    skipped: Counter,
    lag: Histogram,
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
        // And room for those that go past it just now.
        let length = (retention.as_secs() / u64::from(window.seconds())) as usize + 2;
        let waiting = Arc::new(Waiting { state: Mutex::default(), changed: Notify::new() });
        let counter = |result| publisher.metrics.published_windows(sink.name(), result);
        let (ok, retry, skipped) = (counter("ok"), counter("retry"), counter("skipped"));
        let lag = publisher.metrics.publish_lag(sink.name());
        let queue = Queue {
            waiting: Arc::clone(&waiting),
            length,
            skipped: skipped.clone(),
            index,
            backlog: Arc::clone(backlog),
        };
        let delivery = Self {
            sink,
            waiting,
            last: None,
            term: None,
            stopped: None,
            index,
            backlog: Arc::clone(backlog),
            clock: Arc::clone(&publisher.clock),
            counter: Arc::clone(&publisher.counter),
            retention,
            stop: stop.clone(),
            fenced: None,
            ok,
            retry,
            skipped,
            lag,
        };
        (queue, delivery)
    }

    /// Delivers until the queue is closed and empty.
    pub(super) async fn run(mut self) {
        while let Some(Granted { count, grant, since }) = self.next().await {
            let done = self.deliver(&count, since, &grant).await;
            if done {
                self.backlog.done(self.index, count.window);
            }
            let mut state = self.waiting.state.lock();
            state.with_sink = false;
            self.backlog.waits(self.index, state.len());
        }
    }

    /// The next count, once there is one; none when there will be no more.
    async fn next(&mut self) -> Option<Granted> {
        loop {
            {
                let mut state = self.waiting.state.lock();
                if let Some(granted) = state.counts.pop_front() {
                    state.with_sink = true;
                    return Some(granted);
                }
                if state.closed {
                    return None;
                }
            }
            self.waiting.changed.notified().await;
        }
    }

    /// Tries until the sink has the count or the count is past retention; false when it is for another
    /// leader to publish. One line when a sink starts to fail, one for each other reason, one when it is back:
    /// what lies between is in the metrics.
    async fn deliver(&mut self, count: &WindowCount, since: SystemTime, grant: &Grant) -> bool {
        let mut failures = 0_u32;
        let mut reasons = BTreeSet::new();
        let mut wait = RETRY_AFTER;
        loop {
            if !grant.is_valid() {
                return false;
            }
            if self.stopped == Some(grant.token()) {
                return self.wait_out(count, since, grant).await;
            }
            let Err(error) = self.try_to_deliver(count, grant).await else { break };
            self.term = None;
            self.retry.increment(1);
            failures += 1;
            let sink = self.sink.name();
            match error {
                SinkError::Fenced if grant.can_end() => {
                    warn!(sink, "another process publishes to a sink: this instance gives up the lease");
                    grant.give_up();
                    return false;
                }
                // Its own transaction may have timed out, while it was stopped; not twice in a row.
                SinkError::Fenced if self.fenced.replace(Instant::now()).is_none_or(is_long_ago) => {
                    warn!(
                        sink,
                        "fenced: another process publishes to a sink, or this one was stopped for a while"
                    );
                }
                SinkError::Unavailable(error) => {
                    let is_new =
                        reasons.len() < MOST_REASONS && reasons.insert(without_numbers(&error.to_string()));
                    if failures == 1 {
                        warn!(sink, window = %count.window, %error, "a sink fails, trying again");
                    } else if is_new {
                        warn!(sink, window = %count.window, %error, "a sink fails for another reason, trying again");
                    }
                }
                error => {
                    error!(sink, %error, "a sink has stopped: set this right, then restart this instance");
                    self.stopped = Some(grant.token());
                }
            }
            if self.is_past_retention(count, since) {
                return self.skip(count);
            }
            pause(&self.stop, wait).await;
            wait = (2 * wait).min(RETRY_AFTER_MAX);
        }
        self.ok.increment(1);
        // None for a window that a stop has cut short.
        self.lag.record(self.clock.now().duration_since(count.window.end()).unwrap_or_default());
        if failures > 0 {
            info!(sink = self.sink.name(), window = %count.window, failures, "a sink is back");
        }
        true
    }

    /// Once. A sink that has a record which ends before what is to be published now is first given what is
    /// missing in between.
    async fn try_to_deliver(&mut self, count: &WindowCount, grant: &Grant) -> Result<(), SinkError> {
        if self.term != Some(grant.token()) {
            let recorded = self.sink.resume(grant).await?;
            if let Some(recorded) = recorded {
                self.fill(recorded.next(), count.window, grant).await?;
                if recorded.start() > self.clock.now() {
                    warn!(sink = self.sink.name(), %recorded, "a sink has windows that are yet to come: up to there \
                          it takes nothing");
                }
            }
            self.last = self.last.max(recorded);
            self.term = Some(grant.token());
        }
        // A term that begins where another one broke off repeats what was not marked.
        if self.last < Some(count.window) {
            self.sink.publish(count, grant).await?;
            self.last = Some(count.window);
        }
        Ok(())
    }

    /// Publishes windows that were published elsewhere, when this sink was not there, or by nobody, because nobody
    /// was there: as incomplete, with what is still known of them.
    async fn fill(&mut self, from: Window, to: Window, grant: &Grant) -> Result<(), SinkError> {
        if from >= to {
            return Ok(());
        }
        let oldest = self.clock.now().checked_sub(self.retention);
        let first = oldest.map_or(from, |oldest| from.max(to.length().window_at(oldest)));
        let sink = self.sink.name();
        if from < first {
            let windows = (first.unix_seconds() - from.unix_seconds()) / u64::from(to.length().seconds());
            error!(sink, windows, first = %from, "windows past retention are skipped: the sink was not there");
            self.skipped.increment(windows);
        }
        warn!(sink, from = %first, %to, "a sink lacks windows: it gets what is still known of them, as incomplete");
        let mut window = first;
        while window < to {
            if !grant.is_valid() || self.stop.is_cancelled() {
                return Err(SinkError::unavailable("there is no time to give it what it lacks"));
            }
            let known =
                self.counter.recall(window).await.map_err(SinkError::unavailable)?.unwrap_or_default();
            let count = WindowCount {
                window,
                unique_request_count: known.unique_ids,
                accepted_ids: known.accepted_ids,
                complete: false,
            };
            self.sink.publish(&count, grant).await?;
            window = window.next();
        }
        Ok(())
    }

    /// For a sink that has stopped: nothing more is tried in this term.
    async fn wait_out(&mut self, count: &WindowCount, since: SystemTime, grant: &Grant) -> bool {
        while grant.is_valid() && !self.stop.is_cancelled() {
            if self.is_past_retention(count, since) {
                return self.skip(count);
            }
            pause(&self.stop, RETRY_AFTER_MAX).await;
        }
        false
    }

    /// The only gap that there can be.
    fn skip(&self, count: &WindowCount) -> bool {
        error!(sink = self.sink.name(), window = %count.window, "window past retention is skipped");
        self.skipped.increment(1);
        true
    }

    fn is_past_retention(&self, count: &WindowCount, since: SystemTime) -> bool {
        count.window.end().max(since) + self.retention < self.clock.now()
    }
}

/// Reasons that are told apart while a sink does not take a count.
const MOST_REASONS: usize = 16;

/// Times, ports and how often differ from one error to the next of the same kind.
fn without_numbers(text: &str) -> String {
    text.chars().filter(|character| !character.is_ascii_digit()).collect()
}

fn is_long_ago(at: Instant) -> bool {
    at.elapsed() > FENCED_AGAIN
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
    /// All sinks are looked at together to know who is behind, so one lock; taken a few times a window.
    sinks: Mutex<Vec<Progress>>,
    /// The last window that every sink is done with.
    delivered: watch::Sender<Option<Window>>,
}

#[derive(Clone, Default)]
struct Progress {
    /// Windows in the queue.
    waiting: usize,
    /// The last window that it is done with.
    last: Option<Window>,
}

impl Backlog {
    pub(super) fn new(sinks: usize, metrics: Arc<Metrics>) -> Self {
        Self {
            metrics,
            sinks: Mutex::new(vec![Progress::default(); sinks]),
            delivered: watch::channel(None).0,
        }
    }

    /// The last window that every sink is done with, as it moves.
    pub(super) fn delivered(&self) -> watch::Receiver<Option<Window>> {
        self.delivered.subscribe()
    }

    /// So many windows wait for a sink.
    fn waits(&self, sink: usize, windows: usize) {
        self.update(sink, |progress| progress.waiting = windows);
    }

    /// A sink has `window`, or will never have it.
    fn done(&self, sink: usize, window: Window) {
        self.update(sink, |progress| progress.last = progress.last.max(Some(window)));
    }

    fn update(&self, sink: usize, change: impl FnOnce(&mut Progress)) {
        let mut sinks = self.sinks.lock();
        change(&mut sinks[sink]);
        let waiting = sinks.iter().map(|progress| progress.waiting).max();
        self.metrics.unpublished_windows.set(waiting.unwrap_or_default() as f64);
        let delivered = sinks.iter().map(|progress| progress.last).min().flatten();
        self.delivered.send_if_modified(|last| {
            let moved = *last < delivered;
            *last = delivered;
            moved
        });
        if let Some(window) = delivered {
            self.metrics.last_published_window.set(window.unix_seconds() as f64);
        }
    }
}
