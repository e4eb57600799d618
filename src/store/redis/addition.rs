//! What a request adds.

use crate::model::counter::CounterNames;

/// Ids for the total, and ids for counters. They are the same, unless some of the servers are away: then a request is split.
pub(super) struct Addition<'a, 'n, I> {
    pub(super) ids: &'a [I],
    pub(super) to_counters: &'a [I],
    pub(super) counters: &'a CounterNames<'n>,
}

impl<I> Clone for Addition<'_, '_, I> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<I> Copy for Addition<'_, '_, I> {}
