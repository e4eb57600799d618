//! The coordinator: what the instances agree on, and where they do.

use tokio_util::sync::CancellationToken;

use super::closed::{CloseError, Resume};
use super::heartbeat::{Heartbeat, HeartbeatAnswer};
use super::membership::MembershipView;
use super::redis::RedisCoordinator;
use super::settings::HeartbeatError;
use super::standalone::Standalone;
use super::term::Term;
use crate::model::window::{Window, WindowCount};
use crate::platform::unavailable::Unavailable;

/// What the instances agree on, and where they do.
pub enum Coordinator {
    /// In Redis, with all instances of the namespace.
    Redis(RedisCoordinator),
    /// In the memory of the only instance.
    Standalone(Standalone),
}

impl Coordinator {
    /// Of the only instance. `draining` says that it accepts no more ids from everybody.
    pub fn standalone(draining: CancellationToken) -> Self {
        Self::Standalone(Standalone::new(draining))
    }

    /// Says that this instance lives and how far it has sealed. The first heartbeat introduces it; from then on no
    /// window is closed that it has not sealed, as long as it goes on.
    pub(crate) async fn heartbeat(&self, heartbeat: &Heartbeat) -> Result<HeartbeatAnswer, HeartbeatError> {
        match self {
            Self::Redis(redis) => redis.heartbeat(heartbeat).await,
            Self::Standalone(standalone) => Ok(standalone.heartbeat(heartbeat)),
        }
    }

    /// Leaves, after everything has been sealed: nobody waits for this instance any more.
    pub(crate) async fn leave(&self) -> Result<(), Unavailable> {
        match self {
            Self::Redis(redis) => redis.leave().await,
            Self::Standalone(_) => Ok(()),
        }
    }

    /// Where a new leader goes on; none as long as that cannot be known.
    pub(crate) async fn resume(&self) -> Result<Option<Resume>, Unavailable> {
        match self {
            Self::Redis(redis) => redis.resume().await,
            Self::Standalone(standalone) => Ok(standalone.resume()),
        }
    }

    /// How all instances stand to a window; none as long as that cannot be known.
    pub(crate) async fn membership_view(
        &self,
        window: Window,
    ) -> Result<Option<MembershipView>, Unavailable> {
        match self {
            Self::Redis(redis) => redis.membership_view(window).await,
            Self::Standalone(standalone) => Ok(standalone.membership_view(window)),
        }
    }

    /// Stores the count of a window, and answers with the one that is stored: another leader may have been faster, and
    /// the first one stays. It is for the instances as they stood before it was counted: if one of them had the window
    /// open then, it is stored all the same.
    pub(crate) async fn close(
        &self,
        term: &Term,
        count: &WindowCount,
        view: &MembershipView,
    ) -> Result<WindowCount, CloseError> {
        match self {
            Self::Redis(redis) => redis.close(term, count, view).await,
            Self::Standalone(standalone) => Ok(standalone.close(count)),
        }
    }

    /// Marks a window and all before it as published: every sink has them.
    pub(crate) async fn commit_published(&self, term: &Term, window: Window) -> Result<(), CloseError> {
        match self {
            Self::Redis(redis) => redis.commit_published(term, window).await,
            // It would not be counted again in any case.
            Self::Standalone(_) => Ok(()),
        }
    }

    /// Whether what is counted outlives this instance, so that a window which it leaves unfinished will be closed by
    /// another one or after the next start.
    pub(crate) fn is_shared(&self) -> bool {
        matches!(self, Self::Redis(_))
    }
}
