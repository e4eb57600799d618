//! What the entries of both streams have in common: ids, a field, and the errors of Redis about them.

use std::collections::HashMap;
use std::fmt;

use ::redis::{FromRedisValue, ParsingError, RedisError, Value, from_redis_value};

use crate::model::window::Window;
use crate::platform::unavailable::Unavailable;
use crate::redis::{Call, Redis, Routed};

/// The field with the namespace that an entry belongs to.
pub(super) const NAMESPACE: &str = "namespace";

/// Where an entry is in a stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Id {
    pub(super) milliseconds: u64,
    pub(super) sequence: u64,
}

impl Id {
    /// The lowest id that Redis takes.
    pub(super) const FIRST: Self = Self { milliseconds: 0, sequence: 1 };

    /// The id of a window's count.
    pub(super) fn of(window: Window) -> Self {
        Self { milliseconds: window.unix_seconds() * 1000, sequence: 0 }
    }

    /// Just before the id of a window's count, and not before those of earlier counts.
    pub(super) fn before(window: Window) -> Self {
        Self { milliseconds: Self::of(window).milliseconds.saturating_sub(1), sequence: 0 }
    }
}

impl FromRedisValue for Id {
    fn from_redis_value(value: Value) -> Result<Self, ParsingError> {
        let text: String = from_redis_value(value)?;
        let parts = text.split_once('-').and_then(|(milliseconds, sequence)| {
            Some(Self { milliseconds: milliseconds.parse().ok()?, sequence: sequence.parse().ok()? })
        });
        parts.ok_or_else(|| format!("'{text}' is no id of a stream").into())
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.milliseconds, self.sequence)
    }
}

/// What Redis says about a stream: nothing if there is none. The inner error: the key holds something else.
pub(super) async fn about(
    redis: &Redis,
    key: &str,
) -> Result<Result<HashMap<String, Value>, RedisError>, Unavailable> {
    let mut about = ::redis::cmd("XINFO");
    about.arg("STREAM").arg(key);
    let ask = async |connection: &mut Routed| match about.query_async(connection).await {
        Err(error) if is_missing(&error) => Ok(Ok(HashMap::new())),
        Err(error) if is_wrong_type(&error) => Ok(Err(error)),
        about => about.map(Ok),
    };
    redis.run(Call::Publish, key, ask).await
}

pub(super) fn is_not_newer(error: &RedisError) -> bool {
    error.detail().is_some_and(|detail| detail.contains("equal or smaller"))
}

fn is_wrong_type(error: &RedisError) -> bool {
    error.code() == Some("WRONGTYPE")
}

fn is_missing(error: &RedisError) -> bool {
    error.detail().is_some_and(|detail| detail.contains("no such key"))
}
