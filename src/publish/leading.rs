//! Leading: the loop that closes windows while this instance holds the lease.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::delivery::{Backlog, Queue};
use super::dependencies::Publisher;
use crate::coordination::completeness::Evidence;
use crate::coordination::grant::Grant;
use crate::coordination::{CloseError, Standing};
use crate::model::window::{Window, WindowCount};
use crate::store::{CountError, Tally};

/// The longest sleep before the clock is asked again: it may have been set.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);
/// How often the others are asked whether they have sealed a window that has ended.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(50);
/// The first wait after the store was unavailable; it doubles up to [`LONGEST_SLEEP`].
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// Windows that are closed before it is looked whether to stop, and what is published. There are many when
/// nobody was there for a day.
const WINDOWS_A_ROUND: usize = 100;

/// One term of leading.
pub(super) struct Leading<'a> {
    publisher: &'a Publisher,
    queues: &'a [Queue],
    backlog: &'a Backlog,
    grant: Grant,
    /// The oldest window that is not handed to the sinks; not known before the store has been asked.
    next: Option<Window>,
    /// Counts that an earlier leader stored and did not publish.
    stored: BTreeMap<Window, WindowCount>,
    /// What is marked as published.
    marked: Option<Window>,
    /// What instances that had a window open had left to do, and since when that has not changed.
    left: (BTreeSet<(u64, u64)>, Instant),
    /// There may be more to close than one round does.
    goes_on: bool,
    failing: bool,
}

/// What became of a try to close a window.
enum Tried {
    /// It is closed; the next one may be due.
    Closed,
    /// It has not ended, or somebody has it open.
    NotYet,
}

impl<'a> Leading<'a> {
    pub(super) fn new(
        publisher: &'a Publisher,
        queues: &'a [Queue],
        backlog: &'a Backlog,
        grant: Grant,
    ) -> Self {
        Self {
            publisher,
            queues,
            backlog,
            grant,
            next: None,
            stored: BTreeMap::new(),
            marked: None,
            left: (BTreeSet::new(), Instant::now()),
            goes_on: false,
            failing: false,
        }
    }

    /// Closes windows as they end, until the grant is no longer valid or `stop`. After that, all that is
    /// sealed is closed.
    pub(super) async fn run(&mut self, stop: &CancellationToken) {
        let mut watermark = self.publisher.watermark.clone();
        let mut delivered = self.backlog.delivered();
        let mut lease = self.publisher.grant.clone();
        lease.mark_unchanged();
        let mut wait = RETRY_AFTER;
        while self.grant.is_valid() {
            let stopping = stop.is_cancelled();
            let round = self.round(stopping).await;
            let failed = round.is_err();
            let goes_on = self.goes_on && !failed;
            if stopping && (self.publisher.coordinator.outlives_process() || !failed && !goes_on) {
                return;
            }
            let pause = match () {
                () if failed => wait,
                () if goes_on => Duration::ZERO,
                () => self.until_next(),
            };
            wait = if failed { (2 * wait).min(LONGEST_SLEEP) } else { RETRY_AFTER };
            self.say_how_it_went(round);
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = watermark.changed(), if !failed => {}
                _ = delivered.changed(), if !failed => {}
                // At the least, this term is over.
                Ok(()) = lease.changed() => {}
                () = stop.cancelled(), if !stopping => {}
            }
        }
    }

    /// Closes what is due, so many windows at most, and marks what is published.
    async fn round(&mut self, stopping: bool) -> Result<(), CloseError> {
        if self.next.is_none() {
            let Some(resume) = self.publisher.coordinator.resume().await? else { return Ok(()) };
            self.stored = resume.stored;
            self.next = Some(resume.next);
        }
        let mut closed = 0;
        while closed < WINDOWS_A_ROUND
            && let Tried::Closed = self.close_next(stopping).await?
        {
            closed += 1;
        }
        self.goes_on = closed == WINDOWS_A_ROUND;
        self.try_to_mark_published().await
    }

    /// One line when the store begins to be unavailable, one when it is back. A fenced leader stops.
    fn say_how_it_went(&mut self, round: Result<(), CloseError>) {
        match round {
            Err(CloseError::Fenced) => {
                warn!(fencing_token = self.grant.token(), "another instance has taken the lease");
                self.publisher.metrics.lease_fenced.increment(1);
                self.grant.revoke();
            }
            Err(error) if !self.failing => {
                warn!(%error, "cannot close windows, trying again");
                self.failing = true;
            }
            Ok(()) if self.failing => {
                info!("closing windows again");
                self.failing = false;
            }
            _ => {}
        }
    }

    /// How long to sleep: until the next window ends, or a moment if somebody has it open.
    fn until_next(&self) -> Duration {
        let Some(next) = self.next else { return ASK_AGAIN_AFTER };
        let until_end = next.end().duration_since(self.publisher.clock.now());
        until_end.map_or(ASK_AGAIN_AFTER, |until_end| until_end.clamp(ASK_AGAIN_AFTER, LONGEST_SLEEP))
    }

    async fn close_next(&mut self, stopping: bool) -> Result<Tried, CloseError> {
        let Some(mut next) = self.next else { return Ok(Tried::NotYet) };
        if !self.grant.is_valid() {
            return Ok(Tried::NotYet);
        }
        if let Some(count) = self.stored.remove(&next) {
            self.hand_over(count);
            return Ok(Tried::Closed);
        }
        let ended = next.end() <= self.publisher.clock.now();
        // What does not outlive the process is closed before its end, or never.
        let at_the_last = stopping && !self.publisher.coordinator.outlives_process();
        if !(ended || at_the_last) || *self.publisher.watermark.borrow() <= next {
            return Ok(Tried::NotYet);
        }
        if next.start() > self.publisher.clock.now() {
            // The clock was set back: there may be windows to come that have ids. The others are not.
            let with_ids = self.publisher.counter.windows().into_iter().find(|window| *window >= next);
            let Some(with_ids) = with_ids else { return Ok(Tried::NotYet) };
            next = with_ids;
        }
        let Some(standing) = self.publisher.coordinator.standing(next).await? else {
            return Ok(Tried::NotYet);
        };
        if standing.open && !self.is_overdue(next, &standing) {
            return Ok(Tried::NotYet);
        }
        if self.skip_past_retention(next, &standing) {
            return Ok(Tried::Closed);
        }
        match self.close(next, &standing).await {
            Ok(count) => {
                self.publisher.metrics.closed_windows(count.complete).increment(1);
                self.hand_over(count);
            }
            Err(CloseFailure::Evicted) => {
                self.skip(1, next, "a window that cannot be counted any more is skipped");
                self.next = Some(next.next());
            }
            Err(CloseFailure::Store(CloseError::Open)) => return Ok(Tried::NotYet),
            Err(CloseFailure::Store(error)) => return Err(error),
        }
        Ok(Tried::Closed)
    }

    /// Both clocks have to say so: either may have been set. After an outage a window's end is long past, so those
    /// who have it open also have so long from when they last got on.
    fn is_overdue(&mut self, window: Window, standing: &Standing) -> bool {
        let patience = self.publisher.close_timeout;
        let due = window.end() + patience;
        if self.left.0 != standing.left {
            self.left = (standing.left.clone(), Instant::now());
        }
        let is_stuck = self.left.1.elapsed() >= patience;
        is_stuck && due <= self.publisher.clock.now() && standing.time.is_none_or(|time| due <= time)
    }

    async fn close(&self, window: Window, standing: &Standing) -> Result<WindowCount, CloseFailure> {
        let tally = self.publisher.counter.settle(window, &standing.parties).await?;
        let Tally { unique_ids, accepted_ids, lost_ids } = tally;
        if lost_ids > 0 {
            error!(%window, lost_ids, "the store has lost ids that it had acknowledged");
        }
        let evidence = Evidence {
            is_over: window.end() <= self.publisher.clock.now(),
            attendance: standing.attendance,
            is_open: standing.open,
            lost_ids,
        };
        if let Some(reason) = evidence.gap() {
            info!(%window, reason, "a window is closed as incomplete");
        }
        let count = WindowCount {
            window,
            unique_request_count: unique_ids,
            // What an instance that vanished had accepted is known to nobody; it is no less than there is.
            accepted_ids: if evidence.all_accepted_is_known() {
                accepted_ids
            } else {
                accepted_ids.max(unique_ids)
            },
            complete: evidence.is_complete(),
        };
        Ok(self.publisher.coordinator.close(&self.grant, &count, standing).await?)
    }

    fn hand_over(&mut self, count: WindowCount) {
        for queue in self.queues {
            queue.push(count, &self.grant, self.publisher.clock.now());
        }
        self.publisher.closed.advance(count);
        self.next = Some(count.window.next());
    }

    /// Goes past empty windows that ended too long ago, to the next one that has ids, in which somebody was there, or
    /// that is within retention. There are some when nobody was there or the clock was set forward; closing them one
    /// by one could take as long.
    fn skip_past_retention(&mut self, next: Window, standing: &Standing) -> bool {
        // Both clocks have to say so: either may be wrong.
        let now = self.publisher.clock.now();
        let now = standing.time.map_or(now, |time| now.min(time));
        let Some(oldest) = now.checked_sub(self.publisher.retention) else { return false };
        let kept = self.publisher.window.window_at(oldest);
        let with_ids = self.publisher.counter.windows().into_iter().find(|window| *window >= next);
        let stored = self.stored.keys().next().copied();
        let target = [with_ids, stored, standing.attended].into_iter().flatten().fold(kept, Window::min);
        if target <= next {
            return false;
        }
        let missed = target.unix_seconds() - next.unix_seconds();
        let windows = missed / u64::from(self.publisher.window.seconds());
        self.skip(
            windows,
            next,
            "windows past retention are skipped: nobody was there, or the clock was set",
        );
        self.next = Some(target);
        true
    }

    fn skip(&self, windows: u64, first: Window, why: &str) {
        error!(windows, %first, "{why}");
        for queue in self.queues {
            queue.skipped.increment(windows);
        }
    }

    async fn try_to_mark_published(&mut self) -> Result<(), CloseError> {
        let delivered = *self.backlog.delivered().borrow();
        if let Some(window) = delivered
            && self.marked < delivered
            && self.grant.is_valid()
        {
            self.publisher.coordinator.mark_published(&self.grant, window).await?;
            self.marked = delivered;
        }
        Ok(())
    }
}

/// A window was not closed.
enum CloseFailure {
    Evicted,
    Store(CloseError),
}

impl From<CountError> for CloseFailure {
    fn from(error: CountError) -> Self {
        match error {
            CountError::Evicted(_) => Self::Evicted,
            CountError::Unavailable(error) => Self::Store(error.into()),
        }
    }
}

impl From<CloseError> for CloseFailure {
    fn from(error: CloseError) -> Self {
        Self::Store(error)
    }
}
