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
