//! The counters of an open window in memory: the ids of each name that clients use. [`places`](super::places) has the bounds.

use std::cmp::Reverse;
use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use super::answers::{Compared, lookups, pairs};
use super::counter_history::{BYTES_AN_ENTRY, CounterSketches};
use super::ids::IdSet;
use super::places::{Before, Places};
use crate::hll::{GrowingSketch, Observation, Sketch};
use crate::model::counter::{CounterCount, CounterCounts, CounterLimits, CounterNames, OTHER};
use crate::model::id::{Id, TextId};
use crate::model::mode::Mode;
use crate::model::window::Window;
use crate::platform::budget::{Budget, Share};
use crate::platform::pace::Pace;

/// What a counter takes beside its name and ids: the entry of the map, in mode `exact` an empty set, and what the allocator adds.
const BYTES_A_COUNTER: usize = 144;
const BYTES_AN_EXACT_COUNTER: usize = 300;
/// What an exact id takes beside its bytes, at most.
const BYTES_AN_ID: usize = 56;
/// Exact ids of a counter in one set. With more it gets stripes, so that additions do not wait for each other.
const IN_ONE_SET: usize = 2048;
/// The exact ids of `_other` may have one part in so many of the memory.
const PART_OF_OTHER: u64 = 4;
/// Ids that are looked up for a comparison, at most: some seconds of one thread.
const MOST_LOOKUPS: u64 = 10_000_000;
/// Why counters of a sealed window are not compared.
pub(super) const OVER: &str = "without Redis, mode exact keeps no ids of a window that is over";
/// What a name of a sealed window takes beside its bytes.
const BYTES_A_COUNT: usize = 48;

/// The counters of a window.
pub(super) struct Counters {
    mode: Mode,
    places: Arc<Places<CounterIds>>,
    sealed: OnceLock<Arc<CounterCounts>>,
    other: Other,
}

impl Counters {
    pub(super) fn new(
        window: Window,
        mode: Mode,
        limits: CounterLimits,
        memory: &Arc<Budget>,
        before: Before,
    ) -> Self {
        let places = Arc::new(Places::new(window, limits.most, memory, before));
        Self { mode, places, sealed: OnceLock::new(), other: Other::new(mode) }
    }

    /// The names, for the next window.
    pub(super) fn as_before(&self) -> Before {
        Before::open(&self.places)
    }

    /// Adds ids to the counters of these names. Returns how many of the ids were counted in `_other`.
    pub(super) fn add<I: Id>(&self, ids: &[I], names: &CounterNames<'_>) -> u64 {
        let bytes_beside = match self.mode {
            Mode::Hll => BYTES_A_COUNTER,
            Mode::Exact => BYTES_AN_EXACT_COUNTER,
        };
        let bytes = |name: &str| bytes_beside + name.len();
        let share = self.places.share();
        let overflow = self.places.with(
            names,
            bytes,
            |_| CounterIds::new(self.mode),
            |counters, all_have_a_place| {
                let is_in_all = |id: &&[u8]| {
                    // In each of those that there are, even if one has no memory.
                    counters
                        .iter()
                        .fold(all_have_a_place, |is_in_all, counter| counter.add(id, share) && is_in_all)
                };
                let overflow = ids.iter().map(AsRef::as_ref).filter(|id| !is_in_all(id));
                overflow.map(|id| self.other.add(id, share)).count() as u64
            },
        );
        self.places.note_overflow(overflow);
        overflow
    }

    /// Merges a sketch into the counters of these names, in mode `hll`. Returns how many of its ids were counted in `_other`: none or
    /// all.
    pub(super) fn import(&self, sketch: &Sketch, names: &CounterNames<'_>) -> u64 {
        let bytes = |name: &str| BYTES_A_COUNTER + name.len();
        let share = self.places.share();
        let make = |_: &str| CounterIds::new(self.mode);
        let is_in_all = self.places.with(names, bytes, make, |counters, all_have_a_place| {
            counters
                .iter()
                .fold(all_have_a_place, |is_in_all, counter| counter.import(sketch, share) && is_in_all)
        });
        if is_in_all {
            return 0;
        }
        if let Other::Hll(other) = &self.other {
            other.merge(sketch);
        }
        let overflow = sketch.estimate();
        self.places.note_overflow(overflow);
        overflow
    }

    /// The count of a counter so far: 0 if no id was counted in it.
    pub(super) fn count(&self, name: &str) -> u64 {
        if name == OTHER {
            return self.other.count();
        }
        // A reader that found the window open may come when the counters are freed.
        let count = self.places.get(name, CounterIds::count);
        count.or_else(|| self.sealed.get().map(|counts| counts.get(name))).unwrap_or_default()
    }

    /// What counters have in common so far, in mode `exact`.
    pub(super) fn compare(&self, names: &[&str]) -> Compared {
        self.places.with_some(names, |found| {
            // A seal frees the counters after it has noted their counts.
            if self.sealed.get().is_some() {
                return Compared::Not(OVER);
            }
            let sets = names.iter().zip(found).map(|(name, found)| match (found, &self.other) {
                (_, Other::Exact { ids, .. }) if *name == OTHER => Some(Exactly::Striped(ids)),
                (Some(CounterIds::Exact(ids)), _) => Some(Exactly::of(ids)),
                _ => None,
            });
            compare(&sets.collect::<Vec<_>>())
        })
    }

    /// Adds the ids of a counter so far to a sketch, in mode `hll`.
    pub(super) fn merge_into(&self, name: &str, sketch: &Sketch) {
        if name == OTHER {
            if let Other::Hll(other) = &self.other {
                sketch.merge(other);
            }
            return;
        }
        self.places.get(name, |ids| {
            if let CounterIds::Hll(ids) = ids {
                ids.merge_into(sketch);
            }
        });
    }

    /// The sketches of the counters that have ids, in mode `hll`. None if they take more than `most` bytes.
    pub(super) fn sketches(&self, most: usize) -> Option<CounterSketches> {
        let (mut pace, mut bytes) = (Pace::new(), 0);
        let mut sketches: CounterSketches = self.places.all(|name, ids| {
            let CounterIds::Hll(ids) = ids else { return None };
            if bytes > most {
                return None;
            }
            pace.step();
            let sketch: Box<[u8]> = ids.to_bytes().into();
            bytes += BYTES_AN_ENTRY + name.len() + sketch.len();
            Some((name.into(), sketch))
        });
        if let Other::Hll(other) = &self.other
            && self.places.overflow_ids() > 0
        {
            sketches.push((OTHER.into(), other.to_bytes().into()));
        }
        (bytes <= most).then_some(sketches)
    }

    /// The final counts. The caller has seen to it that nothing is added any more.
    pub(super) fn seal(&self) -> Arc<CounterCounts> {
        let counts = self.sealed.get_or_init(|| Arc::new(self.counts()));
        self.places.note_sealed(Arc::clone(counts) as _);
        Arc::clone(counts)
    }

    /// Frees the counters of a sealed window.
    pub(super) fn free(&self, counts: &CounterCounts) {
        self.places.free(counts.all().iter().map(|count| &*count.name));
    }

    /// The counts so far.
    pub(super) fn counts(&self) -> CounterCounts {
        let count = |name: &str, unique_ids| CounterCount { name: name.into(), unique_ids, is_whole: true };
        // There may be hundreds of thousands.
        let mut pace = Pace::new();
        let named = self.places.all(|name, ids| {
            pace.step();
            Some(count(name, ids.count()))
        });
        let has_overflowed = self.places.overflow_ids() > 0;
        let other = has_overflowed.then(|| count(OTHER, self.other.count()));
        // A counter without ids found a place, but no memory.
        let with_ids = named.into_iter().filter(|count| count.unique_ids > 0);
        let counts: Vec<_> = with_ids.chain(other).collect();
        let share = self.places.share().budget().share();
        share.take_anyway(counts.iter().map(|count| count.name.len() + BYTES_A_COUNT).sum());
        CounterCounts::new(counts, has_overflowed).in_memory(share)
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

    /// False if there is no memory for all of a sketch, or no sketch to merge it into.
    fn import(&self, sketch: &Sketch, share: &Share) -> bool {
        match self {
            Self::Hll(own) => own.merge_within(sketch, |bytes| share.take(bytes)),
            Self::Exact(_) => false,
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

    fn contains(&self, id: &[u8]) -> bool {
        let is_in = self.one_set.lock().contains(id);
        is_in || self.striped.get().is_some_and(|ids| ids.contains(id))
    }

    fn len(&self) -> u64 {
        let one_set = self.one_set.lock();
        self.striped.get().map_or(one_set.len() as u64, IdSet::len)
    }
}

/// The exact ids of a counter, or of `_other`.
#[derive(Clone, Copy)]
enum Exactly<'a> {
    /// It may have stripes by now.
    OneSet(&'a ExactIds),
    Striped(&'a IdSet),
}

impl<'a> Exactly<'a> {
    fn of(ids: &'a ExactIds) -> Self {
        ids.striped.get().map_or(Self::OneSet(ids), Self::Striped)
    }

    fn len(self) -> u64 {
        match self {
            Self::OneSet(ids) => ids.len(),
            Self::Striped(ids) => ids.len(),
        }
    }

    fn contains(self, id: &[u8]) -> bool {
        match self {
            Self::OneSet(ids) => ids.contains(id),
            Self::Striped(ids) => ids.contains(id),
        }
    }

    /// Looks at each id. It holds no lock meanwhile, so `look` may take those of other sets.
    fn each(self, mut look: impl FnMut(&[u8])) {
        let mut look_at = |ids: Vec<TextId>| ids.iter().for_each(|id| look(id.as_bytes()));
        match self {
            Self::OneSet(ids) => {
                let one_set = ids.one_set.lock();
                // Under the lock: it has stripes, or all are in the one set.
                if let Some(striped) = ids.striped.get() {
                    drop(one_set);
                    return striped.stripes().for_each(look_at);
                }
                let some = one_set.iter().cloned().collect();
                drop(one_set);
                look_at(some);
            }
            Self::Striped(ids) => ids.stripes().for_each(look_at),
        }
    }
}

/// Compares sets. None stands for one without ids. The ids of each set are looked for in all that are larger.
fn compare(sets: &[Option<Exactly<'_>>]) -> Compared {
    let counts: Vec<_> = sets.iter().map(|set| set.map_or(0, Exactly::len)).collect();
    if lookups(&counts) > MOST_LOOKUPS {
        return Compared::Not(
            "these counters have too many ids to compare them: more than 10000000 would be looked up",
        );
    }
    let mut common = vec![vec![0; sets.len()]; sets.len()];
    let mut places: Vec<_> = (0..sets.len()).collect();
    places.sort_by_key(|place| Reverse(counts[*place]));
    let mut union: u64 = counts.iter().sum();
    for (number, &place) in places.iter().enumerate().skip(1) {
        let (Some(set), larger) = (sets[place], &places[..number]) else { continue };
        let mut counted_before = 0;
        set.each(|id| {
            let mut is_counted = false;
            for &other in larger {
                if sets[other].is_some_and(|other| other.contains(id)) {
                    common[place.min(other)][place.max(other)] += 1;
                    is_counted = true;
                }
            }
            counted_before += u64::from(is_counted);
        });
        // Ids may have come since they were counted.
        union -= counted_before.min(counts[place]);
    }
    let common = pairs(sets.len()).map(|(one, other)| common[one][other].min(counts[one]).min(counts[other]));
    let figures: Vec<_> = counts.iter().copied().chain(common).chain([union]).collect();
    Compared::read(&figures, sets.len())
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
            let compare = |one: &CounterIds| {
                let CounterIds::Hll(sketch) = one else { panic!("a sketch") };
                assert_eq!(sketch.to_bytes(), expected.to_bytes(), "{ids} ids");
            };
            assert!(counters.places.get("one", compare).is_some());
            assert_eq!(counters.count("one"), expected.estimate());
        }
    }
}
