//! A budget of memory that several owners take from, each as a share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::task::spawn_blocking;

use super::allocator;

/// What the allocator may keep after a peak.
const MAY_KEEP: u64 = 64 << 20;

/// Memory of which only so much may be in use.
#[derive(Debug)]
pub(crate) struct Budget {
    used: AtomicU64,
    most: u64,
    /// The most that was seen in use at the end of a window, since the allocator gave memory back.
    peak: AtomicU64,
}

/// What one owner has of a [`Budget`]. It is given back when this is dropped.
#[derive(Debug)]
pub(crate) struct Share {
    budget: Arc<Budget>,
    bytes: AtomicU64,
}

impl Budget {
    pub(crate) fn new(most: u64) -> Arc<Self> {
        Arc::new(Self { used: AtomicU64::new(0), most, peak: AtomicU64::new(0) })
    }

    /// Bytes that all shares together may have.
    pub(crate) fn most(&self) -> u64 {
        self.most
    }

    /// Bytes that all shares have.
    pub(crate) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Makes the allocator give memory back to the system, if far less is used than before. For the end of a window, when most
    /// is used: memory that the next window will need again is best kept.
    pub(crate) fn give_back_after_peak(&self) {
        if self.is_after_peak() {
            // It takes a while, and nobody waits for it.
            drop(spawn_blocking(allocator::give_back));
        }
    }

    fn is_after_peak(&self) -> bool {
        let used = self.used();
        let peak = self.peak.fetch_max(used, Ordering::Relaxed);
        let is_after = used <= peak / 2 && used + MAY_KEEP <= peak;
        if is_after {
            self.peak.store(used, Ordering::Relaxed);
        }
        is_after
    }

    /// A share that has nothing yet.
    pub(crate) fn share(self: &Arc<Self>) -> Share {
        Share { budget: Arc::clone(self), bytes: AtomicU64::new(0) }
    }
}

impl Share {
    /// Takes memory, if there is so much.
    pub(crate) fn take(&self, bytes: usize) -> bool {
        let bytes = bytes as u64;
        let more = |used: u64| Some(used + bytes).filter(|used| *used <= self.budget.most);
        let taken = self.budget.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok();
        if taken {
            self.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        taken
    }

    /// Takes memory even beyond the limit, for what replaces something larger that is given back next.
    pub(crate) fn take_anyway(&self, bytes: usize) {
        self.budget.used.fetch_add(bytes as u64, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Gives back memory that was taken.
    pub(crate) fn give(&self, bytes: usize) {
        self.budget.used.fetch_sub(bytes as u64, Ordering::Relaxed);
        self.bytes.fetch_sub(bytes as u64, Ordering::Relaxed);
    }

    /// Gives back all memory.
    pub(crate) fn give_all(&self) {
        self.budget.used.fetch_sub(self.bytes.swap(0, Ordering::Relaxed), Ordering::Relaxed);
    }

    pub(crate) fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(*self.bytes.get_mut(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peak_is_over_once_and_not_while_windows_need_as_much_again() {
        let budget = Budget::new(u64::MAX);
        let mut at_the_end_with = |bytes: u64| {
            let share = budget.share();
            share.take_anyway(bytes as usize);
            budget.is_after_peak()
        };
        let peak = 10 * MAY_KEEP;
        assert_eq!([peak, peak, peak / 2 + 1].map(&mut at_the_end_with), [false; 3], "about as much");
        assert_eq!([peak / 2, peak / 2, 0].map(&mut at_the_end_with), [true, false, true], "far less");
        assert_eq!([MAY_KEEP - 1, 0].map(&mut at_the_end_with), [false; 2], "too little to bother");
    }
}
