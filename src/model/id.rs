//! Ids: what clients count.
//!
//! An id is its bytes, and everything below `http` treats it as these bytes and nothing else. They are what any Redis client
//! would hand to `PFADD` or `SADD`. [`IdKind`] says which texts are ids, and which of them are one id.
//!
//! There are two types of ids, because integers are most of them and must cost nothing: an [`IntegerId`] is copied with a few
//! instructions and never allocates. A [`TextId`] has any bytes: its copy may allocate, and dropping a list looks at each. With
//! one type for both, reading a list of integers took 1.6 times as long. So what takes ids takes anything that has bytes.

use std::borrow::Borrow;
use std::fmt;
use std::hash::{Hash, Hasher};

use thiserror::Error;

use crate::platform::words::{little_endian, position_in};

/// Digits and sign of `i64::MIN` and of `u64::MAX`: the longest canonical integers.
const MAX_INTEGER: usize = 20;
/// The longest text that is kept inside a [`TextId`], in bytes.
const MAX_INSIDE: usize = 22;
/// Every number with so many digits fits.
const SURE_LEN: usize = 19;

/// What clients count, as `--ids` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IdKind {
    /// Integers from `i64::MIN` to `u64::MAX`. Their canonical decimal is counted, without leading zeros, `+` or `-0`: `007`
    /// and `7` are one id.
    #[default]
    Integer,
    /// Texts of 1 to [`IdKind::MAX_TEXT`] bytes of UTF-8 without control characters (U+0000 to 1F, 7F to 9F). They are counted
    /// byte for byte: `007` and `7` are two ids, and nothing is trimmed or normalized.
    Text,
}

/// The bytes are no id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum InvalidId {
    /// Not an integer, or out of range.
    #[error("an id is an integer from {} to {}", i64::MIN, u64::MAX)]
    Integer,
    /// Empty, too long, not UTF-8, or with a control character.
    #[error("an id is a text of 1 to {} bytes of UTF-8 without control characters", IdKind::MAX_TEXT)]
    Text,
}

impl IdKind {
    /// The longest text, in bytes.
    pub(crate) const MAX_TEXT: usize = 256;

    /// `integer` or `text`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Integer => "integer",
            Self::Text => "text",
        }
    }
}

/// An id of one kind.
pub trait Id: AsRef<[u8]> + Clone + Sized + Send + Sync + 'static {
    /// Reads an id as it stands.
    ///
    /// # Errors
    ///
    /// [`InvalidId`].
    fn parse(text: &[u8]) -> Result<Self, InvalidId>;

    /// Reads an element of JSON, as it is written there.
    ///
    /// # Errors
    ///
    /// [`InvalidId`].
    fn parse_json(element: &[u8]) -> Result<Self, InvalidId>;

    /// Reads what nearly all elements of a list are, quickly. The other methods take it too, and agree.
    #[inline]
    fn parse_quickly(_element: &[u8]) -> Option<Self> {
        None
    }

    /// The same for a short element that is followed by `separator`. Returns how long the element is.
    #[inline]
    fn parse_up_to(_separator: u8, _text: &[u8]) -> Option<(Self, usize)> {
        None
    }
}

/// An integer that fits an `i64` or a `u64`, as its canonical decimal bytes.
///
/// Canonical means: no leading zeros, no `+`, zero without a sign. So `007` and `7` are one id, and so are `-0` and `0`. The
/// bytes are kept inline.
#[derive(Clone, Copy)]
pub struct IntegerId {
    len: u8,
    bytes: [u8; MAX_INTEGER],
}

impl Id for IntegerId {
    /// Reads `-?[0-9]+`, ASCII digits only, within range. Refused are an empty text, a `+`, white space, a fraction, an
    /// exponent, digits of another script, and a number out of range.
    #[inline]
    fn parse(text: &[u8]) -> Result<Self, InvalidId> {
        match Self::parse_quickly(text) {
            Some(id) => Ok(id),
            None => Self::parse_any(text),
        }
    }

    /// As [`Self::parse`], but without leading zeros. `-0` is a number of JSON.
    fn parse_json(element: &[u8]) -> Result<Self, InvalidId> {
        let id = Self::parse(element)?;
        if element == id.as_bytes() || element == b"-0" { Ok(id) } else { Err(InvalidId::Integer) }
    }

    /// Reads canonical decimals.
    ///
    /// It reads words, not bytes. The processor cannot predict how many digits an id has, and one wrong guess takes
    /// longer than all the rest. It is always inlined. Otherwise the id is copied when it is returned, in other pieces
    /// than it was written in, and the processor waits for that.
    #[expect(clippy::inline_always, reason = "measured: it is a third of what an id costs")]
    #[inline(always)]
    fn parse_quickly(text: &[u8]) -> Option<Self> {
        let [first, second, third] = match text {
            [b'0', _, ..] | [] => return None,
            text if text.len() <= 8 => [digits(text)?, 0, 0],
            text if text.len() <= 16 => [digits(&text[..8])?, digits(&text[8..])?, 0],
            text if text.len() <= SURE_LEN => {
                [digits(&text[..8])?, digits(&text[8..16])?, digits(&text[16..])?]
            }
            _ => return None,
        };
        let mut bytes = [0; MAX_INTEGER];
        bytes[..8].copy_from_slice(&first.to_le_bytes());
        bytes[8..16].copy_from_slice(&second.to_le_bytes());
        bytes[16..].copy_from_slice(&third.to_le_bytes()[..4]);
        Some(Self { len: text.len() as u8, bytes })
    }

    /// Reads up to seven digits, and has no branch that depends on how many there are.
    #[expect(clippy::inline_always, reason = "as above")]
    #[inline(always)]
    fn parse_up_to(separator: u8, text: &[u8]) -> Option<(Self, usize)> {
        let word = u64::from_le_bytes(*text.first_chunk()?);
        let len = position_in(separator, word)?;
        let (digits, zeros) = (word & !(u64::MAX << (8 * len)), ZEROS << (8 * len));
        let is_canonical = are_digits(digits | zeros) && (text[0] != b'0' || len == 1) && len > 0;
        let mut bytes = [0; MAX_INTEGER];
        bytes[..8].copy_from_slice(&digits.to_le_bytes());
        is_canonical.then_some((Self { len: len as u8, bytes }, len))
    }
}

impl IntegerId {
    #[cold]
    fn parse_any(text: &[u8]) -> Result<Self, InvalidId> {
        // Rust reads a `+` too.
        let text =
            str::from_utf8(text).ok().filter(|text| !text.starts_with('+')).ok_or(InvalidId::Integer)?;
        if let Ok(number) = text.parse::<i64>() {
            return Ok(number.into());
        }
        text.parse::<u64>().map(Self::from).map_err(|_| InvalidId::Integer)
    }

    /// The canonical bytes, at most 20.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    /// A text that is canonical, and short enough.
    fn from_text(text: &[u8]) -> Self {
        let mut bytes = [0; MAX_INTEGER];
        bytes[..text.len()].copy_from_slice(text);
        Self { len: text.len() as u8, bytes }
    }
}

const ZEROS: u64 = u64::from_le_bytes([b'0'; 8]);

/// Reads up to eight digits into a word, as they are in memory, filled up with zero bytes. None if a byte is no digit.
fn digits(text: &[u8]) -> Option<u64> {
    let word = little_endian(text);
    let filled = word | ZEROS.checked_shl(8 * text.len() as u32).unwrap_or(0);
    are_digits(filled).then_some(word)
}

/// Whether all bytes of a word are ASCII digits.
#[inline]
fn are_digits(word: u64) -> bool {
    const HIGH_HALVES: u64 = u64::from_le_bytes([0xf0; 8]);
    /// Added to a byte from 0x30 to 0x3f, it carries into the high half if the byte is above '9'.
    const SIX: u64 = u64::from_le_bytes([6; 8]);

    // The sum may overflow, or carry into the next byte, only if the first test fails: then some byte is 0x40 or more.
    word & HIGH_HALVES == ZEROS && word.wrapping_add(SIX) & HIGH_HALVES == ZEROS
}

impl From<u64> for IntegerId {
    fn from(value: u64) -> Self {
        Self::from_text(itoa::Buffer::new().format(value).as_bytes())
    }
}

impl From<i64> for IntegerId {
    fn from(value: i64) -> Self {
        Self::from_text(itoa::Buffer::new().format(value).as_bytes())
    }
}

// The bytes after `len` have no meaning. So equality and hash look only at the canonical bytes.
impl PartialEq for IntegerId {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for IntegerId {}

impl Hash for IntegerId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_bytes().hash(state);
    }
}

impl fmt::Display for IntegerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_bytes().iter().try_for_each(|byte| write!(f, "{}", char::from(*byte)))
    }
}

impl AsRef<[u8]> for IntegerId {
    fn as_ref(&self) -> &[u8] {
        self.as_bytes()
    }
}

impl fmt::Debug for IntegerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IntegerId({self})")
    }
}

/// The bytes of any id: a text, or the decimal of an integer.
#[derive(Clone)]
pub struct TextId(Bytes);

#[derive(Clone)]
enum Bytes {
    Inside { len: u8, bytes: [u8; MAX_INSIDE] },
    Boxed(Box<[u8]>),
}

impl Id for TextId {
    fn parse(text: &[u8]) -> Result<Self, InvalidId> {
        let is_sound = (1..=IdKind::MAX_TEXT).contains(&text.len()) && has_no_control_character(text);
        if is_sound { Ok(Self::from(text)) } else { Err(InvalidId::Text) }
    }

    /// A string, or an integer without leading zeros.
    fn parse_json(element: &[u8]) -> Result<Self, InvalidId> {
        match element {
            [b'"', inside @ .., b'"'] if !inside.iter().any(|byte| matches!(byte, b'"' | b'\\')) => {
                Self::parse(inside)
            }
            [b'"', ..] => {
                let text: String = serde_json::from_slice(element).map_err(|_| InvalidId::Text)?;
                Self::parse(text.as_bytes())
            }
            _ => {
                let integer = IntegerId::parse_json(element).map_err(|_| InvalidId::Text)?;
                Ok(integer.as_bytes().into())
            }
        }
    }
}

impl TextId {
    /// The bytes that are counted.
    #[inline]
    pub fn as_bytes(&self) -> &[u8] {
        match &self.0 {
            Bytes::Inside { len, bytes } => &bytes[..usize::from(*len)],
            Bytes::Boxed(bytes) => bytes,
        }
    }
}

/// Without a check.
impl From<&[u8]> for TextId {
    fn from(text: &[u8]) -> Self {
        if text.len() > MAX_INSIDE {
            return Self(Bytes::Boxed(text.into()));
        }
        let mut bytes = [0; MAX_INSIDE];
        bytes[..text.len()].copy_from_slice(text);
        Self(Bytes::Inside { len: text.len() as u8, bytes })
    }
}

impl PartialEq for TextId {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for TextId {}

impl Hash for TextId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_bytes().hash(state);
    }
}

/// So that a set of ids can be asked for bytes.
impl Borrow<[u8]> for TextId {
    fn borrow(&self) -> &[u8] {
        self.as_bytes()
    }
}

impl AsRef<[u8]> for TextId {
    fn as_ref(&self) -> &[u8] {
        self.as_bytes()
    }
}

impl fmt::Display for TextId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(self.as_bytes()))
    }
}

impl fmt::Debug for TextId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TextId({self})")
    }
}

/// Whether this is UTF-8 without control characters (general category Cc of Unicode).
fn has_no_control_character(text: &[u8]) -> bool {
    // Nearly all ids are printable ASCII, and one look at each byte shows it.
    text.iter().all(|byte| matches!(byte, b' '..=b'~'))
        || str::from_utf8(text).is_ok_and(|text| !text.chars().any(char::is_control))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canonical(text: &str) -> Option<String> {
        IntegerId::parse(text.as_bytes()).ok().map(|id| id.to_string())
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
        assert_eq!(IntegerId::parse(b"\xff5"), Err(InvalidId::Integer));
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
                    let id = IntegerId::parse(&text).ok().map(|id| id.to_string());
                    assert_eq!(id, number, "{}", text.escape_ascii());

                    let quickly = IntegerId::parse_up_to(b',', &[&text, &b",-5,0000"[..]].concat());
                    let is_quick = text.len() < 8 && number.as_ref().map(String::as_bytes) == Some(&text);
                    // A comma ends an element before.
                    if byte != b',' {
                        let expected = is_quick.then(|| (IntegerId::from_text(&text), text.len()));
                        let expected = expected.filter(|_| text[0] != b'-');
                        assert_eq!(quickly, expected, "{}", text.escape_ascii());
                    }
                }
            }
        }
    }

    #[test]
    fn integers_and_their_text_are_the_same_id() {
        for value in [0, 1, 9, 10, 99, u64::MAX / 2, u64::MAX] {
            assert_eq!(Ok(IntegerId::from(value)), IntegerId::parse(value.to_string().as_bytes()));
        }
        for value in [i64::MIN, -10, -1, 0, 1, i64::MAX] {
            assert_eq!(Ok(IntegerId::from(value)), IntegerId::parse(value.to_string().as_bytes()));
        }
    }

    #[test]
    fn a_text_is_an_id_byte_for_byte() {
        let longest = "x".repeat(256);
        for text in [
            "7",
            "007",
            "-0",
            " a ",
            "+",
            "%00",
            "a=b&c",
            "\u{1f600}",
            "e\u{301}",
            "\u{a0}",
            "\u{ad}",
            &longest,
        ] {
            let id = TextId::parse(text.as_bytes()).unwrap();
            assert_eq!(id.as_bytes(), text.as_bytes());
            assert_eq!(id.to_string(), text);
        }
        assert_ne!(TextId::parse(b"007"), TextId::parse(b"7"));
        for length in 1..=256 {
            let text = vec![b'a'; length];
            assert_eq!(TextId::parse(&text).unwrap().as_bytes(), text, "{length}");
        }
    }

    #[test]
    fn what_is_no_text_is_refused() {
        let too_long = "x".repeat(257);
        for text in ["", &too_long, "\0", "a\tb", "a\n", "\r", "\u{7f}", "\u{80}", "\u{9f}", "ok\u{85}"] {
            assert_eq!(TextId::parse(text.as_bytes()), Err(InvalidId::Text), "{text:?}");
        }
        for bytes in [&b"\xff"[..], b"a\xc3", b"\xed\xa0\x80", b"\xc0\xaf"] {
            assert_eq!(TextId::parse(bytes), Err(InvalidId::Text), "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn left_over_digits_do_not_show() {
        let ids: std::collections::HashSet<IntegerId> =
            [IntegerId::from(7_u64), IntegerId::parse(b"007").unwrap()].into();
        assert_eq!(ids.len(), 1);
    }
}
