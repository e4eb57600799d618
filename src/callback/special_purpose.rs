//! Which addresses are public on the internet, and which are not.
//!
//! The table has IANA's special-purpose address registries for
//! [IPv4](https://www.iana.org/assignments/iana-ipv4-special-registry) and
//! [IPv6](https://www.iana.org/assignments/iana-ipv6-special-registry) (RFC 6890), and what they leave out: multicast, and all of
//! IPv6 that IANA has not given out yet. The smallest block that contains an address decides.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::LazyLock;

use ipnet::IpNet;

/// Whether a block's addresses can be reached from anywhere, by the registry's column "globally reachable".
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reach {
    Global,
    /// Also addresses that the registry calls "not applicable", because they stand for addresses elsewhere.
    Local,
    /// NAT64 (RFC 6052): the last 32 bits are the IPv4 address that is reached.
    Embedded,
}

use Reach::{Embedded, Global, Local};

const BLOCKS: &[(&str, Reach)] = &[
    ("0.0.0.0/0", Global),
    ("0.0.0.0/8", Local),      // "this network"; Linux takes 0.0.0.0 for this machine
    ("10.0.0.0/8", Local),     // private
    ("100.64.0.0/10", Local),  // shared by the customers of a carrier
    ("127.0.0.0/8", Local),    // loopback
    ("169.254.0.0/16", Local), // link local; where clouds keep instance metadata
    ("172.16.0.0/12", Local),  // private
    // IETF protocols. The two anycast addresses in it are global by the registry; what answers is the next
    // gateway, so they are left out here.
    ("192.0.0.0/24", Local),
    ("192.0.2.0/24", Local),    // documentation
    ("192.88.99.0/24", Local),  // relays of 6to4, deprecated
    ("192.168.0.0/16", Local),  // private
    ("198.18.0.0/15", Local),   // benchmarks
    ("198.51.100.0/24", Local), // documentation
    ("203.0.113.0/24", Local),  // documentation
    ("224.0.0.0/4", Local),     // multicast
    ("240.0.0.0/4", Local),     // reserved, and broadcast
    ("::/0", Local),            // loopback, unspecified, unique local, link local, multicast, not assigned …
    ("64:ff9b::/96", Embedded), // NAT64; 64:ff9b:1::/48, for local use, is not in it
    ("2000::/3", Global),       // global unicast
    // IETF protocols: Teredo, benchmarks, anycast addresses as above, and identifiers that are no addresses of
    // servers (ORCHID, DRIP), though the registry calls the newer ones global.
    ("2001::/23", Local),
    ("2001:3::/32", Global),     // AMT
    ("2001:4:112::/48", Global), // AS112
    ("2001:db8::/32", Local),    // documentation
    ("2002::/16", Local),        // 6to4, deprecated
    ("3fff::/20", Local),        // documentation
];

static TABLE: LazyLock<Vec<(IpNet, Reach)>> = LazyLock::new(|| {
    let parse = |(block, reach): &(&str, Reach)| Some((block.parse().ok()?, *reach));
    let table: Vec<_> = BLOCKS.iter().filter_map(parse).collect();
    debug_assert_eq!(table.len(), BLOCKS.len(), "every block can be read");
    table
});

/// Whether an address is public, or stands for an IPv4 address that is.
pub(super) fn is_global(address: IpAddr) -> bool {
    // An IPv4 address that is mapped into IPv6 is dialled as IPv4.
    let address = address.to_canonical();
    let blocks = TABLE.iter().filter(|(block, _)| block.contains(&address));
    match (blocks.max_by_key(|(block, _)| block.prefix_len()), address) {
        (Some((_, Global)), _) => true,
        (Some((_, Embedded)), IpAddr::V6(address)) => {
            is_global(Ipv4Addr::from_bits(address.to_bits() as u32).into())
        }
        _ => false,
    }
}
