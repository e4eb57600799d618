//! How many connections each address holds.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use parking_lot::Mutex;

/// Counts the connections of each address, and knows how many one may have.
pub(super) struct Addresses {
    limit: u32,
    /// Only addresses that have a connection.
    counts: Mutex<HashMap<IpAddr, u32>>,
}

/// A connection's place among those of its address. Given back when it is dropped.
pub(super) struct Place {
    addresses: Arc<Addresses>,
    of: IpAddr,
}

impl Addresses {
    /// At most `limit` connections each.
    pub(super) fn new(limit: u32) -> Arc<Self> {
        Arc::new(Self { limit, counts: Mutex::default() })
    }

    /// A place for one more connection from `address`, unless it has as many as it may.
    pub(super) fn place_for(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let of = client(address);
        let mut counts = self.counts.lock();
        let count = counts.entry(of).or_insert(0);
        // One that has none yet has room, so no entry is left at zero.
        (*count < self.limit).then(|| {
            *count += 1;
            Place { addresses: Arc::clone(self), of }
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Entry::Occupied(mut entry) = self.addresses.counts.lock().entry(self.of) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
    }
}

/// What counts as one address. A client with one IPv6 address has the 2^64 of its network, so these are
/// one; and an IPv4 address is the same one where an IPv6 socket took its connection.
fn client(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)).into(),
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_given_back_and_nothing_is_kept() {
        let addresses = Addresses::new(2);
        let [a, b] = ["192.0.2.1", "192.0.2.2"].map(|text| text.parse().unwrap());
        let first = addresses.place_for(a).unwrap();
        let second = addresses.place_for(a).unwrap();
        assert!(addresses.place_for(a).is_none(), "one too many");
        let other = addresses.place_for(b).unwrap();
        drop(first);
        let third = addresses.place_for(a).unwrap();
        assert!(addresses.place_for(a).is_none());
        drop((second, third, other));
        assert!(addresses.counts.lock().is_empty());
    }

    #[test]
    fn a_network_counts_as_one() {
        let client = |text: &str| client(text.parse().unwrap());
        assert_eq!(client("2001:db8:1:2::1"), client("2001:db8:1:2:ffff:ffff:ffff:ffff"));
        assert_ne!(client("2001:db8:1:2::1"), client("2001:db8:1:3::1"));
        assert_eq!(client("::ffff:192.0.2.1"), client("192.0.2.1"));
        assert_ne!(client("::ffff:192.0.2.1"), client("::ffff:192.0.2.2"));
    }
}
