//! Ids: what clients count.

use std::fmt;
use std::hash::{Hash, Hasher};

use thiserror::Error;

use crate::platform::words::little_endian;

/// Digits and sign of `i64::MIN` and of `u64::MAX`: the longest canonical ids.
const MAX_LEN: usize = 20;
/// Every number with so many digits fits.
const SURE_LEN: usize = 19;

/// An integer that fits an `i64` or a `u64`, as its canonical decimal bytes.
///
/// Canonical means: no leading zeros, no `+`, zero without a sign. So `007` and `7` are one id, and
/// so are `-0` and `0`. Everything below `http` treats an id as these bytes and nothing else, which
/// is what any Redis client would hand to `PFADD` or `SADD`.
///
/// The bytes are kept inline: an id is `Copy` and never allocates.
#[derive(Clone, Copy)]
pub struct Id {
    len: u8,
    bytes: [u8; MAX_LEN],
}

/// The bytes are not an integer between `i64::MIN` and `u64::MAX`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("an id is an integer from {} to {}", i64::MIN, u64::MAX)]
pub struct InvalidId;

impl Id {
    /// Reads `-?[0-9]+`, ASCII digits only, within range.
    ///
    /// # Errors
    ///
    /// [`InvalidId`] for anything else: an empty string, a `+`, white space, a fraction, an
    /// exponent, digits of another script, or a number out of range.
    #[inline]
    pub fn parse(text: &[u8]) -> Result<Self, InvalidId> {
        match Self::from_canonical(text) {
            Some(id) => Ok(id),
            None => Self::from_any(text),
        }
    }

    /// The slow way of [`Id::parse`], for a text that [`Id::from_canonical`] does not take.
    #[cold]
    pub(crate) fn from_any(text: &[u8]) -> Result<Self, InvalidId> {
        // Rust reads a `+` too.
        let text = str::from_utf8(text).ok().filter(|text| !text.starts_with('+')).ok_or(InvalidId)?;
        if let Ok(number) = text.parse::<i64>() {
            return Ok(number.into());
        }
        text.parse::<u64>().map(Self::from).map_err(|_| InvalidId)
    }

    /// The fast way of [`Id::parse`], for a text that is canonical already: nearly all are.
    ///
    /// It reads words, not bytes. The processor cannot predict how many digits an id has, and one wrong guess takes
    /// longer than all the rest. It is always inlined. Otherwise the id is copied when it is returned, in other pieces
    /// than it was written in, and the processor waits for that.
    #[expect(clippy::inline_always, reason = "measured: it is a third of what an id costs")]
    #[inline(always)]
    pub(crate) fn from_canonical(text: &[u8]) -> Option<Self> {
        let [first, second, third] = match text {
            [b'0', _, ..] | [] => return None,
            text if text.len() <= 8 => [digits(text)?, 0, 0],
            text if text.len() <= 16 => [digits(&text[..8])?, digits(&text[8..])?, 0],
            text if text.len() <= SURE_LEN => {
                [digits(&text[..8])?, digits(&text[8..16])?, digits(&text[16..])?]
            }
            _ => return None,
        };
        let mut bytes = [0; MAX_LEN];
        bytes[..8].copy_from_slice(&first.to_le_bytes());
        bytes[8..16].copy_from_slice(&second.to_le_bytes());
        bytes[16..].copy_from_slice(&third.to_le_bytes()[..4]);
        Some(Self { len: text.len() as u8, bytes })
    }

    /// The canonical bytes, at most 20.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    /// A text that is canonical, and short enough.
    fn from_text(text: &[u8]) -> Self {
        let mut bytes = [0; MAX_LEN];
        bytes[..text.len()].copy_from_slice(text);
        Self { len: text.len() as u8, bytes }
    }
}

/// Reads up to eight digits into a word, as they are in memory, filled up with zero bytes. None if a byte is no digit.
fn digits(text: &[u8]) -> Option<u64> {
    const ZEROS: u64 = u64::from_le_bytes([b'0'; 8]);
    const HIGH_HALVES: u64 = u64::from_le_bytes([0xf0; 8]);
    /// Added to a byte from 0x30 to 0x3f, it carries into the high half if the byte is above '9'.
    const SIX: u64 = u64::from_le_bytes([6; 8]);

    let word = little_endian(text);
    let filled = word | ZEROS.checked_shl(8 * text.len() as u32).unwrap_or(0);
    // No byte carries into the next: by the first test all are below 0x40.
    let all_are = filled & HIGH_HALVES == ZEROS && (filled + SIX) & HIGH_HALVES == ZEROS;
    all_are.then_some(word)
}

impl From<u64> for Id {
    fn from(value: u64) -> Self {
        Self::from_text(itoa::Buffer::new().format(value).as_bytes())
    }
}

impl From<i64> for Id {
    fn from(value: i64) -> Self {
        Self::from_text(itoa::Buffer::new().format(value).as_bytes())
    }
}

// The bytes after `len` have no meaning. So equality and hash look only at the canonical bytes.
impl PartialEq for Id {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for Id {}

impl Hash for Id {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_bytes().hash(state);
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_bytes().iter().try_for_each(|byte| write!(f, "{}", char::from(*byte)))
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Id({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canonical(text: &str) -> Option<String> {
        Id::parse(text.as_bytes()).ok().map(|id| id.to_string())
    }

    #[test]
    fn one_number_has_one_spelling() {
        for (text, id) in [
            ("0", "0"),
            ("-0", "0"),
            ("000", "0"),
            ("-000", "0"),
            ("7", "7"),
            ("007", "7"),
            ("-007", "-7"),
            ("9223372036854775808", "9223372036854775808"),
            ("18446744073709551615", "18446744073709551615"),
            ("-9223372036854775808", "-9223372036854775808"),
            ("0000000000000000000000000000000000000042", "42"),
        ] {
            assert_eq!(canonical(text).as_deref(), Some(id), "{text}");
        }
    }

    #[test]
    fn what_is_no_integer_in_range_is_refused() {
        for text in [
            "",
            "-",
            "--1",
            "+5",
            " 5",
            "5 ",
            "1.5",
            "1e3",
            "0x1f",
            "abc",
            "1_000",
            "1,000",
            "\0",
            "5\0",
            "\u{663}",
            "\u{ff15}",
            "18446744073709551616",
            "-9223372036854775809",
            "1234567890123456789012345678901234567890",
        ] {
            assert_eq!(canonical(text), None, "{text:?}");
        }
        assert_eq!(Id::parse(b"\xff5"), Err(InvalidId));
    }

    #[test]
    fn every_byte_at_every_place_is_looked_at() {
        for length in 1..=21 {
            let digits: Vec<u8> = (0..length).map(|place| b'1' + place as u8 % 9).collect();
            for place in 0..length {
                for byte in 0..=255 {
                    let mut text = digits.clone();
                    text[place] = byte;
                    let number = std::str::from_utf8(&text).ok().filter(|_| byte != b'+');
                    let number = number.and_then(|text| text.parse::<i128>().ok());
                    let number = number
                        .filter(|n| (i64::MIN.into()..=u64::MAX.into()).contains(n))
                        .map(|n| n.to_string());
                    let id = Id::parse(&text).ok().map(|id| id.to_string());
                    assert_eq!(id, number, "{}", text.escape_ascii());
                }
            }
        }
    }

    #[test]
    fn integers_and_their_text_are_the_same_id() {
        for value in [0, 1, 9, 10, 99, u64::MAX / 2, u64::MAX] {
            assert_eq!(Ok(Id::from(value)), Id::parse(value.to_string().as_bytes()));
        }
        for value in [i64::MIN, -10, -1, 0, 1, i64::MAX] {
            assert_eq!(Ok(Id::from(value)), Id::parse(value.to_string().as_bytes()));
        }
    }

    #[test]
    fn left_over_digits_do_not_show() {
        let ids: std::collections::HashSet<Id> = [Id::from(7_u64), Id::parse(b"007").unwrap()].into();
        assert_eq!(ids.len(), 1);
    }
}
