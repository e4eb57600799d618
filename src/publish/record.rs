//! The record of a closed window and that of a counter: the one place that knows their fields.
//!
//! A sink writes the value, and the attributes beside it as headers or fields. The log sink lists the fields of
//! [`Record::line`] once more, because the macros of `tracing` need their names in the code.

use serde::Serialize;

use super::sinks::Origin;
use crate::coordination::term::Term;
use crate::coordination::{ClosedCounters, ClosedWindow, WindowCounters};
use crate::model::mode::Mode;
use crate::model::shard::Shards;
use crate::model::window::{UniqueCount, Window, WindowCount};
use crate::store::standard_error;

// Attributes that sinks also read back.
pub(super) const WINDOW_SECONDS: &str = "window_seconds";
pub(super) const ACCEPTED_IDS: &str = "accepted_ids";
pub(super) const ACCEPTED_IDS_IS_LOWER_BOUND: &str = "accepted_ids_is_lower_bound";
pub(super) const COMPLETE: &str = "complete";
pub(super) const COUNTERS: &str = "counters";
const COUNTERS_COMPLETE: &str = "counters_complete";
/// The value of [`COUNTERS`] for counters that waited too long.
pub(super) const SKIPPED: &str = "skipped";

/// A closed window, as it is published.
pub(super) struct Record<'a> {
    count: &'a WindowCount,
    counters: &'a WindowCounters,
    origin: &'a Origin,
    fencing_token: u64,
}

/// A record in one line of JSON.
#[derive(Serialize)]
pub(super) struct Line<'a> {
    #[serde(flatten)]
    count: &'a WindowCount,
    mode: &'static str,
    standard_error: f64,
    /// Only of counters that no file will have.
    #[serde(skip_serializing_if = "Option::is_none")]
    counters: Option<&'static str>,
}

/// The count of a counter, as it is published. Its JSON has no other fields and this order.
#[derive(Clone, Copy, Serialize)]
pub(super) struct CounterRecord<'a> {
    pub(super) timestamp: Window,
    pub(super) counter: &'a str,
    pub(super) unique_request_count: u64,
    #[serde(skip)]
    pub(super) complete: bool,
}

/// The count of a counter, in one line of JSON.
#[derive(Serialize)]
struct CounterLine<'a> {
    #[serde(flatten)]
    record: CounterRecord<'a>,
    complete: bool,
    mode: &'static str,
    standard_error: f64,
}

/// The counters of a window, by name.
pub(super) fn counter_records(counters: &ClosedCounters) -> impl ExactSizeIterator<Item = CounterRecord<'_>> {
    counters.counts.all().iter().map(|count| CounterRecord {
        timestamp: counters.window(),
        counter: &count.name,
        unique_request_count: count.unique_ids,
        complete: counters.is_complete(&count.name),
    })
}

/// What sinks write beside the count of a counter. There are two of these in a window, so sinks may share them.
pub(super) fn counter_attributes(origin: &Origin, complete: bool) -> [(&'static str, String); 4] {
    [
        ("mode", origin.mode.as_str().to_owned()),
        ("standard_error", standard_error_of_counters(origin.mode).to_string()),
        (WINDOW_SECONDS, origin.window.seconds().to_string()),
        (COMPLETE, complete.to_string()),
    ]
}

/// A line for each counter of a window, by name.
pub(super) fn counter_lines(counters: &ClosedCounters, mode: Mode) -> serde_json::Result<Vec<u8>> {
    let mut lines = Vec::new();
    for record in counter_records(counters) {
        let line = CounterLine {
            record,
            complete: record.complete,
            mode: mode.as_str(),
            standard_error: standard_error_of_counters(mode),
        };
        serde_json::to_writer(&mut lines, &line)?;
        lines.push(b'\n');
    }
    Ok(lines)
}

/// A counter has one sketch, whatever `--shards` says.
fn standard_error_of_counters(mode: Mode) -> f64 {
    standard_error(mode, Shards::ONE)
}

impl<'a> Record<'a> {
    pub(super) fn new(window: &'a ClosedWindow, origin: &'a Origin, term: &Term) -> Self {
        let ClosedWindow { count, counters } = window;
        Self { count, counters, origin, fencing_token: term.token() }
    }

    /// The value in the main topic: it never has other fields.
    pub(super) fn value(&self) -> UniqueCount {
        UniqueCount { timestamp: self.count.window, unique_request_count: self.count.unique_request_count }
    }

    /// What sinks write beside the value. Without counters it has no attribute for them.
    pub(super) fn attributes(&self) -> Vec<(&'static str, String)> {
        let Self { count, counters, origin, fencing_token } = self;
        let mut attributes = vec![
            ("mode", origin.mode.as_str().to_owned()),
            ("standard_error", origin.standard_error.to_string()),
            (WINDOW_SECONDS, origin.window.seconds().to_string()),
            (ACCEPTED_IDS, count.accepted_ids.to_string()),
            (COMPLETE, count.complete.to_string()),
            ("instance", origin.instance.clone()),
            ("fencing_token", fencing_token.to_string()),
        ];
        if count.has_imports {
            attributes.push((ACCEPTED_IDS_IS_LOWER_BOUND, true.to_string()));
        }
        if !matches!(counters, WindowCounters::None) {
            attributes.push((COUNTERS, counters.to_string()));
        }
        // Perhaps the names of some are lost, so that no record of theirs says so.
        if counters.counts().is_some_and(|counters| !counters.complete) {
            attributes.push((COUNTERS_COMPLETE, false.to_string()));
        }
        attributes
    }

    /// For a file: without the attributes that only a shared topic or stream needs.
    pub(super) fn line(&self) -> Line<'a> {
        let Origin { mode, standard_error, .. } = *self.origin;
        let counters = self.counters.is_skipped().then_some(SKIPPED);
        Line { count: self.count, mode: mode.as_str(), standard_error, counters }
    }
}
