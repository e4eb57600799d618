//! Few bytes as one number.

/// The number that up to eight bytes are, least significant first.
///
/// Ids are so short that this is most of what one costs: two reads that may overlap are quicker than a copy of so
/// many bytes.
pub(crate) fn little_endian(bytes: &[u8]) -> u64 {
    debug_assert!(bytes.len() <= 8, "it takes what fits a word");
    if let (Some(first), Some(last)) = (bytes.first_chunk::<4>(), bytes.last_chunk::<4>()) {
        let [first, last] = [first, last].map(|four| u64::from(u32::from_le_bytes(*four)));
        return first | last << (8 * (bytes.len() - 4));
    }
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_is_read_whole() {
        let bytes = [0x81, 0x82, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88];
        for length in 0..=bytes.len() {
            let mut padded = [0; 8];
            padded[..length].copy_from_slice(&bytes[..length]);
            assert_eq!(little_endian(&bytes[..length]), u64::from_le_bytes(padded), "{length}");
        }
    }
}
