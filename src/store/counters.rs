//! The counters of an open window: the ids of each name that clients use, within bounds.
//!
//! Finding a counter is a look-up in a map that readers do not write to (papaya), so threads do not wait for each other. Only a
//! name that is new in the window takes a lock.
//!
//! # Bounds
//!
//! A client that invents names must neither fill the memory nor push out the counters of others. So a window takes
//! `--max-counters` names, and a name that had ids in the window before keeps its place, also if it does not come. And all
//! names, sketches and sets of all windows share `--counter-memory`. An id that finds no place or no memory in one of its
//! counters is counted in `_other` instead, once. Then no count of that window's counters is called complete.

use std::collections::HashSet;
use std::hash::RandomState;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use papaya::HashMap;
use parking_lot::Mutex;
use smallvec::SmallVec;
use tracing::warn;

use super::ids::IdSet;
use crate::hll::{GrowingSketch, Observation, Sketch};
use crate::model::counter::{CounterCounts, CounterLimits, CounterNames, OTHER};
use crate::model::id::{Id, TextId};
use crate::model::mode::Mode;
use crate::model::window::Window;
use crate::platform::budget::{Budget, Share};

/// What a counter takes beside its name and ids: the entry of the map, in mode `exact` an empty set, and what the allocator adds.
const BYTES_A_COUNTER: usize = 144;
const BYTES_AN_EXACT_COUNTER: usize = 300;
/// What an exact id takes beside its bytes, at most.
const BYTES_AN_ID: usize = 56;
/// Exact ids of a counter in one set. With more it gets stripes, so that additions do not wait for each other.
const IN_ONE_SET: usize = 2048;
/// The exact ids of `_other` may have one part in so many of the memory.
const PART_OF_OTHER: u64 = 4;
/// What a name of a sealed window takes beside its bytes.
const BYTES_A_COUNT: usize = 40;

/// The counters of a window.
pub(super) struct Counters {
    window: Window,
    mode: Mode,
    most: usize,
    named: HashMap<Box<str>, CounterIds, RandomState>,
    newcomers: Mutex<Newcomers>,
    /// Set once the window is sealed. The next window knows the names by it.
    sealed: Arc<OnceLock<Arc<CounterCounts>>>,
    other: Other,
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

/// The names of the window before.
pub(super) enum Before {
    /// It had none, or is not known.
    Nothing,
    /// It was open when this window began. It may be sealed since.
    Open(Weak<Counters>, Arc<OnceLock<Arc<CounterCounts>>>),
    Sealed(Arc<CounterCounts>),
}

impl Before {
    pub(super) fn open(counters: &Arc<Counters>) -> Self {
        Self::Open(Arc::downgrade(counters), Arc::clone(&counters.sealed))
    }

    fn has(&self, name: &str) -> bool {
        match (self, self.counts()) {
            (_, Some(counts)) => counts.has(name),
            (Self::Open(open, _), None) => {
                open.upgrade().is_some_and(|open| open.named.pin().contains_key(name))
            }
            _ => false,
        }
    }

    fn names(&self) -> usize {
        match (self, self.counts()) {
            (_, Some(counts)) => counts.names(),
            (Self::Open(open, _), None) => open.upgrade().map_or(0, |open| open.named.len()),
            _ => 0,
        }
    }

    /// The counts, if the window is sealed by now.
    fn counts(&self) -> Option<&CounterCounts> {
        match self {
            Self::Nothing => None,
            Self::Open(_, sealed) => sealed.get().map(|counts| &**counts),
            Self::Sealed(counts) => Some(counts),
        }
    }
}

impl Counters {
    pub(super) fn new(
        window: Window,
        mode: Mode,
        limits: CounterLimits,
        memory: &Arc<Budget>,
        before: Before,
    ) -> Self {
        Self {
            window,
            mode,
            most: limits.most,
            named: HashMap::new(),
            newcomers: Mutex::new(Newcomers { before, new: 0 }),
            sealed: Arc::default(),
            other: Other::new(mode),
            overflow_ids: AtomicU64::new(0),
            share: memory.share(),
        }
    }

    /// Adds ids to the counters of these names. Returns how many of the ids were counted in `_other`.
    pub(super) fn add<I: Id>(&self, ids: &[I], names: &CounterNames<'_>) -> u64 {
        let known = self.named.pin();
        let (mut counters, mut all_have_a_place) =
            (SmallVec::<[&CounterIds; CounterNames::MOST]>::new(), true);
        for name in names.iter() {
            let counter = known.get(name).or_else(|| {
                let _newcomers = self.take_place(name)?;
                Some(known.get_or_insert_with(name.into(), || CounterIds::new(self.mode)))
            });
            match counter {
                Some(counter) => counters.push(counter),
                None => all_have_a_place = false,
            }
        }
        let mut overflow = 0;
        for id in ids.iter().map(AsRef::as_ref) {
            let mut is_in_all = all_have_a_place;
            for counter in &counters {
                is_in_all &= counter.add(id, &self.share);
            }
            if !is_in_all {
                self.other.add(id, &self.share);
                overflow += 1;
            }
        }
        if overflow > 0 && self.overflow_ids.fetch_add(overflow, Ordering::Relaxed) == 0 {
            warn!(
                window = %self.window,
                max_counters = self.most,
                counter_memory_bytes = self.share.budget().used(),
                "ids found no place in their counter and are counted in _other: clients use more names than \
                 --max-counters, or more memory than --counter-memory"
            );
        }
        overflow
    }

    /// Takes a place and memory for a name that has none. The caller inserts the name while it holds the returned lock. None if
    /// there is no place, or no memory.
    fn take_place(&self, name: &str) -> Option<impl Drop + use<'_>> {
        let mut newcomers = self.newcomers.lock();
        if self.named.pin().contains_key(name) {
            return Some(newcomers);
        }
        let was_there = newcomers.before.has(name);
        let has_place = was_there || newcomers.before.names() + newcomers.new < self.most;
        let bytes = match self.mode {
            Mode::Hll => BYTES_A_COUNTER,
            Mode::Exact => BYTES_AN_EXACT_COUNTER,
        };
        if !has_place || !self.share.take(bytes + name.len()) {
            return None;
        }
        newcomers.new += usize::from(!was_there);
        Some(newcomers)
    }

    /// The count of a counter so far: 0 if no id was counted in it.
    pub(super) fn count(&self, name: &str) -> u64 {
        if name == OTHER {
            self.other.count()
        } else {
            self.named.pin().get(name).map_or(0, CounterIds::count)
        }
    }

    /// The final counts. The caller has seen to it that nothing is added any more.
    pub(super) fn seal(&self) -> Arc<CounterCounts> {
        Arc::clone(self.sealed.get_or_init(|| Arc::new(self.counts())))
    }

    fn counts(&self) -> CounterCounts {
        let named = self.named.pin();
        let counts = named.iter().map(|(name, ids)| (name.clone(), ids.count()));
        let has_overflowed = self.overflow_ids.load(Ordering::Relaxed) > 0;
        let other = has_overflowed.then(|| (OTHER.into(), self.other.count()));
        // A counter without ids found a place, but no memory.
        let counts: Vec<_> = counts.filter(|(_, count)| *count > 0).chain(other).collect();
        let share = self.share.budget().share();
        share.take_anyway(counts.iter().map(|(name, _)| name.len() + BYTES_A_COUNT).sum());
        CounterCounts::new(counts, has_overflowed, share)
    }
}

/// The ids of a counter.
enum CounterIds {
    Hll(GrowingSketch),
    Exact(Box<ExactIds>),
}

impl CounterIds {
    fn new(mode: Mode) -> Self {
        match mode {
            Mode::Hll => Self::Hll(GrowingSketch::default()),
            Mode::Exact => Self::Exact(Box::default()),
        }
    }

    /// False if there is no memory for the id.
    fn add(&self, id: &[u8], share: &Share) -> bool {
        match self {
            Self::Hll(sketch) => {
                sketch.raise_within(Observation::of(id), |bytes| share.take(bytes)).is_some()
            }
            Self::Exact(ids) => ids.insert(id, share),
        }
    }

    fn count(&self) -> u64 {
        match self {
            Self::Hll(sketch) => sketch.estimate(),
            Self::Exact(ids) => ids.len(),
        }
    }
}

/// The exact ids of a counter: one set at first, stripes for good when there are many.
#[derive(Default)]
struct ExactIds {
    /// Empty once `striped` is there.
    one_set: Mutex<HashSet<TextId>>,
    striped: OnceLock<IdSet>,
}

impl ExactIds {
    /// True if the id is in the set afterwards. A new id needs memory.
    fn insert(&self, id: &[u8], share: &Share) -> bool {
        let room = || share.take(BYTES_AN_ID + id.len());
        if let Some(ids) = self.striped.get() {
            return ids.insert_if(id, room);
        }
        let mut one_set = self.one_set.lock();
        // Another thread may have made stripes meanwhile.
        if let Some(ids) = self.striped.get() {
            return ids.insert_if(id, room);
        }
        if one_set.contains(id) {
            return true;
        }
        if one_set.len() < IN_ONE_SET {
            return room() && one_set.insert(id.into());
        }
        if !share.take(IdSet::BYTES) {
            return false;
        }
        let ids = self.striped.get_or_init(|| IdSet::from_ids(one_set.drain()));
        *one_set = HashSet::new();
        ids.insert_if(id, room)
    }

    fn len(&self) -> u64 {
        let one_set = self.one_set.lock();
        self.striped.get().map_or(one_set.len() as u64, IdSet::len)
    }
}

/// The ids of `_other`. It is made with the window. In mode `hll` it never needs more memory. In mode `exact` it may have a part
/// of the memory: otherwise invented names would leave none to the counters that are known.
enum Other {
    Hll(Sketch),
    Exact { ids: IdSet, bytes: AtomicU64 },
}

impl Other {
    fn new(mode: Mode) -> Self {
        match mode {
            Mode::Hll => Self::Hll(Sketch::new()),
            Mode::Exact => Self::Exact { ids: IdSet::new(), bytes: AtomicU64::new(0) },
        }
    }

    /// An exact id for which there is no memory is left out. No count of the window is called complete then.
    fn add(&self, id: &[u8], share: &Share) {
        match self {
            Self::Hll(sketch) => {
                sketch.add(id);
            }
            Self::Exact { ids, bytes } => {
                ids.insert_if(id, || {
                    let more = BYTES_AN_ID + id.len();
                    let is_within = bytes.load(Ordering::Relaxed) < share.budget().most() / PART_OF_OTHER;
                    let has_room = is_within && share.take(more);
                    if has_room {
                        bytes.fetch_add(more as u64, Ordering::Relaxed);
                    }
                    has_room
                });
            }
        }
    }

    fn count(&self) -> u64 {
        match self {
            Self::Hll(sketch) => sketch.estimate(),
            Self::Exact { ids, .. } => ids.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::counter::CounterName;
    use crate::model::id::IntegerId;
    use crate::model::window::WindowLength;

    /// Eight threads add to one counter, while its sketch grows from a list to registers.
    #[test]
    fn a_counter_has_the_registers_of_its_ids() {
        const THREADS: u64 = 8;
        let window = "10s".parse::<WindowLength>().unwrap().starting_at(0);
        let limits = CounterLimits { most: 10, memory: 1 << 20 };
        for ids in [1, 100, 5_000, 50_000] {
            let memory = Budget::new(limits.memory);
            let counters = Counters::new(window, Mode::Hll, limits, &memory, Before::Nothing);
            let mut names = CounterNames::default();
            names.add(CounterName::parse("one".into()).unwrap()).unwrap();
            std::thread::scope(|scope| {
                for thread in 0..THREADS {
                    let (counters, names) = (&counters, &names);
                    scope.spawn(move || {
                        for id in (0..ids).filter(|id| id % THREADS == thread || id % 3 == 0) {
                            assert_eq!(counters.add(&[IntegerId::from(id)], names), 0);
                        }
                    });
                }
            });
            let expected = Sketch::new();
            for id in 0..ids {
                expected.add(id.to_string().as_bytes());
            }
            let all = counters.named.pin();
            let Some(CounterIds::Hll(sketch)) = all.get("one") else { panic!("a sketch") };
            assert_eq!(sketch.to_bytes(), expected.to_bytes(), "{ids} ids");
            assert_eq!(sketch.estimate(), expected.estimate());
        }
    }
}
