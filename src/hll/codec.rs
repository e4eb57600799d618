//! The strings that Redis keeps: see [the formats](super).

use thiserror::Error;

use super::observation::{MAX_RANK, REGISTERS};

const MAGIC: &[u8; 4] = b"HYLL";
const DENSE: u8 = 0;
const SPARSE: u8 = 1;
const HEADER_LEN: usize = 16;
/// Length of a dense string: the header and 16 384 registers of six bits.
const DENSE_LEN: usize = HEADER_LEN + REGISTERS * 6 / 8;
/// The highest bit of the cached cardinality, in its last byte: the cache is stale.
const STALE: u8 = 1 << 7;
/// Length of the longest run of zeros that one byte writes, and that two bytes write.
const ZERO_MAX: usize = 1 << 6;
const XZERO_MAX: usize = 1 << 14;
/// Length of the longest run of equal registers, and the highest register, of a sparse string.
const VAL_MAX: usize = 1 << 2;
const VAL_MAX_RANK: u8 = 1 << 5;

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

/// Writes registers, which `ranks` lists from the first to the last.
pub(super) fn write<I: Iterator<Item = u8>>(ranks: impl Fn() -> I) -> Vec<u8> {
    write_sparse(ranks()).unwrap_or_else(|| write_dense(ranks()))
}

fn with_header(encoding: u8, capacity: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(capacity);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&[encoding, 0, 0, 0]);
    bytes.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, STALE]);
    bytes
}

/// None if a dense string is as short or shorter, or if a register exceeds 32.
fn write_sparse(ranks: impl Iterator<Item = u8>) -> Option<Vec<u8>> {
    let mut bytes = with_header(SPARSE, HEADER_LEN);
    let mut ranks = ranks.peekable();
    while let Some(rank) = ranks.next() {
        let mut run = 1;
        let longest = if rank == 0 { XZERO_MAX } else { VAL_MAX };
        while run < longest && ranks.next_if_eq(&rank).is_some() {
            run += 1;
        }
        match rank {
            0 if run <= ZERO_MAX => bytes.push((run - 1) as u8),
            0 => bytes.extend_from_slice(&(0b0100_0000 << 8 | (run - 1) as u16).to_be_bytes()),
            1..=VAL_MAX_RANK => bytes.push(0b1000_0000 | (rank - 1) << 2 | (run - 1) as u8),
            _ => return None,
        }
        if bytes.len() >= DENSE_LEN {
            return None;
        }
    }
    Some(bytes)
}

fn write_dense(ranks: impl Iterator<Item = u8>) -> Vec<u8> {
    let mut bytes = with_header(DENSE, DENSE_LEN);
    let mut ranks = ranks;
    while let Some(a) = ranks.next() {
        let [b, c, d] = [(); 3].map(|()| ranks.next().unwrap_or_default());
        bytes.extend_from_slice(&[a | b << 6, b >> 2 | c << 4, c >> 4 | d << 2]);
    }
    bytes
}

/// Reads the registers of a string.
pub(super) fn read(bytes: &[u8]) -> Result<Vec<u8>, InvalidSketch> {
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
    match ranks.iter().find(|rank| **rank > MAX_RANK) {
        Some(rank) => Err(InvalidSketch::ImpossibleRegister(*rank)),
        None => Ok(ranks),
    }
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
