//! For how long hours and days are kept.

use std::time::{Duration, SystemTime};

use crate::model::counter::Subject;
use crate::model::period::{Level, Period};

/// For how long hours and days are kept, of the total and of counters.
#[derive(Debug, Clone, Copy, Default)]
pub struct Keep {
    /// Those of all ids.
    pub total: KeepPeriods,
    /// Those of each counter.
    pub counters: KeepPeriods,
}

/// For how long hours and days are kept.
#[derive(Debug, Clone, Copy, Default)]
pub struct KeepPeriods {
    /// Hours, after their end.
    pub hours: Duration,
    /// Days, after their end.
    pub days: Duration,
}

impl Keep {
    /// For how long those of the total, or of a counter, are kept.
    pub fn of(&self, subject: &Subject) -> KeepPeriods {
        match subject {
            Subject::Total => self.total,
            Subject::Counter(_) => self.counters,
        }
    }

    /// The longest of all.
    pub fn longest(&self) -> Duration {
        self.total.longest().max(self.counters.longest())
    }

    /// Whether there are hours or days at all.
    pub fn any(&self) -> bool {
        self.total.any() || self.counters.any()
    }
}

impl KeepPeriods {
    /// For how long periods of a level are kept.
    pub fn of(self, level: Level) -> Duration {
        match level {
            Level::Hour => self.hours,
            Level::Day => self.days,
        }
    }

    /// The longer of both.
    pub fn longest(self) -> Duration {
        self.hours.max(self.days)
    }

    /// Whether there are hours or days at all.
    pub fn any(self) -> bool {
        self.hours + self.days > Duration::ZERO
    }

    /// How many hours and days there are at a time, at most.
    pub(super) fn most_periods(self) -> u64 {
        let kept = Level::ALL
            .into_iter()
            .map(|level| (level, self.of(level).as_secs()))
            .filter(|(_, kept)| *kept > 0);
        kept.map(|(level, kept)| kept.div_ceil(level.seconds()) + 1).sum()
    }

    /// The start of the oldest period of a level that is kept. None if none are.
    pub fn oldest(self, level: Level, now: SystemTime) -> Option<u64> {
        let kept = self.of(level).as_secs();
        let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        // The first whose end and life are not over.
        (kept > 0).then(|| level.at(now.saturating_sub(kept)).start)
    }

    /// The start of the oldest period whose count is kept: those of a day go together. None if none are.
    pub fn oldest_record(self, now: SystemTime) -> Option<u64> {
        let lived = Duration::from_secs(Level::Day.seconds()) + self.longest();
        let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        // The first day that has not ended its life.
        self.any().then(|| Level::Day.at(now.saturating_sub(lived).as_secs()).end())
    }

    /// Whether a period is kept at a moment.
    pub(super) fn has(self, period: Period, now: SystemTime) -> bool {
        self.oldest(period.level, now).is_some_and(|oldest| oldest <= period.start)
    }
}
