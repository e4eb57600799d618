//! Coordination: what the instances that share a counter have to agree on.
//!
//! An instance *reports* how far it has sealed. The *leader*, which is the one that holds the lease,
//! *closes* windows in order: when every instance has sealed one, it is counted, and the count is stored,
//! once and for all. What has reached every sink is marked as *published*.
//!
//! A leader may be wrong about being one: its process may have been stopped for an hour between two
//! instructions. So every grant of the lease comes with a *fencing token* that is higher than all before it,
//! and whoever stores something shows it: a store refuses all tokens but the newest. (Kleppmann, *How to do
//! distributed locking*, 2016.)

pub mod completeness;
pub mod grant;
pub mod lease;
pub mod redis;
pub mod scripts;
pub mod sealer;
pub mod standalone;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use parking_lot::Mutex;
use thiserror::Error;

use crate::coordination::completeness::Attendance;
use crate::coordination::grant::Grant;
use crate::model::window::{Window, WindowCount};
use crate::platform::unavailable::Unavailable;
use crate::telemetry::metrics::Metrics;

/// What the instances agree on, and where they do.
#[async_trait]
pub trait Coordinator: Send + Sync {
    /// Says that this instance lives and how far it has sealed. The first report introduces it; from
    /// then on no window is closed that it has not sealed, as long as it goes on reporting.
    ///
    /// # Errors
    ///
    /// [`ReportError::Disagreement`] when the others count differently.
    async fn report(&self, report: &Report) -> Result<Reported, ReportError>;

    /// Says goodbye, after everything has been sealed: nobody waits for this instance any more.
    ///
    /// # Errors
    ///
    /// [`Unavailable`]: the others will notice by themselves, later.
    async fn leave(&self) -> Result<(), Unavailable>;

    /// Where a new leader goes on; none as long as that cannot be known.
    ///
    /// # Errors
    ///
    /// [`Unavailable`].
    async fn resume(&self) -> Result<Option<Resume>, Unavailable>;

    /// How all instances stand to a window; none as long as that cannot be known.
    ///
    /// # Errors
    ///
    /// [`Unavailable`].
    async fn standing(&self, window: Window) -> Result<Option<Standing>, Unavailable>;

    /// Stores the count of a window, and answers with the one that is stored: another leader may have been
    /// faster, and the first one stays. It is for the instances as they stood before it was counted: if one of
    /// them had the window open then, it is stored all the same.
    ///
    /// # Errors
    ///
    /// [`CloseError`], and nothing was stored or, if unavailable, perhaps something was.
    async fn close(
        &self,
        grant: &Grant,
        count: &WindowCount,
        standing: &Standing,
    ) -> Result<WindowCount, CloseError>;

    /// Marks a window and all before it as published: every sink has them.
    ///
    /// # Errors
    ///
    /// [`CloseError::Fenced`] or [`CloseError::Unavailable`].
    async fn mark_published(&self, grant: &Grant, window: Window) -> Result<(), CloseError>;

    /// Whether what is counted outlives this process, so that a window which it leaves unfinished will be
    /// closed by another one or after the next start.
    fn outlives_process(&self) -> bool;
}

/// The setting that is told by its fingerprint, because it is a secret.
pub const ID_KEY: &str = "id-key";
/// Its value where there is none.
pub const NO_ID_KEY: &str = "none";

/// So many closed windows are remembered, for those who ask: an hour of minutes.
pub const REMEMBERED: usize = 60;

/// What an instance says about itself.
#[derive(Debug, Clone, Copy)]
pub struct Report {
    /// The oldest window that it has not sealed.
    pub watermark: Window,
    /// The newest window that it may have added to.
    pub newest: Window,
    /// It has accepted ids without a break since then.
    pub since: SystemTime,
    /// It could not report for a while.
    pub interrupted: bool,
    /// Accepted ids that it has not handed over to the store.
    pub kept_ids: u64,
    /// The last closed window that it knows the count of.
    pub knows: Option<Window>,
}

/// What an instance is told.
#[derive(Debug, Clone, Default)]
pub struct Reported {
    /// The last window that is closed: nothing that is added to it now would be counted.
    pub closed: Option<Window>,
    /// Counts of closed windows after the last one that it knows, oldest first; of those that are remembered.
    pub news: Vec<WindowCount>,
    /// The last window that every sink has: it will not be counted again.
    pub published: Option<Window>,
    /// What the instances shared may be lost, and this report was not taken: restore, then report again.
    pub lost: bool,
    /// What time it is there.
    pub time: Option<SystemTime>,
}

/// A report was not taken.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ReportError {
    /// This instance is set up otherwise than those that share its namespace.
    #[error(
        "--{setting} is {ours} here, but {theirs} for the other instances of --namespace {namespace}: \
         {}, or give this one another --namespace",
        remedy(setting, theirs)
    )]
    Disagreement {
        /// The flag.
        setting: String,
        /// What it is here.
        ours: String,
        /// What it is there.
        theirs: String,
        /// What they share.
        namespace: String,
    },
    /// Nobody could be told.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// What to do with a flag that is something else for the others.
fn remedy(setting: &str, theirs: &str) -> String {
    match (setting, theirs) {
        (ID_KEY, NO_ID_KEY) => "leave it out".to_owned(),
        (ID_KEY, _) => "give it the key that has this fingerprint".to_owned(),
        _ => format!("set it to {theirs}"),
    }
}

/// Where a new leader goes on.
#[derive(Debug, Clone)]
pub struct Resume {
    /// The oldest window that is not published.
    pub next: Window,
    /// Counts that are stored and not marked as published.
    pub stored: BTreeMap<Window, WindowCount>,
}

/// How all instances stand to a window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// An instance that lives has not sealed it.
    pub open: bool,
    /// What those instances have left to do: it changes as long as they get on.
    pub left: BTreeSet<(u64, u64)>,
    /// Whether some instance was there at every moment of it, and none vanished that had it open.
    pub attendance: Attendance,
    /// Processes that have sealed it, and were there in it.
    pub parties: BTreeSet<String>,
    /// The first window, this one or a later one, in which some instance was there; none if none is known.
    pub attended: Option<Window>,
    /// How many instances have come so far; one that comes while the window is counted may be too late for it.
    pub joined: u64,
    /// What time it is where that is known.
    pub time: Option<SystemTime>,
}

/// A count was not stored, or a mark not made.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CloseError {
    /// There is a newer grant.
    #[error("another instance leads")]
    Fenced,
    /// An instance has the window open after all, or may have had it open meanwhile: look again.
    #[error("an instance has the window open")]
    Open,
    /// Nobody could be asked.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// The last windows that are closed, whoever closed them: [`REMEMBERED`] of them. Clones are the same.
#[derive(Clone)]
pub struct ClosedWindows {
    /// Oldest first.
    counts: Arc<Mutex<VecDeque<WindowCount>>>,
    metrics: Arc<Metrics>,
}

impl ClosedWindows {
    /// None yet; the last one is shown in `metrics`.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self { counts: Arc::default(), metrics }
    }

    /// The last one so far.
    pub fn last(&self) -> Option<WindowCount> {
        self.counts.lock().back().copied()
    }

    /// This one, if it is remembered.
    pub fn get(&self, window: Window) -> Option<WindowCount> {
        self.counts.lock().iter().rfind(|count| count.window == window).copied()
    }

    /// All that are remembered, oldest first.
    pub fn all(&self) -> Vec<WindowCount> {
        self.counts.lock().iter().copied().collect()
    }

    /// Moves on, if this one is newer than all before.
    pub fn advance(&self, count: WindowCount) {
        let mut counts = self.counts.lock();
        if counts.back().is_none_or(|last| last.window < count.window) {
            if counts.len() == REMEMBERED {
                counts.pop_front();
            }
            counts.push_back(count);
            self.metrics.unique_ids.set(count.unique_request_count as f64);
            self.metrics.window_accepted_ids.set(count.accepted_ids as f64);
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
        let count = |number: u64| WindowCount {
            window: length.starting_at(number * 10),
            unique_request_count: number,
            accepted_ids: number,
            complete: true,
        };
        assert_eq!((closed.last(), closed.all()), (None, vec![]));
        // Told by the others and by oneself, in any order.
        for number in [1, 2, 2, 1, 5, 4] {
            closed.advance(count(number));
        }
        assert_eq!(closed.all(), [1, 2, 5].map(count));
        (6..=64).map(count).for_each(|count| closed.advance(count));
        let expected: Vec<_> = (5..=64).map(count).collect();
        assert_eq!((closed.all(), closed.last()), (expected, Some(count(64))));
        assert_eq!(closed.get(length.starting_at(60)), Some(count(6)));
        assert_eq!(closed.get(length.starting_at(10)), None, "forgotten");
    }
}
