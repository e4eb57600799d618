//! Every duration of the coordination protocol, and the rule that ties them together.
//!
//! An instance sends a heartbeat every [`HEARTBEAT_EVERY`]. An instance that was not heard of for [`FRESH`] was perhaps cut off,
//! and closes nothing itself. One that was not heard of for [`LIVES`] is taken for dead. After heartbeats may have been lost,
//! all that live get [`GRACE`] to send another. That is as long as it takes until the last of them is known to be cut off, plus
//! the longest pause between two tries. What instances share is kept for longer: for [`SHORTEST_SILENCE`] at least.
//!
//! In short: `HEARTBEAT_EVERY < FRESH < LIVES`, `LIVES + FRESH <= GRACE < SHORTEST_SILENCE <= SILENCE`.

use std::time::Duration;

/// The longest time between two heartbeats, and between two looks at the clock.
pub const HEARTBEAT_EVERY: Duration = Duration::from_secs(1);
/// The first wait after a round that failed; it doubles up to [`HEARTBEAT_EVERY`].
pub const HEARTBEAT_AGAIN: Duration = Duration::from_millis(50);
/// An instance that has not been heard of for longer knows too little to close anything: others may have been cut
/// off as long, and need so long to come back, in which they must not be taken for dead.
pub const FRESH: Duration = Duration::from_secs(2);
/// For so long a heartbeat says that its instance lives.
pub const LIVES: Duration = Duration::from_secs(5);
/// An instance that has not looked at the clock for so long, or finds that a window ended so long ago without its
/// noticing, was not there: the process was stopped or the clock was set.
pub const MISSED: Duration = LIVES;
/// How long heartbeats are not believed after some may have been lost: until all that live have sent another, the longest
/// pause between two tries included.
pub const GRACE: Duration = Duration::from_secs(7);
/// How long config and heartbeats are kept after the last heartbeat, unless the retention is shorter than that.
pub const SILENCE: Duration = Duration::from_secs(60);
/// However short the retention is.
pub const SHORTEST_SILENCE: Duration = Duration::from_secs(10);
/// How often an instance looks whether the lease is free: one that was given up is soon taken.
pub const LEASE_LOOKED_AT_EVERY: Duration = Duration::from_millis(500);
/// The shortest lease.
pub const SHORTEST_LEASE: Duration = Duration::from_secs(1);
/// How long an instance that has given up its lease leaves it to the others.
pub const TIME_FOR_OTHERS: Duration = Duration::from_secs(5);
/// No clock is so far ahead: a window that begins later was not written by headcount.
pub const A_YEAR: Duration = Duration::from_secs(365 * 86_400);

const _: () = {
    assert!(HEARTBEAT_EVERY.as_millis() < FRESH.as_millis());
    assert!(FRESH.as_millis() < LIVES.as_millis());
    assert!(LIVES.as_millis() + FRESH.as_millis() <= GRACE.as_millis());
    assert!(GRACE.as_millis() < SHORTEST_SILENCE.as_millis());
    assert!(SHORTEST_SILENCE.as_millis() <= SILENCE.as_millis());
    assert!(LEASE_LOOKED_AT_EVERY.as_millis() < SHORTEST_LEASE.as_millis());
};
