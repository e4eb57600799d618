//! The URLs of `--redis-url`, beyond those that redis-rs reads: with several hosts.
//!
//! `redis-sentinel://` names Sentinels and a primary that they watch, `redis-cluster://` some nodes of a cluster. For each host
//! this makes a URL that redis-rs reads. So user, password, database and IPv6 addresses are the same in all kinds.

use ::redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo, RedisConnectionInfo};
use url::Url;

use crate::platform::secret::SecretArg;

const SENTINEL_PORT: u16 = 26379;
/// Hosts of a URL, at most.
const MOST_HOSTS: usize = 32;

/// What a URL leads to.
#[derive(Debug, Clone)]
pub(super) enum Kind {
    /// One server.
    Server,
    /// The primary that Sentinels name.
    Sentinel(Watched),
    /// A cluster with these nodes, and others that they know.
    Cluster(Vec<ConnectionAddr>),
}

/// A primary that Sentinels watch.
#[derive(Debug, Clone)]
pub(super) struct Watched {
    /// The name that the Sentinels know it by.
    pub(super) master: String,
    pub(super) sentinels: Vec<ConnectionAddr>,
    /// The user and the password for Sentinels.
    pub(super) login: RedisConnectionInfo,
    /// That password stands in the URL itself, and not in a file that the URL names.
    pub(super) shows_password: bool,
}

/// Reads a URL. The connection is that of the server; of a cluster, that of the first node; of Sentinels, that of the
/// primary, whose address is not known yet.
///
/// The error is the rest of a line for the user. It has no password.
pub(super) fn read(text: &str) -> Result<(ConnectionInfo, Kind), String> {
    let Some((scheme, rest)) = text.split_once("://") else { return read_single(text) };
    let plain = match scheme {
        "redis-sentinel" | "redis-cluster" => "redis",
        "rediss-sentinel" | "rediss-cluster" => "rediss",
        _ => return read_single(text),
    };
    let parts = Parts::of(plain, rest)?;
    if scheme.ends_with("sentinel") { parts.of_sentinels() } else { parts.of_cluster() }
}

fn read_single(text: &str) -> Result<(ConnectionInfo, Kind), String> {
    let info = connection(text)?;
    match Url::parse(text).ok().as_ref().and_then(unknown_part) {
        Some(unknown) => Err(unknown),
        None => Ok((info, Kind::Server)),
    }
}

fn connection(text: &str) -> Result<ConnectionInfo, String> {
    text.into_connection_info().map_err(|_| {
        "expected redis://, rediss:// or unix://, such as redis://user:password@host:6379/0, or \
         redis-sentinel://host:26379,host:26379/0?master=NAME, or redis-cluster://host:6379,host:6379"
            .to_owned()
    })
}

/// The parts of a URL with several hosts.
struct Parts<'a> {
    /// `redis` or `rediss`.
    scheme: &'a str,
    /// User and password with their `@`, or nothing.
    login: &'a str,
    hosts: Vec<&'a str>,
    /// The path, with its `/`.
    path: &'a str,
    parameters: Vec<(String, String)>,
}

impl<'a> Parts<'a> {
    fn of(scheme: &'a str, rest: &'a str) -> Result<Self, String> {
        if rest.contains('#') {
            return Err(UNKNOWN_FRAGMENT.to_owned());
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
        let (login, hosts) = authority.rfind('@').map_or(("", authority), |at| authority.split_at(at + 1));
        let hosts: Vec<_> = hosts.split(',').map(str::trim).collect();
        if hosts.iter().any(|host| host.is_empty()) || hosts.len() > MOST_HOSTS {
            return Err(format!("expected 1 to {MOST_HOSTS} hosts, as in host:port,host:port"));
        }
        let parameters = url::form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        Ok(Self { scheme, login, hosts, path, parameters })
    }

    /// The connection to one of the hosts.
    fn to(&self, host: &str, login: &str) -> Result<ConnectionInfo, String> {
        let protocol = self.parameter("protocol").map(|version| format!("?protocol={version}"));
        let (scheme, path) = (self.scheme, self.path);
        connection(&format!("{scheme}://{login}{host}{path}{}", protocol.unwrap_or_default()))
    }

    fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    fn only(&self, known: &[&str]) -> Result<(), String> {
        let mut seen = Vec::new();
        for (name, _) in &self.parameters {
            if let Some(problem) = problem_with_parameter(name, known, &mut seen) {
                return Err(problem);
            }
        }
        Ok(())
    }

    fn of_cluster(&self) -> Result<(ConnectionInfo, Kind), String> {
        self.only(&["protocol"])?;
        let all = self.hosts.iter().map(|host| self.to(host, self.login)).collect::<Result<Vec<_>, _>>()?;
        let first = all[0].clone();
        if first.redis_settings().db() != 0 {
            return Err("a Redis Cluster has no databases: leave out the path".to_owned());
        }
        let nodes = all.iter().map(|info| info.addr().clone()).collect();
        Ok((first, Kind::Cluster(nodes)))
    }

    fn of_sentinels(&self) -> Result<(ConnectionInfo, Kind), String> {
        self.only(&["master", "sentinel_user", "sentinel_password", "protocol"])?;
        let Some(master) = self.parameter("master").filter(|name| !name.is_empty()) else {
            return Err(
                "'?master=NAME' is missing: the name that the Sentinels know the primary by".to_owned()
            );
        };
        let mut sentinels = Vec::new();
        for host in &self.hosts {
            let mut address = self.to(host, "")?.addr().clone();
            if let (ConnectionAddr::Tcp(_, port) | ConnectionAddr::TcpTls { port, .. }, None) =
                (&mut address, port_of(host))
            {
                *port = SENTINEL_PORT;
            }
            sentinels.push(address);
        }
        let (mut login, mut shows_password) = (RedisConnectionInfo::default(), false);
        if let Some(user) = self.parameter("sentinel_user") {
            login = login.set_username(user);
        }
        if let Some(password) = self.parameter("sentinel_password") {
            let secret = password.parse::<SecretArg>().unwrap_or_else(|never| match never {});
            shows_password = !secret.is_file();
            login = login.set_password(secret.read("sentinel_password")?);
        }
        let watched = Watched { master: master.to_owned(), sentinels, login, shows_password };
        Ok((self.to(self.hosts[0], self.login)?, Kind::Sentinel(watched)))
    }
}

/// The port that a host was written with.
fn port_of(host: &str) -> Option<u16> {
    let after_address = host.rsplit_once(']').map_or(host, |(_, rest)| rest);
    after_address.rsplit_once(':')?.1.parse().ok()
}

const UNKNOWN_FRAGMENT: &str = "a fragment ('#…') is not known; write %23 for a '#' in a password";

/// The error for a part of the URL that redis-rs would ignore. It quotes only names of parameters, because the URL may
/// contain a password.
fn unknown_part(url: &Url) -> Option<String> {
    let is_unix = url.scheme().ends_with("unix");
    let known: &[&str] = if is_unix { &["db", "user", "pass", "protocol"] } else { &["protocol"] };
    let mut seen = Vec::new();
    for (name, _) in url.query_pairs() {
        if name == "db" && !is_unix {
            return Some(
                "'?db' is only for unix:// URLs; write the database as the path: redis://host:6379/1"
                    .to_owned(),
            );
        }
        if let Some(problem) = problem_with_parameter(&name, known, &mut seen) {
            return Some(problem);
        }
    }
    match url.fragment() {
        Some("insecure") if matches!(url.scheme(), "rediss" | "valkeys") => None,
        Some(_) => Some(UNKNOWN_FRAGMENT.to_owned()),
        None => None,
    }
}

fn problem_with_parameter(name: &str, known: &[&str], seen: &mut Vec<String>) -> Option<String> {
    if !known.contains(&name) {
        let is_a_name = name.len() <= 32 && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        let name = if is_a_name { name } else { "…" };
        return Some(format!("the parameter '{name}' is not known; expected {}", known.join(", ")));
    }
    if seen.iter().any(|seen| seen == name) {
        return Some(format!("the parameter '{name}' appears more than once"));
    }
    seen.push(name.to_owned());
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(host: &str, port: u16) -> ConnectionAddr {
        ConnectionAddr::Tcp(host.to_owned(), port)
    }

    #[test]
    fn hosts_logins_and_ports_are_read() {
        let (info, kind) = read("redis-cluster://me:p%40ss@a,b:7001,[::1]:7002").unwrap();
        assert_eq!(info.redis_settings().password(), Some("p@ss"));
        let Kind::Cluster(nodes) = kind else { panic!("{kind:?}") };
        assert_eq!(nodes, [tcp("a", 6379), tcp("b", 7001), tcp("::1", 7002)]);

        let url = "redis-sentinel://me:secret@a,[::1],b:5000/2?master=m&sentinel_user=s&sentinel_password=t";
        let (info, kind) = read(url).unwrap();
        assert_eq!((info.redis_settings().db(), info.redis_settings().username()), (2, Some("me")));
        let Kind::Sentinel(watched) = kind else { panic!("{kind:?}") };
        assert_eq!(watched.sentinels, [tcp("a", 26379), tcp("::1", 26379), tcp("b", 5000)]);
        assert_eq!((watched.master.as_str(), watched.login.password()), ("m", Some("t")));
        assert_eq!(watched.login.username(), Some("s"));

        let (info, kind) = read("rediss-cluster://a:1").unwrap();
        assert!(
            matches!(info.addr(), ConnectionAddr::TcpTls { port: 1, .. }) && matches!(kind, Kind::Cluster(_))
        );
    }

    #[test]
    fn mistakes_are_named_without_the_password() {
        for (url, expected) in [
            ("redis-sentinel://:secret@a", "master=NAME"),
            ("redis-sentinel://a?master=", "master=NAME"),
            ("redis-sentinel://a?master=m&master=n", "more than once"),
            ("redis-sentinel://:secret@a?maser=m", "'maser' is not known"),
            ("redis-cluster://:secret@a/1", "no databases"),
            ("redis-cluster://:secret@a?master=m", "'master' is not known"),
            ("redis-cluster://:secret@", "1 to 32 hosts"),
            ("redis-cluster://:secret@a,,b", "1 to 32 hosts"),
            ("redis-cluster://:secret@a:port", "expected redis://"),
            ("redis-cluster://:secret@a#b", "%23"),
            ("http://:secret@a", "expected redis://"),
        ] {
            let error = read(url).unwrap_err();
            assert!(error.contains(expected) && !error.contains("secret"), "{url}: {error}");
        }
    }
}
