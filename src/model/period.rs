//! Periods: the whole hours and days (UTC) that closed windows are merged into.

use std::fmt;

use super::window::{Window, WindowLength};

/// How long a period is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// 3 600 seconds.
    Hour,
    /// 86 400 seconds: time since 1970 knows no leap seconds, and UTC no daylight-saving time.
    Day,
}

/// An hour or a day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Period {
    /// An hour or a day.
    pub level: Level,
    /// Seconds since 1970; a multiple of the level's.
    pub start: u64,
}

impl Level {
    /// All levels.
    pub const ALL: [Self; 2] = [Self::Hour, Self::Day];

    /// How long a period of this level is.
    pub fn length(self) -> WindowLength {
        match self {
            Self::Hour => WindowLength::HOUR,
            Self::Day => WindowLength::DAY,
        }
    }

    /// The same in seconds.
    pub fn seconds(self) -> u64 {
        self.length().seconds().into()
    }

    /// Its name in keys.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Hour => "hour",
            Self::Day => "day",
        }
    }

    /// Whether each window is in one period. Every window is in one day.
    pub fn takes(self, window: WindowLength) -> bool {
        self.seconds().is_multiple_of(window.seconds().into())
    }

    /// The period that has this second.
    pub fn at(self, second: u64) -> Period {
        Period { level: self, start: second - second % self.seconds() }
    }
}

impl Period {
    /// The first second after it.
    pub fn end(self) -> u64 {
        self.start + self.level.seconds()
    }

    /// The periods that a window is in.
    pub fn of(window: Window) -> impl Iterator<Item = Self> {
        let levels = Level::ALL.into_iter().filter(move |level| level.takes(window.length()));
        levels.map(move |level| level.at(window.unix_seconds()))
    }
}

/// As in `hour:1795453200`.
impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.level.as_str(), self.start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::parts::{Kept, Part};
    use crate::model::range::{Moment, Range};

    /// Days on which clocks are changed somewhere, with a leap day, and the ends of a month, a year and a century.
    const DAYS: [&str; 7] = [
        "2026-03-29T00:00:00Z",
        "2026-10-25T00:00:00Z",
        "2026-11-01T00:00:00Z",
        "2028-02-29T00:00:00Z",
        "2026-02-28T00:00:00Z",
        "2026-12-31T00:00:00Z",
        "2099-12-31T00:00:00Z",
    ];

    fn window_at(time: &str) -> Window {
        let far = "60s".parse::<WindowLength>().unwrap().starting_at(253_402_300_740);
        let [from, to] = [time, "9999-12-31T23:59:59Z"].map(|time| Moment::parse(time).unwrap());
        Range::new(from, to, far).unwrap().from
    }

    #[test]
    fn every_day_has_24_hours_of_60_minutes() {
        for day in DAYS {
            let first = window_at(day);
            let windows = std::iter::successors(Some(first), |window| Some(window.next()));
            let hours: Vec<_> = windows
                .take(2 * 1_440)
                .map(|window| {
                    let [hour, its_day] = Period::of(window).collect::<Vec<_>>()[..] else { panic!("{day}") };
                    assert_eq!(its_day, Level::Day.at(hour.start), "{day}");
                    (its_day.start, hour.start)
                })
                .collect();
            for (number, minutes) in hours.chunk_by(|one, next| one == next).enumerate() {
                let midnight = first.unix_seconds() + number as u64 / 24 * 86_400;
                let hour = first.unix_seconds() + number as u64 * 3_600;
                assert_eq!((minutes.len(), minutes[0]), (60, (midnight, hour)), "{day}");
            }
        }
    }

    #[test]
    fn a_month_is_made_of_its_days() {
        for (from, to, days) in [
            ("2026-02-01T00:00:00Z", "2026-03-01T00:00:00Z", 28),
            ("2028-02-01T00:00:00Z", "2028-03-01T00:00:00Z", 29),
            ("2026-03-01T00:00:00Z", "2026-04-01T00:00:00Z", 31),
            ("2026-10-01T00:00:00Z", "2026-11-01T00:00:00Z", 31),
            ("2026-12-01T00:00:00Z", "2027-01-01T00:00:00Z", 31),
        ] {
            let range = Range { from: window_at(from), to: window_at(to) };
            let kept = Kept { windows: u64::MAX, hours: Some(0), days: Some(0), rolled_up: u64::MAX };
            let parts = kept.parts(range).unwrap();
            let are_days = parts.iter().all(
                |part| matches!(part, Part::Period { period, end } if period.level == Level::Day && *end == period.end()),
            );
            assert!(are_days && parts.len() == days, "{from}: {parts:?}");
        }
    }
}
