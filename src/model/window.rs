//! Windows: the buckets of time that ids are counted in.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Serialize, Serializer};
use thiserror::Error;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use utoipa::ToSchema;

/// Seconds in a day; every window length divides it.
const DAY: u32 = 86_400;

/// How long a window is: whole seconds that divide a day, so that windows begin at the same times
/// of every day (UTC).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WindowLength {
    seconds: u32,
}

/// The length is not allowed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum InvalidWindowLength {
    /// The text is no duration.
    #[error("expected a duration such as 60s, 5min or 1h")]
    NotADuration,
    /// A duration that does not divide a day, or not in whole seconds.
    #[error("expected whole seconds that divide a day, such as 1s, 10s, 60s, 5min, 1h or 24h")]
    NotADivisorOfADay,
}

impl WindowLength {
    /// A second: each moment begins a window.
    pub(crate) const SECOND: Self = Self { seconds: 1 };
    /// An hour.
    pub(crate) const HOUR: Self = Self { seconds: 3_600 };
    /// A day.
    pub(crate) const DAY: Self = Self { seconds: DAY };

    /// # Errors
    ///
    /// [`InvalidWindowLength::NotADivisorOfADay`] for zero, for fractions of a second, for more
    /// than a day and for what does not divide a day.
    pub fn new(length: Duration) -> Result<Self, InvalidWindowLength> {
        let seconds = u32::try_from(length.as_secs()).unwrap_or(0);
        if length.subsec_nanos() != 0 || seconds == 0 || !DAY.is_multiple_of(seconds) {
            return Err(InvalidWindowLength::NotADivisorOfADay);
        }
        Ok(Self { seconds })
    }

    pub(crate) fn seconds(self) -> u32 {
        self.seconds
    }

    pub(crate) fn duration(self) -> Duration {
        Duration::from_secs(self.seconds.into())
    }

    /// The window that `time` falls in. Times before 1970 fall in the first window of all.
    pub fn window_at(self, time: SystemTime) -> Window {
        self.starting_at(time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs())
    }

    /// The window that has the moment so many seconds after 1970.
    pub fn starting_at(self, unix_seconds: u64) -> Window {
        Window { start: unix_seconds - unix_seconds % u64::from(self.seconds), length: self }
    }
}

impl FromStr for WindowLength {
    type Err = InvalidWindowLength;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        humantime::parse_duration(text).map_err(|_| InvalidWindowLength::NotADuration).and_then(Self::new)
    }
}

/// A bucket of time, aligned to UTC: from its start, inclusive, to its end, exclusive.
///
/// A window knows its length, so its end and its neighbours need no context. Windows of one length
/// are ordered by time; a service has only one length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Seconds since 1970-01-01T00:00:00Z; a multiple of the length.
    start: u64,
    length: WindowLength,
}

impl Window {
    pub(crate) fn start(self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(self.start)
    }

    /// The first moment after the window.
    pub(crate) fn end(self) -> SystemTime {
        self.start() + self.length.duration()
    }

    /// How long it is.
    pub fn length(self) -> WindowLength {
        self.length
    }

    /// The start in seconds since 1970.
    pub fn unix_seconds(self) -> u64 {
        self.start
    }

    /// The date of the start, UTC: `2024-12-17`.
    pub(crate) fn date(self) -> String {
        let mut date = self.to_string();
        date.truncate("2024-12-17".len());
        date
    }

    /// The window that ends when this one begins; the first window of all has none before it.
    pub fn previous(self) -> Self {
        Self { start: self.start.saturating_sub(self.length.seconds.into()), ..self }
    }

    /// The window that begins when this one ends.
    pub fn next(self) -> Self {
        Self { start: self.start + u64::from(self.length.seconds), ..self }
    }
}

impl PartialOrd for Window {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Window {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        debug_assert_eq!(self.length, other.length, "windows of two lengths are never compared");
        self.start.cmp(&other.start)
    }
}

/// The start after RFC 3339, in UTC: `2024-12-17T14:30:00Z`.
impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let start = i64::try_from(self.start).map_err(|_| fmt::Error)?;
        let start = OffsetDateTime::from_unix_timestamp(start).map_err(|_| fmt::Error)?;
        f.write_str(&start.format(&Rfc3339).map_err(|_| fmt::Error)?)
    }
}

/// Serialized as it is displayed.
impl Serialize for Window {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A window's count so far.
// It is serialized as JSON: in records of sinks, in callbacks, and in answers.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[schema(examples(json!({ "timestamp": "2026-11-23T04:13:00Z", "unique_request_count": 4 })))]
pub(crate) struct UniqueCount {
    /// The window's start, UTC.
    pub timestamp: Window,
    /// How many different ids.
    pub unique_request_count: u64,
}

/// A closed window.
// As every sink gets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[schema(examples(json!({
    "timestamp": "2026-11-23T04:12:00Z", "unique_request_count": 1, "accepted_ids": 1, "complete": true
})))]
pub struct WindowCount {
    /// The window: its start on the wire, UTC.
    #[serde(rename = "timestamp")]
    pub window: Window,
    /// How many different ids: an estimate in mode `hll`, the truth in mode `exact`.
    pub unique_request_count: u64,
    /// How many ids were accepted, repeats among them.
    pub accepted_ids: u64,
    /// Present, and true, where sketches were merged into the window: they do not say how many ids they were shown, so each is one of
    /// `accepted_ids`.
    #[serde(rename = "accepted_ids_is_lower_bound", default, skip_serializing_if = "is_false")]
    #[schema(required = false)]
    pub has_imports: bool,
    /// False where ids may be missing, or were not accepted from the window's start to its end.
    pub complete: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants it so")]
pub(crate) fn is_false(flag: &bool) -> bool {
    !flag
}

/// Says what time it is. Tests set it.
pub trait Clock: Send + Sync {
    /// The time of day. It may step, also backwards.
    fn now(&self) -> SystemTime;
}

#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }
}

/// How far the store's clock is from this machine's.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ClockOffset {
    behind: bool,
    offset: Duration,
    /// How far the offset may be wrong.
    uncertainty: Duration,
}

impl ClockOffset {
    /// A larger offset is worth a warning.
    const WORTH_A_WARNING: Duration = Duration::from_secs(1);
    /// Windows of every length bear such an offset: instances wait longer for each other.
    const BORNE_BY_ALL: Duration = Duration::from_secs(5);

    /// `store` is the store's time, asked for and answered at these moments of this machine's clock.
    pub(crate) fn new(store: SystemTime, asked: SystemTime, answered: SystemTime) -> Self {
        let uncertainty = answered.duration_since(asked).unwrap_or_default() / 2;
        match store.duration_since(asked + uncertainty) {
            Ok(offset) => Self { behind: true, offset, uncertainty },
            Err(error) => Self { behind: false, offset: error.duration(), uncertainty },
        }
    }

    /// Seconds, above zero when this machine's clock is behind.
    pub(crate) fn seconds(self) -> f64 {
        if self.behind { self.offset.as_secs_f64() } else { -self.offset.as_secs_f64() }
    }

    /// Whether it is certainly more than `limit`.
    pub(crate) fn exceeds(self, limit: Duration) -> bool {
        self.offset > limit + self.uncertainty
    }

    /// Whether ids near a boundary are likely to be counted in a neighbouring window.
    pub(crate) fn is_worth_a_warning(self) -> bool {
        self.exceeds(Self::WORTH_A_WARNING)
    }

    /// Whether ids may be counted in windows that are not even neighbours of the right one.
    pub(crate) fn is_more_than_windows_bear(self, window: WindowLength) -> bool {
        self.exceeds(window.duration().max(Self::BORNE_BY_ALL))
    }
}

/// As in `1s 203ms behind`.
impl fmt::Display for ClockOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let offset = Duration::from_millis(self.offset.as_millis() as u64);
        let direction = if self.behind { "behind" } else { "ahead of" };
        write!(f, "{} {direction}", humantime::format_duration(offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: f64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs_f64(seconds)
    }

    #[test]
    fn windows_are_aligned_and_half_open() {
        let minute: WindowLength = "60s".parse().unwrap();
        let window = minute.window_at(at(1_734_445_800.0));
        assert_eq!(window.to_string(), "2024-12-17T14:30:00Z");
        assert_eq!(minute.window_at(at(1_734_445_859.999)), window);
        assert_eq!(minute.window_at(at(1_734_445_860.0)), window.next());
        assert_eq!(window.end(), window.next().start());
        assert!(window < window.next());
    }

    #[test]
    fn before_1970_is_the_first_window() {
        let minute: WindowLength = "1min".parse().unwrap();
        assert_eq!(minute.window_at(UNIX_EPOCH - Duration::from_secs(5)).unix_seconds(), 0);
    }

    #[test]
    fn lengths_divide_a_day() {
        for good in ["1s", "2s", "10s", "60s", "1m", "5min", "1h", "24h", "1day"] {
            assert!(good.parse::<WindowLength>().is_ok(), "{good}");
        }
        for bad in ["0s", "7s", "1500ms", "25h", "2days", "9999999999999s"] {
            assert_eq!(bad.parse::<WindowLength>(), Err(InvalidWindowLength::NotADivisorOfADay), "{bad}");
        }
        for bad in ["", "60", "s", "-1s", "minute"] {
            assert_eq!(bad.parse::<WindowLength>(), Err(InvalidWindowLength::NotADuration), "{bad}");
        }
    }
}
