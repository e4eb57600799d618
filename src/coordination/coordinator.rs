//! The coordinator: where the instances agree on heartbeats, counts and the published position.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::closed::{CloseError, ClosedCounters, Resume, StoredWindow};
use super::heartbeat::{Heartbeat, HeartbeatAnswer};
use super::membership::MembershipView;
use super::redis::RedisCoordinator;
use super::rolled::{Rolled, RolledWindow};
use super::series::{KeptSeries, PastCount};
use super::settings::HeartbeatError;
use super::standalone::Standalone;
use super::term::Term;
use crate::model::counter::CounterCounts;
use crate::model::period::Period;
use crate::model::range::Range;
use crate::model::window::{Window, WindowCount};
use crate::platform::unavailable::Unavailable;

/// Where the instances agree on heartbeats, counts and the published position.
pub enum Coordinator {
    /// In Redis, with all instances of the namespace.
    Redis(RedisCoordinator),
    /// In the memory of the only instance.
    Standalone(Standalone),
}

impl Coordinator {
    /// For a standalone instance. It cancels `draining` when it begins to drain.
    pub fn standalone(series: KeptSeries, keep_rolled: Duration, draining: CancellationToken) -> Self {
        Self::Standalone(Standalone::new(series, keep_rolled, draining))
    }

    /// Says that this instance lives, and how far it has sealed. As long as its heartbeats go on, the leader waits with
    /// a window until this instance has sealed it.
    pub(crate) async fn heartbeat(&self, heartbeat: &Heartbeat) -> Result<HeartbeatAnswer, HeartbeatError> {
        match self {
            Self::Redis(redis) => redis.heartbeat(heartbeat).await,
            Self::Standalone(standalone) => Ok(standalone.heartbeat(heartbeat)),
        }
    }

    /// Leaves, after this instance has sealed everything: no leader waits for it any more.
    pub(crate) async fn leave(&self) -> Result<(), Unavailable> {
        match self {
            Self::Redis(redis) => redis.leave().await,
            Self::Standalone(_) => Ok(()),
        }
    }

    /// Where a new leader resumes; none as long as that is not certain.
    pub(crate) async fn resume(&self) -> Result<Option<Resume>, Unavailable> {
        match self {
            Self::Redis(redis) => redis.resume().await,
            Self::Standalone(standalone) => Ok(standalone.resume()),
        }
    }

    /// The membership view of a window; none as long as the heartbeats cannot be trusted.
    pub(crate) async fn membership_view(
        &self,
        window: Window,
    ) -> Result<Option<MembershipView>, Unavailable> {
        match self {
            Self::Redis(redis) => redis.membership_view(window).await,
            Self::Standalone(standalone) => Ok(standalone.membership_view(window)),
        }
    }

    /// Stores the counts of a window and of its counters, and returns what is stored, and whether it is these counts. Another
    /// leader may have been faster: the first counts stay. The caller read `view` before it counted. If the view shows an
    /// instance with the window open, the counts are stored all the same.
    pub(crate) async fn close(
        &self,
        term: &Term,
        count: &WindowCount,
        counters: &CounterCounts,
        view: &MembershipView,
    ) -> Result<(StoredWindow, bool), CloseError> {
        match self {
            Self::Redis(redis) => redis.close(term, count, counters, view).await,
            Self::Standalone(standalone) => Ok((standalone.close(*count), true)),
        }
    }

    /// The counts of closed windows. A window that was never closed, or whose count is lost, is left out.
    pub(crate) async fn series(&self, range: Range) -> Result<BTreeMap<Window, PastCount>, Unavailable> {
        match self {
            Self::Redis(redis) => redis.series(range).await,
            Self::Standalone(standalone) => Ok(standalone.series(range)),
        }
    }

    /// A closed window as it is stored, if it still is. A standalone instance stores none.
    pub(crate) async fn stored(&self, window: Window) -> Result<Option<StoredWindow>, Unavailable> {
        match self {
            Self::Redis(redis) => redis.stored(window).await,
            Self::Standalone(_) => Ok(None),
        }
    }

    /// Notes that a window was merged into its hour and day, once. Windows are noted in order.
    pub(crate) async fn note_rolled(&self, term: &Term, rolled: &RolledWindow) -> Result<(), CloseError> {
        match self {
            Self::Redis(redis) => redis.note_rolled(term, rolled).await,
            Self::Standalone(standalone) => {
                standalone.note_rolled(rolled);
                Ok(())
            }
        }
    }

    /// How far windows are rolled up, and into some periods, which are in order.
    pub(crate) async fn rolled(&self, periods: &[Period]) -> Result<Rolled, Unavailable> {
        match self {
            Self::Redis(redis) => redis.rolled(periods).await,
            Self::Standalone(standalone) => Ok(standalone.rolled(periods)),
        }
    }

    /// Reads the counts of a closed window's counters. None if Redis does not have them any more.
    pub(crate) async fn counters_of(
        &self,
        window: &StoredWindow,
    ) -> Result<Option<Arc<ClosedCounters>>, Unavailable> {
        let counts = match (self, &window.counters) {
            (_, None) => Some(CounterCounts::default()),
            (Self::Redis(redis), Some(stored)) => redis.counters_of(stored).await?,
            (Self::Standalone(_), Some(_)) => None,
        };
        Ok(counts.map(|counts| Arc::new(ClosedCounters::new(window.clone(), Arc::new(counts)))))
    }

    /// Lets the lists with the counts of these windows' counters expire soon: sinks do not need them any more.
    pub(crate) async fn let_lists_expire(&self, windows: &[StoredWindow]) {
        if let Self::Redis(redis) = self {
            redis.let_lists_expire(windows).await;
        }
    }

    /// Commits the published position: every sink has this window and all before it.
    pub(crate) async fn commit_published(&self, term: &Term, window: Window) -> Result<(), CloseError> {
        match self {
            Self::Redis(redis) => redis.commit_published(term, window).await,
            // A standalone instance never counts a window again.
            Self::Standalone(_) => Ok(()),
        }
    }

    /// Whether windows outlive this instance. If so, another instance can close the windows that this one leaves
    /// unfinished, or this one can after its next start.
    pub(crate) fn is_shared(&self) -> bool {
        matches!(self, Self::Redis(_))
    }
}
