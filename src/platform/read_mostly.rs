//! A lock for what is read all the time and written now and then.

use std::sync::PoisonError;

use crossbeam_utils::sync::{ShardedLock, ShardedLockReadGuard, ShardedLockWriteGuard};

/// A readers-writer lock whose readers do not meet: each thread has a lock of its own, and who writes takes them all.
///
/// With a single lock every reader writes to it, and its cache line goes from core to core with every request. There is no
/// poison: what is behind these locks is whole after every step.
#[derive(Default)]
pub struct ReadMostly<T>(ShardedLock<T>);

impl<T> ReadMostly<T> {
    /// Many at a time.
    pub fn read(&self) -> ShardedLockReadGuard<'_, T> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// One, and nobody reads.
    pub fn write(&self) -> ShardedLockWriteGuard<'_, T> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}
