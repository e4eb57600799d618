//! Rolling up: the leader merges each closed window into its hour and its day.
//!
//! Windows are rolled up in order, each once it is closed. A new leader goes on after the last window that was noted. It catches up
//! with the windows whose sketches are still kept.

use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::dependencies::Publisher;
use crate::coordination::term::Term;
use crate::coordination::{CloseError, PastCount, RolledWindow};
use crate::model::period::Period;
use crate::model::range::Range;
use crate::model::window::Window;

/// Windows of a round, at most.
const WINDOWS_A_ROUND: u64 = 100;
/// How long a round may take: meanwhile no window is closed.
const A_WHILE: Duration = Duration::from_millis(50);

/// How far this term has rolled up.
#[derive(Default)]
pub(super) struct RollUp {
    /// The next window; none before the first round.
    next: Option<Window>,
    failing: bool,
}

impl RollUp {
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
        let (first, started) = (next.max(kept), Instant::now());
        let last = end
            .unix_seconds()
            .min(first.unix_seconds() + WINDOWS_A_ROUND * u64::from(end.length().seconds()));
        let range = Range { from: first, to: end.length().starting_at(last) };
        if range.from >= range.to {
            return Ok(false);
        }
        let counts = publisher.coordinator.series(range).await?;
        for window in range.windows().into_iter().flatten() {
            if !term.is_valid() {
                return Ok(false);
            }
            if started.elapsed() > A_WHILE {
                return Ok(true);
            }
            // A window that is not in the series was never closed, or its count is lost: its hour and day lack it.
            if let Some(count) = counts.get(&window) {
                self.roll_up(publisher, term, window, *count).await?;
            }
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

    async fn roll_up(
        &self,
        publisher: &Publisher,
        term: &Term,
        window: Window,
        count: PastCount,
    ) -> Result<(), CloseError> {
        let periods: Vec<_> = Period::of(window).collect();
        let (is_whole, counts) = if count.unique_request_count == 0 {
            (true, vec![None; periods.len()])
        } else {
            let rolled = publisher.store.roll_up(window, &periods).await?;
            let is_whole = rolled.window >= count.unique_request_count;
            (is_whole, rolled.periods.into_iter().map(Some).collect())
        };
        let complete = count.complete && is_whole;
        let periods = periods.into_iter().zip(counts).collect();
        publisher
            .coordinator
            .note_rolled(term, &RolledWindow { window, shards: publisher.shards, complete, periods })
            .await
    }
}
