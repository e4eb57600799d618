//! A standalone instance: it agrees with itself.

use std::collections::{BTreeMap, BTreeSet};

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::closed::Resume;
use super::completeness::Attendance;
use super::heartbeat::{Report, Reported};
use super::membership::Standing;
use crate::model::window::{Window, WindowCount};

/// What the only instance knows. It is gone with the process.
pub struct Standalone {
    state: Mutex<State>,
    /// Cancelled when ids are no longer accepted from everybody: windows that are closed from then on are incomplete,
    /// because no other instance accepts them.
    draining: CancellationToken,
}

#[derive(Default)]
struct State {
    first: Option<Window>,
    report: Option<Report>,
    last: Option<Window>,
}

impl Standalone {
    /// Before the first window.
    pub(super) fn new(draining: CancellationToken) -> Self {
        Self { state: Mutex::default(), draining }
    }

    pub(super) fn report(&self, report: &Report) -> Reported {
        let mut state = self.state.lock();
        state.first.get_or_insert(report.watermark);
        state.report = Some(*report);
        // What is closed is as good as published: nobody could count it again.
        Reported { closed: state.last, published: state.last, ..Reported::default() }
    }

    pub(super) fn resume(&self) -> Option<Resume> {
        self.state.lock().first.map(|next| Resume { next, stored: BTreeMap::new() })
    }

    pub(super) fn standing(&self, window: Window) -> Option<Standing> {
        let report = self.state.lock().report?;
        let throughout = report.since <= window.start() && !self.draining.is_cancelled();
        (window < report.watermark).then_some(Standing {
            open: false,
            left: BTreeSet::new(),
            attendance: Attendance { throughout, ..Attendance::FULL },
            parties: BTreeSet::new(),
            attended: Some(window.max(window.length().window_at(report.since))),
            joined: 0,
            time: None,
        })
    }

    pub(super) fn close(&self, count: &WindowCount) -> WindowCount {
        self.state.lock().last = Some(count.window);
        *count
    }
}
