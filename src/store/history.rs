//! The history of a standalone instance: sketches of closed windows, of hours and of days, in its memory.
//!
//! A window's sketches stay until it is rolled up into its hour and day, and those of the newest windows longer. Strings of Redis
//! take less memory than registers, above all for few ids.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;

use super::answers::{Grown, RolledUp};
use crate::hll::Sketch;
use crate::model::parts::Part;
use crate::model::period::{Level, Period};
use crate::model::shard::Shards;
use crate::model::window::Window;

/// Windows that are rolled up and kept all the same.
const NEWEST: usize = 120;
/// Bytes of all sketches.
const MOST_BYTES: usize = 64 << 20;

/// How long hours and days are kept.
#[derive(Debug, Clone, Copy, Default)]
pub struct KeepPeriods {
    /// Hours, after their end.
    pub hours: Duration,
    /// Days, after their end.
    pub days: Duration,
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

    /// The start of the oldest period of a level that is kept. None if none are.
    pub fn oldest(self, level: Level, now: SystemTime) -> Option<u64> {
        let kept = self.of(level).as_secs();
        let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        // The first whose end and life are not over.
        (kept > 0).then(|| level.at(now.saturating_sub(kept)).start)
    }
}

/// A sketch for each shard, as strings of Redis.
pub(super) type Stored = Vec<Vec<u8>>;

pub(super) struct History {
    keep: KeepPeriods,
    shards: Shards,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    windows: BTreeMap<Window, Stored>,
    periods: BTreeMap<Period, Stored>,
    bytes: usize,
    /// The last window that was rolled up.
    rolled_up: Option<Window>,
    /// The last window whose sketches are gone.
    gone: Option<Window>,
    /// The end of the last hour that is gone, and of the last day.
    gone_hours: u64,
    gone_days: u64,
}

impl History {
    pub(super) fn new(keep: KeepPeriods, shards: Shards) -> Self {
        Self { keep, shards, state: Mutex::default() }
    }

    /// Keeps the sketches of a window that is sealed.
    pub(super) fn note(&self, window: Window, sketches: &[Sketch]) {
        if !self.keep.any() {
            return;
        }
        let stored = sketches.iter().map(Sketch::to_bytes).collect();
        let mut state = self.state.lock();
        state.put_window(window, stored);
        state.make_room();
    }

    /// Merges a closed window into periods.
    pub(super) fn roll_up(&self, window: Window, periods: &[Period]) -> RolledUp {
        let mut state = self.state.lock();
        let of_window = state.windows.get(&window).cloned().unwrap_or_default();
        let shards = self.shards;
        let count = |sketches: &[Sketch]| sketches.iter().map(Sketch::estimate).sum();
        let mut rolled = RolledUp {
            window: count(&union(&[&of_window], shards)),
            periods: Vec::with_capacity(periods.len()),
        };
        for period in periods {
            let known = state.periods.get(period).cloned().unwrap_or_default();
            let merged = union(&[&known, &of_window], shards);
            let before = count(&union(&[&known], shards));
            rolled.periods.push(Grown { before, after: count(&merged) });
            state.put_period(*period, merged.iter().map(Sketch::to_bytes).collect());
        }
        state.rolled_up = state.rolled_up.max(Some(window));
        for level in Level::ALL {
            let oldest = self.keep.oldest(level, window.start()).unwrap_or(u64::MAX);
            let old: Vec<_> = state
                .periods
                .keys()
                .filter(|period| period.level == level && period.start < oldest)
                .copied()
                .collect();
            for period in old {
                state.remove_period(period);
            }
        }
        state.make_room();
        rolled
    }

    /// The sketches of parts, as far as they are kept.
    pub(super) fn get(&self, parts: &[Part]) -> Vec<Option<Stored>> {
        let state = self.state.lock();
        parts.iter().map(|part| state.get(*part).cloned()).collect()
    }

    /// The end of the last period of a level that is gone.
    pub(super) fn gone_period(&self, level: Level) -> u64 {
        let state = self.state.lock();
        match level {
            Level::Hour => state.gone_hours,
            Level::Day => state.gone_days,
        }
    }

    /// The last window whose sketches are gone.
    pub(super) fn gone(&self) -> Option<Window> {
        self.state.lock().gone
    }
}

impl State {
    fn get(&self, part: Part) -> Option<&Stored> {
        match part {
            Part::Window(window) => self.windows.get(&window),
            Part::Period { period, .. } => self.periods.get(&period),
        }
    }

    fn put_window(&mut self, window: Window, stored: Stored) {
        self.bytes += bytes_of(&stored);
        let before = self.windows.insert(window, stored);
        self.bytes -= before.as_ref().map_or(0, bytes_of);
    }

    fn put_period(&mut self, period: Period, stored: Stored) {
        self.bytes += bytes_of(&stored);
        let before = self.periods.insert(period, stored);
        self.bytes -= before.as_ref().map_or(0, bytes_of);
    }

    fn remove_window(&mut self, window: Window) {
        self.gone = self.gone.max(Some(window));
        self.bytes -= self.windows.remove(&window).as_ref().map_or(0, bytes_of);
    }

    fn remove_period(&mut self, period: Period) {
        let gone = match period.level {
            Level::Hour => &mut self.gone_hours,
            Level::Day => &mut self.gone_days,
        };
        *gone = period.end().max(*gone);
        self.bytes -= self.periods.remove(&period).as_ref().map_or(0, bytes_of);
    }

    /// Lets windows go that are rolled up and not among the newest. If there are too many bytes, those that are rolled up go first,
    /// then the oldest periods, and only then windows that no period has.
    fn make_room(&mut self) {
        let is_rolled_up = |state: &Self, window| state.rolled_up.is_some_and(|rolled| window <= rolled);
        while let Some((&oldest, _)) = self.windows.first_key_value()
            && is_rolled_up(self, oldest)
            && (self.windows.len() > NEWEST || self.bytes > MOST_BYTES)
        {
            self.remove_window(oldest);
        }
        while self.bytes > MOST_BYTES
            && let Some(oldest) = self.periods.keys().min_by_key(|period| period.end()).copied()
        {
            self.remove_period(oldest);
        }
        while self.bytes > MOST_BYTES
            && let Some((&oldest, _)) = self.windows.first_key_value()
        {
            self.remove_window(oldest);
        }
    }
}

fn bytes_of(stored: &Stored) -> usize {
    stored.iter().map(Vec::capacity).sum()
}

/// What this process wrote.
pub(super) fn read(stored: &[u8]) -> Sketch {
    Sketch::from_bytes(stored).unwrap_or_default()
}

/// The sketches of each shard together.
fn union(parts: &[&Stored], shards: Shards) -> Vec<Sketch> {
    let union_of = |shard: usize| {
        let union = Sketch::new();
        parts.iter().filter_map(|part| part.get(shard)).for_each(|stored| union.merge(&read(stored)));
        union
    };
    (0..shards.count().into()).map(union_of).collect()
}
