//! Delivery: hands one sink what it does not have yet, with retries in between.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use ::metrics::{Counter, Histogram};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::dependencies::Publisher;
use super::unpublished::{Pending, Unpublished};
use crate::coordination::term::Term;
use crate::model::window::{Window, WindowCount};
use crate::publish::sinks::{CountSink, SinkError};

/// The first wait between two tries; it doubles.
const RETRY_AFTER: Duration = Duration::from_millis(100);
/// The longest wait between two tries, and what it comes down to while stopping.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(10);
const RETRY_AFTER_MAX_STOPPING: Duration = Duration::from_millis(500);

/// A standalone instance that is fenced again within this time has a rival.
const FENCED_AGAIN: Duration = Duration::from_secs(60);
/// Reasons that are told apart while a sink does not take a count.
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
    /// The last window that it had then.
    recorded: Option<Window>,
    /// The fencing token under which it said that trying again is of no use.
    stopped: Option<u64>,
    /// When somebody else published to it last.
    fenced: Option<Instant>,
    failing: Failing,
    ok: Counter,
    retry: Counter,
    skipped: Counter,
    lag: Histogram,
}

/// Failures since the sink took a count.
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

    /// Delivers one count after another, each until the sink has it or it is past retention, until there will be no more.
    pub(super) async fn run(mut self) {
        while let Some(pending) = self.next().await {
            if self.stopped != Some(pending.term.token()) {
                let Err(error) = self.try_to_deliver(&pending.count, &pending.term).await else {
                    self.note_taken(pending.count.window);
                    continue;
                };
                self.note_failure(error, &pending);
            }
            if !pending.term.is_valid() {
                continue;
            }
            if self.is_past_retention(&pending) {
                let window = pending.count.window;
                error!(sink = self.sink.name(), %window, "window past retention is skipped");
                self.unpublished.skip(self.number, window);
            } else {
                self.pause().await;
            }
        }
    }

    /// At the stop nothing more is tried of a sink that has stopped.
    async fn next(&mut self) -> Option<Pending> {
        let wanted =
            |pending: &Pending| !self.stop.is_cancelled() || self.stopped != Some(pending.term.token());
        self.unpublished.next(self.number, wanted).await
    }

    /// A sink that has a record which ends before the count is first given what is missing in between.
    async fn try_to_deliver(&mut self, count: &WindowCount, term: &Term) -> Result<(), SinkError> {
        if self.resumed != Some(term.token()) {
            self.recorded = self.sink.resume(term).await?;
            if let Some(recorded) = self.recorded {
                self.fill(recorded.next(), count.window, term).await?;
                if recorded.start() > self.publisher.clock.now() {
                    warn!(
                        sink = self.sink.name(), %recorded,
                        "the last window of a sink lies in the future: windows up to it are not published there"
                    );
                }
            }
            self.resumed = Some(term.token());
        }
        if self.recorded < Some(count.window) {
            self.sink.publish(count, term).await?;
        }
        Ok(())
    }

    /// Publishes windows that were published elsewhere, when this sink was not there, or by nobody, because nobody
    /// was there: as incomplete, with what is still known of them.
    async fn fill(&mut self, from: Window, to: Window, term: &Term) -> Result<(), SinkError> {
        if from >= to {
            return Ok(());
        }
        let oldest = self.publisher.clock.now().checked_sub(self.publisher.retention);
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
            if !term.is_valid() || self.stop.is_cancelled() {
                return Err(SinkError::unavailable("the service stops before the sink has what it lacks"));
            }
            let known = self.publisher.store.recall(window).await.map_err(SinkError::unavailable)?;
            let known = known.unwrap_or_default();
            let count = WindowCount {
                window,
                unique_request_count: known.unique_ids,
                accepted_ids: known.accepted_ids,
                complete: false,
            };
            self.sink.publish(&count, term).await?;
            window = window.next();
        }
        Ok(())
    }

    fn note_taken(&mut self, window: Window) {
        self.ok.increment(1);
        // None for a window that a stop has cut short.
        self.lag.record(self.publisher.clock.now().duration_since(window.end()).unwrap_or_default());
        let Failing { failures, .. } = std::mem::replace(&mut self.failing, Failing::NOT);
        if failures > 0 {
            info!(sink = self.sink.name(), %window, failures, "a sink is back");
        }
        self.unpublished.taken(self.number, window);
    }

    /// Logs one line when a sink starts to fail, and one for each other reason: the metrics have what lies between.
    fn note_failure(&mut self, error: SinkError, Pending { count, term, .. }: &Pending) {
        self.resumed = None;
        self.retry.increment(1);
        self.failing.failures += 1;
        let sink = self.sink.name();
        match error {
            SinkError::Fenced if term.can_end() => {
                warn!(sink, "another process publishes to a sink: this instance gives up the lease");
                term.give_up();
            }
            // Its own transaction may have timed out, while it was stopped; not twice in a row.
            SinkError::Fenced
                if self.fenced.replace(Instant::now()).is_none_or(|last| last.elapsed() > FENCED_AGAIN) =>
            {
                warn!(
                    sink,
                    "fenced: another process publishes to a sink, or this one was stopped for a while"
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

    fn is_past_retention(&self, Pending { count, since, .. }: &Pending) -> bool {
        count.window.end().max(*since) + self.publisher.retention < self.publisher.clock.now()
    }

    /// Waits for the next try. A stop cuts that short: there may be little time left.
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
    /// Times, ports and how often differ from one error to the next of the same kind.
    fn is_new(&mut self, reason: &str) -> bool {
        let kind = reason.chars().filter(|character| !character.is_ascii_digit()).collect();
        self.reasons.len() < MOST_REASONS && self.reasons.insert(kind)
    }
}
