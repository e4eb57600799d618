//! The term: the right to close and publish windows.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The right to close and publish windows, until a moment that each renewal of the lease moves on. Clones are the same
/// term.
#[derive(Debug, Clone)]
pub struct Term {
    token: u64,
    /// None for a term that never ends.
    life: Option<Arc<Life>>,
}

#[derive(Debug)]
struct Life {
    until: Mutex<Instant>,
    /// Cancelled to release the lease early: another instance publishes to a sink.
    given_up: CancellationToken,
}

impl Term {
    /// For a standalone instance.
    pub fn for_ever() -> Self {
        Self { token: 0, life: None }
    }

    /// A term until this moment, unless it is extended.
    pub fn until(token: u64, until: Instant) -> Self {
        let (until, given_up) = (Mutex::new(until), CancellationToken::new());
        Self { token, life: Some(Arc::new(Life { until, given_up })) }
    }

    /// The fencing token.
    pub fn token(&self) -> u64 {
        self.token
    }

    /// Whether it is certain that no other instance has a term.
    pub fn is_valid(&self) -> bool {
        let is_valid =
            |life: &Arc<Life>| !life.given_up.is_cancelled() && Instant::now() < *life.until.lock();
        self.life.as_ref().is_none_or(is_valid)
    }

    /// Whether it can end: the term of a standalone instance cannot.
    pub fn can_end(&self) -> bool {
        self.life.is_some()
    }

    /// Moves its end.
    pub fn extend(&self, to: Instant) {
        if let Some(life) = &self.life {
            *life.until.lock() = to;
        }
    }

    /// Ends it.
    pub fn revoke(&self) {
        self.extend(Instant::now());
    }

    /// Ends it although the lease could be renewed, so that another instance can lead.
    pub fn give_up(&self) {
        if let Some(life) = &self.life {
            life.given_up.cancel();
        }
    }

    /// Waits until it is given up.
    pub async fn given_up(&self) {
        match &self.life {
            Some(life) => life.given_up.cancelled().await,
            None => std::future::pending().await,
        }
    }

    /// Whether it was given up.
    pub fn is_given_up(&self) -> bool {
        self.life.as_ref().is_some_and(|life| life.given_up.is_cancelled())
    }
}
