//! The heartbeat: what an instance says of itself every second, and what it is told.
//!
//! `heartbeat.lua` takes it, and says what it is given.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::model::window::{Window, WindowCount};

/// What an instance says about itself.
#[derive(Debug, Clone, Copy)]
pub struct Heartbeat {
    /// The oldest window that it has not sealed.
    pub watermark: Window,
    /// The newest window that it may have added to.
    pub newest: Window,
    /// It has accepted ids without a break since then.
    pub since: SystemTime,
    /// It could not send a heartbeat for a while.
    pub interrupted: bool,
    /// Accepted ids that the store does not have yet.
    pub pending_ids: u64,
    /// The last closed window that it knows the count of.
    pub knows: Option<Window>,
}

/// What an instance is told.
#[derive(Debug, Clone, Default)]
pub struct HeartbeatAnswer {
    /// The last window that is closed: nothing that is added to it now would be counted.
    pub closed: Option<Window>,
    /// Counts of closed windows after the last one that it knows, oldest first; of those that are remembered.
    pub news: Vec<WindowCount>,
    /// The last window that every sink has: it will not be counted again.
    pub published: Option<Window>,
    /// What the instances shared may be lost, and this heartbeat was not taken: restore, then send it again.
    pub lost: bool,
    /// What time it is there.
    pub time: Option<SystemTime>,
}

/// A heartbeat as it is stored, with the fields that docs/instances.md lists. `shared.lua` alone decides what is one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StoredHeartbeat {
    /// The oldest window that the instance has not sealed: the second of its start.
    pub(super) watermark: u64,
    /// The newest window that it may have added to, likewise.
    pub(super) newest: u64,
    /// Since when it has accepted ids without a break, in µs.
    pub(super) since: u64,
    /// Accepted ids that Redis does not have yet.
    pub(super) pending: u64,
    /// When Redis took the heartbeat, in µs of Redis's clock. The script sets it.
    pub(super) at: u64,
}

/// Heartbeats by the names of their fields.
pub(super) type StoredHeartbeats = BTreeMap<String, StoredHeartbeat>;

/// What the script answers.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Answer {
    Taken(Taken),
    /// This server does not have the instance's last heartbeat.
    Lost {},
    /// Others have another value.
    Differs {
        setting: String,
        theirs: String,
    },
}

/// The heartbeat is stored.
#[derive(Deserialize)]
pub(super) struct Taken {
    pub(super) now: u64,
    /// The first window of the namespace.
    pub(super) first: u64,
    pub(super) closed: Option<u64>,
    pub(super) published: Option<u64>,
    /// Others may have been there and not said so yet.
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
            // Rounded up, so that no instance is there from earlier on than it was.
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
