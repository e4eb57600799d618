//! Every duration of the coordination protocol, and the rule that ties them together.
//!
//! An instance sends a heartbeat every [`HEARTBEAT_EVERY`]. An instance whose last heartbeat is older than [`FRESH`] may be cut
//! off, and closes no window itself. After [`LIVES`] the others take it for dead. After heartbeats may have been lost, all live
//! instances get [`GRACE`] to send another. In that time the last of them notices that it is cut off, and the longest pause
//! between two tries passes. Redis keeps what instances share for longer: for [`SHORTEST_SILENCE`] at least.
//!
//! In short: `HEARTBEAT_EVERY < FRESH < LIVES`, `LIVES + FRESH <= GRACE < SHORTEST_SILENCE <= SILENCE`.

use std::time::Duration;

use super::window::WindowLength;

/// The longest time between two heartbeats, and between two looks at the clock.
pub(crate) const HEARTBEAT_EVERY: Duration = Duration::from_secs(1);
/// The first wait after a round that failed; it doubles up to [`HEARTBEAT_EVERY`].
pub(crate) const HEARTBEAT_AGAIN: Duration = Duration::from_millis(50);
/// An instance whose last heartbeat is older must not close a window. Other instances may have been cut off for as long.
/// They need as much time to come back, and must not be taken for dead meanwhile.
pub(crate) const FRESH: Duration = Duration::from_secs(2);
/// An instance whose last heartbeat is older is taken for dead.
pub(crate) const LIVES: Duration = Duration::from_secs(5);
/// An instance that has not looked at the clock for so long was absent: its process was paused, or its clock was set. So
/// was one that notices the end of a window only so long after it.
pub(crate) const MISSED: Duration = LIVES;
/// How long instances do not trust heartbeats after some may have been lost. By then every live instance has sent
/// another, even after the longest pause between two tries.
pub(crate) const GRACE: Duration = Duration::from_secs(7);
/// How long Redis keeps the config and the heartbeats after the last heartbeat. With a shorter retention it is that long.
pub(crate) const SILENCE: Duration = Duration::from_secs(60);
/// The least of [`SILENCE`], for any retention.
pub(crate) const SHORTEST_SILENCE: Duration = Duration::from_secs(10);
/// How often an instance looks whether the lease is free, so that another one soon leads after a leader gave it up.
pub(crate) const LEASE_LOOKED_AT_EVERY: Duration = Duration::from_millis(500);
pub(crate) const SHORTEST_LEASE: Duration = Duration::from_secs(1);
/// How long an instance that has given up its lease does not take it again, so that another can.
pub(crate) const TIME_FOR_OTHERS: Duration = Duration::from_secs(5);
/// No clock is so far ahead: headcount did not write a window that begins later.
pub(crate) const A_YEAR: Duration = Duration::from_secs(365 * 86_400);

/// How long Redis keeps what belongs to the counters of a closed window, once nobody needs it to publish the window.
pub(crate) fn closed_keys_live(window: WindowLength) -> Duration {
    (2 * window.duration()).max(Duration::from_secs(60))
}

const _: () = {
    assert!(HEARTBEAT_EVERY.as_millis() < FRESH.as_millis());
    assert!(FRESH.as_millis() < LIVES.as_millis());
    assert!(LIVES.as_millis() + FRESH.as_millis() <= GRACE.as_millis());
    assert!(GRACE.as_millis() < SHORTEST_SILENCE.as_millis());
    assert!(SHORTEST_SILENCE.as_millis() <= SILENCE.as_millis());
    assert!(LEASE_LOOKED_AT_EVERY.as_millis() < SHORTEST_LEASE.as_millis());
};
