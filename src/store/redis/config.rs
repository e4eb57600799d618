//! The settings of the store in Redis.

use std::time::Duration;

use crate::model::mode::Mode;
use crate::model::shard::Shards;
use crate::model::window::Window;
use crate::redis::keys::Keys;

/// Shards that are merged or counted in one pipeline.
pub(super) const SHARDS_A_PIPELINE: usize = 16;

/// Which ids are sent to Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RedisWrites {
    /// All of them
    All,
    /// In mode hll only those that can change the sketch: the count is the same, and there is far less to
    /// send
    Changed,
}

/// What becomes of ids while Redis is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnRedisDown {
    /// They are counted here, and in Redis when it is back
    Count,
    /// They are refused at once
    Fail,
}

/// What a counter in Redis is made of.
pub struct RedisStoreConfig {
    /// How ids are remembered.
    pub mode: Mode,
    /// Keys that a window's ids are split over.
    pub shards: Shards,
    /// How long a window's keys are kept after it was sealed.
    pub retention: Duration,
    /// Which ids are sent.
    pub writes: RedisWrites,
    /// What becomes of ids while Redis is away.
    pub on_redis_down: OnRedisDown,
    /// How many exact ids are kept then.
    pub pending_max: u32,
    /// How long a write may take.
    pub timeout: Duration,
    /// The names of the keys.
    pub keys: Keys,
    /// The id of this instance, unlike any other.
    pub instance_id: String,
}

impl RedisStoreConfig {
    /// Whether the registers that Redis has are remembered, in a second sketch.
    pub(super) fn remembers_acknowledged(&self) -> bool {
        self.mode == Mode::Hll && self.writes == RedisWrites::Changed
    }

    /// How long Redis keeps a window's keys after it was last told, in milliseconds: as long as the window may run
    /// on, and the retention.
    pub(super) fn keep_for(&self, window: Window) -> u64 {
        (window.length().duration() + self.retention).as_millis() as u64
    }

    /// How many windows a retention has, and those that are just beginning and ending.
    pub(super) fn most_windows(&self, window: Window) -> usize {
        (self.retention.as_secs() / u64::from(window.length().seconds())) as usize + 2
    }

    /// How many unacknowledged ids there may be, if that is limited: a sketch has as many as there are.
    pub(super) fn most_pending_ids(&self) -> Option<u32> {
        (self.mode == Mode::Exact).then_some(self.pending_max)
    }
}
