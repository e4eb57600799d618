//! Outages of Redis, on demand.

use std::time::SystemTime;

use super::fleet::seconds;
use super::proxy::{Fault, Proxy};
use super::redis::{Flavour, Redis};

/// A kind of outage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outage {
    /// The network fails.
    Network(Fault),
    /// Redis is killed, and started again with its data on disk.
    Killed,
    /// Redis is paused, and continues.
    Stopped,
}

impl Outage {
    /// One of each kind.
    pub const ALL: [Self; 7] = [
        Self::Network(Fault::Refuse),
        Self::Network(Fault::Stall),
        Self::Network(Fault::MidReply),
        Self::Network(Fault::Swallow),
        Self::Network(Fault::Trickle),
        Self::Killed,
        Self::Stopped,
    ];
}

/// A Redis that loses nothing when it is killed, behind a proxy that can fail.
pub struct Site {
    pub redis: Redis,
    proxy: Proxy,
    /// The outages so far, and when each began, in seconds since 1970.
    history: Vec<(Outage, u64)>,
}

impl Site {
    pub async fn start() -> Self {
        // Redis appends each write to its file before it answers. So the write survives the process.
        let redis = Redis::start_with(Flavour::Debian, &["--appendonly", "yes", "--appendfsync", "no"]);
        let proxy = Proxy::start(redis.address()).await;
        Self { redis, proxy, history: Vec::new() }
    }

    /// Its URL through the proxy.
    pub fn url(&self) -> String {
        self.proxy.url()
    }

    pub fn begin(&mut self, outage: Outage) {
        self.history.push((outage, seconds(SystemTime::now())));
        match outage {
            Outage::Network(fault) => self.proxy.set(fault),
            Outage::Killed => self.redis.kill(),
            Outage::Stopped => self.redis.signal("STOP"),
        }
    }

    pub fn end(&mut self, outage: Outage) {
        match outage {
            Outage::Network(_) => self.proxy.set(Fault::None),
            Outage::Killed => self.redis.restart(),
            Outage::Stopped => self.redis.signal("CONT"),
        }
    }

    /// The windows of two seconds from the first outage to the last one in which Redis was killed, if that was another one:
    /// while outages follow each other, hardly any window is closed.
    pub fn killed_again(&self) -> Vec<u64> {
        let mut kills = self.history.iter().filter(|(outage, _)| *outage == Outage::Killed);
        match (self.history.first(), kills.next_back()) {
            (Some((_, first)), Some((_, killed))) if first < killed => {
                (first / 2 * 2..=*killed).step_by(2).collect()
            }
            _ => Vec::new(),
        }
    }
}
