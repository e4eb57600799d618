//! The coordinator of a standalone instance.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::closed::{Resume, StoredWindow};
use super::completeness::Attendance;
use super::heartbeat::{Heartbeat, HeartbeatAnswer};
use super::membership::MembershipView;
use super::rolled::{LocalRolled, Rolled, RolledWindow};
use super::series::{KeptSeries, LocalSeries, PastCount};
use crate::model::period::Period;
use crate::model::range::Range;
use crate::model::window::{Window, WindowCount};

/// Coordinates the only instance, in its memory.
pub struct Standalone {
    kept: KeptSeries,
    keep_rolled: Duration,
    state: Mutex<State>,
    /// Cancelled when the instance begins to drain. It may refuse clients from then on, and no other instance takes their
    /// ids. So windows that it closes later are incomplete.
    draining: CancellationToken,
}

#[derive(Default)]
struct State {
    first: Option<Window>,
    heartbeat: Option<Heartbeat>,
    last: Option<Window>,
    series: LocalSeries,
    rolled: LocalRolled,
}

impl Standalone {
    pub(super) fn new(kept: KeptSeries, keep_rolled: Duration, draining: CancellationToken) -> Self {
        Self { kept, keep_rolled, state: Mutex::default(), draining }
    }

    pub(super) fn heartbeat(&self, heartbeat: &Heartbeat) -> HeartbeatAnswer {
        let mut state = self.state.lock();
        state.first.get_or_insert(heartbeat.watermark);
        state.heartbeat = Some(*heartbeat);
        // A closed window counts as published: no instance could count it again.
        HeartbeatAnswer { closed: state.last, published: state.last, ..HeartbeatAnswer::default() }
    }

    pub(super) fn resume(&self) -> Option<Resume> {
        self.state.lock().first.map(|next| Resume { next, stored: BTreeMap::new() })
    }

    pub(super) fn membership_view(&self, window: Window) -> Option<MembershipView> {
        let heartbeat = self.state.lock().heartbeat?;
        let throughout = heartbeat.since <= window.start() && !self.draining.is_cancelled();
        (window < heartbeat.watermark).then_some(MembershipView {
            open: false,
            left: Vec::new(),
            attendance: Attendance { throughout, ..Attendance::FULL },
            parties: BTreeSet::new(),
            attended: Some(window.max(window.length().window_at(heartbeat.since))),
            joined: 0,
            time: None,
        })
    }

    pub(super) fn close(&self, count: WindowCount) -> StoredWindow {
        let mut state = self.state.lock();
        state.last = Some(count.window);
        state.series.add(self.kept, count);
        count.into()
    }

    pub(super) fn note_rolled(&self, rolled: &RolledWindow) {
        let oldest = rolled.window.unix_seconds().saturating_sub(self.keep_rolled.as_secs());
        self.state.lock().rolled.note(rolled, oldest);
    }

    pub(super) fn rolled(&self, periods: &[Period]) -> Rolled {
        self.state.lock().rolled.get(periods)
    }

    pub(super) fn series(&self, range: Range) -> BTreeMap<Window, PastCount> {
        self.state.lock().series.get(range)
    }
}
