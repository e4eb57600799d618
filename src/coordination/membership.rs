//! The membership view: which instances are there, and what they have left to do for a window.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use serde::Deserialize;

use super::completeness::Attendance;
use super::heartbeat::{StoredHeartbeat, StoredHeartbeats, from_micros};
use crate::model::timing::LIVES;
use crate::model::window::Window;

/// The field of an instance that has left begins with this.
const LEFT: char = '~';

/// What the heartbeats of all instances say about a window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MembershipView {
    /// A live instance has not sealed it.
    pub open: bool,
    /// Watermarks and pending ids of the instances that have it open. They change as long as the instances make progress.
    pub left: Vec<(u64, u64)>,
    /// Whether some instance was always there in it, and none vanished that had it open.
    pub attendance: Attendance,
    /// Ids of the instances that were there in it and have sealed it.
    pub parties: BTreeSet<String>,
    /// The first window, this one or a later one, in which some instance was there; none if none is known.
    pub attended: Option<Window>,
    /// How many instances have joined so far. An instance that joins during the count may add ids that the count lacks.
    pub joined: u64,
    /// The time by Redis's clock; none without Redis.
    pub time: Option<SystemTime>,
}

/// What membership.lua answers.
#[derive(Deserialize)]
pub(super) struct Members {
    /// Redis's clock, in µs.
    pub(super) now: u64,
    /// Since when some instance was always there, in µs.
    since: Option<u64>,
    /// How many instances have joined so far.
    joined: Option<u64>,
    pub(super) settings: BTreeMap<String, String>,
    heartbeats: StoredHeartbeats,
}

impl Members {
    /// How many instances live.
    pub(super) fn living(&self) -> usize {
        self.present().filter(|heartbeat| heartbeat.lives(self.now())).count()
    }

    pub(super) fn now(&self) -> SystemTime {
        from_micros(self.now)
    }

    /// Heartbeats of instances that have not left. An instance that left has sealed all its windows.
    fn present(&self) -> impl Iterator<Item = &StoredHeartbeat> {
        self.heartbeats.iter().filter(|(name, _)| !name.starts_with(LEFT)).map(|(_, heartbeat)| heartbeat)
    }

    pub(super) fn view_of(&self, window: Window) -> MembershipView {
        let (now, start) = (self.now(), window.unix_seconds());
        let (living, gone): (Vec<_>, Vec<_>) = self.present().partition(|heartbeat| heartbeat.lives(now));
        let left: Vec<_> = living
            .iter()
            .filter(|heartbeat| heartbeat.watermark <= start)
            .map(|heartbeat| (heartbeat.watermark, heartbeat.pending))
            .collect();
        let reached = self.heartbeats.iter().filter(|(_, heartbeat)| start <= heartbeat.newest);
        let attended = reached
            .clone()
            .map(|(_, heartbeat)| window.max(window.length().window_at(heartbeat.since())))
            .min();
        let parties = reached
            .filter(|(_, heartbeat)| start < heartbeat.watermark && heartbeat.since() < window.end())
            .map(|(name, _)| name.trim_start_matches(LEFT).to_owned())
            .collect();
        // For LIVES after its last heartbeat, a dead instance still counts as living. An instance that joins then does
        // not restart `since`, although perhaps no instance was there.
        let unnoticed = gone
            .iter()
            .any(|heartbeat| heartbeat.at() < window.end() && window.start() < heartbeat.at() + LIVES);
        let attendance = Attendance {
            throughout: self.since.is_some_and(|since| from_micros(since) <= window.start()),
            in_doubt: unnoticed && !living.iter().any(|heartbeat| heartbeat.since() <= window.start()),
            vanished: gone.iter().any(|heartbeat| heartbeat.watermark <= start && start <= heartbeat.newest),
            misdated: living.iter().any(|heartbeat| heartbeat.is_misdated()),
        };
        MembershipView {
            open: !left.is_empty(),
            left,
            attendance,
            parties,
            attended,
            joined: self.joined.unwrap_or_default(),
            time: Some(now),
        }
    }
}

impl StoredHeartbeat {
    fn since(&self) -> SystemTime {
        from_micros(self.since)
    }

    fn at(&self) -> SystemTime {
        from_micros(self.at)
    }

    fn lives(&self, now: SystemTime) -> bool {
        now < self.at() + LIVES
    }

    /// Whether its clock is wrong: its `since` lies in the future.
    fn is_misdated(&self) -> bool {
        self.since() > self.at() + LIVES
    }
}
