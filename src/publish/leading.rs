//! Leading: the loop that closes windows while this instance holds the lease.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::dependencies::Publisher;
use super::roll_up::RollUp;
use super::unpublished::{Pending, PendingCounters, Unpublished};
use crate::coordination::completeness::Evidence;
use crate::coordination::term::Term;
use crate::coordination::{CloseError, ClosedCounters, MembershipView, StoredWindow, WindowCounters};
use crate::model::timing::FRESH;
use crate::model::window::{Window, WindowCount};
use crate::store::{CountError, Settled, StoreCount};

/// The longest sleep before the leader reads the clock again, because the clock may have been set.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);
/// How often the leader checks whether all instances have sealed a window that has ended.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(50);
/// The first wait after the store was unavailable; it doubles up to [`LONGEST_SLEEP`].
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// How many windows a round may close before the leader checks for a stop and commits the published position. Many are due
/// when no instance was there for a day.
const WINDOWS_A_ROUND: usize = 100;

/// How long a primary of a Redis Cluster must have been away to be left out of a window that some instance has open for too long.
const AWAY_AT_LEAST: Duration = Duration::from_secs(2);

/// Windows whose counters are to expire soon, at most.
const MOST_CLOSED: usize = 1_000;

/// One term of leading.
pub(super) struct Leading<'a> {
    publisher: &'a Publisher,
    unpublished: &'a Unpublished,
    term: Term,
    /// The oldest window that is not queued for the sinks; none until the coordinator has answered.
    next: Option<Window>,
    /// Counts that an earlier leader stored and did not publish.
    stored: BTreeMap<Window, StoredWindow>,
    /// The published position, as far as this term has committed it.
    committed: Option<Window>,
    /// Windows that are queued for the sinks, and not committed as published or not rolled up.
    queued: VecDeque<StoredWindow>,
    /// Windows whose counters expire later than they need to.
    closed: VecDeque<StoredWindow>,
    /// What instances with a window open have left to do, and since when that has not become less.
    left: Left,
    /// Since when this leader does not see the other instances.
    blind_since: Option<Instant>,
    /// The last window was counted without some primaries of a Redis Cluster. The next one does not wait for them again.
    left_some_out: bool,
    failing: bool,
    roll_up: RollUp,
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
            queued: VecDeque::new(),
            closed: VecDeque::new(),
            left: Left::new(),
            blind_since: None,
            left_some_out: false,
            failing: false,
            roll_up: RollUp::default(),
        }
    }

    /// Closes windows as they end, until the term ends or `stop`. After a stop it first closes all sealed windows.
    pub(super) async fn run(&mut self, stop: &CancellationToken) {
        let mut watermark = self.publisher.watermark.clone();
        let mut lease = self.publisher.term.clone();
        lease.mark_unchanged();
        let mut wait = RETRY_AFTER;
        while self.term.is_valid() {
            let stopping = stop.is_cancelled();
            let round = self.round(stopping).await;
            let failed = round.is_err();
            if stopping && (self.publisher.coordinator.is_shared() || matches!(round, Ok(None))) {
                return;
            }
            let pause = match round {
                Err(_) => wait,
                Ok(Some(pause)) => pause,
                Ok(None) => self.until_next(),
            };
            wait = if failed { (2 * wait).min(LONGEST_SLEEP) } else { RETRY_AFTER };
            self.note_round(round);
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                // When the service stops, the sealer ends first, and this channel with it. A closed channel is always ready.
                Ok(()) = watermark.changed(), if !failed => {}
                () = self.unpublished.delivered_after(self.committed), if !failed && self.next.is_some() => {}
                // If the lease changed, this term is over.
                Ok(()) = lease.changed() => {}
                () = stop.cancelled(), if !stopping => {}
            }
        }
    }

    /// Closes the windows that are due, commits the published position, and rolls up. If there is more to do, returns how long to
    /// pause before.
    async fn round(&mut self, stopping: bool) -> Result<Option<Duration>, CloseError> {
        if self.next.is_none() {
            let Some(resume) = self.publisher.coordinator.resume().await? else { return Ok(None) };
            self.stored = resume.stored;
            self.next = Some(resume.next);
        }
        let (mut closed, mut closing) = (0, Ok(true));
        while closed < WINDOWS_A_ROUND && matches!(closing, Ok(true)) {
            closing = self.close_next(stopping).await;
            closed += usize::from(matches!(closing, Ok(true)));
        }
        // What was published stays so, even if the next window cannot be closed.
        self.commit_published().await?;
        closing?;
        if let Err(error) = self.let_counters_expire().await {
            debug!(%error, "counters of closed windows expire later than they could");
        }
        let started = Instant::now();
        let more_to_roll_up = match self.next {
            Some(end) if !stopping => self.roll_up.go_on(self.publisher, &self.term, end).await?,
            _ => false,
        };
        Ok(match (closed, more_to_roll_up) {
            (WINDOWS_A_ROUND, _) => Some(Duration::ZERO),
            // Others get as much of Redis as the roll-up.
            (_, true) => Some(started.elapsed().min(self.until_next())),
            _ => None,
        })
    }

    /// Logs one line when rounds begin to fail, and one when they succeed again. A fenced leader gives up its term.
    fn note_round(&mut self, round: Result<Option<Duration>, CloseError>) {
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

    /// How long to sleep: until the next window ends, or [`ASK_AGAIN_AFTER`] if an instance has it open.
    fn until_next(&self) -> Duration {
        let Some(next) = self.next else { return ASK_AGAIN_AFTER };
        let until_end = next.end().duration_since(self.publisher.clock.now());
        until_end.map_or(ASK_AGAIN_AFTER, |until_end| until_end.clamp(ASK_AGAIN_AFTER, LONGEST_SLEEP))
    }

    /// Closes the next window. False if it has not ended, or if an instance has it open.
    async fn close_next(&mut self, stopping: bool) -> Result<bool, CloseError> {
        let Some(mut next) = self.next else { return Ok(false) };
        if !self.term.is_valid() {
            return Ok(false);
        }
        if let Some(stored) = self.stored.remove(&next) {
            self.enqueue(stored, WindowCounters::None);
            return Ok(true);
        }
        let ended = next.end() <= self.publisher.clock.now();
        let is_shared = self.publisher.coordinator.is_shared();
        // A window in memory does not outlive the process, so a stop closes it before its end.
        let at_the_last = stopping && !is_shared;
        if !(ended || at_the_last) || !(is_shared || self.has_sealed(next)) {
            return Ok(false);
        }
        if next.start() > self.publisher.clock.now() {
            // The clock was set back. Of the windows in the future, only those with ids are closed.
            let Some(with_ids) = self.with_ids_from(next) else { return Ok(false) };
            next = with_ids;
        }
        let view = self.publisher.coordinator.membership_view(next).await;
        self.note_sight(matches!(view, Ok(Some(_))));
        let Some(mut view) = view? else { return Ok(false) };
        // Its own heartbeat may not say so yet. It waits for itself no longer than for others: perhaps a primary of the Redis
        // Cluster is away.
        view.open |= !self.has_sealed(next);
        if view.open && !self.is_overdue(next, &view) {
            return Ok(false);
        }
        if self.skip_past_retention(next, &view) {
            return Ok(true);
        }
        self.close(next, &view).await
    }

    /// Whether this instance has sealed a window.
    fn has_sealed(&self, window: Window) -> bool {
        *self.publisher.watermark.borrow() > window
    }

    /// The first window, this one or a later one, in which this instance has ids.
    fn with_ids_from(&self, first: Window) -> Option<Window> {
        self.publisher.store.windows().into_iter().find(|window| *window >= first)
    }

    /// Notes whether this leader sees the other instances. If it did not for a while, they may have been cut off too, and get the
    /// whole `--close-timeout` again.
    fn note_sight(&mut self, sees_them: bool) {
        if !sees_them {
            self.blind_since.get_or_insert_with(Instant::now);
        } else if self.blind_since.take().is_some_and(|since| since.elapsed() > FRESH) {
            self.left = Left::new();
            self.left_some_out = false;
        }
    }

    /// Whether instances have had a window open for too long. Both clocks have to say so, because either may have been set.
    /// After an outage a window's end is long past. So the leader must also have watched them for `--close-timeout`, and seen no
    /// progress.
    fn is_overdue(&mut self, window: Window, view: &MembershipView) -> bool {
        let patience = self.publisher.close_timeout;
        let due = window.end() + patience;
        let is_stuck = self.left.unchanged_for(&view.left) >= patience;
        (is_stuck || self.left_some_out)
            && due <= self.publisher.clock.now()
            && view.time.is_none_or(|time| due <= time)
    }

    /// Counts a window, and stores the count.
    async fn close(&mut self, window: Window, view: &MembershipView) -> Result<bool, CloseError> {
        // Instances that have it open have had their time. Perhaps they wait for the same primary.
        let away_for = if view.open { AWAY_AT_LEAST } else { self.publisher.close_timeout };
        let settled = self.publisher.store.settle(window, &view.parties, away_for).await;
        let Settled { total, counters, lacks_some } = match settled {
            Ok(settled) => settled,
            Err(CountError::Unavailable(error)) => return Err(error.into()),
            Err(CountError::Evicted(_)) => {
                self.skip(1, window, "a window that cannot be counted any more is skipped");
                self.next = Some(window.next());
                return Ok(true);
            }
        };
        self.left_some_out = lacks_some;
        let count = self.judge(window, view, total);
        match self.publisher.coordinator.close(&self.term, &count, &counters, view).await {
            Ok((stored, is_ours)) => {
                self.publisher.metrics.closed_windows(stored.count.complete).increment(1);
                let counted = Arc::new(ClosedCounters::new(stored.clone(), counters));
                if is_ours {
                    self.publisher.closed.note_counters(&counted);
                    if !self.is_rolled_up(count.window) {
                        self.roll_up.note_counters(&counted, self.publisher.coordinator.is_shared());
                    }
                }
                self.enqueue(stored, if is_ours { counted.into() } else { WindowCounters::None });
                Ok(true)
            }
            Err(CloseError::Open) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Makes the count to publish, and decides whether it is complete.
    fn judge(&self, window: Window, view: &MembershipView, counted: StoreCount) -> WindowCount {
        let StoreCount { unique_ids, accepted_ids, has_imports, lost_ids, lacks_shards } = counted;
        if lost_ids > 0 {
            error!(%window, lost_ids, "the store has lost ids that it had acknowledged");
        }
        let evidence = Evidence {
            is_over: window.end() <= self.publisher.clock.now(),
            attendance: view.attendance,
            is_open: view.open,
            lost_ids,
            lacks_shards,
        };
        if let Some(reason) = evidence.gap() {
            info!(%window, reason, "a window is closed as incomplete");
        }
        WindowCount {
            window,
            unique_request_count: unique_ids,
            // An instance that vanished did not say how many ids it accepted. Together, instances accepted at least the
            // unique ids.
            accepted_ids: if evidence.all_accepted_is_known() {
                accepted_ids
            } else {
                accepted_ids.max(unique_ids)
            },
            has_imports,
            complete: evidence.is_complete(),
        }
    }

    /// Queues a window for the sinks. Its counters are `here` if they are not stored.
    fn enqueue(&mut self, window: StoredWindow, here: WindowCounters) {
        let (term, since) = (self.term.clone(), self.publisher.clock.now());
        let count = window.count;
        let stored = window.counters.clone();
        let counters = stored.map_or(PendingCounters::Here(here), PendingCounters::Stored);
        self.unpublished.push(Pending { count, counters, term, since });
        self.queued.push_back(window.clone());
        if self.queued.len() > MOST_CLOSED {
            // Its list expires later than it needs to.
            self.queued.pop_front();
        }
        if window.counters.is_some() {
            self.closed.push_back(window.clone());
            if self.closed.len() > MOST_CLOSED {
                // Its counters expire later than they need to.
                self.closed.pop_front();
            }
        }
        self.publisher.closed.advance(window);
        self.next = Some(count.window.next());
    }

    /// Skips empty windows past retention. After a long time without instances, or when the clock was set forward, there may
    /// be very many. It stops at the first window with ids or a stored count, in which an instance was there, or that is
    /// within retention.
    fn skip_past_retention(&mut self, next: Window, view: &MembershipView) -> bool {
        // The earlier of both clocks decides, because either may be wrong.
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
            "windows past retention are skipped: no instance was there, or the clock was set",
        );
        self.next = Some(target);
        true
    }

    fn skip(&self, windows: u64, first: Window, why: &str) {
        error!(windows, %first, "{why}");
        self.unpublished.skip_unlisted(windows);
    }

    /// Lets the counters of closed windows expire soon, also of those that an earlier leader closed.
    async fn let_counters_expire(&mut self) -> Result<(), CloseError> {
        let publisher = self.publisher;
        while let Some(window) = self.closed.front()
            && self.is_rolled_up(window.count.window)
        {
            if let Some(counters) = publisher.counters_of(window).await? {
                publisher.store.let_counters_expire(window.count.window, &counters.counts).await?;
            }
            self.closed.pop_front();
        }
        Ok(())
    }

    /// Whether the counters of a window were merged into hours and days, as far as these are kept.
    fn is_rolled_up(&self, window: Window) -> bool {
        let Publisher { keep, store, .. } = self.publisher;
        !keep.counters.any() || !store.has_sketches() || self.roll_up.is_done_with(window)
    }

    async fn commit_published(&mut self) -> Result<(), CloseError> {
        let delivered = self.unpublished.delivered();
        if let Some(window) = delivered
            && self.committed < delivered
            && self.term.is_valid()
        {
            self.publisher.coordinator.commit_published(&self.term, window).await?;
            self.committed = delivered;
            let is_done = |queued: &StoredWindow| {
                queued.count.window <= window && self.is_rolled_up(queued.count.window)
            };
            let done = self.queued.iter().take_while(|queued| is_done(queued)).count();
            let published: Vec<_> = self.queued.drain(..done).collect();
            self.publisher.coordinator.let_lists_expire(&published).await;
        }
        Ok(())
    }
}

/// What instances with a window open have left to do.
struct Left {
    watermarks: Vec<u64>,
    /// What they have pending together.
    pending: u64,
    /// When they last made progress.
    since: Instant,
}

impl Left {
    fn new() -> Self {
        Self { watermarks: Vec::new(), pending: 0, since: Instant::now() }
    }

    /// For how long they made no progress: none has sealed a window, and they did not give anything to Redis. While a primary is
    /// away, ever more ids are pending.
    fn unchanged_for(&mut self, left: &[(u64, u64)]) -> Duration {
        let watermarks: Vec<_> = left.iter().map(|(watermark, _)| *watermark).collect();
        let pending = left.iter().map(|(_, pending)| *pending).sum();
        if watermarks != self.watermarks || pending < self.pending {
            self.since = Instant::now();
        }
        (self.watermarks, self.pending) = (watermarks, pending);
        self.since.elapsed()
    }
}
