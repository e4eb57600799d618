//! The settings: the values of the flags, checked against each other. A part of the service gets only its own.

use std::time::Duration;

use crate::publish::sinks::Origin;
use crate::publish::sinks::settings::Sinks;
use crate::store::Counting;
use crate::store::redis::{OnRedisDown, RedisWrites};
use crate::telemetry::logging;
use crate::{callback, http, redis};

/// The settings of all parts, with all files read.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Instances of one namespace count together.
    pub namespace: String,
    /// What is counted, and how.
    pub counting: Counting,
    /// Where to listen, and the limits there.
    pub http: http::Settings,
    /// The Redis in which instances count together; none for a standalone instance.
    pub redis: Option<redis::Settings>,
    /// Which ids are sent to Redis.
    pub redis_writes: RedisWrites,
    /// What to do with ids while Redis is away.
    pub on_redis_down: OnRedisDown,
    /// How many exact ids may be pending.
    pub pending_max: u32,
    /// How long an instance leads without renewing its lease.
    pub lease_ttl: Duration,
    /// How long a window waits, after its end, for an instance that makes no progress with it.
    pub close_timeout: Duration,
    /// Where counts go.
    pub sinks: Sinks,
    /// Where callbacks may go, and their limits.
    pub callbacks: callback::Settings,
    /// How long stopping may take.
    pub stopping: Stopping,
    /// What is logged, and how.
    pub logging: logging::Settings,
}

impl Settings {
    /// What sinks say about the counts.
    pub(crate) fn origin(&self, instance: String) -> Origin {
        Origin {
            namespace: self.namespace.clone(),
            instance,
            mode: self.counting.mode,
            standard_error: self.counting.standard_error(),
            window: self.counting.window,
        }
    }
}

/// How long stopping may take.
#[derive(Debug, Clone, Copy)]
pub struct Stopping {
    /// How long to go on serving after the signal to stop.
    pub drain_delay: Duration,
    /// How long the whole stop may take.
    pub shutdown_timeout: Duration,
}
