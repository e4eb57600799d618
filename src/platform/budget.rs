//! A budget of memory that several owners take from, each as a share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Memory of which only so much may be in use.
#[derive(Debug)]
pub(crate) struct Budget {
    used: AtomicU64,
    most: u64,
}

/// What one owner has of a [`Budget`]. It is given back when this is dropped.
#[derive(Debug)]
pub(crate) struct Share {
    budget: Arc<Budget>,
    bytes: AtomicU64,
}

impl Budget {
    pub(crate) fn new(most: u64) -> Arc<Self> {
        Arc::new(Self { used: AtomicU64::new(0), most })
    }

    /// Bytes that all shares together may have.
    pub(crate) fn most(&self) -> u64 {
        self.most
    }

    /// Bytes that all shares have.
    pub(crate) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
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
