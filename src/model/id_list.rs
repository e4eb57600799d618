//! Lists of ids as clients write them: one a line, or a JSON array.
//!
//! The whole list is checked before any id is taken, so that one bad id refuses all. The check keeps the ids of a short
//! list. A long list is read a second time, piece by piece: its ids would take up to ten times the memory of its text.

use bytes::Bytes;
use serde::de::{Deserializer, SeqAccess, Visitor};
use serde_json::value::RawValue;
use thiserror::Error;

use crate::model::id::Id;
use crate::platform::words::position;

/// How a list is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListFormat {
    /// An id a line. Lines end in LF or CR LF; the last one need not.
    Lines,
    /// A JSON array of integers.
    Json,
}

/// The text is no list of ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum InvalidIdList {
    /// There is no id in it.
    #[error("there is no id")]
    Empty,
    /// One of them is no id.
    #[error("the id number {place} is no integer in range")]
    InvalidId {
        /// Counted from 1.
        place: usize,
    },
    /// It is no JSON array.
    #[error("not a JSON array")]
    NoArray,
}

/// A list with at least one id, until its ids are taken.
#[derive(Debug)]
pub struct IdList {
    format: ListFormat,
    /// The ids that the check kept.
    ids: Vec<Id>,
    /// The text of the ids that are not read yet; see [`Elements::rest`].
    rest: Option<Bytes>,
}

impl IdList {
    /// Ids that [`IdList::take`] takes, at most.
    pub(crate) const PIECE: usize = 1024;

    /// Checks every id.
    ///
    /// # Errors
    ///
    /// [`InvalidIdList`] when an element is no id, or there is no element.
    pub fn parse(format: ListFormat, text: &Bytes) -> Result<Self, InvalidIdList> {
        // An id and what separates it from the next take at least two bytes.
        let ids = Vec::with_capacity(Self::PIECE.min(text.len() / 2 + 1));
        let mut check = Check { ids, checked: 0 };
        match format {
            ListFormat::Lines => Elements::of(format, text).try_for_each(|text| check.element(text))?,
            ListFormat::Json => check.json(text)?,
        }
        match check {
            Check { checked: 0, .. } => Err(InvalidIdList::Empty),
            Check { ids, checked } if checked == ids.len() => Ok(Self { format, ids, rest: None }),
            Check { mut ids, .. } => {
                ids.clear();
                let rest = Elements::of(format, text).rest.map(|rest| text.slice_ref(rest));
                Ok(Self { format, ids, rest })
            }
        }
    }

    /// Takes the next ids, in their order: up to [`IdList::PIECE`] of them, none at the end. They replace those in
    /// `piece`.
    ///
    /// This is not an iterator. An iterator copies each id several times, right after it was written and in pieces of
    /// another size, so the processor waits for each copy. That was half of what an id cost.
    pub fn take(&mut self, piece: &mut Vec<Id>) {
        piece.clear();
        if self.ids.capacity() > 0 {
            // Even if the check left no ids: their memory is used again.
            *piece = std::mem::take(&mut self.ids);
        }
        let Some(text) = &self.rest else { return };
        let mut elements = Elements { format: self.format, rest: Some(text) };
        while piece.len() < Self::PIECE
            && let Some(element) = elements.next()
        {
            // Each branch adds the id itself: a value that both branches return would be copied once more.
            match Id::from_canonical(element) {
                Some(id) => piece.push(id),
                None => piece.extend(Id::from_any(element)),
            }
        }
        self.rest = elements.rest.map(|rest| text.slice_ref(rest));
    }
}

/// The check of a list.
struct Check {
    /// The first ids, as many as a piece has.
    ids: Vec<Id>,
    checked: usize,
}

impl Check {
    #[inline]
    fn element(&mut self, element: &[u8]) -> Result<(), InvalidIdList> {
        self.checked += 1;
        if let Some(id) = Id::from_canonical(element) {
            self.keep(id);
        } else {
            let invalid = |_| InvalidIdList::InvalidId { place: self.checked };
            self.keep(Id::from_any(element).map_err(invalid)?);
        }
        Ok(())
    }

    #[inline]
    fn keep(&mut self, id: Id) {
        if self.ids.len() < IdList::PIECE {
            self.ids.push(id);
        }
    }

    /// Checks that the text is a JSON array, and that each of its elements is an id.
    ///
    /// It looks at the text of an element. A parsed number would lose digits that a float cannot hold, and might hide a
    /// fraction.
    fn json(&mut self, text: &[u8]) -> Result<(), InvalidIdList> {
        struct Elements<'a>(&'a mut Check);

        impl<'de> Visitor<'de> for Elements<'_> {
            type Value = Result<(), InvalidIdList>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an array")
            }

            // Reads to the end even after a bad element: the text may not be JSON at all.
            fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Self::Value, A::Error> {
                let mut all = Ok(());
                while let Some(element) = elements.next_element::<&RawValue>()? {
                    all = all.and_then(|()| self.0.element(element.get().as_bytes()));
                }
                Ok(all)
            }
        }

        let mut json = serde_json::Deserializer::from_slice(text);
        let all = json.deserialize_seq(Elements(self)).map_err(|_| InvalidIdList::NoArray)?;
        json.end().map_err(|_| InvalidIdList::NoArray)?;
        all
    }
}

/// The elements between the separators of a text.
struct Elements<'a> {
    format: ListFormat,
    /// The text after the last separator so far; none at the end.
    rest: Option<&'a [u8]>,
}

impl<'a> Elements<'a> {
    /// For JSON only after the check. Then the text is an array of integers, and only commas, white space and the
    /// brackets are between them.
    fn of(format: ListFormat, text: &'a [u8]) -> Self {
        let rest = match format {
            // No line follows the end of the last line.
            ListFormat::Lines => text.strip_suffix(b"\n").unwrap_or(text),
            ListFormat::Json => inside_brackets(text),
        };
        Self { format, rest: (!text.is_empty()).then_some(rest) }
    }
}

impl<'a> Iterator for Elements<'a> {
    type Item = &'a [u8];

    #[inline]
    fn next(&mut self) -> Option<&'a [u8]> {
        let text = self.rest?;
        let separator = match self.format {
            ListFormat::Lines => b'\n',
            ListFormat::Json => b',',
        };
        let end = position(separator, text);
        self.rest = end.map(|end| &text[end + 1..]);
        let element = end.map_or(text, |end| &text[..end]);
        Some(match self.format {
            ListFormat::Lines => element.strip_suffix(b"\r").unwrap_or(element),
            ListFormat::Json => element.trim_ascii(),
        })
    }
}

/// The text between the brackets of a JSON array.
fn inside_brackets(array: &[u8]) -> &[u8] {
    match array.trim_ascii() {
        [_, inside @ .., _] => inside,
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(mut list: IdList) -> Vec<String> {
        let (mut all, mut piece) = (Vec::new(), Vec::new());
        loop {
            list.take(&mut piece);
            if piece.is_empty() {
                return all;
            }
            assert!(piece.len() <= IdList::PIECE);
            all.extend(piece.iter().map(Id::to_string));
        }
    }

    #[test]
    fn lists_of_all_lengths_are_taken_whole() {
        for count in [1, 2, 1_023, 1_024, 1_025, 2_047, 2_048, 2_049, 5_000] {
            // Of one to twenty digits, every fifth one with a sign.
            let numbers = (0..count).map(|n: u32| {
                let number = i128::from(u64::MAX / 10_u64.pow(n % 20)) - i128::from(n);
                if n % 5 == 4 { -(number >> 1) } else { number }
            });
            let ids: Vec<_> = numbers.map(|number| number.to_string()).collect();
            // In lines, some have zeros in front.
            let zeros = |(n, id): (usize, &String)| match id.strip_prefix('-') {
                _ if n % 7 < 6 => id.clone(),
                Some(digits) => format!("-{digits:0>21}"),
                None => format!("{id:0>21}"),
            };
            let written: Vec<_> = ids.iter().enumerate().map(zeros).collect();
            for end in ["", "\n"] {
                for between in ["\n", "\r\n"] {
                    let text = written.join(between) + end;
                    assert_eq!(taken(IdList::parse(ListFormat::Lines, &text.into()).unwrap()), ids);
                }
            }
            // JSON has none.
            for between in [",", " ,\n\t "] {
                let text = format!(" [ {} ]\n", ids.join(between));
                assert_eq!(taken(IdList::parse(ListFormat::Json, &text.into()).unwrap()), ids);
            }
        }
    }

    #[test]
    fn a_bad_id_is_found_wherever_it_is() {
        for place in [1, 2, 1_024, 1_025, 3_000] {
            let mut written: Vec<_> = (0..3_000).map(|n| n.to_string()).collect();
            written[place - 1] = "1.0".to_owned();
            let bad = Err(InvalidIdList::InvalidId { place });
            let lines = IdList::parse(ListFormat::Lines, &written.join("\n").into());
            assert_eq!(lines.map(taken), bad);
            let json = IdList::parse(ListFormat::Json, &format!("[{}]", written.join(",")).into());
            assert_eq!(json.map(taken), bad);
        }
    }

    #[test]
    fn what_is_no_list_is_refused() {
        use InvalidIdList::{Empty, InvalidId, NoArray};
        use ListFormat::{Json, Lines};
        for (format, text, error) in [
            (Lines, "", Empty),
            (Lines, "\n", InvalidId { place: 1 }),
            (Lines, "1\n\n2", InvalidId { place: 2 }),
            (Lines, "1\n\n", InvalidId { place: 2 }),
            (Lines, "12345678 \n", InvalidId { place: 1 }),
            (Json, "", NoArray),
            (Json, "[]", Empty),
            (Json, "[1,]", NoArray),
            (Json, "[1.5,", NoArray),
            (Json, "[1][2]", NoArray),
            (Json, "[1,[2]]", InvalidId { place: 2 }),
        ] {
            assert_eq!(IdList::parse(format, &text.into()).map(taken), Err(error), "{text:?}");
        }
    }
}
