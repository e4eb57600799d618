//! The grant: the right to close and publish windows.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The right to close and publish windows, until a moment that is moved on as long as the lease is renewed.
/// Clones are the same grant.
#[derive(Debug, Clone)]
pub struct Grant {
    token: u64,
    /// None: for ever.
    term: Option<Arc<Term>>,
}

#[derive(Debug)]
struct Term {
    until: Mutex<Instant>,
    /// Somebody else publishes: the lease is not worth having.
    given_up: CancellationToken,
}

impl Grant {
    /// For a process that is alone.
    pub fn for_ever() -> Self {
        Self { token: 0, term: None }
    }

    /// Until a moment.
    pub fn until(token: u64, until: Instant) -> Self {
        let (until, given_up) = (Mutex::new(until), CancellationToken::new());
        Self { token, term: Some(Arc::new(Term { until, given_up })) }
    }

    /// The fencing token.
    pub fn token(&self) -> u64 {
        self.token
    }

    /// Whether it is certain that nobody else has one.
    pub fn is_valid(&self) -> bool {
        let is_valid =
            |term: &Arc<Term>| !term.given_up.is_cancelled() && Instant::now() < *term.until.lock();
        self.term.as_ref().is_none_or(is_valid)
    }

    /// Whether it can end: that of a process that is alone cannot.
    pub fn can_end(&self) -> bool {
        self.term.is_some()
    }

    /// Moves its end on.
    pub fn extend(&self, to: Instant) {
        if let Some(term) = &self.term {
            *term.until.lock() = to;
        }
    }

    /// Ends it.
    pub fn revoke(&self) {
        self.extend(Instant::now());
    }

    /// Ends it although Redis would go on granting it: others are to have the lease.
    pub fn give_up(&self) {
        if let Some(term) = &self.term {
            term.given_up.cancel();
        }
    }

    /// Waits until it is given up.
    pub async fn given_up(&self) {
        match &self.term {
            Some(term) => term.given_up.cancelled().await,
            None => std::future::pending().await,
        }
    }

    /// Whether it was given up.
    pub fn is_given_up(&self) -> bool {
        self.term.as_ref().is_some_and(|term| term.given_up.is_cancelled())
    }
}
