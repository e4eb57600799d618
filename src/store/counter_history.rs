//! The history of the counters of a standalone instance: their sketches in hours and days, and in windows that are not rolled up.

use std::collections::{BTreeMap, HashMap};

use super::answers::CounterRecord;
use super::keep::KeepPeriods;
use crate::hll::Sketch;
use crate::model::counter::CounterCount;
use crate::model::parts::Part;
use crate::model::period::{Level, Period};
use crate::model::window::Window;

/// What an entry takes beside its name and its sketch.
pub(super) const BYTES_AN_ENTRY: usize = 80;

/// The sketches of the counters of a window, as strings of Redis.
pub(super) type CounterSketches = Vec<(Box<str>, Box<[u8]>)>;

#[derive(Default)]
pub(super) struct CounterHistory {
    windows: BTreeMap<Window, Counters>,
    periods: BTreeMap<Period, Counters>,
    bytes: usize,
    /// The end of the last hour that is gone, and of the last day.
    gone_hours: u64,
    gone_days: u64,
}

/// The counters of a window or a period.
#[derive(Default)]
pub(super) struct Counters {
    entries: HashMap<Box<str>, Entry>,
    bytes: usize,
    /// There was no room for the counters of a window.
    lacks_some: bool,
}

struct Entry {
    /// A string of Redis.
    sketch: Box<[u8]>,
    /// Whether it has all ids of the windows that were merged into it.
    is_whole: bool,
}

impl Counters {
    fn put(&mut self, name: &str, entry: Entry) {
        self.bytes += BYTES_AN_ENTRY + name.len() + entry.sketch.len();
        if let Some(before) = self.entries.insert(name.into(), entry) {
            self.bytes -= BYTES_AN_ENTRY + name.len() + before.sketch.len();
        }
    }
}

impl CounterHistory {
    /// Keeps the sketches of a window.
    pub(super) fn note(&mut self, window: Window, sketches: CounterSketches) {
        let mut counters = Counters::default();
        for (name, sketch) in sketches {
            counters.put(&name, Entry { sketch, is_whole: true });
        }
        self.bytes += counters.bytes;
        let before = self.windows.insert(window, counters);
        self.bytes -= before.map_or(0, |before| before.bytes);
    }

    /// Merges a counter of a closed window into a period.
    pub(super) fn roll_up(&mut self, window: Window, counter: &CounterCount, period: Period) {
        if period.end() <= self.gone(period.level) {
            return;
        }
        let Some(of_window) = self.windows.get(&window) else {
            // There was no room for it.
            self.periods.entry(period).or_default().lacks_some = true;
            return;
        };
        let of_window = of_window.entries.get(&counter.name);
        let counters = self.periods.entry(period).or_default();
        let known = counters.entries.get(&counter.name);
        let is_whole = counter.is_whole && of_window.is_some() && known.is_none_or(|known| known.is_whole);
        let sketch = match (known, of_window) {
            (Some(known), Some(of_window)) => {
                let union = read(&known.sketch);
                union.merge(&read(&of_window.sketch));
                union.to_bytes().into()
            }
            (Some(one), None) | (None, Some(one)) => one.sketch.clone(),
            (None, None) => Box::default(),
        };
        let before = counters.bytes;
        counters.put(&counter.name, Entry { sketch, is_whole });
        self.bytes = self.bytes - before + counters.bytes;
    }

    /// Lets windows go that are rolled up, and periods that are not kept any more. The caller frees them.
    pub(super) fn forget_old(&mut self, keep: KeepPeriods, rolled_up: Window) -> Vec<Counters> {
        let mut gone = Vec::new();
        while let Some((&oldest, _)) = self.windows.first_key_value()
            && oldest <= rolled_up
        {
            gone.extend(self.remove_window(oldest));
        }
        let old: Vec<_> =
            self.periods.keys().filter(|period| !keep.has(**period, rolled_up.start())).copied().collect();
        gone.extend(old.into_iter().filter_map(|period| self.remove_period(period)));
        gone
    }

    /// Lets the oldest periods go, and then windows, until the rest has so many bytes. The caller frees them.
    pub(super) fn make_room(&mut self, most: usize) -> Vec<Counters> {
        let mut gone = Vec::new();
        while self.bytes > most
            && let Some(oldest) = self.periods.keys().min_by_key(|period| period.end()).copied()
        {
            gone.extend(self.remove_period(oldest));
        }
        while self.bytes > most
            && let Some((&oldest, _)) = self.windows.first_key_value()
        {
            gone.extend(self.remove_window(oldest));
        }
        gone
    }

    /// The sketch of a counter in a part, if it is kept.
    pub(super) fn get(&self, name: &str, part: Part) -> Option<&[u8]> {
        let counters = match part {
            Part::Window(window) => self.windows.get(&window),
            Part::Period { period, .. } => self.periods.get(&period),
        };
        Some(&counters?.entries.get(name)?.sketch)
    }

    /// None if the period is not kept.
    pub(super) fn record(&self, name: &str, period: Period) -> Option<CounterRecord> {
        let counters = self.periods.get(&period)?;
        let is_whole = counters.entries.get(name).is_none_or(|entry| entry.is_whole);
        // Memory loses nothing: there is no count to compare.
        Some(CounterRecord { unique_ids: 0, is_whole: is_whole && !counters.lacks_some, since: None })
    }

    /// The end of the last period of a level that is gone.
    pub(super) fn gone(&self, level: Level) -> u64 {
        match level {
            Level::Hour => self.gone_hours,
            Level::Day => self.gone_days,
        }
    }

    fn remove_window(&mut self, window: Window) -> Option<Counters> {
        let removed = self.windows.remove(&window)?;
        self.bytes -= removed.bytes;
        Some(removed)
    }

    fn remove_period(&mut self, period: Period) -> Option<Counters> {
        let gone = match period.level {
            Level::Hour => &mut self.gone_hours,
            Level::Day => &mut self.gone_days,
        };
        *gone = period.end().max(*gone);
        let removed = self.periods.remove(&period)?;
        self.bytes -= removed.bytes;
        Some(removed)
    }
}

/// Reads the string of a sketch that this process wrote.
pub(super) fn read(stored: &[u8]) -> Sketch {
    Sketch::from_bytes(stored).unwrap_or_default()
}
