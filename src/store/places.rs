//! The places of counters in an open window: which names have one, within bounds.
//!
//! Finding a counter is a look-up in a map that readers do not write to (papaya), so threads do not wait for each other. Only a
//! name that is new in the window takes a lock.
//!
//! # Bounds
//!
//! A client that invents names must neither fill the memory nor push out the counters of others. So a window takes
//! `--max-counters` names, and a name that had ids in the window before keeps its place, also if it does not come. And all
//! names, sketches and sets of all windows share `--counter-memory`. An id that finds no place or no memory in one of its
//! counters is counted in `_other` instead, once; in mode `exact` as long as `_other` has memory. Then no count of that window's
//! counters is called complete.

use std::collections::HashSet;
use std::hash::RandomState;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use papaya::HashMap;
use parking_lot::Mutex;
use smallvec::SmallVec;
use tracing::warn;

use crate::model::counter::{CounterCounts, CounterNames};
use crate::model::window::Window;
use crate::platform::budget::{Budget, Share};
use crate::platform::pace::Pace;

/// Names, and what a store has of each.
pub(super) struct Places<C> {
    window: Window,
    most: usize,
    named: HashMap<Box<str>, C, RandomState>,
    newcomers: Mutex<Newcomers>,
    /// Set once the window is sealed. The next window knows the names by it.
    sealed: Arc<OnceLock<Arc<dyn Names>>>,
    /// Ids that were counted in `_other`.
    overflow_ids: AtomicU64,
    share: Share,
}

/// What a name that is new in the window needs to know.
struct Newcomers {
    before: Before,
    /// Names of this window that the window before did not have.
    new: usize,
}

/// The names that a window had.
pub(super) trait Names: Send + Sync {
    fn has(&self, name: &str) -> bool;
    fn count(&self) -> usize;
}

impl Names for CounterCounts {
    fn has(&self, name: &str) -> bool {
        CounterCounts::has(self, name)
    }

    fn count(&self) -> usize {
        self.names()
    }
}

impl Names for HashSet<Box<str>> {
    fn has(&self, name: &str) -> bool {
        self.contains(name)
    }

    fn count(&self) -> usize {
        self.len()
    }
}

impl<C: Send + Sync> Names for Places<C> {
    fn has(&self, name: &str) -> bool {
        self.named.pin().contains_key(name)
    }

    fn count(&self) -> usize {
        self.named.len()
    }
}

/// The names of the window before.
pub(super) enum Before {
    /// It had none, or is not known.
    Nothing,
    /// It was open when this window began. It may be sealed since.
    Open(Weak<dyn Names>, Arc<OnceLock<Arc<dyn Names>>>),
    Sealed(Arc<dyn Names>),
}

impl Before {
    pub(super) fn open<C: Send + Sync + 'static>(places: &Arc<Places<C>>) -> Self {
        let open: Arc<dyn Names> = Arc::clone(places) as _;
        Self::Open(Arc::downgrade(&open), Arc::clone(&places.sealed))
    }

    fn has(&self, name: &str) -> bool {
        self.names().is_some_and(|names| names.has(name))
    }

    fn count(&self) -> usize {
        self.names().map_or(0, |names| names.count())
    }

    fn names(&self) -> Option<Arc<dyn Names>> {
        match self {
            Self::Nothing => None,
            Self::Open(open, sealed) => sealed.get().cloned().or_else(|| open.upgrade()),
            Self::Sealed(names) => Some(Arc::clone(names)),
        }
    }
}

/// The names of the last sealed window. They keep their places in the next one, even after their window is evicted.
#[derive(Default)]
pub(super) struct LastNames(Mutex<Option<(Window, Arc<dyn Names>)>>);

impl LastNames {
    /// Notes that a window is sealed, with these names.
    pub(super) fn note(&self, window: Window, names: Arc<dyn Names>) {
        *self.0.lock() = Some((window, names));
    }

    /// Forgets names of windows before this one. Only the next window needs the names of a window.
    pub(super) fn forget_before(&self, window: Window) {
        self.0.lock().take_if(|(last, _)| *last < window);
    }

    /// The names before a window, if the one before it is the last sealed one. If it is sealed at all, it is: a later one would be
    /// this window.
    pub(super) fn before(&self, window: Window) -> Before {
        match &*self.0.lock() {
            Some((last, names)) if *last == window.previous() => Before::Sealed(Arc::clone(names)),
            _ => Before::Nothing,
        }
    }
}

impl<C: Send + Sync> Places<C> {
    pub(super) fn new(window: Window, most: usize, memory: &Arc<Budget>, before: Before) -> Self {
        Self {
            window,
            most,
            named: HashMap::new(),
            newcomers: Mutex::new(Newcomers { before, new: 0 }),
            sealed: Arc::default(),
            overflow_ids: AtomicU64::new(0),
            share: memory.share(),
        }
    }

    /// The memory that the counters take.
    pub(super) fn share(&self) -> &Share {
        &self.share
    }

    /// Looks up counters. A name without a place gets one if there is one, and memory for it: so many `bytes`. `then`
    /// gets those that have a place, and whether all have.
    pub(super) fn with<T>(
        &self,
        names: &CounterNames<'_>,
        bytes: impl Fn(&str) -> usize,
        make: impl Fn(&str) -> C,
        then: impl FnOnce(&[&C], bool) -> T,
    ) -> T {
        let known = self.named.pin();
        let (mut counters, mut all_have_a_place) = (SmallVec::<[&C; CounterNames::MOST]>::new(), true);
        for name in names.iter() {
            let counter = known.get(name).or_else(|| {
                let _newcomers = self.take_place(name, bytes(name))?;
                Some(known.get_or_insert_with(name.into(), || make(name)))
            });
            match counter {
                Some(counter) => counters.push(counter),
                None => all_have_a_place = false,
            }
        }
        then(&counters, all_have_a_place)
    }

    /// Takes a place and memory for a name that has none. The caller inserts the name while it holds the returned lock. None if
    /// there is no place, or no memory.
    fn take_place(&self, name: &str, bytes: usize) -> Option<impl Drop + use<'_, C>> {
        let mut newcomers = self.newcomers.lock();
        if self.named.pin().contains_key(name) {
            return Some(newcomers);
        }
        let was_there = newcomers.before.has(name);
        let has_place = was_there || newcomers.before.count() + newcomers.new < self.most;
        if !has_place || !self.share.take(bytes) {
            return None;
        }
        newcomers.new += usize::from(!was_there);
        Some(newcomers)
    }

    /// Notes ids that were counted in `_other`. The first ones of the window are logged.
    pub(super) fn note_overflow(&self, ids: u64) {
        if ids > 0 && self.overflow_ids.fetch_add(ids, Ordering::Relaxed) == 0 {
            warn!(
                window = %self.window,
                max_counters = self.most,
                counter_memory_bytes = self.share.budget().used(),
                "ids found no place in their counter and are counted in _other: clients use more names than \
                 --max-counters, or more memory than --counter-memory"
            );
        }
    }

    pub(super) fn overflow_ids(&self) -> u64 {
        self.overflow_ids.load(Ordering::Relaxed)
    }

    /// The counter of a name, if it has a place.
    pub(super) fn get<T>(&self, name: &str, read: impl FnOnce(&C) -> T) -> Option<T> {
        self.named.pin().get(name).map(read)
    }

    /// The counters of some names: none for one that has no place.
    pub(super) fn with_some<T>(&self, names: &[&str], read: impl FnOnce(&[Option<&C>]) -> T) -> T {
        let all = self.named.pin();
        let some: Vec<_> = names.iter().map(|name| all.get(*name)).collect();
        read(&some)
    }

    /// Reads all counters, in any order.
    pub(super) fn all<T>(&self, mut read: impl FnMut(&str, &C) -> Option<T>) -> Vec<T> {
        self.named.pin().iter().filter_map(|(name, counter)| read(name, counter)).collect()
    }

    /// Frees the counters of these names, slowly: an allocator that is busy holds up threads that serve requests.
    pub(super) fn free<'a>(&self, names: impl Iterator<Item = &'a str>) {
        let mut pace = Pace::new();
        for name in names {
            pace.step();
            self.named.pin().remove(name);
        }
    }

    /// Notes the names with which the window was sealed.
    pub(super) fn note_sealed(&self, names: Arc<dyn Names>) {
        // It may be sealed again, with the same names.
        let _ = self.sealed.set(names);
    }
}
