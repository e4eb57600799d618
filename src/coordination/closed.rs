//! Closed windows: where a new leader resumes, how a count is stored, and which counts an instance remembers.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::Arc;

use ::metrics::Gauge;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::json;
use thiserror::Error;

use super::completeness;
use super::staged::StoredCounters;
use crate::model::counter::CounterCounts;
use crate::model::window::{Window, WindowCount, is_false};
use crate::platform::unavailable::Unavailable;
use crate::telemetry::metrics::Metrics;

/// How many closed windows an instance remembers, to answer requests for them: an hour of minutes.
pub const REMEMBERED: usize = 60;

/// Where a new leader resumes.
#[derive(Debug, Clone)]
pub struct Resume {
    /// The oldest window that is not published.
    pub next: Window,
    /// Windows whose counts are stored and not published.
    pub stored: BTreeMap<Window, StoredWindow>,
}

/// A closed window, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredWindow {
    /// The total.
    pub count: WindowCount,
    /// Where the counts of its counters are; none if no counter had ids, and on a standalone instance.
    pub counters: Option<StoredCounters>,
}

/// Why a count was not stored, or the published position not committed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CloseError {
    /// Another instance has a newer term.
    #[error("another instance leads")]
    Fenced,
    /// An instance has the window open, or may have had it open meanwhile. Read the membership view again.
    #[error("an instance has the window open")]
    Open,
    /// Redis did not answer.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// The stored form of a count.
#[derive(Serialize, Deserialize)]
struct StoredCount {
    unique_request_count: u64,
    accepted_ids: u64,
    #[serde(default, skip_serializing_if = "is_false")]
    has_imports: bool,
    complete: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    counters: Option<StoredCounters>,
}

pub(super) fn to_stored(window: &StoredWindow) -> String {
    let StoredWindow { count, counters } = window.clone();
    let WindowCount { unique_request_count, accepted_ids, has_imports, complete, .. } = count;
    json!(StoredCount { unique_request_count, accepted_ids, has_imports, complete, counters }).to_string()
}

pub(super) fn from_stored(window: Window, text: &str) -> Option<StoredWindow> {
    let StoredCount { unique_request_count, accepted_ids, has_imports, complete, counters } =
        serde_json::from_str(text).ok()?;
    let count = WindowCount { window, unique_request_count, accepted_ids, has_imports, complete };
    Some(StoredWindow { count, counters })
}

/// The newest [`REMEMBERED`] windows that this or another instance closed. Clones share them.
#[derive(Clone)]
pub struct ClosedWindows {
    /// Oldest first.
    counts: Arc<Mutex<VecDeque<WindowCount>>>,
    /// The newest window.
    newest: Arc<Mutex<Option<StoredWindow>>>,
    /// The counters of the newest window of which they are known.
    counters: Arc<Mutex<Option<Arc<ClosedCounters>>>>,
    /// The counters that are metrics, too.
    exported: Arc<[(String, Gauge)]>,
    metrics: Arc<Metrics>,
}

/// The counts of the counters of a closed window.
#[derive(Debug)]
pub struct ClosedCounters {
    /// The window, as it is stored.
    of: StoredWindow,
    /// Whether all are complete.
    pub complete: bool,
    /// The counts.
    pub counts: Arc<CounterCounts>,
}

/// A closed window, as sinks get it.
#[derive(Debug, Clone)]
pub struct ClosedWindow {
    /// The total.
    pub count: WindowCount,
    /// Its counters.
    pub counters: WindowCounters,
}

/// The counters of a closed window, as sinks get them.
#[derive(Debug, Clone)]
pub enum WindowCounters {
    /// No counter had ids.
    None,
    /// Their counts waited for a sink past `--counter-retention`, or they are lost: only the total is published.
    Skipped,
    /// Their counts: of one counter at least.
    Counts(Arc<ClosedCounters>),
}

impl ClosedCounters {
    /// Of a window that is stored like this.
    pub(crate) fn new(of: StoredWindow, counts: Arc<CounterCounts>) -> Self {
        Self { complete: completeness::of_counters(&of.count, &counts), of, counts }
    }

    /// The window.
    pub fn window(&self) -> Window {
        self.of.count.window
    }

    /// Whether the count of a counter is complete.
    pub fn is_complete(&self, name: &str) -> bool {
        completeness::of_counter(&self.of.count, &self.counts, name)
    }
}

impl WindowCounters {
    /// The counts, if there are any to publish.
    pub fn counts(&self) -> Option<&Arc<ClosedCounters>> {
        match self {
            Self::Counts(counts) => Some(counts),
            Self::None | Self::Skipped => None,
        }
    }

    /// Whether there are counts that no sink will have.
    pub fn is_skipped(&self) -> bool {
        matches!(self, Self::Skipped)
    }

    /// How many counts there are to publish.
    pub fn number(&self) -> usize {
        self.counts().map_or(0, |counters| counters.counts.all().len())
    }
}

impl From<Arc<ClosedCounters>> for WindowCounters {
    fn from(counters: Arc<ClosedCounters>) -> Self {
        match counters.counts.all() {
            [] if counters.counts.lacks_names() => Self::Skipped,
            [] => Self::None,
            _ => Self::Counts(counters),
        }
    }
}

/// How many counters had ids, or `skipped`.
impl fmt::Display for WindowCounters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None | Self::Counts(_) => write!(f, "{}", self.number()),
            Self::Skipped => f.write_str("skipped"),
        }
    }
}

impl From<WindowCount> for StoredWindow {
    /// Without counters.
    fn from(count: WindowCount) -> Self {
        Self { count, counters: None }
    }
}

impl From<WindowCount> for ClosedWindow {
    /// Without counters.
    fn from(count: WindowCount) -> Self {
        Self { count, counters: WindowCounters::None }
    }
}

impl ClosedWindows {
    /// Remembers no window yet. `metrics` will show the newest one.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        let (counts, newest, counters) = Default::default();
        Self { counts, newest, counters, exported: Arc::default(), metrics }
    }

    /// Exports the counts of these counters as metrics. They are 0 until a window is closed that has ids of them.
    pub fn exporting(self, counters: &[String]) -> Self {
        let gauge = |name: &String| (name.clone(), self.metrics.counter_unique_ids(name));
        Self { exported: counters.iter().map(gauge).collect(), ..self }
    }

    /// The newest closed window.
    pub fn last(&self) -> Option<WindowCount> {
        self.counts.lock().back().copied()
    }

    /// The count of a window, if it is remembered.
    pub fn get(&self, window: Window) -> Option<WindowCount> {
        self.counts.lock().iter().rfind(|count| count.window == window).copied()
    }

    /// All remembered counts, oldest first.
    pub fn all(&self) -> Vec<WindowCount> {
        self.counts.lock().iter().copied().collect()
    }

    /// The counters of the newest closed window.
    pub fn counters(&self) -> Option<Arc<ClosedCounters>> {
        self.counters.lock().clone()
    }

    /// The counters of a window, if they are remembered. A window that Redis has lost is counted again: these are not its counters
    /// then.
    pub(crate) fn counters_of(&self, window: &StoredWindow) -> Option<Arc<ClosedCounters>> {
        self.counters().filter(|counters| counters.of == *window)
    }

    /// The newest closed window, if its counters are not known here.
    pub(super) fn lacking_counters(&self) -> Option<StoredWindow> {
        let newest = self.newest.lock().clone()?;
        self.counters_of(&newest).is_none().then_some(newest)
    }

    /// Remembers the counters of a window, instead of those of an older one.
    pub(crate) fn note_counters(&self, counters: &Arc<ClosedCounters>) {
        let mut known = self.counters.lock();
        if known.as_ref().is_some_and(|known| known.window() > counters.window()) {
            return;
        }
        self.metrics.counters.set(counters.counts.names() as f64);
        for (name, gauge) in &*self.exported {
            gauge.set(counters.counts.get(name) as f64);
        }
        *known = Some(Arc::clone(counters));
    }

    /// Remembers a window, if it is newer than all before.
    pub fn advance(&self, window: StoredWindow) {
        let count = window.count;
        let mut counts = self.counts.lock();
        if counts.back().is_none_or(|last| last.window < count.window) {
            if counts.len() == REMEMBERED {
                counts.pop_front();
            }
            counts.push_back(count);
            *self.newest.lock() = Some(window);
            self.metrics.unique_ids.set(count.unique_request_count as f64);
            let accepted = if count.has_imports { f64::NAN } else { count.accepted_ids as f64 };
            self.metrics.window_accepted_ids.set(accepted);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::window::WindowLength;

    #[test]
    fn the_last_windows_are_remembered_each_once_and_in_order() {
        let closed = ClosedWindows::new(Arc::new(Metrics::new()));
        let length: WindowLength = "10s".parse().unwrap();
        let total = |number: u64| WindowCount {
            window: length.starting_at(number * 10),
            unique_request_count: number,
            accepted_ids: number,
            has_imports: false,
            complete: true,
        };
        assert_eq!((closed.last(), closed.all()), (None, vec![]));
        // Counts come from this and from other instances, in any order.
        for number in [1, 2, 2, 1, 5, 4] {
            closed.advance(total(number).into());
        }
        assert_eq!(closed.all(), [1, 2, 5].map(total));
        (6..=64).map(total).for_each(|count| closed.advance(count.into()));
        let expected: Vec<_> = (5..=64).map(total).collect();
        assert_eq!((closed.all(), closed.last()), (expected, Some(total(64))));
        assert_eq!(closed.get(length.starting_at(60)), Some(total(6)));
        assert_eq!(closed.get(length.starting_at(10)), None, "forgotten");
    }
}
