//! When is a window complete? Only this module decides it.
//!
//! A count is called complete only if all of this is known to be true when it is taken:
//!
//! 1. The window is over.
//! 2. At every moment of the window some instance accepted ids. This is certain: no instance vanished unnoticed while it was
//!    the only one.
//! 3. No instance vanished with ids that the store did not have. The store lost no ids of an instance that is gone.
//! 4. No live instance has ids of the window that the store does not have.
//! 5. The clock of every live instance is right, to within a window.
//! 6. The store has all ids that instances added: no key expired, was replaced, was evicted, or was restored from an older
//!    state.
//!
//! Two cases go unnoticed. An instance that is cut off alone, for longer than a heartbeat counts, goes on accepting ids,
//! and the others take it for dead. The window of its last heartbeat is incomplete; later ones are not. The other case is in mode
//! `exact`, at a fail-over: docs/faults.md has it.
//!
//! A counter is complete if the total is, every id found a place in each of its counters, and the store has all its ids.
//!
//! What is not known counts as false. The [coordinator](crate::coordination) knows 2 to 5, and the [store](crate::store)
//! knows 6. The leader brings them together. A standalone instance can only vanish itself, and its windows with it.

use crate::model::counter::CounterCounts;
use crate::model::window::WindowCount;

/// Whether the counts of all counters of a window are complete.
pub(super) fn of_counters(of_total: &WindowCount, counts: &CounterCounts) -> bool {
    may_be_complete(of_total, counts) && counts.all_are_whole()
}

/// Whether the count of a counter is complete.
pub(super) fn of_counter(of_total: &WindowCount, counts: &CounterCounts, name: &str) -> bool {
    may_be_complete(of_total, counts) && counts.is_whole(name)
}

/// An id that found no place in its counter is missing there, and it is not known in which.
fn may_be_complete(of_total: &WindowCount, counts: &CounterCounts) -> bool {
    of_total.complete && !counts.has_overflowed()
}

/// What is known about a window when it is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Evidence {
    /// The window has ended.
    pub is_over: bool,
    /// Which instances were there in the window.
    pub attendance: Attendance,
    /// A live instance did not seal it within `--close-timeout`.
    pub is_open: bool,
    /// How many ids the store lost, or may have lost.
    pub lost_ids: u64,
    /// Shards are not in the count, because a primary of the Redis Cluster was away.
    pub lacks_shards: bool,
}

/// What heartbeats say about the instances that were there in a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "each is a doubt by itself, and any of them may go with any other"
)]
pub struct Attendance {
    /// From its start to its end some instance accepted ids.
    pub throughout: bool,
    /// An instance died, and the others could not know it yet. Perhaps no other one was there.
    pub in_doubt: bool,
    /// An instance vanished with ids of the window that the store may not have.
    pub vanished: bool,
    /// The clock of a live instance is wrong: it counts ids in windows in which they did not arrive.
    pub misdated: bool,
}

impl Attendance {
    /// Some instance was always there, and nothing is in doubt.
    pub const FULL: Self = Self { throughout: true, in_doubt: false, vanished: false, misdated: false };
}

impl Evidence {
    /// Whether the count may be called complete.
    pub fn is_complete(&self) -> bool {
        self.gap().is_none()
    }

    /// Whether the store knows how many ids every instance accepted. If not, the known sum is a lower bound.
    pub fn all_accepted_is_known(&self) -> bool {
        !(self.attendance.vanished || self.is_open || self.lost_ids > 0 || self.lacks_shards)
    }

    /// The first reason why the count may not be called complete.
    pub fn gap(&self) -> Option<&'static str> {
        let Self { is_over, attendance, is_open, lost_ids, lacks_shards } = *self;
        let Attendance { throughout, in_doubt, vanished, misdated } = attendance;
        let gaps = [
            (!is_over, "it was closed before its end"),
            (!throughout, "for a time no instance was known to accept ids"),
            (in_doubt, "an instance died, and perhaps no other one was there"),
            (vanished, "an instance vanished with ids that only it had"),
            (misdated, "the clock of an instance is wrong"),
            (lacks_shards, "a primary of the Redis Cluster was away for longer than --close-timeout"),
            (is_open, "an instance did not seal it within --close-timeout"),
            (lost_ids > 0, "Redis lost, or may have lost, ids that it had acknowledged"),
        ];
        gaps.into_iter().find_map(|(is_true, gap)| is_true.then_some(gap))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In every combination, a window is complete only if there is no doubt at all.
    #[test]
    fn one_doubt_is_enough() {
        for bits in 0..256_u16 {
            let is = |bit: u8| bits & (1 << bit) != 0;
            let evidence = Evidence {
                is_over: !is(0),
                attendance: Attendance {
                    throughout: !is(1),
                    in_doubt: is(2),
                    vanished: is(3),
                    misdated: is(6),
                },
                is_open: is(4),
                lost_ids: u64::from(is(5)),
                lacks_shards: is(7),
            };
            assert_eq!(evidence.is_complete(), bits == 0, "{evidence:?}");
            assert_eq!(evidence.gap().is_some(), bits != 0);
        }
    }
}
