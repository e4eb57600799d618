//! The sketch: a HyperLogLog that is Redis's HyperLogLog.
//!
//! # The idea
//!
//! Hash every element to 64 bits. The low 14 bits choose one of 16 384 *registers*; of the other 50
//! bits only the *rank* counts: how many zeros come before the first one, plus one. A register keeps
//! the highest rank that it was shown. Half of all hashes have rank 1, a quarter rank 2, and so on,
//! so a register that holds r has seen some 2^r different elements, and all registers together say
//! how many there were. Repeats cannot change a maximum; the order does not matter; the sketch of a
//! union is the register-wise maximum. That is all there is to it, and it fits 12 KB.
//!
//! * Flajolet, Fusy, Gandouet, Meunier: *HyperLogLog: the analysis of a near-optimal cardinality
//!   estimation algorithm* (2007): the registers, and the standard error 1.04/√m.
//! * Ertl: *New cardinality estimation algorithms for HyperLogLog sketches* (arXiv:1702.01284): the
//!   estimator, which needs no bias tables and no switch between small and large counts.
//!
//! # Agreement with Redis
//!
//! What Redis keeps for `PFADD` is a public format, and this module speaks it: MurmurHash64A with
//! seed `0xadc83b19`, the same registers, the same estimator in the same order of floating-point
//! operations. A sketch built here can be `SET` in Redis, a key of Redis can be read here, and both
//! say the same number. Redis stores a sketch as a string:
//!
//! ```text
//! +------+---+-----+----------+----- registers
//! | HYLL | E | N/U | Cardin.  |
//! +------+---+-----+----------+-----
//!   4      1   3     8 bytes
//! ```
//!
//! E is 0 for *dense*, 1 for *sparse*. `Cardin.` caches the last estimate, little endian; its highest
//! bit says that the cache is stale, which is what is written here.
//!
//! *Dense*: 16 384 registers of six bits, least significant bits first, four to three bytes:
//!
//! ```text
//! |11000000|22221111|33333322|55444444| ...
//! ```
//!
//! *Sparse*: runs of equal registers, one opcode after another, until all 16 384 are covered:
//!
//! ```text
//! 00xxxxxx            ZERO   xxxxxx + 1 registers are 0             (1 to 64)
//! 01xxxxxx yyyyyyyy   XZERO  xxxxxxyyyyyyyy + 1 registers are 0     (1 to 16 384)
//! 1vvvvvxx            VAL    xx + 1 registers are vvvvv + 1         (1 to 4, each 1 to 32)
//! ```
//!
//! Both are read; dense is written.
//!
//! # In memory
//!
//! A register takes a byte here, not six bits, and is an atomic: adding is a load and, in the rare
//! case that it changes something (16 384 × ln n times in n additions), a `fetch_max`. So all threads
//! feed one sketch without a lock, for 16 KB instead of 12.
//!
//! # What it does not do
//!
//! It cannot list, remove or intersect. Its hash is public: a client that chooses the elements can make it
//! report nearly anything, unless what it is shown are keyed hashes of them ([`crate::model::id_key`]).

use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};

use thiserror::Error;

use crate::platform::words::little_endian;

/// Bits of the hash that choose the register ("p" in the papers).
const INDEX_BITS: u32 = 14;
/// Registers of a sketch ("m" in the papers).
const REGISTERS: usize = 1 << INDEX_BITS;
/// Bits of the hash that make the rank ("q" in Ertl's paper).
const RANK_BITS: u32 = 64 - INDEX_BITS;
/// The highest rank: all bits of it zero.
const MAX_RANK: u8 = RANK_BITS as u8 + 1;

const MAGIC: &[u8; 4] = b"HYLL";
const DENSE: u8 = 0;
const SPARSE: u8 = 1;
const HEADER_LEN: usize = 16;
/// Length of a dense string: the header and 16 384 registers of six bits.
const DENSE_LEN: usize = HEADER_LEN + REGISTERS * 6 / 8;
/// The highest bit of the cached cardinality, in its last byte: the cache is stale.
const STALE: u8 = 1 << 7;

/// Remembers how many different elements it was shown, give or take [`Sketch::STANDARD_ERROR`].
pub struct Sketch {
    /// `Relaxed` throughout: a register only ever grows, and no other memory depends on it. A count after a seal
    /// must see all additions: the store orders it after them by other means.
    registers: Box<[AtomicU8; REGISTERS]>,
}

/// A string that is not a HyperLogLog of Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum InvalidSketch {
    /// Shorter than a header, or another magic word.
    #[error("not a HyperLogLog: no HYLL header")]
    NoHeader,
    /// Neither dense nor sparse.
    #[error("a HyperLogLog of the unknown encoding {0}")]
    UnknownEncoding(u8),
    /// A dense string of another length.
    #[error("a dense HyperLogLog of {0} bytes instead of {DENSE_LEN}")]
    DenseLength(usize),
    /// A register higher than any hash can make it.
    #[error("a HyperLogLog with the impossible register {0}")]
    ImpossibleRegister(u8),
    /// A sparse string whose runs end early, run over, or break off within an opcode.
    #[error("a sparse HyperLogLog whose runs do not cover its registers")]
    BrokenRuns,
}

impl Sketch {
    /// The standard error of an estimate, relative to the truth: 1.04/√m.
    ///
    /// Two of three estimates are within one of it, 95 of 100 within two, nearly all within three.
    pub(crate) const STANDARD_ERROR: f64 = 1.04 / 128.0;

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

    /// How many different elements it was shown, as `PFCOUNT` answers.
    pub fn estimate(&self) -> u64 {
        let mut histogram = [0_u32; MAX_RANK as usize + 1];
        for rank in self.ranks() {
            histogram[usize::from(rank)] += 1;
        }
        estimate(&histogram)
    }

    /// The dense string that Redis would keep.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(DENSE_LEN);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&[DENSE, 0, 0, 0]);
        bytes.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, STALE]);
        for four in self.registers.chunks_exact(4) {
            let [a, b, c, d] = [0, 1, 2, 3].map(|i| four[i].load(Ordering::Relaxed));
            bytes.extend_from_slice(&[a | b << 6, b >> 2 | c << 4, c >> 4 | d << 2]);
        }
        bytes
    }

    /// Reads a string of Redis, dense or sparse.
    ///
    /// # Errors
    ///
    /// [`InvalidSketch`] for anything that Redis could not have written.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, InvalidSketch> {
        let (header, body) = bytes.split_at_checked(HEADER_LEN).ok_or(InvalidSketch::NoHeader)?;
        if !header.starts_with(MAGIC) {
            return Err(InvalidSketch::NoHeader);
        }
        let ranks = match header[MAGIC.len()] {
            DENSE if bytes.len() == DENSE_LEN => read_dense(body),
            DENSE => return Err(InvalidSketch::DenseLength(bytes.len())),
            SPARSE => read_sparse(body)?,
            unknown => return Err(InvalidSketch::UnknownEncoding(unknown)),
        };
        if let Some(rank) = ranks.iter().find(|rank| **rank > MAX_RANK) {
            return Err(InvalidSketch::ImpossibleRegister(*rank));
        }
        let sketch = Self::new();
        for (register, rank) in sketch.registers.iter().zip(ranks) {
            register.store(rank, Ordering::Relaxed);
        }
        Ok(sketch)
    }

    fn ranks(&self) -> impl Iterator<Item = u8> {
        self.registers.iter().map(|register| register.load(Ordering::Relaxed))
    }
}

/// All that a sketch sees of an element: its register and its rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observation {
    register: u16,
    rank: u8,
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

/// Four registers of six bits from every three bytes.
fn read_dense(body: &[u8]) -> Vec<u8> {
    let mut ranks = Vec::with_capacity(REGISTERS);
    for three in body.chunks_exact(3) {
        let [a, b, c] = [three[0], three[1], three[2]];
        ranks.extend([a, a >> 6 | b << 2, b >> 4 | c << 4, c >> 2].map(|bits| bits & 0b11_1111));
    }
    ranks
}

/// Registers from the runs of a sparse string.
fn read_sparse(mut body: &[u8]) -> Result<Vec<u8>, InvalidSketch> {
    let mut ranks = Vec::with_capacity(REGISTERS);
    loop {
        let (run, rank, rest) = match body {
            [] => break,
            [op, rest @ ..] if op >> 7 == 0b1 => (usize::from(op & 0b11), (op >> 2 & 0b1_1111) + 1, rest),
            [op, rest @ ..] if op >> 6 == 0b00 => (usize::from(op & 0b11_1111), 0, rest),
            [op, low, rest @ ..] => (usize::from(op & 0b11_1111) << 8 | usize::from(*low), 0, rest),
            [_] => return Err(InvalidSketch::BrokenRuns),
        };
        let run = run + 1;
        if run > REGISTERS - ranks.len() {
            return Err(InvalidSketch::BrokenRuns);
        }
        ranks.resize(ranks.len() + run, rank);
        body = rest;
    }
    if ranks.len() == REGISTERS { Ok(ranks) } else { Err(InvalidSketch::BrokenRuns) }
}

/// Ertl's improved raw estimator (algorithm 6 of his paper), from how many registers have each rank.
///
/// The order of the operations is Redis's, so that both round alike.
fn estimate(histogram: &[u32; MAX_RANK as usize + 1]) -> u64 {
    /// 1 / (2 ln 2): the constant of HyperLogLog for infinitely many registers.
    const ALPHA: f64 = 0.721_347_520_444_481_7;
    let m = REGISTERS as f64;

    let mut z = m * tau((m - f64::from(histogram[usize::from(MAX_RANK)])) / m);
    for rank in (1..usize::from(MAX_RANK)).rev() {
        z += f64::from(histogram[rank]);
        z *= 0.5;
    }
    z += m * sigma(f64::from(histogram[0]) / m);
    // An empty sketch: z is infinite, the quotient 0.
    (ALPHA * m * m / z).round() as u64
}

// Both corrections are power series. They are summed until they change no more, so floats are compared exactly.

/// The correction for registers that are still 0 (equation 16): x + Σ x^(2^k) 2^(k−1).
#[expect(clippy::float_cmp)]
fn sigma(mut x: f64) -> f64 {
    if x == 1.0 {
        return f64::INFINITY;
    }
    let mut y = 1.0;
    let mut z = x;
    loop {
        x *= x;
        let before = z;
        z += x * y;
        y += y;
        if z == before {
            return z;
        }
    }
}

/// The correction for registers that can grow no more (equation 17).
#[expect(clippy::float_cmp)]
fn tau(mut x: f64) -> f64 {
    if x == 0.0 || x == 1.0 {
        return 0.0;
    }
    let mut y = 1.0;
    let mut z = 1.0 - x;
    loop {
        x = x.sqrt();
        let before = z;
        y *= 0.5;
        z -= (1.0 - x) * (1.0 - x) * y;
        if z == before {
            return z / 3.0;
        }
    }
}

/// Austin Appleby's MurmurHash2, 64-bit version for 64-bit machines, read little endian, with the
/// seed that Redis chose.
fn murmur_hash_64a(element: &[u8]) -> u64 {
    const SEED: u64 = 0xadc8_3b19;
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
