//! Counters: numbers that clients name, such as a campaign or a page, beside the total.

use std::borrow::Cow;
use std::hash::Hasher;

use siphasher::sip::SipHasher24;
use smallvec::SmallVec;
use thiserror::Error;

use crate::platform::budget::Share;

/// The counter of ids whose own counter found no place. Clients read it and cannot write it.
pub const OTHER: &str = "_other";

/// Slots that counters are spread over in Redis.
pub const BUCKETS: usize = 64;

/// The bucket of a name: SipHash-2-4 under the zero key, modulo [`BUCKETS`]. It is the same in every process and every release.
pub fn bucket_of(name: &str) -> usize {
    let mut hasher = SipHasher24::new();
    hasher.write(name.as_bytes());
    hasher.finish() as usize % BUCKETS
}

/// How many counters an instance takes, and in how much memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CounterLimits {
    /// Names in a window; 0 turns counters off.
    pub most: usize,
    /// Bytes of names, sketches and sets of all windows.
    pub memory: u64,
}

/// Why counters of a request are refused. The text is for the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum InvalidCounter {
    /// Not a name.
    #[error(
        "a name has 1 to {} bytes of A-Z a-z 0-9 _ . : / @ - and does not begin with _",
        CounterName::MAX_LEN
    )]
    Name,
    /// An id has more than [`CounterNames::MOST`] different ones, or an element of a list has more names.
    #[error(
        "an id has at most {0} different counters, with those of the query, and an element lists at most {0} names",
        CounterNames::MOST
    )]
    TooMany,
    /// `--max-counters 0`.
    #[error("counters are off: --max-counters is 0")]
    Off,
}

/// Which bytes a name may have.
const ALLOWED: [bool; 256] = {
    let (mut allowed, mut byte) = ([false; 256], 0);
    while byte < 256 {
        allowed[byte] = matches!(byte as u8, b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9')
            || matches!(byte as u8, b'_' | b'.' | b':' | b'/' | b'@' | b'-');
        byte += 1;
    }
    allowed
};

/// The name of a counter.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CounterName<'a>(Cow<'a, str>);

impl<'a> CounterName<'a> {
    /// Bytes of a name, at most.
    pub(crate) const MAX_LEN: usize = 128;

    /// Checks a name that a client writes to.
    ///
    /// # Errors
    ///
    /// [`InvalidCounter::Name`].
    pub fn parse(name: Cow<'a, str>) -> Result<Self, InvalidCounter> {
        let is_sound = (1..=Self::MAX_LEN).contains(&name.len())
            && !name.starts_with('_')
            && name.bytes().all(|byte| ALLOWED[usize::from(byte)]);
        if is_sound { Ok(Self(name)) } else { Err(InvalidCounter::Name) }
    }

    /// Checks a name that a client reads: [`OTHER`] is one too.
    ///
    /// # Errors
    ///
    /// [`InvalidCounter::Name`].
    pub fn parse_for_reading(name: Cow<'a, str>) -> Result<Self, InvalidCounter> {
        if name == OTHER { Ok(Self(name)) } else { Self::parse(name) }
    }

    /// The same name, in memory of its own.
    pub fn into_owned(self) -> CounterName<'static> {
        CounterName(self.0.into_owned().into())
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The counters that ids are counted in beside the total: different names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct CounterNames<'a>(SmallVec<[CounterName<'a>; 1]>);

impl<'a> CounterNames<'a> {
    /// Names of a request, or of an element of its body.
    pub const MOST: usize = 8;

    /// Adds a name, unless it is there already.
    ///
    /// # Errors
    ///
    /// [`InvalidCounter::TooMany`].
    pub fn add(&mut self, name: CounterName<'a>) -> Result<(), InvalidCounter> {
        if self.0.contains(&name) {
            return Ok(());
        }
        if self.0.len() == Self::MOST {
            return Err(InvalidCounter::TooMany);
        }
        self.0.push(name);
        Ok(())
    }

    /// The same names, in memory of their own.
    pub fn into_owned(self) -> CounterNames<'static> {
        CounterNames(self.0.into_iter().map(CounterName::into_owned).collect())
    }

    /// Whether only the total counts.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The name, if there is no other.
    pub fn only_one(&self) -> Option<&str> {
        match &*self.0 {
            [name] => Some(name.as_str()),
            _ => None,
        }
    }

    /// Those names for which it is true, and the others.
    pub fn partition(&self, is_first: impl Fn(&str) -> bool) -> (Self, Self) {
        let (first, others) = self.0.iter().cloned().partition(|name| is_first(name.as_str()));
        (Self(first), Self(others))
    }

    /// The names, in the order in which they were added.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(CounterName::as_str)
    }
}

/// The count of a counter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CounterCount {
    /// Its name.
    pub name: Box<str>,
    /// Different ids.
    pub unique_ids: u64,
    /// False if the store may have lost ids of it.
    pub is_whole: bool,
}

/// What a count is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// All ids.
    Total,
    /// The ids of the counter with this name.
    Counter(Box<str>),
}

/// The counts of a window's counters: only of those that had ids.
#[derive(Debug, Default)]
pub struct CounterCounts {
    /// By the bytes of their names.
    counts: Box<[CounterCount]>,
    has_overflowed: bool,
    /// The store may have lost names.
    lacks_names: bool,
    /// The memory that the counts take, for as long as somebody holds them.
    _memory: Option<Share>,
}

impl CounterCounts {
    /// `has_overflowed`: ids found no place in their counter, so that every count may lack some.
    pub(crate) fn new(mut counts: Vec<CounterCount>, has_overflowed: bool) -> Self {
        counts.sort_unstable_by(|one, other| one.name.cmp(&other.name));
        Self { counts: counts.into(), has_overflowed, lacks_names: false, _memory: None }
    }

    /// The same, with the memory that they take.
    pub(crate) fn in_memory(self, memory: Share) -> Self {
        Self { _memory: Some(memory), ..self }
    }

    /// The same, if the store may have lost names.
    pub(crate) fn lacking_names(self, lacks_names: bool) -> Self {
        Self { lacks_names, ..self }
    }

    /// A counter without ids has 0.
    pub fn get(&self, name: &str) -> u64 {
        self.of(name).map_or(0, |count| count.unique_ids)
    }

    /// Whether a counter had ids.
    pub fn has(&self, name: &str) -> bool {
        self.of(name).is_some()
    }

    /// How many names clients wrote: all but [`OTHER`].
    pub fn names(&self) -> usize {
        self.counts.len() - usize::from(self.has(OTHER))
    }

    /// By the bytes of the names.
    pub fn all(&self) -> &[CounterCount] {
        &self.counts
    }

    /// Whether ids found no place in their counter.
    pub fn has_overflowed(&self) -> bool {
        self.has_overflowed
    }

    /// Whether the store may have lost names.
    pub(crate) fn lacks_names(&self) -> bool {
        self.lacks_names
    }

    /// Whether the store has all ids of a counter. None is known of a counter without ids if the store lost names.
    pub fn is_whole(&self, name: &str) -> bool {
        self.of(name).map_or(!self.lacks_names, |count| count.is_whole)
    }

    /// Whether the store has all ids of all counters.
    pub fn all_are_whole(&self) -> bool {
        !self.lacks_names && self.counts.iter().all(|count| count.is_whole)
    }

    fn of(&self, name: &str) -> Option<&CounterCount> {
        let place = self.counts.binary_search_by(|count| (*count.name).cmp(name));
        place.ok().map(|place| &self.counts[place])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_128_bytes_of_some_characters() {
        for byte in 0..=255_u8 {
            let text = char::from(byte).to_string();
            let is_name = text.is_ascii() && (byte.is_ascii_alphanumeric() || b".:/@-".contains(&byte));
            assert_eq!(CounterName::parse(text.as_str().into()).is_ok(), is_name, "{byte}");
            let inside = format!("a{text}");
            let is_name = is_name || byte == b'_';
            assert_eq!(CounterName::parse(inside.as_str().into()).is_ok(), is_name, "{byte} inside");
        }
        for (length, is_name) in [(0, false), (1, true), (128, true), (129, false)] {
            assert_eq!(CounterName::parse("x".repeat(length).into()).is_ok(), is_name, "{length}");
        }
        assert!(CounterName::parse(OTHER.into()).is_err());
        assert!(CounterName::parse_for_reading(OTHER.into()).is_ok());
        assert!(CounterName::parse_for_reading("_others".into()).is_err());
    }

    /// Instances of different releases must agree.
    #[test]
    fn the_bucket_of_a_name_never_changes() {
        let names = ["a", "de", "campaign-7", "_other", "https://example.com/page"];
        assert_eq!(names.map(bucket_of), [9, 11, 30, 44, 35]);
    }

    #[test]
    fn a_repeated_name_is_one_and_nine_are_too_many() {
        let mut names = CounterNames::default();
        for name in ["a", "b", "a", "c", "d", "e", "f", "g", "h", "h"] {
            names.add(CounterName::parse(name.into()).unwrap()).unwrap();
        }
        assert_eq!(names.iter().collect::<Vec<_>>(), ["a", "b", "c", "d", "e", "f", "g", "h"]);
        assert_eq!(names.add(CounterName::parse("i".into()).unwrap()), Err(InvalidCounter::TooMany));
    }
}
