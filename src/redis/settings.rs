//! Settings: where Redis is, and how long it may take.

use std::time::{Duration, Instant};

use super::address::{Address, CannotConnect};
use super::client::Redis;
use super::server::ServerFacts;
use crate::telemetry::metrics::Metrics;

/// The pause before a replica is looked at again.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(200);

/// Where Redis is, and how long it may take.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The address.
    pub address: Address,
    /// How long it may take to answer.
    pub timeout: Duration,
    /// How long to wait for it at the start.
    pub wait: Duration,
}

impl Settings {
    /// Connects, and waits until Redis answers.
    ///
    /// # Errors
    ///
    /// [`CannotConnect`] when Redis does not answer in time, or headcount cannot work with it.
    pub async fn connect(&self, metrics: &Metrics) -> Result<Redis, CannotConnect> {
        let address = &self.address;
        let (redis, started) = (Redis::new(address, self.timeout, metrics), Instant::now());
        loop {
            redis.wait_for(address, self.wait.saturating_sub(started.elapsed())).await?;
            let facts = match redis.nodes_with_slots().first() {
                Some(node) => ServerFacts::of(&redis, node).await.ok(),
                None => None,
            };
            // A server that does not say what it is may be suitable.
            let Some(what) = facts.as_ref().and_then(|facts| facts.unsuitable(address)) else {
                return Ok(redis);
            };
            // A fail-over may be under way.
            if !facts.is_some_and(|facts| facts.is_replica()) || started.elapsed() >= self.wait {
                return Err(CannotConnect::Unsuitable { address: address.to_string(), what });
            }
            tokio::time::sleep(LOOK_AGAIN_AFTER).await;
        }
    }
}
