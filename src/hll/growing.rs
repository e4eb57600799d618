//! The sketch that is small while it has few elements.
//!
//! It begins as a list of the registers that are not 0, in their order, four bytes each. An addition holds a lock for a binary
//! search and sometimes an insertion. When the list has more than [`LISTED`] registers, it becomes a [`Sketch`] for good. So a
//! sketch that many threads add to is soon one that needs no lock.

use std::sync::OnceLock;

use parking_lot::Mutex;

use super::codec;
use super::estimate::estimate;
use super::observation::{Observation, RANKS, REGISTERS};
use super::sketch::Sketch;

/// Registers of the list, at most: an insertion moves 8 KB or less.
const LISTED: usize = 2048;
/// Registers that the list has room for at first. The room doubles when it is used up.
const FEWEST: usize = 4;

/// Remembers how many different elements it was shown, as a [`Sketch`] does.
#[derive(Default)]
pub struct GrowingSketch {
    /// A register in the upper bits of an entry, its rank in the lowest eight. Empty once `dense` is there.
    listed: Mutex<Vec<u32>>,
    dense: OnceLock<Sketch>,
}

impl GrowingSketch {
    /// Shows an element to the sketch. True when that changed a register.
    pub fn add(&self, element: &[u8]) -> bool {
        self.raise(Observation::of(element))
    }

    /// Shows an observation of an element to the sketch, as [`Self::add`] does.
    pub(crate) fn raise(&self, observation: Observation) -> bool {
        self.raise_within(observation, |_| true).unwrap_or_default()
    }

    /// As [`Self::raise`], if the memory for it is granted: `room` is asked for bytes. None if it refuses; then the sketch is
    /// as it was.
    pub(crate) fn raise_within(
        &self,
        observation: Observation,
        room: impl Fn(usize) -> bool,
    ) -> Option<bool> {
        if let Some(sketch) = self.dense.get() {
            return Some(sketch.raise(observation));
        }
        let mut listed = self.listed.lock();
        // Another thread may have made it dense meanwhile.
        if let Some(sketch) = self.dense.get() {
            return Some(sketch.raise(observation));
        }
        let entry = u32::from(observation.register) << 8 | u32::from(observation.rank);
        let place = match listed.binary_search_by_key(&observation.register, |known| (known >> 8) as u16) {
            Ok(place) => {
                let is_higher = listed[place] < entry;
                listed[place] = entry.max(listed[place]);
                return Some(is_higher);
            }
            Err(place) => place,
        };
        if listed.len() == LISTED {
            if !room(REGISTERS - LISTED * size_of::<u32>()) {
                return None;
            }
            let changed = self.dense.get_or_init(|| sketch_of(&listed)).raise(observation);
            *listed = Vec::new();
            return Some(changed);
        }
        if listed.len() == listed.capacity() {
            let more = listed.len().max(FEWEST);
            if !room(more * size_of::<u32>()) {
                return None;
            }
            listed.reserve_exact(more);
        }
        listed.insert(place, entry);
        Some(true)
    }

    /// Shows another sketch what this one was shown.
    pub fn merge_into(&self, other: &Sketch) {
        self.read(|listed| raise_all(other, listed), |sketch| other.merge(sketch));
    }

    /// How many different elements it was shown, as `PFCOUNT` answers.
    pub fn estimate(&self) -> u64 {
        let of_list = |listed: &[u32]| {
            let mut histogram = [0; RANKS];
            histogram[0] = (REGISTERS - listed.len()) as u32;
            for observation in observations(listed) {
                histogram[usize::from(observation.rank)] += 1;
            }
            estimate(&histogram)
        };
        self.read(of_list, Sketch::estimate)
    }

    /// Whether a string of Redis has every register at least as high. A string that is no sketch has none.
    pub(crate) fn is_within(&self, stored: &[u8]) -> bool {
        let Ok(stored) = codec::read(stored) else { return false };
        let has = |observation: Observation| stored[usize::from(observation.register)] >= observation.rank;
        self.read(|listed| observations(listed).all(has), |sketch| sketch.is_within(&stored))
    }

    /// The string that Redis would keep: sparse while that is the shorter one and can hold the registers.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.read(|listed| codec::write(|| ranks(listed)), Sketch::to_bytes)
    }

    fn read<T>(&self, list: impl FnOnce(&[u32]) -> T, dense: impl FnOnce(&Sketch) -> T) -> T {
        let listed = self.listed.lock();
        let Some(sketch) = self.dense.get() else { return list(&listed) };
        drop(listed);
        dense(sketch)
    }
}

fn observations(listed: &[u32]) -> impl Iterator<Item = Observation> {
    listed.iter().map(|entry| Observation { register: (entry >> 8) as u16, rank: *entry as u8 })
}

fn raise_all(sketch: &Sketch, listed: &[u32]) {
    for observation in observations(listed) {
        sketch.raise(observation);
    }
}

fn sketch_of(listed: &[u32]) -> Sketch {
    let sketch = Sketch::new();
    raise_all(&sketch, listed);
    sketch
}

/// All registers, those that are 0 included.
fn ranks(listed: &[u32]) -> impl Iterator<Item = u8> {
    let mut next = observations(listed).peekable();
    (0..REGISTERS).map(move |register| {
        next.next_if(|observation| usize::from(observation.register) == register)
            .map_or(0, |observation| observation.rank)
    })
}
