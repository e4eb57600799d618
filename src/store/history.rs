//! The history of a standalone instance: sketches of closed windows, of hours and of days, in its memory. Those of counters are in
//! [`counter_history`](super::counter_history).
//!
//! A window's sketches stay until it is rolled up into its hour and day, and those of the newest windows longer. Strings of Redis
//! take less memory than registers, above all for few ids.

use std::collections::BTreeMap;

use parking_lot::Mutex;

use super::answers::{CounterRecord, Grown, RolledUp};
use super::counter_history::{CounterHistory, CounterSketches, Counters, read};
use super::keep::Keep;
use crate::hll::Sketch;
use crate::model::counter::{CounterCount, Subject};
use crate::model::parts::Part;
use crate::model::period::{Level, Period};
use crate::model::shard::Shards;
use crate::model::window::Window;

/// Windows that are rolled up and kept all the same.
const NEWEST: usize = 120;
/// Bytes of all sketches.
pub(super) const MOST_BYTES: usize = 64 << 20;

/// A sketch for each shard, as strings of Redis.
pub(super) type Stored = Vec<Vec<u8>>;

pub(super) struct History {
    keep: Keep,
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
    counters: CounterHistory,
}

impl History {
    pub(super) fn new(keep: Keep, shards: Shards) -> Self {
        Self { keep, shards, state: Mutex::default() }
    }

    /// Whether the sketches of windows are kept.
    pub(super) fn keeps_windows(&self) -> bool {
        self.keep.any()
    }

    /// Keeps the sketches of a window that is sealed.
    pub(super) fn note(&self, window: Window, sketches: &[Sketch]) {
        if !self.keeps_windows() {
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
            let oldest = self.keep.total.oldest(level, window.start()).unwrap_or(u64::MAX);
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
        let mut gone = state.counters.forget_old(self.keep.counters, window);
        gone.extend(state.make_room());
        drop(state);
        // There may be very many.
        drop(gone);
        rolled
    }

    /// Whether sketches of counters are kept after the seal.
    pub(super) fn keeps_counters(&self) -> bool {
        self.keep.counters.any()
    }

    /// Keeps the sketches of the counters of a window that is sealed.
    pub(super) fn note_counters(&self, window: Window, sketches: CounterSketches) {
        let mut state = self.state.lock();
        state.counters.note(window, sketches);
        let gone = state.make_room();
        drop(state);
        drop(gone);
    }

    /// Merges counters of a closed window into periods.
    pub(super) fn roll_up_counters(&self, window: Window, counters: &[CounterCount], periods: &[Period]) {
        for counter in counters {
            // Requests wait for the lock, too.
            let mut state = self.state.lock();
            for period in periods {
                state.counters.roll_up(window, counter, *period);
            }
            let gone = state.make_room();
            drop(state);
            drop(gone);
        }
    }

    /// What is known of a counter in periods. None for one that is not kept.
    pub(super) fn counter_records(&self, counter: &str, periods: &[Period]) -> Vec<Option<CounterRecord>> {
        let state = self.state.lock();
        periods.iter().map(|period| state.counters.record(counter, *period)).collect()
    }

    /// The sketches of parts, as far as they are kept.
    pub(super) fn get(&self, of: &Subject, parts: &[Part]) -> Vec<Option<Stored>> {
        let state = self.state.lock();
        let get = |part: &Part| match of {
            Subject::Total => state.get(*part).cloned(),
            Subject::Counter(name) => state.counters.get(name, *part).map(|stored| vec![stored.to_vec()]),
        };
        parts.iter().map(get).collect()
    }

    /// The end of the last period of a level that is gone.
    pub(super) fn gone_period(&self, of: &Subject, level: Level) -> u64 {
        let state = self.state.lock();
        match (of, level) {
            (Subject::Counter(_), _) => state.counters.gone(level),
            (Subject::Total, Level::Hour) => state.gone_hours,
            (Subject::Total, Level::Day) => state.gone_days,
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

    /// Lets windows go that are rolled up and not among the newest. If there are too many bytes, counters go first, then windows
    /// that are rolled up, then the oldest periods, and only then windows that no period has.
    /// Returns what the caller frees without the lock.
    fn make_room(&mut self) -> Vec<Counters> {
        let gone = self.counters.make_room(MOST_BYTES.saturating_sub(self.bytes));
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
        gone
    }
}

fn bytes_of(stored: &Stored) -> usize {
    stored.iter().map(Vec::capacity).sum()
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
