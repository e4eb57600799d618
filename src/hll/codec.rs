//! The strings that Redis keeps: see [the formats](super).

use std::ops::Range;

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

/// Neighbouring registers with the same rank.
pub(super) struct Run {
    pub(super) rank: u8,
    pub(super) length: usize,
}

/// Writes registers, which `runs` lists from the first to the last. Neighbouring runs may have the same rank.
pub(super) fn write<I: Iterator<Item = Run>>(runs: impl Fn() -> I) -> Vec<u8> {
    write_sparse(runs()).unwrap_or_else(|| write_dense(runs()))
}

fn with_header(encoding: u8, capacity: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(capacity);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&[encoding, 0, 0, 0]);
    bytes.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, STALE]);
    bytes
}

/// None if a dense string is as short or shorter, or if a register exceeds 32.
fn write_sparse(runs: impl Iterator<Item = Run>) -> Option<Vec<u8>> {
    let mut bytes = with_header(SPARSE, HEADER_LEN);
    let mut runs = runs.peekable();
    while let Some(Run { rank, mut length }) = runs.next() {
        while let Some(next) = runs.next_if(|next| next.rank == rank) {
            length += next.length;
        }
        let longest = if rank == 0 { XZERO_MAX } else { VAL_MAX };
        while length > 0 {
            let run = length.min(longest);
            match rank {
                0 if run <= ZERO_MAX => bytes.push((run - 1) as u8),
                0 => bytes.extend_from_slice(&(0b0100_0000 << 8 | (run - 1) as u16).to_be_bytes()),
                1..=VAL_MAX_RANK => bytes.push(0b1000_0000 | (rank - 1) << 2 | (run - 1) as u8),
                _ => return None,
            }
            length -= run;
        }
        if bytes.len() >= DENSE_LEN {
            return None;
        }
    }
    Some(bytes)
}

fn write_dense(runs: impl Iterator<Item = Run>) -> Vec<u8> {
    let (mut ranks, mut next) = ([0; REGISTERS], 0);
    for Run { rank, length } in runs {
        ranks[next..next + length].fill(rank);
        next += length;
    }
    let mut bytes = with_header(DENSE, DENSE_LEN);
    for four in ranks.chunks_exact(4) {
        let [a, b, c, d] = [four[0], four[1], four[2], four[3]];
        bytes.extend_from_slice(&[a | b << 6, b >> 2 | c << 4, c >> 4 | d << 2]);
    }
    bytes
}

/// Reads a string, from the first register to the last. `each` gets neighbouring registers with the same rank. Before an error it
/// may have got some.
pub(super) fn read(bytes: &[u8], each: impl FnMut(Range<usize>, u8)) -> Result<(), InvalidSketch> {
    let (header, body) = bytes.split_at_checked(HEADER_LEN).ok_or(InvalidSketch::NoHeader)?;
    if !header.starts_with(MAGIC) {
        return Err(InvalidSketch::NoHeader);
    }
    match header[MAGIC.len()] {
        DENSE if bytes.len() == DENSE_LEN => read_dense(body, each),
        DENSE => Err(InvalidSketch::DenseLength(bytes.len())),
        SPARSE => read_sparse(body, each),
        unknown => Err(InvalidSketch::UnknownEncoding(unknown)),
    }
}

/// Four registers of six bits from every three bytes.
fn read_dense(body: &[u8], mut each: impl FnMut(Range<usize>, u8)) -> Result<(), InvalidSketch> {
    for (three, first) in body.chunks_exact(3).zip((0..).step_by(4)) {
        let [a, b, c] = [three[0], three[1], three[2]];
        let ranks = [a, a >> 6 | b << 2, b >> 4 | c << 4, c >> 2].map(|bits| bits & 0b11_1111);
        for (register, rank) in (first..).zip(ranks) {
            if rank > MAX_RANK {
                return Err(InvalidSketch::ImpossibleRegister(rank));
            }
            each(register..register + 1, rank);
        }
    }
    Ok(())
}

/// Registers from the runs of a sparse string.
fn read_sparse(mut body: &[u8], mut each: impl FnMut(Range<usize>, u8)) -> Result<(), InvalidSketch> {
    let mut first = 0;
    loop {
        let (run, rank, rest) = match body {
            [] => break,
            [op, rest @ ..] if op >> 7 == 0b1 => (usize::from(op & 0b11), (op >> 2 & 0b1_1111) + 1, rest),
            [op, rest @ ..] if op >> 6 == 0b00 => (usize::from(op & 0b11_1111), 0, rest),
            [op, low, rest @ ..] => (usize::from(op & 0b11_1111) << 8 | usize::from(*low), 0, rest),
            [_] => return Err(InvalidSketch::BrokenRuns),
        };
        let end = first + run + 1;
        if end > REGISTERS {
            return Err(InvalidSketch::BrokenRuns);
        }
        each(first..end, rank);
        (first, body) = (end, rest);
    }
    if first == REGISTERS { Ok(()) } else { Err(InvalidSketch::BrokenRuns) }
}
