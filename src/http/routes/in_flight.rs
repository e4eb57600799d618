//! The limit of requests to the API that wait for the store.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::http::error::Failure;
use crate::http::settings::Settings;

/// Bounds the requests that wait for the store.
///
/// A waiting request takes memory. When the store is slow, a client should rather get 503 and come back than wait for
/// long. A request that does not wait takes no permit; with a store in memory none waits. A body that is still arriving
/// takes no permit either: otherwise slow senders could keep out all others. Bodies have their own limit.
pub(super) struct InFlight {
    waiting: AtomicUsize,
    most: usize,
}

/// The permit of a request that waits. Dropping it returns it.
pub(super) struct Permit<'a>(&'a InFlight);

impl InFlight {
    pub(super) fn new(limits: &Settings) -> Self {
        Self { waiting: AtomicUsize::new(0), most: limits.max_in_flight as usize }
    }

    /// Checks that a permit is free. A request takes it only when it has to wait. Check and increment are not atomic:
    /// each thread may exceed the limit by one.
    ///
    /// # Errors
    ///
    /// [`Failure::Overloaded`] when no permit is free.
    pub(super) fn admit(&self) -> Result<(), Failure> {
        if self.waiting.load(Ordering::Relaxed) < self.most { Ok(()) } else { Err(Failure::Overloaded) }
    }

    /// Takes a permit.
    pub(super) fn wait(&self) -> Permit<'_> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Permit(self)
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}
