//! How many requests to the API are handled at a time.

use tokio::sync::{Semaphore, SemaphorePermit};

use super::HttpArgs;
use super::error::Failure;

/// Bounds the requests that wait for the counter.
///
/// It is for a counter that is slow: what waits takes memory, and who waits for long is better told to
/// come back. A body that is still coming does not count, because then whoever sends slowly could keep
/// out all others; bodies have a bound of their own.
pub(super) struct InFlight(Semaphore);

impl InFlight {
    pub(super) fn new(limits: &HttpArgs) -> Self {
        Self(Semaphore::new(limits.max_in_flight as usize))
    }

    /// A place for a request, until it is dropped. Nobody waits for one.
    ///
    /// # Errors
    ///
    /// [`Failure::Overloaded`] when there is none.
    pub(super) fn enter(&self) -> Result<SemaphorePermit<'_>, Failure> {
        self.0.try_acquire().map_err(|_| Failure::Overloaded)
    }
}
