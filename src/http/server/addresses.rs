//! The limit of connections from one address.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use parking_lot::Mutex;

/// Counts the connections of each address.
pub(super) struct Addresses {
    limit: u32,
    /// Has no entry for an address without connections.
    counts: Mutex<HashMap<IpAddr, u32>>,
}

/// A connection's permit among those of its address. Dropping it returns it.
pub(super) struct AddressPermit {
    addresses: Arc<Addresses>,
    of: IpAddr,
}

impl Addresses {
    /// At most `limit` connections from each address.
    pub(super) fn new(limit: u32) -> Arc<Self> {
        Arc::new(Self { limit, counts: Mutex::default() })
    }

    /// A permit for one more connection from `address`, unless the address is at the limit.
    pub(super) fn permit_for(self: &Arc<Self>, address: IpAddr) -> Option<AddressPermit> {
        let of = client(address);
        let mut counts = self.counts.lock();
        let count = counts.entry(of).or_insert(0);
        // The limit is at least one, so a new entry never stays at zero.
        (*count < self.limit).then(|| {
            *count += 1;
            AddressPermit { addresses: Arc::clone(self), of }
        })
    }
}

impl Drop for AddressPermit {
    fn drop(&mut self) {
        if let Entry::Occupied(mut entry) = self.addresses.counts.lock().entry(self.of) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
    }
}

/// The address that a connection counts for. A client usually has all 2^64 addresses of its IPv6 network, so they count
/// as one. An IPv4 address counts as itself, also if an IPv6 socket accepted the connection.
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
    fn dropped_permits_return_and_leave_no_entry() {
        let addresses = Addresses::new(2);
        let [a, b] = ["192.0.2.1", "192.0.2.2"].map(|text| text.parse().unwrap());
        let first = addresses.permit_for(a).unwrap();
        let second = addresses.permit_for(a).unwrap();
        assert!(addresses.permit_for(a).is_none(), "one too many");
        let other = addresses.permit_for(b).unwrap();
        drop(first);
        let third = addresses.permit_for(a).unwrap();
        assert!(addresses.permit_for(a).is_none());
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
