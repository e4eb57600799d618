//! A set of ids that many threads add to.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};

use parking_lot::Mutex;

use crate::model::id::Id;

/// A set of ids in [`IdSet::STRIPES`] parts with a lock each. An id's stripe is chosen by its hash, which is
/// keyed: nobody can choose ids that collide.
///
/// Stripes also keep every single set small: one that grows moves all it has, and whoever wants in waits.
/// An id takes 25 to 50 bytes.
pub(super) struct IdSet {
    hasher: RandomState,
    stripes: Box<[Mutex<HashSet<Id>>]>,
}

impl IdSet {
    /// How many parts there are.
    pub(super) const STRIPES: usize = 256;

    /// An empty set.
    pub(super) fn new() -> Self {
        let stripes = (0..Self::STRIPES).map(|_| Mutex::default()).collect();
        Self { hasher: RandomState::new(), stripes }
    }

    /// Adds an id; true when it is new.
    pub(super) fn insert(&self, id: &Id) -> bool {
        self.stripe(id).lock().insert(*id)
    }

    /// Adds an id unless it is new and there is no `room` for it; true when it is in.
    pub(super) fn insert_if(&self, id: &Id, room: impl FnOnce() -> bool) -> bool {
        let mut ids = self.stripe(id).lock();
        ids.contains(id) || room() && ids.insert(*id)
    }

    /// Takes ids out; how many of them were in.
    pub(super) fn remove(&self, ids: &[Id]) -> u64 {
        ids.iter().filter(|id| self.remove_one(id)).count() as u64
    }

    fn remove_one(&self, id: &Id) -> bool {
        let mut ids = self.stripe(id).lock();
        let was_in = ids.remove(id);
        if ids.is_empty() {
            // A set does not give its memory back by itself.
            *ids = HashSet::new();
        }
        was_in
    }

    /// The ids of a part, as they are now.
    pub(super) fn stripe_of(&self, number: usize) -> Vec<Id> {
        self.stripes[number].lock().iter().copied().collect()
    }

    /// How many ids are in.
    pub(super) fn len(&self) -> u64 {
        self.stripes.iter().map(|ids| ids.lock().len() as u64).sum()
    }

    fn stripe(&self, id: &Id) -> &Mutex<HashSet<Id>> {
        &self.stripes[self.hasher.hash_one(id) as usize % Self::STRIPES]
    }
}
