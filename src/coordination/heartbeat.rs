//! The heartbeat: what an instance says about itself every second, and the answer to it.
//!
//! `heartbeat.lua` takes it, and lists the arguments.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::closed::StoredWindow;
use crate::model::window::Window;

/// What an instance says about itself.
#[derive(Debug, Clone, Copy)]
pub struct Heartbeat {
    /// The oldest window that it has not sealed.
    pub watermark: Window,
    /// The newest window that it may have added to.
    pub newest: Window,
    /// Since when it has accepted ids without a break.
    pub since: SystemTime,
    /// It could not send a heartbeat for a while.
    pub interrupted: bool,
    /// Accepted ids and counters that the store does not have yet.
    pub pending_ids: u64,
    /// The last closed window whose count it knows.
    pub knows: Option<Window>,
}

/// The answer to a heartbeat.
#[derive(Debug, Clone, Default)]
pub struct HeartbeatAnswer {
    /// The last closed window: ids added to it now would not be counted.
    pub closed: Option<Window>,
    /// Counts of closed windows that the instance does not know and should remember, oldest first.
    pub news: Vec<StoredWindow>,
    /// The last window that every sink has: no leader counts it again.
    pub published: Option<Window>,
    /// Redis may have lost ids, and did not take this heartbeat: restore, then send it again.
    pub lost: bool,
    /// The time by Redis's clock.
    pub time: Option<SystemTime>,
}

/// A stored heartbeat, with the fields that docs/instances.md lists. Only `shared.lua` decides what is a valid one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StoredHeartbeat {
    /// The oldest window that the instance has not sealed, as the second of its start.
    pub(super) watermark: u64,
    /// The newest window that it may have added to, as the second of its start.
    pub(super) newest: u64,
    /// Since when it has accepted ids without a break, in µs.
    pub(super) since: u64,
    /// Accepted ids and counters that Redis does not have yet.
    pub(super) pending: u64,
    /// When Redis took the heartbeat, in µs of Redis's clock. The script sets it.
    pub(super) at: u64,
}

/// Heartbeats by the names of their fields in the hash.
pub(super) type StoredHeartbeats = BTreeMap<String, StoredHeartbeat>;

/// What the script answers.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Answer {
    Taken(Taken),
    /// This server does not have the instance's last heartbeat.
    Lost {},
    /// The other instances have another value.
    Differs {
        setting: String,
        theirs: String,
    },
}

/// The answer to a heartbeat that is stored now.
#[derive(Deserialize)]
pub(super) struct Taken {
    pub(super) now: u64,
    /// The first window of the namespace.
    pub(super) first: u64,
    pub(super) closed: Option<u64>,
    pub(super) published: Option<u64>,
    /// Other instances may be there that have not sent a heartbeat yet.
    pub(super) unsure: bool,
    pub(super) others: StoredHeartbeats,
    /// Counts that the instance does not know, as they are stored.
    pub(super) news: BTreeMap<String, String>,
}

impl StoredHeartbeat {
    pub(super) fn of(heartbeat: &Heartbeat) -> Self {
        Self {
            watermark: heartbeat.watermark.unix_seconds(),
            newest: heartbeat.newest.unix_seconds(),
            // Rounded up, so that no instance claims more than it was there.
            since: heartbeat.since.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos().div_ceil(1000)
                as u64,
            pending: heartbeat.pending_ids,
            at: 0,
        }
    }
}

pub(super) fn from_micros(micros: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_micros(micros)
}
