//! The settings of the store in Redis.

use std::time::Duration;

use crate::model::counter::CounterLimits;
use crate::model::mode::Mode;
use crate::model::shard::Shards;
use crate::model::window::Window;
use crate::redis::keys::Keys;
use crate::store::keep::Keep;

/// Ids in one command: a large list holds up Redis no longer than many small ones.
pub(super) const IDS_A_COMMAND: usize = 1024;
/// Shards that are merged or counted in one pipeline.
pub(super) const SHARDS_A_PIPELINE: usize = 16;

/// Which ids are sent to Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RedisWrites {
    /// All ids
    All,
    /// In mode hll only ids that can change the sketch. The count is the same, with far fewer commands
    Changed,
}

/// What to do with ids while Redis is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnRedisDown {
    /// Count them in the instance, and send them to Redis later
    Count,
    /// Refuse them at once
    Fail,
}

/// The settings of a [`RedisStore`](super::RedisStore).
pub struct RedisStoreConfig {
    /// How ids are remembered.
    pub mode: Mode,
    /// Keys that a window's ids are split over.
    pub shards: Shards,
    /// How long the leader waits for an instance that has not sealed a window.
    pub close_timeout: Duration,
    /// How long a window's keys are kept after it was sealed.
    pub retention: Duration,
    /// How long hours and days are kept.
    pub keep: Keep,
    /// Which ids are sent.
    pub writes: RedisWrites,
    /// What to do with ids while Redis is away.
    pub on_redis_down: OnRedisDown,
    /// How many exact ids may be pending.
    pub pending_max: u32,
    /// How many counters clients may name.
    pub counters: CounterLimits,
    /// How long a write may take.
    pub timeout: Duration,
    /// The names of the keys.
    pub keys: Keys,
    /// The id of this instance, unlike any other.
    pub instance_id: String,
}

impl RedisStoreConfig {
    /// Whether a second sketch remembers the registers that Redis has acknowledged.
    pub(super) fn remembers_acknowledged(&self) -> bool {
        self.mode == Mode::Hll && self.writes == RedisWrites::Changed
    }

    /// How long Redis keeps a window's keys after the last `PEXPIRE`, in milliseconds: the rest of the window, and the
    /// retention.
    pub(super) fn keep_for(&self, window: Window) -> u64 {
        (window.length().duration() + self.retention).as_millis() as u64
    }

    /// How many windows a retention has, and two more for the one that begins and the one that ends.
    pub(super) fn most_windows(&self, window: Window) -> usize {
        (self.retention.as_secs() / u64::from(window.length().seconds())) as usize + 2
    }

    /// The limit of pending ids. None in mode `hll`: a sketch holds any number of them.
    pub(super) fn most_pending_ids(&self) -> Option<u32> {
        (self.mode == Mode::Exact).then_some(self.pending_max)
    }
}
