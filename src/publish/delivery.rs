//! Delivery: publishes to one sink the counts that it does not have yet, and tries again after errors.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use ::metrics::{Counter, Histogram};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::dependencies::Publisher;
use super::unpublished::{Pending, PendingCounters, Unpublished};
use crate::coordination::term::Term;
use crate::coordination::{ClosedWindow, StoredWindow, WindowCounters};
use crate::model::window::{Window, WindowCount};
use crate::publish::sinks::{CountSink, SinkError};

/// The first wait between two tries; it doubles.
const RETRY_AFTER: Duration = Duration::from_millis(100);
/// The longest wait between two tries.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(10);
/// The same after the stop: there may be little time left.
const RETRY_AFTER_MAX_STOPPING: Duration = Duration::from_millis(500);

/// A standalone instance that is fenced again within this time has a rival.
const FENCED_AGAIN: Duration = Duration::from_secs(60);
/// How many different reasons are logged while a sink does not take a count.
const MOST_REASONS: usize = 16;

pub(super) struct Delivery {
    sink: Box<dyn CountSink>,
    /// The sink's number in `unpublished`.
    number: usize,
    publisher: Arc<Publisher>,
    unpublished: Arc<Unpublished>,
    stop: CancellationToken,
    /// The fencing token that the sink has resumed under; none before, and after an error.
    resumed: Option<u64>,
    /// The last window that the sink had when it resumed.
    recorded: Option<Window>,
    /// The fencing token under which the sink had a fatal error: it gets no more counts under this token.
    stopped: Option<u64>,
    /// When another producer last fenced the sink.
    fenced: Option<Instant>,
    failing: Failing,
    ok: Counter,
    retry: Counter,
    skipped: Counter,
    lag: Histogram,
}

/// Failures since the sink last took a count.
struct Failing {
    failures: u32,
    reasons: BTreeSet<String>,
    wait: Duration,
}

impl Failing {
    const NOT: Self = Self { failures: 0, reasons: BTreeSet::new(), wait: RETRY_AFTER };
}

impl Delivery {
    pub(super) fn new(
        sink: Box<dyn CountSink>,
        number: usize,
        publisher: &Arc<Publisher>,
        unpublished: &Arc<Unpublished>,
        stop: &CancellationToken,
    ) -> Self {
        let counter = |result| publisher.metrics.published_windows(sink.name(), result);
        let (ok, retry, skipped) = (counter("ok"), counter("retry"), counter("skipped"));
        let lag = publisher.metrics.publish_lag(sink.name());
        Self {
            sink,
            number,
            publisher: Arc::clone(publisher),
            unpublished: Arc::clone(unpublished),
            stop: stop.clone(),
            resumed: None,
            recorded: None,
            stopped: None,
            fenced: None,
            failing: Failing::NOT,
            ok,
            retry,
            skipped,
            lag,
        }
    }

    /// Delivers counts in order, until no more will come. It tries each until the sink has it, or it is past retention.
    pub(super) async fn run(mut self) {
        while let Some(pending) = self.next().await {
            let now = self.publisher.clock.now();
            if pending.counters.number() > 0 && pending.is_past(self.publisher.counter_retention, now) {
                self.unpublished.skip_old_counters(now);
                continue;
            }
            if self.stopped != Some(pending.term.token()) {
                let Err(error) = self.try_to_deliver(&pending).await else {
                    self.note_taken(pending.count.window);
                    continue;
                };
                self.note_failure(error, &pending);
            }
            if !pending.term.is_valid() {
                continue;
            }
            if pending.is_past(self.publisher.retention, self.publisher.clock.now()) {
                let window = pending.count.window;
                error!(sink = self.sink.name(), %window, "window past retention is skipped");
                self.unpublished.skip(self.number, &pending);
            } else {
                self.pause().await;
            }
        }
    }

    /// The next count for the sink; none when no more will come. A sink with a fatal error gets no more after the stop.
    async fn next(&mut self) -> Option<Pending> {
        let wanted =
            |pending: &Pending| !self.stop.is_cancelled() || self.stopped != Some(pending.term.token());
        self.unpublished.next(self.number, wanted).await
    }

    /// Resumes the sink first, if it has not resumed. If it lacks windows before this count, it gets them first.
    async fn try_to_deliver(&mut self, pending: &Pending) -> Result<(), SinkError> {
        let (next, term) = (pending.count.window, &pending.term);
        if self.resumed != Some(term.token()) {
            self.recorded = self.sink.resume(term).await?;
            if let Some(recorded) = self.recorded {
                self.fill(recorded.next(), next, term).await?;
                if recorded.start() > self.publisher.clock.now() {
                    warn!(
                        sink = self.sink.name(), %recorded,
                        "the last window of a sink lies in the future: skipping windows until then"
                    );
                }
            }
            self.resumed = Some(term.token());
        }
        if self.recorded < Some(next) {
            let window = self.with_counters(pending).await?;
            self.sink.publish(&window, term).await?;
        }
        Ok(())
    }

    /// The window with the counts of its counters. If Redis has lost them, only the total can be published.
    async fn with_counters(&mut self, pending: &Pending) -> Result<ClosedWindow, SinkError> {
        let count = pending.count;
        let stored = match &pending.counters {
            PendingCounters::Here(counters) => return Ok(ClosedWindow { count, counters: counters.clone() }),
            PendingCounters::Stored(stored) => StoredWindow { count, counters: Some(stored.clone()) },
        };
        let known = self.publisher.counters_of(&stored).await.map_err(SinkError::unavailable)?;
        let counters = known.map_or(WindowCounters::Skipped, Into::into);
        if counters.is_skipped() {
            self.unpublished.lose_counters(count.window);
        }
        Ok(ClosedWindow { count, counters })
    }

    /// Publishes windows that the sink lacks, as incomplete, with the counts that the store still has, and without counters. The
    /// sink lacks windows from before it was in use, and from times when no instance was there to close them.
    async fn fill(&mut self, from: Window, to: Window, term: &Term) -> Result<(), SinkError> {
        if from >= to {
            return Ok(());
        }
        let oldest = self.publisher.clock.now().checked_sub(self.publisher.retention);
        let first = oldest.map_or(from, |oldest| from.max(to.length().window_at(oldest)));
        let sink = self.sink.name();
        if from < first {
            let windows = (first.unix_seconds() - from.unix_seconds()) / u64::from(to.length().seconds());
            error!(sink, windows, first = %from, "a sink lacks windows past retention: they are skipped");
            self.skipped.increment(windows);
        }
        warn!(sink, from = %first, %to, "a sink lacks windows: publishing them as incomplete");
        let mut window = first;
        while window < to {
            if !term.is_valid() {
                return Err(SinkError::unavailable(
                    "the term ended before the sink had the windows that it lacks",
                ));
            }
            let known = self.publisher.store.recall(window).await.map_err(SinkError::unavailable)?;
            let known = known.unwrap_or_default();
            let count = WindowCount {
                window,
                unique_request_count: known.count.unique_ids,
                accepted_ids: known.count.accepted_ids,
                has_imports: known.count.has_imports,
                complete: false,
            };
            let counters = if known.had_counters { WindowCounters::Skipped } else { WindowCounters::None };
            self.sink.publish(&ClosedWindow { count, counters }, term).await?;
            window = window.next();
        }
        Ok(())
    }

    fn note_taken(&mut self, window: Window) {
        self.ok.increment(1);
        // Zero for a window that a stop closed before its end.
        self.lag.record(self.publisher.clock.now().duration_since(window.end()).unwrap_or_default());
        let Failing { failures, .. } = std::mem::replace(&mut self.failing, Failing::NOT);
        if failures > 0 {
            info!(sink = self.sink.name(), %window, failures, "a sink is back");
        }
        self.unpublished.taken(self.number, window);
    }

    /// Logs one line when a sink starts to fail, and one for each new reason. A metric counts all failures.
    fn note_failure(&mut self, error: SinkError, Pending { count, term, .. }: &Pending) {
        self.resumed = None;
        self.retry.increment(1);
        self.failing.failures += 1;
        let sink = self.sink.name();
        match error {
            SinkError::Fenced if term.can_end() => {
                warn!(sink, "another process publishes to a sink: this instance releases the lease");
                term.give_up();
            }
            // Once is no proof of a rival: while this process was paused, its transaction may have timed out.
            SinkError::Fenced
                if self.fenced.replace(Instant::now()).is_none_or(|last| last.elapsed() > FENCED_AGAIN) =>
            {
                warn!(
                    sink,
                    "fenced: another process publishes to a sink, or this process was paused for a while"
                );
            }
            SinkError::Unavailable(error) => {
                let window = count.window;
                let is_new = self.failing.is_new(&error.to_string());
                if self.failing.failures == 1 {
                    warn!(sink, %window, %error, "a sink fails, trying again");
                } else if is_new {
                    warn!(sink, %window, %error, "a sink fails for another reason, trying again");
                }
            }
            error => {
                error!(sink, %error, "a sink has stopped: set this right, then restart this instance");
                self.stopped = Some(term.token());
            }
        }
    }

    /// Waits until the next try. A stop ends the wait: there may be little time left.
    async fn pause(&mut self) {
        let wait = self.failing.wait;
        self.failing.wait = (2 * wait).min(RETRY_AFTER_MAX);
        if self.stop.is_cancelled() {
            tokio::time::sleep(wait.min(RETRY_AFTER_MAX_STOPPING)).await;
        } else {
            let _ = tokio::time::timeout(wait, self.stop.cancelled()).await;
        }
    }
}

impl Failing {
    /// Compares reasons without digits: errors of the same kind differ in times, ports and numbers.
    fn is_new(&mut self, reason: &str) -> bool {
        let kind = reason.chars().filter(|character| !character.is_ascii_digit()).collect();
        self.reasons.len() < MOST_REASONS && self.reasons.insert(kind)
    }
}
