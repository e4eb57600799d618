//! A process that is alone: it agrees with itself.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::{CloseError, Coordinator, Report, ReportError, Reported, Resume, Standing};
use crate::coordination::completeness::Attendance;
use crate::coordination::grant::Grant;
use crate::model::window::{Window, WindowCount};
use crate::platform::unavailable::Unavailable;

/// Coordinates nobody. What it knows is gone with the process.
pub struct Alone {
    state: Mutex<State>,
    /// Cancelled when ids are no longer accepted from everybody: windows that are closed from then on are
    /// incomplete, because there is nobody else to accept them.
    draining: CancellationToken,
}

#[derive(Default)]
struct State {
    first: Option<Window>,
    report: Option<Report>,
    last: Option<WindowCount>,
}

impl Alone {
    /// Before the first window.
    pub fn new(draining: CancellationToken) -> Self {
        Self { state: Mutex::default(), draining }
    }
}

#[async_trait]
impl Coordinator for Alone {
    async fn report(&self, report: &Report) -> Result<Reported, ReportError> {
        let mut state = self.state.lock();
        state.first.get_or_insert(report.watermark);
        state.report = Some(*report);
        let closed = state.last.map(|last| last.window);
        // Nobody could count it again.
        Ok(Reported { closed, published: closed, ..Reported::default() })
    }

    async fn leave(&self) -> Result<(), Unavailable> {
        Ok(())
    }

    async fn resume(&self) -> Result<Option<Resume>, Unavailable> {
        Ok(self.state.lock().first.map(|next| Resume { next, stored: BTreeMap::new() }))
    }

    async fn standing(&self, window: Window) -> Result<Option<Standing>, Unavailable> {
        let Some(report) = self.state.lock().report else { return Ok(None) };
        let throughout = report.since <= window.start() && !self.draining.is_cancelled();
        let attendance = Attendance { throughout, ..Attendance::FULL };
        let sealed = window < report.watermark;
        let (open, left) = (false, BTreeSet::new());
        Ok(sealed.then_some(Standing {
            open,
            left,
            attendance,
            parties: BTreeSet::new(),
            attended: Some(window.max(window.length().window_at(report.since))),
            joined: 0,
            time: None,
        }))
    }

    async fn close(
        &self,
        _grant: &Grant,
        count: &WindowCount,
        _standing: &Standing,
    ) -> Result<WindowCount, CloseError> {
        self.state.lock().last = Some(*count);
        Ok(*count)
    }

    async fn mark_published(&self, _grant: &Grant, _window: Window) -> Result<(), CloseError> {
        Ok(())
    }

    fn outlives_process(&self) -> bool {
        false
    }
}
