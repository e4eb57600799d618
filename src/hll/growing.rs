//! The sketch that is small while it has few elements.
//!
//! It begins as a list of the registers that are not 0, in their order, four bytes each. An addition holds a lock for a binary
//! search and sometimes an insertion. When the list has more than [`LISTED`] registers, it becomes a [`Sketch`] for good. So a
//! sketch that many threads add to is soon one that needs no lock.

use std::sync::OnceLock;

use parking_lot::Mutex;

use super::codec::{self, Run};
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

    /// Merges a sketch, if the memory for it is granted, as [`Self::raise_within`] asks for it. False if it was refused: then only
    /// some registers were raised.
    pub(crate) fn merge_within(&self, sketch: &Sketch, room: impl Fn(usize) -> bool) -> bool {
        sketch.observations().all(|observation| self.raise_within(observation, &room).is_some())
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
        let is_above = |listed: &[u32]| {
            let (mut rest, mut is_above) = (observations(listed).peekable(), true);
            let read = codec::read(stored, |registers, rank| {
                while let Some(known) = rest.next_if(|known| registers.contains(&usize::from(known.register)))
                {
                    is_above &= known.rank <= rank;
                }
            });
            read.is_ok() && is_above
        };
        let is_above_all = |sketch: &Sketch| {
            let mut is_above = true;
            let read = codec::read(stored, |registers, rank| is_above &= sketch.is_at_most(registers, rank));
            read.is_ok() && is_above
        };
        self.read(is_above, is_above_all)
    }

    /// The string that Redis would keep: sparse while that is the shorter one and can hold the registers.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.read(|listed| codec::write(|| runs(listed)), Sketch::to_bytes)
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
fn runs(listed: &[u32]) -> impl Iterator<Item = Run> {
    let mut next = 0;
    let runs = observations(listed).flat_map(move |known| {
        let zeros = usize::from(known.register) - next;
        next += zeros + 1;
        [Run { rank: 0, length: zeros }, Run { rank: known.rank, length: 1 }]
    });
    let last = observations(listed).last().map_or(0, |known| usize::from(known.register) + 1);
    runs.chain([Run { rank: 0, length: REGISTERS - last }]).filter(|run| run.length > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One that lists its registers, and one that has all of them, beside sparse and dense strings.
    #[test]
    fn a_sketch_is_within_a_string_that_has_all_its_elements() {
        for elements in [0, 1, 50, 5_000_u32] {
            let (sketch, string) = (GrowingSketch::default(), Sketch::new());
            for element in 0..elements {
                sketch.add(&element.to_be_bytes());
            }
            assert_eq!(sketch.is_within(&string.to_bytes()), elements == 0, "{elements}, none of them");
            sketch.merge_into(&string);
            assert!(sketch.is_within(&string.to_bytes()), "{elements}, all of them");
            (elements..2 * elements).for_each(|element| _ = string.add(&element.to_be_bytes()));
            assert!(sketch.is_within(&string.to_bytes()), "{elements}, and more");
            assert!(sketch.is_within(&sketch.to_bytes()), "{elements}, its own string");
            let before = string.to_bytes();
            let new = (2 * elements..1_000_000).find(|element| string.add(&element.to_be_bytes()));
            sketch.add(&new.expect("some element raises a register").to_be_bytes());
            assert!(!sketch.is_within(&before), "{elements}, all but one");
            let cut = &string.to_bytes()[..17];
            assert!(!sketch.is_within(cut) && !sketch.is_within(b"other"), "{elements}, no sketch");
        }
    }
}
