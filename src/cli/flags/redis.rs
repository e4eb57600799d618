//! The flags of Redis.

use std::time::Duration;

use clap::Args;

use super::values;
use crate::platform::secret::SecretArg;
use crate::redis;
use crate::store::redis::{OnRedisDown, RedisWrites};

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Redis")]
pub(super) struct RedisFlags {
    // Not a doc comment: help has no Markdown, and a URL is no link there.
    #[arg(
        long,
        env = "HEADCOUNT_REDIS_URL",
        value_name = "URL",
        hide_env_values = true,
        help = "Count together with other instances in this Redis: redis://, rediss:// (TLS) or unix://, with \
                user, password and database as in redis://user:password@host:6379/0. Or the primary that \
                Sentinels watch: redis-sentinel://host:26379,host:26379/0?master=NAME. Or a Redis Cluster: \
                redis-cluster://host:6379,host:6379. Or file:PATH of a file that has the URL. Without this flag \
                the instance is standalone and counts in memory"
    )]
    redis_url: Option<SecretArg>,

    /// How long Redis may take to answer. If it takes longer, the instance treats Redis as away
    #[arg(
        long, env = "HEADCOUNT_REDIS_TIMEOUT", value_name = "DURATION", default_value = "350ms",
        value_parser = values::positive_duration
    )]
    redis_timeout: Duration,

    /// How long to wait for Redis at the start
    #[arg(
        long, env = "HEADCOUNT_REDIS_WAIT", value_name = "DURATION", default_value = "10s",
        value_parser = values::duration
    )]
    redis_wait: Duration,

    /// Instances with the same namespace count together. Services with different ones can use one Redis
    #[arg(
        long, env = "HEADCOUNT_NAMESPACE", value_name = "NAME", default_value = "headcount",
        value_parser = namespace
    )]
    pub(super) namespace: String,

    /// Which ids are sent to Redis
    #[arg(long, env = "HEADCOUNT_REDIS_WRITES", value_enum, default_value_t = RedisWrites::All)]
    pub(super) redis_writes: RedisWrites,

    /// What to do with ids while Redis is away
    #[arg(long, env = "HEADCOUNT_ON_REDIS_DOWN", value_enum, default_value_t = OnRedisDown::Count)]
    pub(super) on_redis_down: OnRedisDown,

    /// In mode exact, how many different ids an instance keeps while Redis is away, at 25 to 50 bytes each (75 to 110 beyond 22 bytes of text).
    /// It refuses more
    #[arg(
        long, env = "HEADCOUNT_PENDING_MAX", value_name = "NUMBER", default_value = "5000000",
        value_parser = values::up_to::<1_000_000_000>
    )]
    pending_max: u32,

    /// The old name of --pending-max
    #[arg(
        long, env = "HEADCOUNT_UNACKNOWLEDGED_MAX", hide = true,
        value_parser = values::up_to::<1_000_000_000>
    )]
    unacknowledged_max: Option<u32>,

    /// Also publish to the stream with this key
    #[arg(long, env = "HEADCOUNT_REDIS_STREAM", value_name = "KEY")]
    pub(super) redis_stream: Option<String>,
}

impl RedisFlags {
    /// How many exact ids may be pending, by either name of the flag.
    pub(super) fn pending_max(&self) -> u32 {
        self.unacknowledged_max.unwrap_or(self.pending_max)
    }

    /// None without `--redis-url`: the instance is standalone.
    pub(super) fn settings(&self) -> Result<Option<redis::Settings>, String> {
        let Some(url) = &self.redis_url else { return Ok(None) };
        let (timeout, wait) = (self.redis_timeout, self.redis_wait);
        Ok(Some(redis::Settings { address: redis::Address::read(url)?, timeout, wait }))
    }
}

fn namespace(text: &str) -> Result<String, String> {
    let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if text.is_empty() || text.len() > 100 || !text.chars().all(valid) {
        return Err("expected up to 100 letters, digits, dots, hyphens and underscores".to_owned());
    }
    Ok(text.to_owned())
}
