//! Counters: numbers that clients name, such as a campaign or a page, beside the total.

use std::borrow::Cow;

use smallvec::SmallVec;
use thiserror::Error;

use crate::platform::budget::Share;

/// The counter of ids whose own counter found no place. Clients read it and cannot write it.
pub const OTHER: &str = "_other";

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
    /// More than [`CounterNames::MOST`] different names.
    #[error("a request or an element names at most {} different counters", CounterNames::MOST)]
    TooMany,
    /// `--max-counters 0`.
    #[error("counters are off: --max-counters is 0")]
    Off,
    /// Counters are in memory only.
    #[error("counters are not available with --redis-url")]
    NotInRedis,
}

/// The name of a counter.
#[derive(Debug, Clone, PartialEq, Eq)]
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
        let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.:/@-".contains(&byte);
        let is_sound = (1..=Self::MAX_LEN).contains(&name.len())
            && !name.starts_with('_')
            && name.bytes().all(is_allowed);
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
#[derive(Debug, Clone, Default)]
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

    /// The names, in the order in which they were added.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(CounterName::as_str)
    }
}

/// The counts of a window's counters: only of those that had ids.
#[derive(Debug, Default)]
pub struct CounterCounts {
    /// By the bytes of their names.
    counts: Box<[(Box<str>, u64)]>,
    has_overflowed: bool,
    /// The memory that the counts take, for as long as somebody holds them.
    _memory: Option<Share>,
}

impl CounterCounts {
    /// `has_overflowed`: ids found no place in their counter, so that every count may lack some.
    pub(crate) fn new(mut counts: Vec<(Box<str>, u64)>, has_overflowed: bool, memory: Share) -> Self {
        counts.sort_unstable();
        Self { counts: counts.into(), has_overflowed, _memory: Some(memory) }
    }

    /// A counter without ids has 0.
    pub fn get(&self, name: &str) -> u64 {
        self.place(name).map_or(0, |place| self.counts[place].1)
    }

    /// Whether a counter had ids.
    pub fn has(&self, name: &str) -> bool {
        self.place(name).is_ok()
    }

    /// How many names clients wrote: all but [`OTHER`].
    pub fn names(&self) -> usize {
        self.counts.len() - usize::from(self.has(OTHER))
    }

    /// Names and counts, by the bytes of the names.
    pub fn all(&self) -> &[(Box<str>, u64)] {
        &self.counts
    }

    /// Whether ids found no place in their counter.
    pub fn has_overflowed(&self) -> bool {
        self.has_overflowed
    }

    fn place(&self, name: &str) -> Result<usize, usize> {
        self.counts.binary_search_by(|(known, _)| (**known).cmp(name))
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
