//! What a node of a Redis Cluster says about the cluster: `CLUSTER INFO` and `CLUSTER NODES`.
//!
//! (<https://redis.io/docs/latest/commands/cluster-nodes/>)

use std::ops::RangeInclusive;

use ::redis::ConnectionAddr;
use crc::{CRC_16_XMODEM, Crc};

use super::address::host_and_port;
use super::node::Place;

/// How many slots a cluster has.
pub(super) const SLOTS: usize = 16_384;

const CRC: Crc<u16> = Crc::<u16>::new(&CRC_16_XMODEM);

/// The slot of a key. Of a key with braces, only what is in the first pair counts.
/// (<https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/#hash-tags>)
pub fn slot_of(key: &str) -> u16 {
    let tag = key.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map(|(tag, _)| tag);
    let hashed = tag.filter(|tag| !tag.is_empty()).unwrap_or(key);
    CRC.checksum(hashed.as_bytes()) % SLOTS as u16
}

/// A cluster, as one of its nodes sees it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct View {
    /// Whether the node takes the cluster for healthy.
    pub(super) is_ok: bool,
    /// Rises with every fail-over: the view with the higher epoch is the newer one.
    pub(super) epoch: u64,
    pub(super) members: Vec<Member>,
}

/// A node of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    pub(super) id: String,
    pub(super) address: ConnectionAddr,
    /// Its address as redirections name it: by its IP address or by its name, as the cluster is set.
    named: Vec<String>,
    /// False for a replica.
    pub is_primary: bool,
    /// The other nodes cannot reach it.
    pub is_failing: bool,
    /// The slots of a primary.
    pub slots: Vec<RangeInclusive<u16>>,
}

impl View {
    /// Reads both answers of the node at `asked`. Its address decides how the others are reached: with TLS or without.
    pub(super) fn read(info: &str, nodes: &str, asked: &ConnectionAddr) -> Self {
        let fact = |name: &str| {
            info.lines()
                .find_map(|line| line.trim_end().strip_prefix(name)?.strip_prefix(':').map(str::to_owned))
        };
        Self {
            is_ok: fact("cluster_state").is_some_and(|state| state == "ok"),
            epoch: fact("cluster_current_epoch").and_then(|epoch| epoch.parse().ok()).unwrap_or(0),
            members: nodes.lines().filter_map(|line| Member::read(line, asked)).collect(),
        }
    }

    /// How many slots have a primary.
    pub(super) fn covered(&self) -> usize {
        self.members.iter().map(Member::slot_count).sum()
    }
}

impl Member {
    /// Reads a line of `CLUSTER NODES`. None for a node without an address.
    fn read(line: &str, asked: &ConnectionAddr) -> Option<Self> {
        let mut words = line.split_ascii_whitespace();
        let (id, place, flags) = (words.next()?, words.next()?, words.next()?);
        let has = |flag: &str| flags.split(',').any(|known| known == flag);
        if has("noaddr") || has("handshake") {
            return None;
        }
        let address = address(place, has("myself"), asked)?;
        let with_ip = place.split(['@', ',']).next().unwrap_or_default();
        let hostname = place.split(',').nth(1).filter(|hostname| !hostname.is_empty());
        let port = with_ip.rsplit_once(':').map_or("", |(_, port)| port);
        let with_name = hostname.map(|hostname| format!("{hostname}:{port}"));
        let named = std::iter::once(with_ip.to_owned()).chain(with_name).collect();
        // The primary of a replica, two times, the epoch, and the state of the link.
        let slots = words.skip(5).filter_map(slots).collect();
        let (is_primary, is_failing) = (has("master"), has("fail") || has("fail?"));
        Some(Self { id: id.to_owned(), address, named, is_primary, is_failing, slots })
    }

    /// How many slots it has.
    pub fn slot_count(&self) -> usize {
        self.slots.iter().map(ExactSizeIterator::len).sum()
    }

    pub(super) fn place(&self) -> Place {
        Place::At { address: self.address.clone(), named: self.named.clone() }
    }

    /// Where it is, as `host:port`.
    pub fn name(&self) -> String {
        host_and_port(&self.address)
    }
}

/// Reads `ip:port@bus-port,hostname`. With TLS the hostname is used, if there is one: certificates are for names.
fn address(place: &str, is_asked: bool, asked: &ConnectionAddr) -> Option<ConnectionAddr> {
    let (place, hostname) = place.split_once(',').unwrap_or((place, ""));
    // Redis 7.2 may say more after the hostname.
    let hostname = hostname.split(',').next().unwrap_or_default();
    let (ip, port) = place.split('@').next()?.rsplit_once(':')?;
    let (ip, port) = (ip.trim_matches(['[', ']']), port.parse().ok()?);
    let is_tls = matches!(asked, ConnectionAddr::TcpTls { .. });
    let host = match (ip, hostname) {
        (_, hostname) if is_tls && !hostname.is_empty() => hostname,
        // A node that nobody has met yet does not know its own address.
        ("", "") if is_asked => return Some(asked.clone()),
        ("", hostname) => hostname,
        (ip, _) => ip,
    };
    (!host.is_empty()).then(|| at(host, port, asked))
}

/// This host and port, with TLS if the other address has it.
pub(super) fn at(host: &str, port: u16, like: &ConnectionAddr) -> ConnectionAddr {
    let host = host.to_owned();
    match like {
        ConnectionAddr::TcpTls { insecure, tls_params, .. } => {
            ConnectionAddr::TcpTls { host, port, insecure: *insecure, tls_params: tls_params.clone() }
        }
        _ => ConnectionAddr::Tcp(host, port),
    }
}

/// Reads a slot or a range of slots. None for a slot that is being moved, in square brackets: its primary is the one that has it
/// in its ranges.
fn slots(word: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = word.split_once('-').unwrap_or((word, word));
    let number = |text: &str| text.parse().ok().filter(|slot| usize::from(*slot) < SLOTS);
    Some(number(first)?..=number(last)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slot_of_a_key_is_that_of_its_tag() {
        // Those of the specification, and of CLUSTER KEYSLOT.
        for (key, slot) in [
            ("123456789", 0x31c3),
            ("{user1000}.following", slot_of("user1000")),
            ("foo{}{bar}", slot_of("foo{}{bar}")),
            ("foo{{bar}}zap", slot_of("{bar")),
            ("foo{bar}{zap}", slot_of("bar")),
            ("foo", 12_182),
        ] {
            assert_eq!(slot_of(key), slot, "{key}");
        }
        assert_ne!(slot_of("foo{}{bar}"), slot_of("bar"));
    }

    #[test]
    fn nodes_are_read() {
        let info = "cluster_enabled:1\r\ncluster_state:ok\r\ncluster_slots_assigned:16384\r\ncluster_current_epoch:7\r\n";
        let nodes = "\
            a 127.0.0.1:7000@17000,, myself,master - 0 0 1 connected 0-5460 [5461->-b]\n\
            b 10.0.0.2:7001@17001,b.example,shard-id=x master - 0 1 2 connected 5461-10922 16383\n\
            c :0@0 master,noaddr - 0 0 3 disconnected\n\
            d [::1]:7003@17003 slave,fail a 0 1 1 connected\n";
        let asked = ConnectionAddr::Tcp("127.0.0.1".to_owned(), 7000);
        let view = View::read(info, nodes, &asked);
        assert_eq!((view.is_ok, view.epoch, view.covered()), (true, 7, 10_924));
        let found: Vec<_> =
            view.members.iter().map(|one| (one.name(), one.is_primary, one.is_failing)).collect();
        let expected =
            [("127.0.0.1:7000", true, false), ("10.0.0.2:7001", true, false), ("[::1]:7003", false, true)];
        assert_eq!(found, expected.map(|(name, primary, failing)| (name.to_owned(), primary, failing)));
        assert_eq!(view.members[1].slots, [5461..=10_922, 16_383..=16_383]);

        let asked = ConnectionAddr::TcpTls { host: "x".into(), port: 1, insecure: false, tls_params: None };
        let view = View::read("", "b 10.0.0.2:7001@17001,b.example master - 0 1 2 connected", &asked);
        assert_eq!(view.members[0].name(), "b.example:7001");
        assert!(!view.is_ok);
        let view = View::read("", "a :7000@17000 myself,master - 0 0 0 connected", &asked);
        assert_eq!(view.members[0].name(), "x:1");
    }
}
