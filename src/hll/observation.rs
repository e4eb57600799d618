//! What a sketch sees of an element.

use crate::platform::words::little_endian;

/// Bits of the hash that choose the register ("p" in the papers).
pub(super) const INDEX_BITS: u32 = 14;
/// Registers of a sketch ("m" in the papers).
pub(super) const REGISTERS: usize = 1 << INDEX_BITS;
/// Bits of the hash that make the rank ("q" in Ertl's paper).
const RANK_BITS: u32 = 64 - INDEX_BITS;
/// The highest rank: all bits of it zero.
pub(super) const MAX_RANK: u8 = RANK_BITS as u8 + 1;
/// The number of ranks, with that of a register which was shown nothing.
pub(super) const RANKS: usize = MAX_RANK as usize + 1;

/// The seed of the hash.
pub(super) const SEED: u64 = 0xadc8_3b19;

/// All that a sketch sees of an element: its register and its rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observation {
    pub(super) register: u16,
    pub(super) rank: u8,
}

impl Observation {
    /// Hashes an element.
    pub fn of(element: &[u8]) -> Self {
        let hash = murmur_hash_64a(element);
        // A one behind the highest bit ends the zeros of a hash that has no other.
        let rank = ((hash >> INDEX_BITS) | (1 << RANK_BITS)).trailing_zeros() as u8 + 1;
        Self { register: (hash % REGISTERS as u64) as u16, rank }
    }

    /// The register, from 0 to 16 383.
    pub fn register(self) -> u16 {
        self.register
    }

    /// The rank that it raises the register to, from 1 to 51.
    pub fn rank(self) -> u8 {
        self.rank
    }
}

/// Austin Appleby's MurmurHash2, 64-bit version for 64-bit machines, read little endian, with the
/// seed that Redis chose.
fn murmur_hash_64a(element: &[u8]) -> u64 {
    const M: u64 = 0xc6a4_a793_5bd1_e995;
    const R: u32 = 47;

    let mut hash = SEED ^ (element.len() as u64).wrapping_mul(M);
    let (words, tail) = element.as_chunks::<8>();
    for word in words {
        let mut k = u64::from_le_bytes(*word).wrapping_mul(M);
        k ^= k >> R;
        k = k.wrapping_mul(M);
        hash = (hash ^ k).wrapping_mul(M);
    }
    if !tail.is_empty() {
        hash = (hash ^ little_endian(tail)).wrapping_mul(M);
    }
    hash ^= hash >> R;
    hash = hash.wrapping_mul(M);
    hash ^ (hash >> R)
}
