//! The coordinator: what the instances agree on, and where they do.

use tokio_util::sync::CancellationToken;

use super::closed::{CloseError, Resume};
use super::grant::Grant;
use super::heartbeat::{Report, Reported};
use super::membership::Standing;
use super::redis::RedisCoordinator;
use super::settings::ReportError;
use super::standalone::Standalone;
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
    pub(crate) async fn report(&self, report: &Report) -> Result<Reported, ReportError> {
        match self {
            Self::Redis(redis) => redis.report(report).await,
            Self::Standalone(standalone) => Ok(standalone.report(report)),
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
    pub(crate) async fn standing(&self, window: Window) -> Result<Option<Standing>, Unavailable> {
        match self {
            Self::Redis(redis) => redis.standing(window).await,
            Self::Standalone(standalone) => Ok(standalone.standing(window)),
        }
    }

    /// Stores the count of a window, and answers with the one that is stored: another leader may have been faster, and
    /// the first one stays. It is for the instances as they stood before it was counted: if one of them had the window
    /// open then, it is stored all the same.
    pub(crate) async fn close(
        &self,
        grant: &Grant,
        count: &WindowCount,
        standing: &Standing,
    ) -> Result<WindowCount, CloseError> {
        match self {
            Self::Redis(redis) => redis.close(grant, count, standing).await,
            Self::Standalone(standalone) => Ok(standalone.close(count)),
        }
    }

    /// Marks a window and all before it as published: every sink has them.
    pub(crate) async fn mark_published(&self, grant: &Grant, window: Window) -> Result<(), CloseError> {
        match self {
            Self::Redis(redis) => redis.mark_published(grant, window).await,
            // It would not be counted again in any case.
            Self::Standalone(_) => Ok(()),
        }
    }

    /// Whether what is counted outlives this instance, so that a window which it leaves unfinished will be closed by
    /// another one or after the next start.
    pub(crate) fn outlives_process(&self) -> bool {
        matches!(self, Self::Redis(_))
    }
}
