//! The ids of a window, which many threads add to.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};

use parking_lot::Mutex;

use crate::hll::Sketch;
use crate::model::id::TextId;
use crate::model::mode::Mode;
use crate::model::shard::Shards;

/// Ids as a mode remembers them.
pub(super) enum Ids {
    /// A sketch for each shard.
    Hll { shards: Shards, sketches: Box<[Sketch]> },
    /// One set, whatever `--shards` says: it has no error that shards could make smaller.
    Exact(IdSet),
}

impl Ids {
    pub(super) fn new(mode: Mode, shards: Shards) -> Self {
        match mode {
            Mode::Hll => Self::Hll { shards, sketches: (0..shards.count()).map(|_| Sketch::new()).collect() },
            Mode::Exact => Self::Exact(IdSet::new()),
        }
    }

    /// Adds ids. Returns how many changed anything.
    pub(super) fn add(&self, ids: &[impl AsRef<[u8]>]) -> usize {
        let ids = ids.iter().map(AsRef::as_ref);
        match self {
            // Most services have one shard: then no id needs a look-up.
            Self::Hll { sketches, .. } if sketches.len() == 1 => {
                let sketch = &sketches[0];
                ids.filter(|id| sketch.add(id)).count()
            }
            Self::Hll { shards, sketches } => ids.filter(|id| sketches[shards.of(id)].add(id)).count(),
            Self::Exact(set) => ids.filter(|id| set.insert(id)).count(),
        }
    }

    pub(super) fn count(&self) -> u64 {
        match self {
            Self::Hll { sketches, .. } => sketches.iter().map(Sketch::estimate).sum(),
            Self::Exact(ids) => ids.len(),
        }
    }
}

/// A set of ids in stripes with a lock each. A keyed hash chooses the stripe of an id, so that clients cannot choose ids
/// that collide.
///
/// Stripes also keep each set small: a set that grows moves all its ids, and other additions to it wait. An id takes
/// 25 to 55 bytes, or 75 to 110 if it is long.
pub(super) struct IdSet {
    hasher: RandomState,
    stripes: Box<[Mutex<HashSet<TextId>>]>,
}

impl IdSet {
    const STRIPES: usize = 256;
    /// What an empty set takes.
    pub(super) const BYTES: usize = Self::STRIPES * size_of::<Mutex<HashSet<TextId>>>();

    pub(super) fn from_ids(ids: impl Iterator<Item = TextId>) -> Self {
        let set = Self::new();
        for id in ids {
            set.stripe(id.as_bytes()).lock().insert(id);
        }
        set
    }

    pub(super) fn new() -> Self {
        let stripes = (0..Self::STRIPES).map(|_| Mutex::default()).collect();
        Self { hasher: RandomState::new(), stripes }
    }

    /// True when the id is new.
    pub(super) fn insert(&self, id: &[u8]) -> bool {
        self.stripe(id).lock().insert(id.into())
    }

    pub(super) fn contains(&self, id: &[u8]) -> bool {
        self.stripe(id).lock().contains(id)
    }

    /// Adds an id. A new id needs `room`. True when the id is in the set afterwards.
    pub(super) fn insert_if(&self, id: &[u8], room: impl FnOnce() -> bool) -> bool {
        let mut ids = self.stripe(id).lock();
        ids.contains(id) || room() && ids.insert(id.into())
    }

    /// All ids, copied a stripe at a time.
    pub(super) fn stripes(&self) -> impl Iterator<Item = Vec<TextId>> {
        self.stripes.iter().map(|stripe| stripe.lock().iter().cloned().collect())
    }

    /// Removes ids. Returns how many were in the set.
    pub(super) fn remove<'a>(&self, ids: impl Iterator<Item = &'a TextId>) -> u64 {
        ids.filter(|id| self.remove_one(id.as_bytes())).count() as u64
    }

    fn remove_one(&self, id: &[u8]) -> bool {
        let mut ids = self.stripe(id).lock();
        let was_in = ids.remove(id);
        if ids.is_empty() {
            // A set does not give its memory back by itself.
            *ids = HashSet::new();
        }
        was_in
    }

    /// Returns some ids of the set that are wanted, at most so many.
    pub(super) fn some(&self, most: usize, is_wanted: impl Fn(&[u8]) -> bool) -> Vec<TextId> {
        let mut some = Vec::new();
        for ids in &self.stripes {
            let ids = ids.lock();
            let wanted = ids.iter().filter(|id| is_wanted(id.as_bytes()));
            some.extend(wanted.take(most - some.len()).cloned());
            if some.len() == most {
                break;
            }
        }
        some
    }

    pub(super) fn len(&self) -> u64 {
        self.stripes.iter().map(|ids| ids.lock().len() as u64).sum()
    }

    fn stripe(&self, id: &[u8]) -> &Mutex<HashSet<TextId>> {
        &self.stripes[self.hasher.hash_one(id) as usize % Self::STRIPES]
    }
}
