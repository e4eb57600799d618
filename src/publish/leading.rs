//! Leading: the loop that closes windows while this instance holds the lease.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::dependencies::Publisher;
use super::unpublished::{Pending, Unpublished};
use crate::coordination::completeness::Evidence;
use crate::coordination::term::Term;
use crate::coordination::{CloseError, MembershipView};
use crate::model::window::{Window, WindowCount};
use crate::store::{CountError, StoreCount};

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
    unpublished: &'a Unpublished,
    term: Term,
    /// The oldest window that is not handed to the sinks; not known before the coordinator has been asked.
    next: Option<Window>,
    /// Counts that an earlier leader stored and did not publish.
    stored: BTreeMap<Window, WindowCount>,
    /// The published position, as far as this term has committed it.
    committed: Option<Window>,
    /// What instances that had a window open had left to do, and since when that has not changed.
    left: (BTreeSet<(u64, u64)>, Instant),
    failing: bool,
}

impl<'a> Leading<'a> {
    pub(super) fn new(publisher: &'a Publisher, unpublished: &'a Unpublished, term: Term) -> Self {
        Self {
            publisher,
            unpublished,
            term,
            next: None,
            stored: BTreeMap::new(),
            committed: None,
            left: (BTreeSet::new(), Instant::now()),
            failing: false,
        }
    }

    /// Closes windows as they end, until the term is no longer valid or `stop`. After that, all that is
    /// sealed is closed.
    pub(super) async fn run(&mut self, stop: &CancellationToken) {
        let mut watermark = self.publisher.watermark.clone();
        let mut lease = self.publisher.term.clone();
        lease.mark_unchanged();
        let mut wait = RETRY_AFTER;
        while self.term.is_valid() {
            let stopping = stop.is_cancelled();
            let round = self.round(stopping).await;
            let failed = round.is_err();
            if stopping && (self.publisher.coordinator.is_shared() || matches!(round, Ok(false))) {
                return;
            }
            let pause = match round {
                Err(_) => wait,
                Ok(true) => Duration::ZERO,
                Ok(false) => self.until_next(),
            };
            wait = if failed { (2 * wait).min(LONGEST_SLEEP) } else { RETRY_AFTER };
            self.say_how_it_went(round);
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = watermark.changed(), if !failed => {}
                () = self.unpublished.delivered_after(self.committed), if !failed && self.next.is_some() => {}
                // At the least, this term is over.
                Ok(()) = lease.changed() => {}
                () = stop.cancelled(), if !stopping => {}
            }
        }
    }

    /// Closes what is due and commits what is published. True if more may be due than one round closes.
    async fn round(&mut self, stopping: bool) -> Result<bool, CloseError> {
        if self.next.is_none() {
            let Some(resume) = self.publisher.coordinator.resume().await? else { return Ok(false) };
            self.stored = resume.stored;
            self.next = Some(resume.next);
        }
        let mut closed = 0;
        while closed < WINDOWS_A_ROUND && self.close_next(stopping).await? {
            closed += 1;
        }
        self.commit_published().await?;
        Ok(closed == WINDOWS_A_ROUND)
    }

    /// One line when the store begins to be unavailable, one when it is back. A fenced leader stops.
    fn say_how_it_went(&mut self, round: Result<bool, CloseError>) {
        match round {
            Err(CloseError::Fenced) => {
                warn!(fencing_token = self.term.token(), "another instance has taken the lease");
                self.publisher.metrics.lease_fenced.increment(1);
                self.term.revoke();
            }
            Err(error) if !self.failing => {
                warn!(%error, "cannot close windows, trying again");
                self.failing = true;
            }
            Ok(_) if self.failing => {
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

    /// Whether a window was closed, so that the next one may be due; else it has not ended, or somebody has it open.
    async fn close_next(&mut self, stopping: bool) -> Result<bool, CloseError> {
        let Some(mut next) = self.next else { return Ok(false) };
        if !self.term.is_valid() {
            return Ok(false);
        }
        if let Some(count) = self.stored.remove(&next) {
            self.hand_over(count);
            return Ok(true);
        }
        let ended = next.end() <= self.publisher.clock.now();
        // What does not outlive the process is closed before its end, or never.
        let at_the_last = stopping && !self.publisher.coordinator.is_shared();
        if !(ended || at_the_last) || *self.publisher.watermark.borrow() <= next {
            return Ok(false);
        }
        if next.start() > self.publisher.clock.now() {
            // The clock was set back: there may be windows to come that have ids. The others are not.
            let Some(with_ids) = self.with_ids_from(next) else { return Ok(false) };
            next = with_ids;
        }
        let Some(view) = self.publisher.coordinator.membership_view(next).await? else { return Ok(false) };
        if view.open && !self.is_overdue(next, &view) {
            return Ok(false);
        }
        if self.skip_past_retention(next, &view) {
            return Ok(true);
        }
        self.close(next, &view).await
    }

    /// The first window, this one or a later one, in which this instance has ids.
    fn with_ids_from(&self, first: Window) -> Option<Window> {
        self.publisher.store.windows().into_iter().find(|window| *window >= first)
    }

    /// Both clocks have to say so: either may have been set. After an outage a window's end is long past, so those
    /// who have it open also have so long from the last time that they made progress.
    fn is_overdue(&mut self, window: Window, view: &MembershipView) -> bool {
        let patience = self.publisher.close_timeout;
        let due = window.end() + patience;
        if self.left.0 != view.left {
            self.left = (view.left.clone(), Instant::now());
        }
        let is_stuck = self.left.1.elapsed() >= patience;
        is_stuck && due <= self.publisher.clock.now() && view.time.is_none_or(|time| due <= time)
    }

    /// Counts a window and has its count stored.
    async fn close(&mut self, window: Window, view: &MembershipView) -> Result<bool, CloseError> {
        let counted = match self.publisher.store.settle(window, &view.parties).await {
            Ok(counted) => counted,
            Err(CountError::Unavailable(error)) => return Err(error.into()),
            Err(CountError::Evicted(_)) => {
                self.skip(1, window, "a window that cannot be counted any more is skipped");
                self.next = Some(window.next());
                return Ok(true);
            }
        };
        let count = self.judge(window, view, counted);
        match self.publisher.coordinator.close(&self.term, &count, view).await {
            Ok(count) => {
                self.publisher.metrics.closed_windows(count.complete).increment(1);
                self.publisher.closed.note_counters(count, self.publisher.store.counters(window));
                self.hand_over(count);
                Ok(true)
            }
            Err(CloseError::Open) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// What is published of a window that was counted, and whether it is complete.
    fn judge(&self, window: Window, view: &MembershipView, counted: StoreCount) -> WindowCount {
        let StoreCount { unique_ids, accepted_ids, lost_ids } = counted;
        if lost_ids > 0 {
            error!(%window, lost_ids, "the store has lost ids that it had acknowledged");
        }
        let evidence = Evidence {
            is_over: window.end() <= self.publisher.clock.now(),
            attendance: view.attendance,
            is_open: view.open,
            lost_ids,
        };
        if let Some(reason) = evidence.gap() {
            info!(%window, reason, "a window is closed as incomplete");
        }
        WindowCount {
            window,
            unique_request_count: unique_ids,
            // What an instance that vanished had accepted is known to nobody; it is no less than there is.
            accepted_ids: if evidence.all_accepted_is_known() {
                accepted_ids
            } else {
                accepted_ids.max(unique_ids)
            },
            complete: evidence.is_complete(),
        }
    }

    fn hand_over(&mut self, count: WindowCount) {
        let (term, since) = (self.term.clone(), self.publisher.clock.now());
        self.unpublished.push(Pending { count, term, since });
        self.publisher.closed.advance(count);
        self.next = Some(count.window.next());
    }

    /// Goes past empty windows that ended too long ago, to the next one that has ids, in which somebody was there, or
    /// that is within retention. There are some when nobody was there or the clock was set forward; closing them one
    /// by one could take as long.
    fn skip_past_retention(&mut self, next: Window, view: &MembershipView) -> bool {
        // Both clocks have to say so: either may be wrong.
        let now = self.publisher.clock.now();
        let now = view.time.map_or(now, |time| now.min(time));
        let Some(oldest) = now.checked_sub(self.publisher.retention) else { return false };
        let kept = self.publisher.window.window_at(oldest);
        let with_ids = self.with_ids_from(next);
        let stored = self.stored.keys().next().copied();
        let target = [with_ids, stored, view.attended].into_iter().flatten().fold(kept, Window::min);
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
        self.unpublished.skip_unlisted(windows);
    }

    async fn commit_published(&mut self) -> Result<(), CloseError> {
        let delivered = self.unpublished.delivered();
        if let Some(window) = delivered
            && self.committed < delivered
            && self.term.is_valid()
        {
            self.publisher.coordinator.commit_published(&self.term, window).await?;
            self.committed = delivered;
        }
        Ok(())
    }
}
