//! Redis in a place where it can be made to go away.

use std::time::SystemTime;

use super::fleet::seconds;
use super::proxy::{Fault, Proxy};
use super::redis::{Flavour, Redis};

/// A way to be away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outage {
    /// Of the network.
    Network(Fault),
    /// Redis is killed, and started again with what it had written down.
    Killed,
    /// Redis is stopped, and goes on.
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

/// A Redis that loses nothing when it is killed, behind a network that can be made to fail.
pub struct Site {
    pub redis: Redis,
    proxy: Proxy,
    /// Which there were, and when each began and ended, in seconds since 1970.
    history: Vec<(Outage, u64, u64)>,
}

impl Site {
    pub async fn start() -> Self {
        // What is written down is written before it is answered, and survives the process.
        let redis = Redis::start_with(Flavour::Debian, &["--appendonly", "yes", "--appendfsync", "no"]);
        let proxy = Proxy::start(redis.address()).await;
        Self { redis, proxy, history: Vec::new() }
    }

    /// By way of the network.
    pub fn url(&self) -> String {
        self.proxy.url()
    }

    pub fn begin(&mut self, outage: Outage) {
        let now = seconds(SystemTime::now());
        self.history.push((outage, now, now));
        match outage {
            Outage::Network(fault) => self.proxy.set(fault),
            Outage::Killed => self.redis.kill(),
            Outage::Stopped => self.redis.signal("STOP"),
        }
    }

    pub fn end(&mut self, outage: Outage) {
        if let Some((_, _, end)) = self.history.last_mut() {
            *end = seconds(SystemTime::now());
        }
        match outage {
            Outage::Network(_) => self.proxy.set(Fault::None),
            Outage::Killed => self.redis.restart(),
            Outage::Stopped => self.redis.signal("CONT"),
        }
    }

    /// The windows of two seconds in which Redis was killed soon after another outage, from the start of that one.
    pub fn killed_again(&self) -> Vec<u64> {
        /// By then all windows of the outage before are closed.
        const SOON: u64 = 12;
        let kills = self.history.iter().filter(|(outage, ..)| matches!(outage, Outage::Killed));
        let windows = kills.flat_map(|(_, killed, _)| {
            let before = self.history.iter();
            let before = before.filter(move |(_, begun, ended)| begun < killed && ended + SOON >= *killed);
            before.flat_map(move |(_, begun, _)| (begun / 2 * 2..=*killed).step_by(2))
        });
        windows.collect()
    }
}
