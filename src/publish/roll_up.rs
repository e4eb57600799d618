//! Rolling up: the leader merges each closed window into its hour and its day.
//!
//! Windows are rolled up in order, each once it is closed. A new leader goes on after the last window that was noted. It catches up
//! with the windows whose sketches are still kept.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::dependencies::Publisher;
use crate::coordination::term::Term;
use crate::coordination::{CloseError, ClosedCounters, PastCount, RolledInto, RolledWindow};
use crate::model::counter::bucket_of;
use crate::model::period::Period;
use crate::model::range::Range;
use crate::model::window::Window;
use crate::platform::unavailable::Unavailable;
use crate::store::KeepPeriods;

/// Windows of a round, at most.
const WINDOWS_A_ROUND: u64 = 100;
/// How long a round may take: meanwhile no window is closed.
const A_WHILE: Duration = Duration::from_millis(50);

/// Closed windows whose counters are remembered until they are merged. Those of others are read from Redis.
const REMEMBERED: usize = 2;
/// Without Redis more windows are remembered, as long as they have so many counters together: some 6 MB.
const COUNTERS_REMEMBERED: usize = 100_000;
/// Counters that are merged before the leader looks at the clock.
const COUNTERS_AT_ONCE: usize = 64;
/// Windows that the roll-up may be behind. Of older ones the counters are left out: they come faster than they can be merged.
const MOST_BEHIND: usize = 1_000;

/// How far this term has rolled up.
#[derive(Default)]
pub(super) struct RollUp {
    /// The next window; none before the first round.
    next: Option<Window>,
    /// The counters of the newest windows.
    closed: BTreeMap<Window, Arc<ClosedCounters>>,
    /// The counters of the next window, while they are merged.
    merging: Option<Merging>,
    failing: bool,
}

/// The counters of a window that are being merged. There may be too many for one round.
struct Merging {
    window: Window,
    /// None if they are lost.
    counters: Option<Arc<ClosedCounters>>,
    /// How many are merged.
    merged: usize,
}

impl RollUp {
    /// Remembers the counters of a window that this term has closed.
    pub(super) fn note_counters(&mut self, counters: &Arc<ClosedCounters>, are_in_redis: bool) {
        self.closed.insert(counters.window(), Arc::clone(counters));
        let number = |closed: &BTreeMap<_, Arc<ClosedCounters>>| -> usize {
            closed.values().map(|counters| counters.counts.all().len()).sum()
        };
        while self.closed.len() > REMEMBERED
            && (are_in_redis || self.closed.len() > MOST_BEHIND || number(&self.closed) > COUNTERS_REMEMBERED)
        {
            self.closed.pop_first();
        }
    }

    /// Whether a closed window's counters are not needed any more.
    pub(super) fn is_done_with(&self, window: Window) -> bool {
        self.next.is_some_and(|next| window < next)
    }

    /// Rolls up windows before `end`, which are all closed. True if there are more. A failure must not hold up the close of
    /// windows: the next round tries again.
    pub(super) async fn go_on(
        &mut self,
        publisher: &Publisher,
        term: &Term,
        end: Window,
    ) -> Result<bool, CloseError> {
        match self.round(publisher, term, end).await {
            Ok(more) => {
                if self.failing {
                    info!("rolling up windows again");
                }
                self.failing = false;
                Ok(more)
            }
            Err(CloseError::Fenced) => Err(CloseError::Fenced),
            Err(error) => {
                if !self.failing {
                    warn!(%error, "cannot roll up windows into hours and days, trying again");
                }
                self.failing = true;
                Ok(false)
            }
        }
    }

    async fn round(&mut self, publisher: &Publisher, term: &Term, end: Window) -> Result<bool, CloseError> {
        if !publisher.keep.any() || !publisher.store.has_sketches() {
            return Ok(false);
        }
        let kept =
            publisher.store.oldest_window(publisher.clock.now(), publisher.retention, publisher.window);
        let next = match self.next {
            Some(next) => next,
            None => self.resume(publisher, end).await?.unwrap_or(kept),
        };
        let first = next.max(kept);
        let last = end
            .unix_seconds()
            .min(first.unix_seconds() + WINDOWS_A_ROUND * u64::from(end.length().seconds()));
        let range = Range { from: first, to: end.length().starting_at(last) };
        if range.from >= range.to {
            return Ok(false);
        }
        let counts = publisher.coordinator.series(range).await?;
        // From here on: a slow Redis must not use up the time before the first window.
        let started = Instant::now();
        for window in range.windows().into_iter().flatten() {
            if !term.is_valid() {
                return Ok(false);
            }
            if started.elapsed() > A_WHILE {
                return Ok(true);
            }
            // A window that is not in the series was never closed, or its count is lost: its hour and day lack it.
            if let Some(count) = counts.get(&window) {
                let is_far_behind = behind(window, end) > MOST_BEHIND as u64;
                let Some(counters) = self.roll_up_counters(publisher, window, is_far_behind, started).await?
                else {
                    return Ok(true);
                };
                roll_up(publisher, term, window, *count, counters).await?;
            }
            self.merging = None;
            self.closed.retain(|closed, _| *closed > window);
            self.next = Some(window.next());
        }
        Ok(range.to < end)
    }

    /// The window after the last one that was rolled up. None if no window was, or if Redis lost the position: earlier leaders
    /// may have closed windows, and died before they rolled them up.
    async fn resume(&self, publisher: &Publisher, end: Window) -> Result<Option<Window>, CloseError> {
        let rolled = publisher.coordinator.rolled(&[]).await?.last.filter(|last| *last < end);
        Ok(rolled.map(Window::next))
    }

    /// Merges the counters of a window into their hours and days. None if there was not enough time.
    async fn roll_up_counters(
        &mut self,
        publisher: &Publisher,
        window: Window,
        is_far_behind: bool,
        started: Instant,
    ) -> Result<Option<RolledCounters>, CloseError> {
        if is_far_behind || !publisher.keep.counters.any() {
            return Ok(Some(RolledCounters::default()));
        }
        // The next window may have expired, while Redis was away: then it is another one.
        if self.merging.as_ref().is_none_or(|merging| merging.window != window) {
            let counters = self.counters_of(publisher, window).await?;
            self.merging = Some(Merging { window, counters, merged: 0 });
        }
        let Some(Merging { counters: Some(counters), merged, .. }) = &mut self.merging else {
            return Ok(Some(RolledCounters::default()));
        };
        let keep = publisher.keep.counters;
        let periods: Vec<_> = Period::of(window).filter(|period| !keep.of(period.level).is_zero()).collect();
        if periods.is_empty() {
            return Ok(Some(RolledCounters::default()));
        }
        let all = counters.counts.all();
        while *merged < all.len() {
            let some = &all[*merged..all.len().min(*merged + COUNTERS_AT_ONCE)];
            publisher.store.roll_up_counters(window, some, &periods).await?;
            *merged += some.len();
            if started.elapsed() > A_WHILE {
                return Ok(None);
            }
        }
        Ok(Some(RolledCounters {
            has_all: !counters.counts.has_overflowed() && !counters.counts.lacks_names(),
            buckets: all.iter().map(|counter| bucket_of(&counter.name)).collect(),
        }))
    }

    /// None if they are lost.
    async fn counters_of(
        &self,
        publisher: &Publisher,
        window: Window,
    ) -> Result<Option<Arc<ClosedCounters>>, Unavailable> {
        if let Some(known) = self.closed.get(&window) {
            return Ok(Some(Arc::clone(known)));
        }
        match publisher.coordinator.stored(window).await? {
            Some(stored) => publisher.counters_of(&stored).await,
            None => Ok(None),
        }
    }
}

/// What was merged of a window's counters.
#[derive(Default)]
struct RolledCounters {
    /// Whether these are all, and every id found a place in them.
    has_all: bool,
    buckets: BTreeSet<usize>,
}

/// Merges a window into its hour and day, and notes it. Its counters are merged.
async fn roll_up(
    publisher: &Publisher,
    term: &Term,
    window: Window,
    count: PastCount,
    counters: RolledCounters,
) -> Result<(), CloseError> {
    let Publisher { keep, shards, .. } = publisher;
    let is_kept = |keep: KeepPeriods, period: &Period| !keep.of(period.level).is_zero();
    let of_total: Vec<_> = Period::of(window).filter(|period| is_kept(keep.total, period)).collect();
    let (mut is_whole, mut grown) = (true, BTreeMap::new());
    if count.unique_request_count > 0 {
        let rolled = publisher.store.roll_up(window, &of_total).await?;
        is_whole = rolled.window >= count.unique_request_count;
        grown.extend(of_total.iter().copied().zip(rolled.periods));
    }
    // A record also says how much of a counter's hour or day there is.
    let any_kept = |period: &Period| is_kept(keep.total, period) || is_kept(keep.counters, period);
    let periods = Period::of(window).filter(any_kept).map(|period| RolledInto {
        period,
        grown: grown.get(&period).copied(),
        has_all_counters: counters.has_all && is_kept(keep.counters, &period),
    });
    let rolled = RolledWindow {
        window,
        shards: *shards,
        complete: count.complete && is_whole,
        buckets: counters.buckets,
        periods: periods.collect(),
    };
    publisher.coordinator.note_rolled(term, &rolled).await
}

/// How many windows are between two.
fn behind(window: Window, end: Window) -> u64 {
    (end.unix_seconds() - window.unix_seconds()) / u64::from(end.length().seconds())
}
