//! The parts of a range: the windows, hours and days that make it up.

use std::fmt;

use thiserror::Error;

use super::period::{Level, Period};
use super::range::Range;
use super::window::{Window, WindowLength};

/// What there is a sketch of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// A window.
    Window(Window),
    /// An hour or a day, as far as it is rolled up.
    Period {
        /// The hour or day.
        period: Period,
        /// The end of its last window that was rolled up.
        end: u64,
    },
}

/// Which sketches are kept, in seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// The start of the oldest window.
    pub windows: u64,
    /// The start of the oldest hour; none if no hours are kept.
    pub hours: Option<u64>,
    /// The start of the oldest day; none if no days are kept.
    pub days: Option<u64>,
    /// The end of the last window that was rolled up into hours and days.
    pub rolled_up: u64,
}

/// From this moment on, until the end of a range, there is nothing that fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub struct NotKept {
    /// The moment, in seconds since 1970.
    pub at: u64,
    /// What is kept there: ranges begin and end with such a period. None: nothing is kept.
    pub level: Option<Level>,
    /// The start of the oldest that is kept.
    pub oldest: u64,
}

/// Names the nearest edges that work.
impl fmt::Display for NotKept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = |second: u64| WindowLength::SECOND.starting_at(second);
        match self.level {
            None => {
                let (at, oldest) = (time(self.at), time(self.oldest));
                write!(f, "nothing is kept of {at}: the oldest that is kept begins at {oldest}")
            }
            Some(level) => {
                let (name, period) = (level.as_str(), level.at(self.at));
                let (start, end) = (time(period.start), time(period.end()));
                write!(
                    f,
                    "only whole {name}s are kept of {}: a range can begin or end at {start} or {end}",
                    time(self.at)
                )
            }
        }
    }
}

impl Part {
    /// In seconds since 1970.
    pub fn start(self) -> u64 {
        match self {
            Self::Window(window) => window.unix_seconds(),
            Self::Period { period, .. } => period.start,
        }
    }

    /// The first second after it.
    pub fn end(self) -> u64 {
        match self {
            Self::Window(window) => window.next().unix_seconds(),
            Self::Period { end, .. } => end,
        }
    }
}

impl Kept {
    fn oldest(&self, level: Level) -> Option<u64> {
        match level {
            Level::Hour => self.hours,
            Level::Day => self.days,
        }
    }

    /// Where a period ends that can be used for a range until `to`; none if it cannot. The running period is used only if the
    /// range goes on after the last window that was rolled up: more windows may be rolled up at any time.
    fn end_of(&self, period: Period, to: u64) -> Option<u64> {
        let is_kept = self.oldest(period.level).is_some_and(|oldest| oldest <= period.start);
        let is_over = period.end() <= self.rolled_up && period.end() <= to;
        let is_running = period.start < self.rolled_up && self.rolled_up < period.end().min(to);
        match (is_over, is_running) {
            _ if !is_kept => None,
            (true, _) => Some(period.end()),
            (_, true) => Some(self.rolled_up),
            _ => None,
        }
    }

    /// The shortest period that is kept at a moment of which no window is kept.
    fn level_at(&self, second: u64) -> Option<Level> {
        Level::ALL.into_iter().find(|level| self.end_of(level.at(second), u64::MAX).is_some())
    }

    /// The start of the oldest that is kept.
    fn oldest_of_all(&self) -> u64 {
        let periods =
            Level::ALL.into_iter().filter(|_| self.rolled_up > 0).filter_map(|level| self.oldest(level));
        periods.fold(self.windows, u64::min)
    }

    /// The fewest parts that make up a range, oldest first.
    ///
    /// # Errors
    ///
    /// [`NotKept`].
    pub fn parts(&self, range: Range) -> Result<Vec<Part>, NotKept> {
        let (mut at, to) = (range.from.unix_seconds(), range.to.unix_seconds());
        let mut parts = Vec::new();
        while at < to {
            let period = |level: Level| {
                let period = level.at(at);
                let end = self.end_of(period, to).filter(|_| period.start == at)?;
                Some(Part::Period { period, end })
            };
            // The longest first.
            let part = match Level::ALL.into_iter().rev().find_map(period) {
                Some(part) => part,
                None if self.windows <= at => Part::Window(range.from.length().starting_at(at)),
                None => {
                    let (level, oldest) = (self.level_at(at), self.oldest_of_all());
                    return Err(NotKept { at, level, oldest });
                }
            };
            parts.push(part);
            at = part.end();
        }
        Ok(parts)
    }
}
