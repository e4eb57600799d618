//! Work around primaries that are away.
//!
//! In a cluster, one primary may be away while the others answer. What is for the others goes on. So work that is for many keys
//! notes which node has failed, does not try it again, and says at the end what is missing. A Redis that is no cluster has one
//! node: its first failure ends the work.

use std::collections::{BTreeMap, BTreeSet};

use crate::platform::unavailable::Unavailable;

/// Which nodes have failed so far.
#[derive(Default)]
pub(super) struct Around {
    failed: BTreeMap<usize, Unavailable>,
    /// Which of them were not asked at all.
    left_out: BTreeSet<usize>,
    /// Which nodes have done something.
    answered: BTreeSet<usize>,
    /// How much was not done.
    missed: u64,
}

impl Around {
    /// Whether this node has failed. The caller does nothing for it then.
    pub(super) fn skips(&mut self, node: usize) -> bool {
        let skips = self.has_failed(node);
        self.missed += u64::from(skips);
        skips
    }

    pub(super) fn has_failed(&self, node: usize) -> bool {
        self.failed.contains_key(&node)
    }

    /// Whether this node has done all that was asked of it, and something was.
    pub(super) fn is_there(&self, node: usize) -> bool {
        self.answered.contains(&node) && !self.has_failed(node)
    }

    /// Leaves out a node that is away. It counts as one that has failed.
    pub(super) fn leave_out(&mut self, node: usize) {
        self.note::<()>(node, Err(Unavailable::because("Redis is away")));
        self.left_out.insert(node);
    }

    /// The nodes that were asked and have failed, with their first errors.
    pub(super) fn failures(&self) -> impl Iterator<Item = (usize, &Unavailable)> {
        let asked = self.failed.iter().filter(|(node, _)| !self.left_out.contains(node));
        asked.map(|(node, error)| (*node, error))
    }

    /// How much was not done so far.
    pub(super) fn missed(&self) -> u64 {
        self.missed
    }

    /// Notes how work for a node went. Returns what it returned, if it succeeded.
    pub(super) fn note<T>(&mut self, node: usize, done: Result<T, Unavailable>) -> Option<T> {
        match done {
            Ok(done) => {
                self.answered.insert(node);
                Some(done)
            }
            Err(error) => {
                self.missed += 1;
                self.failed.entry(node).or_insert(error);
                None
            }
        }
    }

    /// Whether some node has failed.
    pub(super) fn lacks_some(&self) -> bool {
        !self.failed.is_empty()
    }

    /// The error of this node.
    pub(super) fn error_of(&self, node: usize) -> Option<&Unavailable> {
        self.failed.get(&node)
    }

    /// The nodes that have failed, with their first errors.
    pub(super) fn failed(&self) -> &BTreeMap<usize, Unavailable> {
        &self.failed
    }

    /// The first error, of which there is one.
    pub(super) fn error(&self) -> Unavailable {
        let first = self.failed.values().next().cloned();
        first.unwrap_or_else(|| Unavailable::because("a server is away"))
    }

    /// An error if some node has failed.
    pub(super) fn all_done(self) -> Result<(), Unavailable> {
        self.failed.into_values().next().map_or(Ok(()), Err)
    }
}
