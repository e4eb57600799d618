//! How many requests to the API wait for the counter at a time.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::http::error::Failure;
use crate::http::settings::Settings;

/// Bounds the requests that wait for the counter.
///
/// It is for a counter that is slow: what waits takes memory, and who waits for long is better told to
/// come back. A request that does not wait, as none does for a counter in memory, takes no place; nor does a body that is
/// still coming, because then a client that sends slowly could keep out all others. Bodies have a bound of their own.
pub(super) struct InFlight {
    waiting: AtomicUsize,
    most: usize,
}

/// That of a request that waits, until it is dropped.
pub(super) struct Place<'a>(&'a InFlight);

impl InFlight {
    pub(super) fn new(limits: &Settings) -> Self {
        Self { waiting: AtomicUsize::new(0), most: limits.max_in_flight as usize }
    }

    /// Lets a request on, if there is a place. It takes one when it has to wait: as many more than there are places may wait
    /// in the end as there are threads.
    ///
    /// # Errors
    ///
    /// [`Failure::Overloaded`] when there is none.
    pub(super) fn admit(&self) -> Result<(), Failure> {
        if self.waiting.load(Ordering::Relaxed) < self.most { Ok(()) } else { Err(Failure::Overloaded) }
    }

    /// Takes a place.
    pub(super) fn wait(&self) -> Place<'_> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Place(self)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}
