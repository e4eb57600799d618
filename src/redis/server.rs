//! What a server says about itself in `INFO`.

use std::fmt;

use ::redis::InfoDict;

use super::address::{Address, host_and_port};
use super::call::Call;
use super::client::Redis;
use super::cluster::Member;
use super::node::Node;
use super::urls::Kind;
use crate::platform::unavailable::Unavailable;

/// The oldest version of Redis that headcount works with.
pub const OLDEST: (u32, u32) = (6, 2);

/// Facts from `INFO`; those that it does not have are empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerFacts {
    /// Where it is in a cluster.
    pub at: Option<String>,
    /// `redis` or `valkey`.
    name: String,
    version: String,
    /// The version of Redis that the server is, or is compatible with.
    redis_version: String,
    /// `standalone`, `cluster` or `sentinel`.
    kind: String,
    /// The primary of a replica.
    primary: Option<(String, u16)>,
    /// The name of a primary that a Sentinel watches.
    watched: Option<String>,
    /// What the server does when its memory is full.
    pub eviction_policy: String,
    /// How many bytes it may use. None: there is no limit.
    pub max_memory: Option<u64>,
}

impl ServerFacts {
    /// Asks a server.
    ///
    /// # Errors
    ///
    /// [`Unavailable`], also when the user has no right to `INFO`.
    pub async fn of(redis: &Redis, node: &Node) -> Result<Self, Unavailable> {
        let ask = ::redis::cmd("INFO");
        let info: InfoDict =
            redis.run_on(Call::Ask, node, async |connection| ask.query_async(connection).await).await?;
        Ok(Self::read(&info))
    }

    /// Asks each server that has keys.
    ///
    /// # Errors
    ///
    /// [`Unavailable`], if one of them does not tell.
    pub async fn of_all(redis: &Redis) -> Result<Vec<Self>, Unavailable> {
        let mut all = Vec::new();
        for node in redis.nodes_with_slots() {
            all.push(Self { at: node.name(), ..Self::of(redis, &node).await? });
        }
        Ok(all)
    }

    /// Asks a member of a cluster, also a replica: it may become a primary.
    ///
    /// # Errors
    ///
    /// [`Unavailable`], also when the user has no right to `INFO`.
    pub async fn of_member(redis: &Redis, member: &Member) -> Result<Self, Unavailable> {
        Ok(Self { at: Some(member.name()), ..Self::read(&redis.info_of(member).await?) })
    }

    fn read(info: &InfoDict) -> Self {
        let redis_version: String = info.get("redis_version").unwrap_or_default();
        let primary = info.get::<String>("master_host").zip(info.get::<u16>("master_port"));
        let watched = info.get::<String>("master0");
        let watched = watched.as_deref().and_then(|about| about.strip_prefix("name=")?.split(',').next());
        Self {
            at: None,
            name: info.get("server_name").unwrap_or_else(|| "redis".to_owned()),
            version: info.get("valkey_version").unwrap_or_else(|| redis_version.clone()),
            redis_version,
            // Valkey 9 has another name for it.
            kind: info.get("redis_mode").or_else(|| info.get("server_mode")).unwrap_or_default(),
            primary: primary.filter(|_| info.get::<String>("role").is_some_and(|role| role == "slave")),
            watched: watched.map(str::to_owned),
            eviction_policy: info.get("maxmemory_policy").unwrap_or_default(),
            max_memory: info.get("maxmemory").filter(|bytes| *bytes > 0),
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

    /// Whether it is a replica. It may become a primary.
    pub fn is_replica(&self) -> bool {
        self.primary.is_some()
    }

    /// Why headcount cannot work with the server at this address, and what the user can do. None if it can, or if that is
    /// unknown.
    pub fn unsuitable(&self, address: &Address) -> Option<String> {
        let Kind::Server = address.kind else { return None };
        let (scheme, at) = (address.scheme(), host_and_port(address.info.addr()));
        match (&*self.kind, &self.primary) {
            ("cluster", _) => Some(format!(
                "a node of a Redis Cluster, which has only some of the keys: use --redis-url {scheme}-cluster://{at}"
            )),
            ("sentinel", _) => {
                let name = self.watched.as_deref().unwrap_or("NAME");
                Some(format!(
                    "a Sentinel, which has no keys: use --redis-url {scheme}-sentinel://{at}?master={name}"
                ))
            }
            (_, Some((host, port))) => Some(format!(
                "a replica, which takes no writes: use its primary, --redis-url {scheme}://{host}:{port}, or \
                 {scheme}-sentinel:// if Sentinels watch it"
            )),
            _ => None,
        }
    }

    /// How many bytes these servers may use together. None if one has no limit.
    pub fn max_memory_of(servers: &[Self]) -> Option<u64> {
        servers.iter().map(|server| server.max_memory).sum()
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
        let read = |info| ServerFacts::read(&InfoDict::new(info));
        let redis =
            read("# Server\r\nredis_version:6.0.16\r\nmaxmemory:0\r\nmaxmemory_policy:allkeys-lru\r\n");
        assert_eq!((redis.to_string().as_str(), redis.max_memory), ("redis 6.0.16", None));
        assert!(!redis.is_new_enough() && redis.evicts());
        let valkey = read(
            "redis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:9.0.1\r\n\
             maxmemory:1048576\r\nmaxmemory_policy:noeviction\r\n",
        );
        assert_eq!((valkey.to_string().as_str(), valkey.max_memory), ("valkey 9.0.1", Some(1 << 20)));
        assert!(valkey.is_new_enough() && !valkey.evicts());
        assert!(ServerFacts::default().is_new_enough() && !ServerFacts::default().evicts());
    }

    #[test]
    fn an_unsuitable_server_says_which_url_would_do() {
        let address = Address::parse("rediss://10.0.0.1:7000").unwrap();
        let says = |info: &str| ServerFacts::read(&InfoDict::new(info)).unsuitable(&address);
        for (info, url) in [
            (
                "redis_mode:cluster\r\nrole:slave\r\nmaster_host:b\r\nmaster_port:1\r\n",
                "rediss-cluster://10.0.0.1:7000",
            ),
            (
                "redis_mode:sentinel\r\nmaster0:name=m,status=ok\r\n",
                "rediss-sentinel://10.0.0.1:7000?master=m",
            ),
            ("redis_mode:standalone\r\nrole:slave\r\nmaster_host:b\r\nmaster_port:1\r\n", "rediss://b:1"),
        ] {
            let said = says(info).unwrap();
            assert!(said.contains(&format!("--redis-url {url}")), "{said}");
        }
        assert_eq!(says("redis_mode:standalone\r\nrole:master\r\n"), None);
    }
}
