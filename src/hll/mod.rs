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
//! Both are read. Sparse is written while it is the shorter one and no register exceeds 32, which it cannot hold. `PFMERGE`
//! makes its target dense if any source is dense, so a sparse string keeps Redis's key small.
//!
//! # In memory
//!
//! A [`Sketch`] has a byte for each register, not six bits, and the byte is an atomic: adding is a load and, in the rare
//! case that it changes something (16 384 × ln n times in n additions), a `fetch_max`. So all threads
//! feed one sketch without a lock, for 16 KB instead of 12.
//!
//! A [`GrowingSketch`] is for sketches of which there are many, most of them small. It lists the registers that are not 0, and
//! becomes a [`Sketch`] when the list is long.
//!
//! # What it does not do
//!
//! It cannot list, remove or intersect. Its hash is public: a client that chooses the elements can make it
//! report nearly anything, unless what it is shown are keyed hashes of them ([`crate::model::id_key`]).

mod codec;
mod estimate;
mod growing;
mod joint;
mod observation;
mod sketch;

pub use self::codec::InvalidSketch;
pub use self::growing::GrowingSketch;
pub use self::joint::Overlap;
pub use self::observation::Observation;
pub use self::sketch::Sketch;
