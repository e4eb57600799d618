//! What a store answers.

use std::sync::Arc;

use thiserror::Error;

use crate::hll::Sketch;
use crate::model::counter::CounterCounts;
use crate::model::window::Window;
use crate::platform::unavailable::Unavailable;

/// What an addition did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Added {
    /// How many of the ids changed the store: new ones in mode `exact`, those that raised a
    /// register in mode `hll`, which are fewer.
    pub changed: u64,
    /// How many of the ids were counted in `_other`, because a counter of theirs found no place or no memory.
    pub overflow: u64,
}

/// The ids were not added.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum AddError {
    /// The window takes no more ids.
    #[error("the window is sealed, {open} is open")]
    Sealed {
        /// The oldest window that still takes some.
        open: Window,
    },
    /// The store could not take them.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// Why there is no count.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CountError {
    /// The window is evicted.
    #[error("window {0} is not kept any more")]
    Evicted(Window),
    /// Redis did not answer.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// What a window holds that every instance has sealed.
#[derive(Debug)]
pub struct Settled {
    /// Of all ids.
    pub total: StoreCount,
    /// Of its counters.
    pub counters: Arc<CounterCounts>,
    /// Some primaries of a Redis Cluster are away. Their shards and counters are missing.
    pub lacks_some: bool,
}

/// What a window was merged into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RolledUp {
    /// How many different ids the sketches of the window have.
    pub window: u64,
    /// What each period has.
    pub periods: Vec<Grown>,
}

/// How many different ids a period has, before and after a window was merged into it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Grown {
    /// Before.
    pub before: u64,
    /// After.
    pub after: u64,
}

/// What is known of the sketch of a counter in an hour or a day.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CounterRecord {
    /// How many different ids it had when it was merged last.
    pub unique_ids: u64,
    /// Whether it has all ids of the windows that were merged into it.
    pub is_whole: bool,
    /// The start of the first window of which the store knows. None if it cannot forget one.
    pub since: Option<u64>,
}

/// What the sets of counters have in common, in mode `exact`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Compared {
    /// All of it.
    Sets {
        /// How many ids the counters have, in the order of the question.
        counts: Vec<u64>,
        /// How many different ids all of them have together.
        union: u64,
        /// How many ids each pair of counters has in common: that of the first and the second, the first and the third, and so on.
        common: Vec<u64>,
    },
    /// The sets are not compared, for this reason.
    Not(&'static str),
}

impl Compared {
    /// What sets without ids have in common.
    pub(super) fn nothing(sets: usize) -> Self {
        Self::read(&vec![0; sets + pairs(sets).count()], sets)
    }

    /// From how many ids each of some sets has, then each pair in common, then all have together, if they are more than two.
    pub(super) fn read(figures: &[u64], sets: usize) -> Self {
        let (counts, rest) = figures.split_at(sets);
        let (common, union) = rest.split_at(pairs(sets).count());
        let of_pairs =
            pairs(sets).zip(common).map(|((one, other), common)| counts[one] + counts[other] - common);
        // Ids may have come while the sets were compared.
        let union = of_pairs.chain(union.iter().copied()).max().unwrap_or(0);
        Self::Sets { counts: counts.to_vec(), union, common: common.to_vec() }
    }
}

/// How many ids must be looked up to compare sets of these sizes: the smaller set of each pair, and of more than two sets all.
pub(super) fn lookups(counts: &[u64]) -> u64 {
    let of_pairs: u64 = pairs(counts.len()).map(|(one, other)| counts[one].min(counts[other])).sum();
    if counts.len() > 2 { of_pairs + counts.iter().sum::<u64>() } else { of_pairs }
}

/// The pairs of so many things: the first and the second, the first and the third, and so on.
pub fn pairs(things: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..things).flat_map(move |one| (one + 1..things).map(move |other| (one, other)))
}

/// The union of parts of a range.
#[derive(Debug, Default)]
pub struct Union {
    /// A sketch for each shard.
    pub sketches: Vec<Sketch>,
    /// How many different ids each part has. 0 for one that is not kept.
    pub of_parts: Vec<u64>,
}

/// What the store still knows of a window that was counted before.
#[derive(Debug, Clone, Copy, Default)]
pub struct Recalled {
    /// Of all ids.
    pub count: StoreCount,
    /// It had counters.
    pub had_counters: bool,
}

/// What a window holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StoreCount {
    /// Different ids.
    pub unique_ids: u64,
    /// All ids, repeats among them.
    pub accepted_ids: u64,
    /// Sketches were merged into it. They do not say how many ids they were shown, so there may be more than
    /// [`accepted_ids`](Self::accepted_ids): each counts as one.
    pub has_imports: bool,
    /// How many ids Redis lost, or had to get again. Above zero, some may be missing.
    pub lost_ids: u64,
    /// Some shards are not in the count: their primary is away.
    pub lacks_shards: bool,
}
