//! The stats of a window that an instance stores when it seals the window.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// Counters of a bucket that are listed as damaged, at most.
const MOST_DAMAGED: usize = 20;

/// What one instance had of a window. Its stored form is JSON; fields of a later version are ignored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct WindowStats {
    /// Ids that were accepted, repeats among them.
    pub(super) accepted: u64,
    /// In mode `exact`, how many of them Redis called new. If Redis has fewer ids than the sum over all instances, it
    /// lost some.
    pub(super) new: u64,
    /// Ids that Redis lost, and that no instance has any more.
    pub(super) lost: u64,
    /// In how many shards Redis got this instance's [part](super::replay).
    pub(super) parts: u64,
    /// Sketches that were merged, and are among the accepted ids as one each.
    #[serde(default, skip_serializing_if = "is_none")]
    pub(super) imports: u64,
    #[serde(default, skip_serializing_if = "CounterStats::is_empty")]
    pub(super) counters: CounterStats,
}

/// What one instance had of the counters of a window.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CounterStats {
    /// Ids that were counted in `_other`.
    pub(super) overflow: u64,
    /// By bucket.
    pub(super) buckets: BTreeMap<usize, BucketStats>,
    /// It has given up its counters, and cannot give them to Redis any more.
    #[serde(default)]
    pub(super) lost: bool,
}

/// What one instance had of the counters of a bucket.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct BucketStats {
    /// Names that Redis called new.
    pub(super) names: u64,
    /// In mode `exact`, ids that Redis called new, over all counters of the bucket.
    pub(super) ids: u64,
    /// Counters of which Redis lost ids, or may have lost some unnoticed.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub(super) damaged: BTreeSet<String>,
    /// There are more of them than are listed.
    pub(super) lost: bool,
}

impl BucketStats {
    /// Notes that Redis lost ids of a counter.
    pub(super) fn note_damage(&mut self, counter: &str) {
        self.damaged.insert(counter.to_owned());
        self.bound();
    }

    /// Adds the stats of another instance.
    pub(super) fn add(&mut self, other: &Self) {
        self.names += other.names;
        self.ids += other.ids;
        self.lost |= other.lost;
        self.damaged.extend(other.damaged.iter().cloned());
        self.bound();
    }

    /// If Redis lost everything, the list would be as long as that of all counters.
    fn bound(&mut self) {
        if self.damaged.len() > MOST_DAMAGED {
            self.damaged.clear();
            self.lost = true;
        }
    }
}

/// How many ids an instance had accepted, by its stored stats; none if the text is none.
pub fn accepted_ids(stored: &str) -> Option<u64> {
    serde_json::from_str::<WindowStats>(stored).ok().map(|stats| stats.accepted)
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants it so")]
fn is_none(number: &u64) -> bool {
    *number == 0
}

impl CounterStats {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl WindowStats {
    /// Of an instance whose stats are gone: ids may be missing.
    pub(super) fn unknown() -> Self {
        Self { lost: 1, ..Self::default() }
    }

    /// Reads the stored form. Any other text is [`Self::unknown`].
    pub(super) fn read(text: &str) -> Self {
        serde_json::from_str(text).unwrap_or_else(|_| Self::unknown())
    }

    pub(super) fn to_stored(&self) -> String {
        serde_json::json!(self).to_string()
    }
}
