//! What a server says about itself in `INFO`.

use std::fmt;

use ::redis::InfoDict;

use super::client::{Call, Redis};
use crate::platform::unavailable::Unavailable;

/// The oldest version of Redis that headcount works with.
pub const OLDEST: (u32, u32) = (6, 2);

/// Facts from `INFO`; those that it does not have are empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerFacts {
    /// `redis` or `valkey`.
    name: String,
    version: String,
    /// The version of Redis that the server is, or is compatible with.
    redis_version: String,
    /// `standalone`, `cluster` or `sentinel`.
    kind: String,
    /// What the server does when its memory is full.
    pub eviction_policy: String,
    /// How many bytes it may use. None: there is no limit.
    pub max_memory: Option<u64>,
}

impl ServerFacts {
    /// Asks the server.
    ///
    /// # Errors
    ///
    /// [`Unavailable`], also when the user has no right to `INFO`.
    pub async fn of(redis: &Redis) -> Result<Self, Unavailable> {
        let ask = |section| {
            let mut info = ::redis::cmd("INFO");
            info.arg(section);
            info
        };
        let (server, memory) = (ask("server"), ask("memory"));
        let (server, memory): (InfoDict, InfoDict) = redis
            .run(Call::Ask, async |connection| {
                Ok((server.query_async(connection).await?, memory.query_async(connection).await?))
            })
            .await?;
        Ok(Self::read(&server, &memory))
    }

    fn read(server: &InfoDict, memory: &InfoDict) -> Self {
        let redis_version: String = server.get("redis_version").unwrap_or_default();
        Self {
            name: server.get("server_name").unwrap_or_else(|| "redis".to_owned()),
            version: server.get("valkey_version").unwrap_or_else(|| redis_version.clone()),
            redis_version,
            // Valkey 9 has another name for it.
            kind: server.get("redis_mode").or_else(|| server.get("server_mode")).unwrap_or_default(),
            eviction_policy: memory.get("maxmemory_policy").unwrap_or_default(),
            max_memory: memory.get("maxmemory").filter(|bytes| *bytes > 0),
        }
    }

    /// False when the server is known to be older than [`OLDEST`].
    pub fn is_new_enough(&self) -> bool {
        let mut numbers = self.redis_version.split('.').map(|number| number.parse::<u32>().ok());
        match (numbers.next().flatten(), numbers.next().flatten()) {
            (Some(major), Some(minor)) => (major, minor) >= OLDEST,
            _ => true,
        }
    }

    /// Why headcount cannot work with this server, and what the user can do; none if it can, or if that is unknown.
    pub fn unsuitable(&self) -> Option<&'static str> {
        match &*self.kind {
            "cluster" => Some(
                "a node of a Redis Cluster, which has only some of the keys: give --redis-url a server that is in no \
                 cluster (cluster-enabled no)",
            ),
            "sentinel" => Some("a Sentinel, which has no keys: give --redis-url the primary that it watches"),
            _ => None,
        }
    }

    /// True when the server may evict keys that are still needed.
    pub fn evicts(&self) -> bool {
        !matches!(&*self.eviction_policy, "noeviction" | "")
    }
}

impl fmt::Display for ServerFacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_and_policies() {
        let read = |server, memory| ServerFacts::read(&InfoDict::new(server), &InfoDict::new(memory));
        let redis =
            read("# Server\r\nredis_version:6.0.16\r\n", "maxmemory:0\r\nmaxmemory_policy:allkeys-lru\r\n");
        assert_eq!((redis.to_string().as_str(), redis.max_memory), ("redis 6.0.16", None));
        assert!(!redis.is_new_enough() && redis.evicts());
        let valkey = read(
            "redis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:9.0.1\r\n",
            "maxmemory:1048576\r\nmaxmemory_policy:noeviction\r\n",
        );
        assert_eq!((valkey.to_string().as_str(), valkey.max_memory), ("valkey 9.0.1", Some(1 << 20)));
        assert!(valkey.is_new_enough() && !valkey.evicts());
        assert!(ServerFacts::default().is_new_enough() && !ServerFacts::default().evicts());
    }
}
