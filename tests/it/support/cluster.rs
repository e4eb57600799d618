//! Redis Clusters on loopback: three primaries, a replica of each, and the nodes that a test adds.
//!
//! A node is a number: the order in which the nodes were started. A node that was killed keeps its number and comes back as the
//! same member of the cluster, but empty.

pub mod changes;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use headcount::model::counter::BUCKETS;
use headcount::model::mode::Mode;
use headcount::model::shard::Shards;
use headcount::redis::keys::Keys;
use redis::{Cmd, Connection, FromRedisValue, RedisResult, TlsCertificates};
use tempfile::TempDir;

use super::certificates::make_certificates;
use super::fleet::window;
use super::proxy::Proxy;
use super::redis::{Flavour, Redis};
use super::tools::succeeds;

const PRIMARIES: usize = 3;
/// The user of a cluster that has TLS. Nobody else may do anything there.
pub const USER: &str = "counter";
pub const PASSWORD: &str = "s3cret";
/// How long a node that runs may take to answer.
const ANSWER: Duration = Duration::from_secs(5);

/// A replica notices the end of its primary after two seconds, and always may take over. Nothing is delayed. On a busy machine a node may
/// hang for a second, and that must be no end.
const ARGS: [[&str; 2]; 4] = [
    ["--cluster-node-timeout", "2000"],
    ["--cluster-replica-validity-factor", "0"],
    ["--repl-diskless-sync-delay", "0"],
    ["--repl-ping-replica-period", "1"],
];

pub struct Cluster {
    flavour: Flavour,
    args: Vec<String>,
    nodes: Vec<Node>,
    /// The certificates, if all speak TLS.
    tls: Option<TempDir>,
}

struct Node {
    redis: Redis,
    id: String,
    state: State,
    /// Leads clients and replicas to it, if the cluster has proxies. The nodes watch each other without it.
    proxy: Option<Proxy>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Runs,
    /// It hangs, with open connections.
    Paused,
    Killed,
}

/// A node as another one sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    pub address: SocketAddr,
    /// The id of its primary. None for a primary.
    pub primary: Option<String>,
    /// The other nodes do not reach it, or this one does not.
    pub is_away: bool,
    pub slots: Vec<RangeInclusive<u16>>,
}

/// The nodes that have the keys of a namespace.
pub struct Places {
    /// The primary of the keys of the namespace itself.
    pub own: usize,
    pub shards: Vec<usize>,
    pub buckets: Vec<usize>,
}

impl Cluster {
    /// Starts one of Debian's servers.
    pub fn start() -> Self {
        Self::of(Flavour::Debian)
    }

    pub fn of(flavour: Flavour) -> Self {
        Self::create(Self::empty(flavour, &[], None), Vec::new())
    }

    /// With more arguments for each node.
    pub fn start_with(args: &[&str]) -> Self {
        Self::create(Self::empty(Flavour::Debian, args, None), Vec::new())
    }

    /// Clients must speak TLS and have the password.
    pub fn with_tls_and_password() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        make_certificates(dir.path());
        let password = format!(">{PASSWORD}");
        let args = [
            &["--user", USER, "on", &password, "~*", "&*", "+@all", "--user", "default", "off"][..],
            &["--masteruser", USER, "--masterauth", PASSWORD],
        ];
        Self::create(Self::empty(Flavour::Debian, &args.concat(), Some(dir)), Vec::new())
    }

    /// Clients reach each node through a proxy that can fail: [`Cluster::cut_off`].
    pub async fn behind_proxies(args: &[&str]) -> Self {
        let mut proxies = Vec::new();
        for _ in 0..2 * PRIMARIES {
            proxies.push(Proxy::start((Ipv4Addr::LOCALHOST, 0).into()).await);
        }
        Self::create(Self::empty(Flavour::Debian, args, None), proxies)
    }

    fn empty(flavour: Flavour, args: &[&str], tls: Option<TempDir>) -> Self {
        let args = ARGS.as_flattened().iter().chain(args).map(|arg| (*arg).to_owned()).collect();
        Self { flavour, args, nodes: Vec::new(), tls }
    }

    fn create(mut self, proxies: Vec<Proxy>) -> Self {
        let mut proxies = proxies.into_iter();
        for _ in 0..2 * PRIMARIES {
            self.start_node(proxies.next());
        }
        let addresses: Vec<_> = self.nodes.iter().map(|node| node.redis.address().to_string()).collect();
        succeeds(self.cli("create").args(addresses).args(["--cluster-replicas", "1", "--cluster-yes"]));
        self.wait_until_well();
        self
    }

    fn start_node(&mut self, proxy: Option<Proxy>) {
        let mut args: Vec<_> = self.args.iter().map(String::as_str).collect();
        let announced = proxy.as_ref().map(|proxy| proxy.address().port().to_string());
        if let Some(port) = &announced {
            args.extend(["--cluster-announce-port", port]);
        }
        let redis = Redis::start_node(self.flavour, &args, self.tls.as_ref().map(TempDir::path));
        if let Some(proxy) = &proxy {
            proxy.lead_to(redis.address());
        }
        self.nodes.push(Node { redis, id: String::new(), state: State::Runs, proxy });
        let node = self.nodes.len() - 1;
        self.nodes[node].id = self.ask(node, &["CLUSTER", "MYID"]);
    }

    /// The URL with three of the first nodes.
    pub fn url(&self) -> String {
        let addresses: Vec<_> = (0..PRIMARIES).map(|node| self.address(node).to_string()).collect();
        let login = self.tls.as_ref().map(|_| format!("{USER}:{PASSWORD}@")).unwrap_or_default();
        format!("{}://{login}{}", self.scheme("-cluster"), addresses.join(","))
    }

    /// The URL of one node, as if it was in no cluster.
    pub fn url_of(&self, node: usize) -> String {
        let login = self.tls.as_ref().map(|_| format!("{USER}:{PASSWORD}@")).unwrap_or_default();
        format!("{}://{login}{}", self.scheme(""), self.address(node))
    }

    fn scheme(&self, kind: &str) -> String {
        format!("{}{kind}", if self.tls.is_some() { "rediss" } else { "redis" })
    }

    /// Where clients reach a node.
    pub fn address(&self, node: usize) -> SocketAddr {
        let node = &self.nodes[node];
        node.proxy.as_ref().map_or(node.redis.address(), Proxy::address)
    }

    /// The authority that signed the certificates.
    pub fn ca_file(&self) -> PathBuf {
        self.nodes[0].redis.ca_file()
    }

    /// All nodes, those that were killed too.
    pub fn nodes(&self) -> impl Iterator<Item = usize> + use<> {
        0..self.nodes.len()
    }

    fn running(&self) -> impl Iterator<Item = usize> {
        self.nodes().filter(|node| self.nodes[*node].state == State::Runs)
    }

    fn any(&self) -> usize {
        self.running().next().expect("a node that runs")
    }

    /// A connection to a node, past its proxy.
    pub fn connect(&self, node: usize) -> RedisResult<Connection> {
        let address = self.nodes[node].redis.address();
        let client = match &self.tls {
            None => redis::Client::open(format!("redis://{address}"))?,
            Some(dir) => {
                let root_cert = Some(std::fs::read(dir.path().join("ca.pem"))?);
                let url = format!("rediss://{USER}:{PASSWORD}@{address}");
                redis::Client::build_with_tls(url, TlsCertificates { client_tls: None, root_cert })?
            }
        };
        let connection = client.get_connection_with_timeout(ANSWER)?;
        connection.set_read_timeout(Some(ANSWER))?;
        Ok(connection)
    }

    /// What a node answers.
    pub fn query<T: FromRedisValue>(&self, node: usize, command: &Cmd) -> RedisResult<T> {
        command.query(&mut self.connect(node)?)
    }

    /// The same of a command that cannot fail.
    #[track_caller]
    pub fn ask<T: FromRedisValue>(&self, node: usize, words: &[&str]) -> T {
        let answer = self.query(node, redis::cmd(words[0]).arg(&words[1..]));
        answer.unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }

    /// What the primary of a key answers to a command with this key alone.
    #[track_caller]
    pub fn at_key<T: FromRedisValue>(&self, command: &str, key: &str) -> T {
        self.ask(self.primary_of(key), &[command, key])
    }

    /// All nodes as one of them sees them, by their numbers.
    pub fn members(&self) -> BTreeMap<usize, Member> {
        self.seen_by(self.any()).expect("an answer")
    }

    fn seen_by(&self, node: usize) -> RedisResult<BTreeMap<usize, Member>> {
        let nodes: String = self.query(node, redis::cmd("CLUSTER").arg("NODES"))?;
        let members = nodes.lines().filter_map(|line| {
            let (id, member) = member(line);
            Some((self.nodes.iter().position(|node| node.id == id)?, member))
        });
        Ok(members.collect())
    }

    pub fn slot_of(&self, key: &str) -> u16 {
        self.ask(self.any(), &["CLUSTER", "KEYSLOT", key])
    }

    /// The primary that has a slot.
    pub fn owner_of(&self, slot: u16) -> usize {
        owner(&self.members(), slot)
    }

    pub fn primary_of(&self, key: &str) -> usize {
        self.owner_of(self.slot_of(key))
    }

    /// The primaries that have slots.
    pub fn primaries(&self) -> Vec<usize> {
        let members = self.members();
        members.into_iter().filter(|(_, member)| !member.slots.is_empty()).map(|(node, _)| node).collect()
    }

    /// A replica of a primary that runs.
    pub fn replica_of(&self, primary: usize) -> usize {
        let (members, id) = (self.members(), &self.nodes[primary].id);
        let is_replica = |node: &usize| members[node].primary.as_ref() == Some(id);
        self.running().find(is_replica).expect("a replica")
    }

    /// Where the keys of a namespace are.
    pub fn places(&self, namespace: &str, shards: Shards) -> Places {
        let (keys, any) = (Keys::new(namespace), window(0));
        let own = [keys.lease()].into_iter();
        let shard = (0..shards.count().into()).map(|shard| keys.ids(Mode::Hll, shard, shards, any));
        let bucket = (0..BUCKETS).map(|bucket| keys.names(bucket, any));
        let mut ask = redis::pipe();
        for key in own.chain(shard).chain(bucket) {
            ask.cmd("CLUSTER").arg("KEYSLOT").arg(key);
        }
        let slots: Vec<u16> = ask.query(&mut self.connect(self.any()).unwrap()).unwrap();
        let members = self.members();
        let mut owners = slots.into_iter().map(|slot| owner(&members, slot));
        Places {
            own: owners.next().expect("the first"),
            shards: owners.by_ref().take(shards.count().into()).collect(),
            buckets: owners.collect(),
        }
    }

    /// A namespace whose keys are at such places.
    pub fn namespace(&self, name: &str, shards: Shards, suits: impl Fn(&Places) -> bool) -> String {
        let mut names = (0..10_000).map(|number| format!("{name}-{number}"));
        names
            .find(|name| suits(&self.places(name, shards)))
            .expect("a namespace with its keys at such places")
    }
}

fn owner(members: &BTreeMap<usize, Member>, slot: u16) -> usize {
    let has = |member: &Member| member.slots.iter().any(|slots| slots.contains(&slot));
    *members.iter().find(|(_, member)| has(member)).expect("a primary for each slot").0
}

/// Reads a line of `CLUSTER NODES`: the id, and the rest.
/// (<https://redis.io/docs/latest/commands/cluster-nodes/>)
fn member(line: &str) -> (String, Member) {
    let words: Vec<_> = line.split_whitespace().collect();
    let [id, place, flags, primary, _ping, _pong, _epoch, to_others, slots @ ..] = &words[..] else {
        panic!("no node: {line}")
    };
    let address = place.split('@').next().and_then(|address| address.parse().ok());
    // In brackets are slots that are being moved.
    let slots = slots.iter().filter(|slots| !slots.starts_with('[')).map(|slots| {
        let (first, last) = slots.split_once('-').unwrap_or((slots, slots));
        first.parse().expect("a slot")..=last.parse().expect("a slot")
    });
    let member = Member {
        address: address.unwrap_or_else(|| panic!("no address: {line}")),
        primary: Some((*primary).to_owned()).filter(|primary| primary != "-"),
        is_away: flags.split(',').any(|flag| ["fail", "fail?", "handshake"].contains(&flag))
            || *to_others != "connected",
        slots: slots.collect(),
    };
    ((*id).to_owned(), member)
}
