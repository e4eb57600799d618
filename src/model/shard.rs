//! Shards: ids are split over several keys whose counts add up.

use std::hash::Hasher;
use std::num::NonZeroU16;
use std::str::FromStr;

use siphasher::sip::SipHasher24;
use thiserror::Error;

/// The number of shards, from 1 to [`Shards::MAX`].
///
/// Every id belongs to one shard, so the shards hold disjoint sets: their counts add up, and the
/// standard error of the sum falls with the square root of their number. The shard is chosen by
/// SipHash-2-4 under the zero key, a hash that has nothing in common with the sketch's own
/// (MurmurHash64A). With the same hash, a shard would use only some registers of its sketch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shards(NonZeroU16);

/// A number of shards out of range.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("expected a number of shards from 1 to {}", Shards::MAX)]
pub struct InvalidShards;

impl Shards {
    pub(crate) const MAX: u16 = 1024;

    /// A single shard.
    pub const ONE: Self = Self(NonZeroU16::MIN);

    /// # Errors
    ///
    /// [`InvalidShards`] for 0 and for more than [`Shards::MAX`].
    pub fn new(count: u16) -> Result<Self, InvalidShards> {
        match NonZeroU16::new(count) {
            Some(count) if count.get() <= Self::MAX => Ok(Self(count)),
            _ => Err(InvalidShards),
        }
    }

    /// How many.
    pub fn count(self) -> u16 {
        self.0.get()
    }

    /// The shard that `element` belongs to: the same one in every process and every release.
    pub fn of(self, element: &[u8]) -> usize {
        if self == Self::ONE {
            return 0;
        }
        let mut hasher = SipHasher24::new();
        hasher.write(element);
        // The high bits of hash times count: even shares for any count, without a division.
        ((u128::from(hasher.finish()) * u128::from(self.count())) >> 64) as usize
    }
}

impl FromStr for Shards {
    type Err = InvalidShards;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map_err(|_| InvalidShards).and_then(Self::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds() {
        assert_eq!("0".parse::<Shards>(), Err(InvalidShards));
        assert_eq!("1025".parse::<Shards>(), Err(InvalidShards));
        assert_eq!("four".parse::<Shards>(), Err(InvalidShards));
        assert_eq!("1".parse(), Ok(Shards::ONE));
        assert_eq!("1024".parse::<Shards>().unwrap().count(), 1024);
    }

    #[test]
    fn ids_spread_evenly() {
        let shards = Shards::new(7).unwrap();
        let mut sizes = [0_u32; 7];
        for id in 0..70_000_u32 {
            sizes[shards.of(id.to_string().as_bytes())] += 1;
        }
        // 10 000 each, standard deviation 93.
        assert!(sizes.iter().all(|size| size.abs_diff(10_000) < 500), "{sizes:?}");
    }

    /// Instances of different releases share keys, so a shard is a contract: this pins it.
    #[test]
    fn the_shard_of_an_id_never_changes() {
        let shards = Shards::new(16).unwrap();
        let of = |id: &str| shards.of(id.as_bytes());
        assert_eq!([of("0"), of("7"), of("-1"), of("18446744073709551615")], [11, 7, 0, 2]);
    }
}
