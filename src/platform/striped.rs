//! What all threads write and nobody reads often: a part for each thread.
//!
//! A counter that two cores add to in turn is a cache line that goes to and fro between them, at some fifty
//! nanoseconds a time; a request would pay that for each counter that it touches. Here each thread adds to a line of its own, and
//! whoever wants to know the sum adds up.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crossbeam_utils::CachePadded;

use crate::platform::workers::cores;

/// Parts a core: threads are numbered as they come, and those that are busy should not meet.
const STRIPES_A_CORE: usize = 4;
const MOST_STRIPES: usize = 256;

fn stripes() -> usize {
    static STRIPES: LazyLock<usize> =
        LazyLock::new(|| (cores() * STRIPES_A_CORE).next_power_of_two().min(MOST_STRIPES));
    *STRIPES
}

/// A part for each thread; two may have the same one.
pub struct Striped<T>(Box<[CachePadded<T>]>);

impl<T: Default> Striped<T> {
    /// All parts as they are by default.
    pub fn new() -> Self {
        Self((0..stripes()).map(|_| CachePadded::default()).collect())
    }
}

impl<T> Striped<T> {
    /// The part of this thread.
    pub fn mine(&self) -> &T {
        static THREADS: AtomicUsize = AtomicUsize::new(0);
        thread_local! {
            static NUMBER: usize = THREADS.fetch_add(1, Ordering::Relaxed);
        }
        // Their number is a power of two.
        &self.0[NUMBER.with(|number| *number) & (self.0.len() - 1)]
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|stripe| &**stripe)
    }
}

impl<T: Default> Default for Striped<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// A sum that all threads add to.
#[derive(Default)]
pub struct StripedSum(Striped<AtomicU64>);

impl StripedSum {
    /// What one takes in memory, in bytes.
    pub fn bytes() -> usize {
        stripes() * size_of::<CachePadded<AtomicU64>>()
    }

    /// Adds to it; another thread that is told so will see it.
    pub fn add(&self, number: u64) {
        if number > 0 {
            self.0.mine().fetch_add(number, Ordering::Relaxed);
        }
    }

    /// What it is, but for what is just being added.
    pub fn get(&self) -> u64 {
        self.0.all().map(|part| part.load(Ordering::Relaxed)).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn nothing_is_lost_between_threads() {
        let sum = StripedSum::default();
        thread::scope(|scope| {
            for _ in 0..50 {
                scope.spawn(|| (0..1000).for_each(|number| sum.add(number % 3)));
            }
        });
        assert_eq!(sum.get(), 50 * 999);
    }
}
