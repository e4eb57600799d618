//! Settings: where Redis is, and how long it may take.

use std::time::Duration;

use super::address::{Address, CannotConnect};
use super::client::Redis;
use super::server::ServerFacts;
use crate::telemetry::metrics::Metrics;

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
        let redis = Redis::new(address, self.timeout, metrics)?;
        redis.wait_for(address, self.wait).await?;
        match ServerFacts::of(&redis).await.map(|server| server.unsuitable()) {
            Ok(Some(what)) => Err(CannotConnect::Unsuitable { address: address.to_string(), what }),
            // A server that does not say what it is may be suitable.
            _ => Ok(redis),
        }
    }
}
