//! The flags that say where Redis is.

use std::time::Duration;

use clap::Args;

use super::address::{Address, CannotConnect, FLAG};
use super::client::Redis;
use super::server::ServerFacts;
use crate::platform::args;
use crate::platform::secret::SecretArg;
use crate::telemetry::metrics::Metrics;

/// Where Redis is, and how long it may take.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Redis")]
pub struct RedisArgs {
    // Not a doc comment: help has no Markdown, and a URL is no link there.
    #[arg(
        long,
        env = "HEADCOUNT_REDIS_URL",
        value_name = "URL",
        hide_env_values = true,
        help = "Share the counter with other instances through this Redis: redis://, rediss:// (TLS) or \
                unix://, with user, password and database as in redis://user:password@host:6379/0, or \
                file:PATH of a file that has it. Without, it counts alone, in memory"
    )]
    redis_url: Option<SecretArg>,

    /// How long Redis may take to answer; if it does not, it is taken to be away
    #[arg(
        long, env = "HEADCOUNT_REDIS_TIMEOUT", value_name = "DURATION", default_value = "350ms",
        value_parser = args::positive_duration
    )]
    pub redis_timeout: Duration,

    /// How long to wait for Redis at the start
    #[arg(
        long, env = "HEADCOUNT_REDIS_WAIT", value_name = "DURATION", default_value = "10s",
        value_parser = args::duration
    )]
    pub redis_wait: Duration,

    /// What shares the counter: services with different names can use one Redis
    #[arg(
        long, env = "HEADCOUNT_NAMESPACE", value_name = "NAME", default_value = "headcount",
        value_parser = parse_namespace
    )]
    pub namespace: String,
}

impl RedisArgs {
    /// Where Redis is; none if there is to be none.
    ///
    /// # Errors
    ///
    /// A line for the user, without the password.
    pub fn address(&self) -> Result<Option<Address>, String> {
        let Some(url) = &self.redis_url else { return Ok(None) };
        let address = Address::parse(&url.read(FLAG)?)?;
        Ok(Some(if url.is_file() { address.read_from(url.clone()) } else { address }))
    }

    /// Connects, and waits until Redis answers.
    ///
    /// # Errors
    ///
    /// [`CannotConnect`] when it does not within `--redis-wait`.
    pub async fn connect(&self, address: &Address, metrics: &Metrics) -> Result<Redis, CannotConnect> {
        let redis = Redis::new(address, self.redis_timeout, metrics)?;
        redis.wait_for(address, self.redis_wait).await?;
        match ServerFacts::of(&redis).await.map(|server| server.unsuitable()) {
            Ok(Some(what)) => Err(CannotConnect::Unsuitable { address: address.to_string(), what }),
            // One that does not say what it is may be what we need.
            _ => Ok(redis),
        }
    }
}

fn parse_namespace(text: &str) -> Result<String, String> {
    let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if text.is_empty() || text.len() > 100 || !text.chars().all(valid) {
        return Err("expected up to 100 letters, digits, dots, hyphens and underscores".to_owned());
    }
    Ok(text.to_owned())
}
