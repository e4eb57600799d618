//! The series: the count of each closed window, long after its ids are gone.
//!
//! Redis has a hash for each day. The script that stores the count of a window also adds it there, in one step. So the series
//! is what was published, window by window. A standalone instance keeps the series in its memory.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::model::period::Level;
use crate::model::range::Range;
use crate::model::window::{Window, WindowCount, WindowLength};
use crate::platform::unavailable::Unavailable;
use crate::redis::keys::Keys;
use crate::redis::{Call, Redis};

/// Windows of a series, at most.
const MOST_WINDOWS: u64 = 100_000;
/// Windows that are read by one command.
const READ_AT_ONCE: usize = 500;

/// The count of a window in the series.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PastCount {
    /// How many different ids.
    pub unique_request_count: u64,
    /// Whether all ids are in it.
    pub complete: bool,
}

/// How long a series is kept.
#[derive(Debug, Clone, Copy)]
pub struct KeptSeries {
    window: WindowLength,
    /// Seconds from the start of a day until its windows go. 0: there is no series.
    lifetime: u64,
}

impl From<WindowCount> for PastCount {
    fn from(count: WindowCount) -> Self {
        Self { unique_request_count: count.unique_request_count, complete: count.complete }
    }
}

/// The stored form. After a change of `--window`, Redis still has windows of another length.
#[derive(Serialize, Deserialize)]
struct StoredCount {
    #[serde(flatten)]
    count: PastCount,
    window_seconds: u32,
}

impl PastCount {
    /// The stored form of a window's count.
    pub(super) fn to_stored(self, window: Window) -> String {
        json!(StoredCount { count: self, window_seconds: window.length().seconds() }).to_string()
    }

    /// None for a window of another length, and for what is not headcount's.
    fn from_stored(stored: &[u8], window: Window) -> Option<Self> {
        let StoredCount { count, window_seconds } = serde_json::from_slice(stored).ok()?;
        (window_seconds == window.length().seconds()).then_some(count)
    }
}

impl KeptSeries {
    /// For so long after the end of a day, and at most 100 000 windows. Zero: no series.
    pub fn new(window: WindowLength, days: Duration) -> Self {
        let lifetime = match days.as_secs() {
            0 => 0,
            days => (Level::Day.seconds() + days).min(MOST_WINDOWS * u64::from(window.seconds())),
        };
        Self { window, lifetime }
    }

    /// The oldest window that is kept.
    pub fn oldest(self, now: SystemTime) -> Window {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        match self.lifetime {
            0 => self.window.starting_at(now),
            // The first day that has not ended its life.
            lifetime => self.window.starting_at(Level::Day.at(now.saturating_sub(lifetime)).end()),
        }
    }

    /// When a window goes, in seconds since 1970. None if it is not kept at all.
    pub(super) fn until(self, window: Window) -> Option<u64> {
        (self.lifetime > 0).then(|| day_of(window) + self.lifetime)
    }
}

/// The day that a window is in, by the second of its start.
pub(super) fn day_of(window: Window) -> u64 {
    Level::Day.at(window.unix_seconds()).start
}

/// Reads a series from Redis. Windows that are not in it are left out.
pub(super) async fn read(
    redis: &Redis,
    keys: &Keys,
    range: Range,
) -> Result<BTreeMap<Window, PastCount>, Unavailable> {
    let windows: Vec<_> = range.windows().map_err(Unavailable::because)?.collect();
    let mut series = BTreeMap::new();
    for of_day in windows.chunk_by(|one, next| day_of(*one) == day_of(*next)) {
        let key = keys.series(day_of(of_day[0]));
        for some in of_day.chunks(READ_AT_ONCE) {
            let fields: Vec<_> = some.iter().map(|window| window.unix_seconds()).collect();
            let mut read = ::redis::cmd("HMGET");
            read.arg(&key).arg(fields);
            let stored: Vec<Option<Vec<u8>>> =
                redis.run(Call::Count, &key, async |connection| read.query_async(connection).await).await?;
            let stored = some.iter().zip(&stored).filter_map(|(window, stored)| {
                Some((*window, PastCount::from_stored(stored.as_deref()?, *window)?))
            });
            series.extend(stored);
        }
    }
    Ok(series)
}

/// The series of a standalone instance.
#[derive(Default)]
pub(super) struct LocalSeries(BTreeMap<Window, PastCount>);

impl LocalSeries {
    /// Adds a window, and lets old ones go.
    pub(super) fn add(&mut self, kept: KeptSeries, count: WindowCount) {
        if kept.until(count.window).is_none() {
            return;
        }
        self.0.insert(count.window, count.into());
        let now = count.window.unix_seconds();
        while let Some(oldest) = self.0.first_entry()
            && kept.until(*oldest.key()).is_none_or(|until| until <= now)
        {
            oldest.remove();
        }
    }

    pub(super) fn get(&self, range: Range) -> BTreeMap<Window, PastCount> {
        self.0.range(range.from..range.to).map(|(window, count)| (*window, *count)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 86_400;

    fn kept(window: &str, days: u64) -> KeptSeries {
        KeptSeries::new(window.parse().unwrap(), Duration::from_secs(days * DAY))
    }

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    /// A window is kept until `until`, and from then on it is older than the oldest.
    #[test]
    fn windows_of_a_day_go_together_and_at_most_100_000_stay() {
        for (window, days, lifetime) in [("60s", 35, 36 * DAY), ("60s", 1, 2 * DAY), ("1s", 35, 100_000)] {
            let kept = kept(window, days);
            for second in [0, 1, DAY - 1] {
                let window = kept.window.starting_at(20_000 * DAY + second);
                let until = kept.until(window).unwrap();
                assert_eq!(until, 20_000 * DAY + lifetime);
                assert!(kept.oldest(at(until - 1)) <= window, "{second}");
                assert!(kept.oldest(at(until)) > window, "{second}");
            }
        }
        let none = kept("60s", 0);
        let window = none.window.starting_at(20_000 * DAY);
        assert_eq!((none.until(window), none.oldest(at(20_000 * DAY + 59))), (None, window));
    }

    #[test]
    fn windows_of_another_length_are_not_read() {
        let count = PastCount { unique_request_count: 7, complete: true };
        let [minute, other] = ["60s", "120s"].map(|length| kept(length, 1).window.starting_at(20_000 * DAY));
        let stored = count.to_stored(minute);
        assert_eq!(PastCount::from_stored(stored.as_bytes(), minute), Some(count));
        assert_eq!(PastCount::from_stored(stored.as_bytes(), other), None);
        assert_eq!(PastCount::from_stored(br#"{"complete":true}"#, minute), None);
    }

    #[test]
    fn a_local_series_forgets_what_is_not_kept() {
        let (kept, mut series) = (kept("1s", 35), LocalSeries::default());
        let count = |second| WindowCount {
            window: kept.window.starting_at(second),
            unique_request_count: second,
            accepted_ids: second,
            has_imports: false,
            complete: true,
        };
        for second in 0..3 * DAY {
            series.add(kept, count(second));
            assert!(series.0.len() as u64 <= MOST_WINDOWS);
        }
        let oldest = series.0.first_key_value().unwrap().0.unix_seconds();
        assert_eq!(oldest, 2 * DAY);
        let range = Range { from: kept.window.starting_at(0), to: kept.window.starting_at(2 * DAY + 2) };
        assert_eq!(
            series.get(range).into_keys().map(Window::unix_seconds).collect::<Vec<_>>(),
            [2 * DAY, 2 * DAY + 1]
        );
    }
}
