//! The sketch that takes the same memory for any number of elements.

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU8, Ordering};

use super::codec::{self, InvalidSketch, Run};
use super::estimate::estimate;
use super::observation::{INDEX_BITS, Observation, RANKS, REGISTERS, SEED};

/// Remembers how many different elements it was shown, give or take [`Sketch::STANDARD_ERROR`].
pub struct Sketch {
    /// `Relaxed` throughout: a register only ever grows, and no other memory depends on it. A count after a seal
    /// must see all additions: the store orders it after them by other means.
    registers: Box<[AtomicU8; REGISTERS]>,
}

impl Sketch {
    /// The standard error of an estimate, relative to the truth: 1.04/√m.
    ///
    /// Two of three estimates are within one of it, 95 of 100 within two, nearly all within three.
    pub(crate) const STANDARD_ERROR: f64 = 1.04 / 128.0;

    /// Bits of the hash that choose a register.
    pub const PRECISION: u32 = INDEX_BITS;
    /// How many registers there are.
    pub const REGISTERS: usize = REGISTERS;
    /// No string is longer, in bytes: a header, and a sparse opcode for each register.
    pub(crate) const LONGEST_STRING: usize = 16 + REGISTERS;
    /// The hash of an element, and its seed.
    pub const HASH: &str = "MurmurHash64A";
    /// The seed of the hash.
    pub const SEED: u64 = SEED;

    /// A sketch of nothing.
    pub fn new() -> Self {
        Self { registers: Box::new([const { AtomicU8::new(0) }; REGISTERS]) }
    }

    /// Shows an element to the sketch. True when that changed a register, as `PFADD` answers 1.
    pub fn add(&self, element: &[u8]) -> bool {
        self.raise(Observation::of(element))
    }

    /// Shows an observation of an element to the sketch, as [`Sketch::add`] does.
    pub(crate) fn raise(&self, observation: Observation) -> bool {
        raise(&self.registers[usize::from(observation.register)], observation.rank)
    }

    /// True when showing this would change nothing.
    pub(crate) fn covers(&self, observation: Observation) -> bool {
        self.registers[usize::from(observation.register)].load(Ordering::Relaxed) >= observation.rank
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.ranks().all(|rank| rank == 0)
    }

    pub(crate) fn clear(&self) {
        for register in self.registers.iter() {
            register.store(0, Ordering::Relaxed);
        }
    }

    /// Makes this the sketch of the union of both, as `PFMERGE` does.
    pub fn merge(&self, other: &Self) {
        for (register, rank) in self.registers.iter().zip(other.ranks()) {
            raise(register, rank);
        }
    }

    /// Merges as [`Sketch::merge`] does. Nobody else sees this sketch, so it needs no atomics, and takes half the time.
    pub fn absorb(&mut self, other: &Self) {
        for (register, rank) in self.registers.iter_mut().zip(other.ranks()) {
            let register = register.get_mut();
            *register = rank.max(*register);
        }
    }

    /// The lower of both in each register: the sketch of what both were shown, and of what looks like it.
    pub(crate) fn common(&self, other: &Self) -> Self {
        let common = Self::new();
        for ((register, rank), other) in common.registers.iter().zip(self.ranks()).zip(other.ranks()) {
            register.store(rank.min(other), Ordering::Relaxed);
        }
        common
    }

    /// What makes this sketch: an observation for each register that is not 0.
    pub(crate) fn observations(&self) -> impl Iterator<Item = Observation> {
        let known = (0..).zip(self.ranks()).filter(|(_, rank)| *rank > 0);
        known.map(|(register, rank)| Observation { register, rank })
    }

    /// Whether another sketch has every register at least as high.
    pub(crate) fn is_within(&self, other: &Self) -> bool {
        self.ranks().zip(other.ranks()).all(|(rank, other)| rank <= other)
    }

    /// How many different elements it was shown, as `PFCOUNT` answers.
    pub fn estimate(&self) -> u64 {
        // Four histograms: most registers have one of a few ranks, and to count in one would wait for the register before.
        let mut of_four = [[0; RANKS]; 4];
        for four in self.registers.as_chunks::<4>().0 {
            for (register, histogram) in four.iter().zip(&mut of_four) {
                histogram[usize::from(register.load(Ordering::Relaxed))] += 1;
            }
        }
        estimate(&std::array::from_fn(|rank| of_four.iter().map(|histogram| histogram[rank]).sum()))
    }

    /// The string that Redis would keep: sparse while that is the shorter one and can hold the registers.
    pub fn to_bytes(&self) -> Vec<u8> {
        codec::write(|| self.ranks().map(|rank| Run { rank, length: 1 }))
    }

    /// Reads a string of Redis, dense or sparse.
    ///
    /// # Errors
    ///
    /// [`InvalidSketch`] for anything that Redis could not have written.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, InvalidSketch> {
        let sketch = Self::new();
        codec::read(bytes, |registers, rank| {
            for register in &sketch.registers[registers] {
                register.store(rank, Ordering::Relaxed);
            }
        })?;
        Ok(sketch)
    }

    /// Whether none of some registers is higher than a rank.
    pub(super) fn is_at_most(&self, registers: Range<usize>, rank: u8) -> bool {
        self.registers[registers].iter().all(|register| register.load(Ordering::Relaxed) <= rank)
    }

    pub(super) fn ranks(&self) -> impl Iterator<Item = u8> {
        self.registers.iter().map(|register| register.load(Ordering::Relaxed))
    }
}

impl Default for Sketch {
    fn default() -> Self {
        Self::new()
    }
}

/// Equal registers, not merely equal estimates.
impl PartialEq for Sketch {
    fn eq(&self, other: &Self) -> bool {
        self.ranks().eq(other.ranks())
    }
}

impl Eq for Sketch {}

impl Clone for Sketch {
    fn clone(&self) -> Self {
        let copy = Self::new();
        copy.merge(self);
        copy
    }
}

impl fmt::Debug for Sketch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sketch").field("estimate", &self.estimate()).finish_non_exhaustive()
    }
}

/// Raises a register to `rank`; true when it was lower. The load comes first because nearly always
/// nothing changes, and a load leaves the cache line shared where a `fetch_max` would claim it.
fn raise(register: &AtomicU8, rank: u8) -> bool {
    register.load(Ordering::Relaxed) < rank && register.fetch_max(rank, Ordering::Relaxed) < rank
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn to_absorb_a_sketch_is_to_merge_it() {
        let (merged, mut absorbed, other) = (Sketch::new(), Sketch::new(), Sketch::new());
        for element in 0..3_000_u32 {
            let element = element.to_be_bytes();
            merged.add(&element);
            absorbed.add(&element);
            other.add(&[&element[..], b"other"].concat());
        }
        merged.merge(&other);
        absorbed.absorb(&other);
        assert_eq!(absorbed, merged);
    }

    #[test]
    fn what_two_sketches_have_in_common_is_within_both() {
        let of = |elements: Range<usize>| {
            let sketch = Sketch::new();
            elements.for_each(|element| _ = sketch.add(&element.to_be_bytes()));
            sketch
        };
        let (one, other, both) = (of(0..2_000), of(1_000..3_000), of(1_000..2_000));
        let common = one.common(&other);
        assert!(both.is_within(&common) && common.is_within(&one) && common.is_within(&other));
        assert!(!one.is_within(&other) && !one.is_within(&both) && Sketch::new().is_within(&both));
        // A register that differs in both is in neither's ids, so there may be a few more.
        assert!((1_000 - 60..1_000 + 200).contains(&common.estimate()), "{}", common.estimate());
    }
}
