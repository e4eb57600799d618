//! What sets have in common, as text.

use crate::cli::figures::{Common, Estimate};

/// Sets, and what they have in common.
pub(super) struct Comparison {
    /// The name of each set, and its count.
    pub(super) counts: Vec<(String, u64)>,
    /// The count of all together.
    pub(super) union: u64,
    /// The standard error of counts, relative to them; 0 of exact ones.
    pub(super) error: f64,
    /// What follows the union: the time that all are of.
    pub(super) when: String,
    /// Each set with each.
    pub(super) pairs: Vec<Pair>,
}

/// Two sets.
pub(super) struct Pair {
    pub(super) names: [String; 2],
    pub(super) intersection: Common,
    pub(super) jaccard: f64,
}

impl Comparison {
    /// A line for each figure. The figure comes first, so that a script can cut it off.
    pub(super) fn lines(&self) -> Vec<String> {
        let estimate = |count| Estimate { count, error: self.error };
        let counts = self.counts.iter().map(|(name, count)| format!("{} in {name}", estimate(*count)));
        let union = format!("{} in all together{}", estimate(self.union), self.when);
        let pairs = self.pairs.iter().flat_map(|Pair { names: [one, other], intersection, jaccard }| {
            [
                format!("{intersection} in both {one} and {other}"),
                format!("{jaccard:.6} Jaccard index of {one} and {other}"),
            ]
        });
        counts.chain([union]).chain(pairs).collect()
    }
}
