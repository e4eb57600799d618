//! The mode: how ids are remembered, and how wrong that may be.

use clap::ValueEnum;

use crate::hll::Sketch;
use crate::model::shard::Shards;

/// How ids are remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// In a HyperLogLog: a few kilobytes for any number of ids, and a standard error
    Hll,
    /// In a set: no error, and memory for every id
    Exact,
}

impl Mode {
    /// The word for it in flags, logs and answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hll => "hll",
            Self::Exact => "exact",
        }
    }

    /// The standard error of a count over `shards`, relative to the truth.
    ///
    /// Shards hold disjoint sets, so their errors are independent and add up as squares.
    pub fn standard_error(self, shards: Shards) -> f64 {
        match self {
            Self::Hll => Sketch::STANDARD_ERROR / f64::from(shards.count()).sqrt(),
            Self::Exact => 0.0,
        }
    }
}
