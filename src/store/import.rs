//! A sketch that a client sends instead of ids.

use thiserror::Error;

use crate::hll::Sketch;
use crate::model::shard::Shards;

/// Sketches of the same ids as [`Shards`] would split them: one for each shard.
#[derive(Debug)]
pub struct Import {
    of_shards: Vec<Sketch>,
    union: Sketch,
}

/// There are more sketches than shards, or fewer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("expected {expected} sketches, one for each of --shards, in their order, and got {found}")]
pub struct WrongShards {
    expected: u16,
    found: usize,
}

impl Import {
    /// Takes a sketch for each shard, in their order.
    ///
    /// # Errors
    ///
    /// [`WrongShards`]: the sketch of all ids cannot be split.
    pub fn new(of_shards: Vec<Sketch>, shards: Shards) -> Result<Self, WrongShards> {
        WrongShards::check(of_shards.len(), shards)?;
        let mut union = Sketch::new();
        for sketch in &of_shards {
            union.absorb(sketch);
        }
        Ok(Self { of_shards, union })
    }

    /// No id is in it.
    pub fn is_empty(&self) -> bool {
        self.union.is_empty()
    }

    pub(super) fn of_shards(&self) -> &[Sketch] {
        &self.of_shards
    }

    /// All ids: counters have one shard.
    pub(super) fn union(&self) -> &Sketch {
        &self.union
    }
}

impl WrongShards {
    /// # Errors
    ///
    /// `WrongShards` unless there are as many sketches as shards.
    pub fn check(found: usize, shards: Shards) -> Result<(), Self> {
        let expected = shards.count();
        if found == usize::from(expected) { Ok(()) } else { Err(Self { expected, found }) }
    }
}
