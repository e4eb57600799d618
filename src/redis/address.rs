//! Where Redis is, and the flags that say so.

use std::fmt;
use std::time::Duration;

use ::redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo};
use clap::Args;
use thiserror::Error;

use super::Redis;
use crate::args;
use crate::metrics::Metrics;
use crate::secret::SecretArg;
use crate::unavailable::Unavailable;

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
        Address::parse(&url.read("--redis-url <URL>")?).map(Some)
    }

    /// Connects, and waits until Redis answers.
    ///
    /// # Errors
    ///
    /// [`CannotConnect`] when it does not within `--redis-wait`.
    pub async fn connect(&self, address: &Address, metrics: &Metrics) -> Result<Redis, CannotConnect> {
        let redis = Redis::new(address, self.redis_timeout, metrics)?;
        redis.wait_for(address, self.redis_wait).await?;
        Ok(redis)
    }
}

fn parse_namespace(text: &str) -> Result<String, String> {
    let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if text.is_empty() || text.len() > 100 || !text.chars().all(valid) {
        return Err("expected up to 100 letters, digits, dots, hyphens and underscores".to_owned());
    }
    Ok(text.to_owned())
}

/// Where Redis is and who we are to it. Shown without the password.
#[derive(Clone)]
pub struct Address(pub(super) ConnectionInfo);

impl Address {
    /// Reads a URL.
    ///
    /// # Errors
    ///
    /// A line for the user, without the password.
    pub fn parse(text: &str) -> Result<Self, String> {
        let info = text.into_connection_info().map_err(|_| {
            "invalid value for '--redis-url <URL>': expected redis://, rediss:// or unix://, such as \
             redis://user:password@host:6379/0"
                .to_owned()
        })?;
        let tcp = info.tcp_settings().clone().set_nodelay(true);
        Ok(Self(info.set_tcp_settings(tcp)))
    }

    /// Whether a password is in it.
    pub fn has_password(&self) -> bool {
        self.0.redis_settings().password().is_some()
    }

    /// The user that Redis knows us as.
    pub fn user(&self) -> &str {
        self.0.redis_settings().username().unwrap_or("default")
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.addr() {
            ConnectionAddr::TcpTls { host, port, .. } => write!(f, "rediss://{host}:{port}"),
            other => write!(f, "{other}"),
        }?;
        write!(f, ", database {}", self.0.redis_settings().db())
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Redis cannot be used.
#[derive(Debug, Error)]
pub enum CannotConnect {
    /// It does not answer, or refuses.
    #[error("cannot use Redis at {address}, is --redis-url right? {cause}")]
    Refused {
        /// Where.
        address: String,
        /// What it said, or what the system said.
        cause: Unavailable,
    },
    /// The address is none.
    #[error("cannot use --redis-url: {0}")]
    Address(Unavailable),
}
