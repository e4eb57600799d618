//! When is a window complete? The one place that decides it.
//!
//! A count is called complete only if all of this is known to be true when it is taken:
//!
//! 1. The window is over.
//! 2. At every moment of it some instance accepted ids. This is certain: no instance was the only one there and vanished
//!    unnoticed.
//! 3. No instance vanished with ids that the store did not have. No instance that is gone had lost ids in the store.
//! 4. No instance that lives still has ids for it that the store does not have.
//! 5. The clock of every instance that lives is right, to within a window.
//! 6. The store has all ids that instances said they had added: no key expired, was replaced, was evicted, or was restored from
//!    an older state.
//!
//! One thing cannot be known. An instance that is cut off alone, for longer than heartbeats live, goes on accepting ids, and
//! the others take it for dead. The window in which it was last heard is incomplete; later ones are not.
//!
//! What is not known counts as false. The [coordinator](crate::coordination) knows 2 to 5, the [store](crate::store) knows 6,
//! and the leader brings them together. A standalone instance has nothing to lose but itself, and its windows with it.

/// What is known about a window when it is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Evidence {
    /// The window has ended.
    pub is_over: bool,
    /// How the instances stood to it.
    pub attendance: Attendance,
    /// An instance that lives has not sealed it: its patience has run out.
    pub is_open: bool,
    /// How many ids the store has had, or may have had, and does not have any more.
    pub lost_ids: u64,
}

/// How instances stood to a window, as far as they are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "each is a doubt by itself, and any of them may go with any other"
)]
pub struct Attendance {
    /// From its start to its end some instance accepted ids.
    pub throughout: bool,
    /// An instance was gone, and it was not known yet, so it is not certain that another one was there.
    pub in_doubt: bool,
    /// An instance is gone that had ids of it which the store may not have.
    pub vanished: bool,
    /// The clock of an instance that lives is wrong: it counts ids in windows in which they did not come.
    pub misdated: bool,
}

impl Attendance {
    /// Nothing is amiss.
    pub const FULL: Self = Self { throughout: true, in_doubt: false, vanished: false, misdated: false };
}

impl Evidence {
    /// Whether the count may be called complete.
    pub fn is_complete(&self) -> bool {
        self.gap().is_none()
    }

    /// Whether every instance that accepted ids for it has said how many. If not, what the others said is a lower bound.
    pub fn all_accepted_is_known(&self) -> bool {
        !(self.attendance.vanished || self.is_open || self.lost_ids > 0)
    }

    /// The first reason why it may not.
    pub fn gap(&self) -> Option<&'static str> {
        let Self { is_over, attendance, is_open, lost_ids } = *self;
        let Attendance { throughout, in_doubt, vanished, misdated } = attendance;
        let gaps = [
            (!is_over, "it was closed before its end"),
            (!throughout, "no instance accepted ids from its start to its end"),
            (in_doubt, "an instance died, and perhaps no other one was there"),
            (vanished, "an instance vanished with ids that only it had"),
            (misdated, "the clock of an instance is wrong"),
            (is_open, "an instance did not seal it within --close-timeout"),
            (lost_ids > 0, "Redis lost ids that it had acknowledged, or may have lost some"),
        ];
        gaps.into_iter().find_map(|(is_true, gap)| is_true.then_some(gap))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every combination: a window is complete exactly if nothing at all is amiss.
    #[test]
    fn one_doubt_is_enough() {
        for bits in 0..128_u8 {
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
            };
            assert_eq!(evidence.is_complete(), bits == 0, "{evidence:?}");
            assert_eq!(evidence.gap().is_some(), bits != 0);
        }
    }
}
