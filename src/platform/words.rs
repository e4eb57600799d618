//! Short texts: ids and lines.
//!
//! They are often shorter than a word. A loop over so few bytes ends where the processor did not predict it. So the code on the
//! path of every id takes a word at a time.

use memchr::memchr;

/// Reads up to eight bytes as a little-endian number.
///
/// Ids are so short that this is most of what one costs. Two reads that may overlap are quicker than a copy whose
/// length varies.
pub(crate) fn little_endian(bytes: &[u8]) -> u64 {
    debug_assert!(bytes.len() <= 8, "it takes what fits a word");
    if let (Some(first), Some(last)) = (bytes.first_chunk::<4>(), bytes.last_chunk::<4>()) {
        let [first, last] = [first, last].map(|four| u64::from(u32::from_le_bytes(*four)));
        return first | last << (8 * (bytes.len() - 4));
    }
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// The position of the first such byte.
#[inline]
pub(crate) fn position(byte: u8, text: &[u8]) -> Option<usize> {
    let Some((word, rest)) = text.split_first_chunk::<8>() else {
        return text.iter().position(|other| *other == byte);
    };
    if let Some(place) = position_in(byte, u64::from_le_bytes(*word)) {
        return Some(place);
    }
    memchr(byte, rest).map(|at| at + word.len())
}

/// The position of the first such byte in a word, as it was in memory.
#[inline]
pub(crate) fn position_in(byte: u8, word: u64) -> Option<usize> {
    const LOWEST_BITS: u64 = u64::from_le_bytes([1; 8]);

    let differs = word ^ (LOWEST_BITS * u64::from(byte));
    // Marks the highest bit of each byte that is zero. Above the first zero byte, other bytes may be marked too.
    let zeros = differs.wrapping_sub(LOWEST_BITS) & !differs & (LOWEST_BITS << 7);
    (zeros != 0).then_some(zeros.trailing_zeros() as usize / 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_is_found_wherever_it_is() {
        for length in 0..40 {
            for byte in [0, 1, b'\n', 0x7f, 0x80, 0xff] {
                // Its neighbours are what a borrow in the subtraction could mistake for it.
                for other in [byte ^ 1, byte ^ 0x80, byte.wrapping_add(1), byte.wrapping_sub(1)] {
                    let mut text = vec![other; length];
                    assert_eq!(position(byte, &text), None);
                    for place in (0..length).rev() {
                        text[place] = byte;
                        assert_eq!(position(byte, &text), Some(place));
                    }
                }
            }
        }
    }

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
