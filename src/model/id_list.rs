//! Lists of ids as clients write them: one a line, or a JSON array.
//!
//! The whole list is checked before any id is taken, so that one bad id refuses all. The check keeps the ids of a short
//! list. A long list is read a second time, piece by piece: its ids would take up to ten times the memory of its text.

use std::marker::PhantomData;

use bytes::Bytes;
use serde::de::{Deserializer, SeqAccess, Visitor};
use serde_json::value::RawValue;
use thiserror::Error;

use crate::model::id::{Id, IdKind, IntegerId, InvalidId, TextId};
use crate::platform::words::position;

/// How a list is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListFormat {
    /// A line is an id as it stands. Lines end in LF or CR LF; the last one need not.
    Lines,
    /// A line is a JSON value (NDJSON): an integer, or a string where ids are texts. Integers may have leading zeros where all
    /// ids are integers.
    JsonLines,
    /// A JSON array of such values.
    JsonArray,
}

/// The text is no list of ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum InvalidIdList {
    /// There is no id in it.
    #[error("there is no id")]
    Empty,
    /// One of them is no id.
    #[error("the element number {place} is no id")]
    InvalidId {
        /// Counted from 1.
        place: usize,
    },
    /// It is no JSON array.
    #[error("not a JSON array")]
    NoArray,
}

/// A list of ids of either kind.
#[derive(Debug)]
pub enum IdList {
    /// Of [`IdKind::Integer`].
    Integers(ListOf<IntegerId>),
    /// Of [`IdKind::Text`].
    Texts(ListOf<TextId>),
}

impl IdList {
    /// Checks every id.
    ///
    /// # Errors
    ///
    /// [`InvalidIdList`] when an element is no id, or there is no element.
    pub fn parse(format: ListFormat, kind: IdKind, text: &Bytes) -> Result<Self, InvalidIdList> {
        match kind {
            IdKind::Integer => ListOf::parse(format, text).map(Self::Integers),
            IdKind::Text => ListOf::parse(format, text).map(Self::Texts),
        }
    }
}

/// A list with at least one id, until its ids are taken.
#[derive(Debug)]
pub struct ListOf<I> {
    format: ListFormat,
    /// The ids that the check kept.
    ids: Vec<I>,
    /// The text of the ids that are not read yet; see [`Elements::rest`].
    rest: Option<Bytes>,
}

/// Ids that [`ListOf::take`] takes, at most.
pub(crate) const PIECE: usize = 1024;

impl<I: ListedId> ListOf<I> {
    /// Checks every id.
    ///
    /// # Errors
    ///
    /// As [`IdList::parse`].
    pub fn parse(format: ListFormat, text: &Bytes) -> Result<Self, InvalidIdList> {
        // An id and what separates it from the next take at least two bytes.
        let ids = Vec::with_capacity(PIECE.min(text.len() / 2 + 1));
        let mut check = Check::<I> { format, ids, checked: 0 };
        match format {
            ListFormat::Lines | ListFormat::JsonLines => {
                Elements::<I>::of(format, text).try_for_each(|text| check.element(text))?;
            }
            ListFormat::JsonArray => check.json(text)?,
        }
        match check {
            Check { checked: 0, .. } => Err(InvalidIdList::Empty),
            Check { ids, checked, .. } if checked == ids.len() => Ok(Self { format, ids, rest: None }),
            Check { mut ids, .. } => {
                ids.clear();
                let rest = Elements::<I>::of(format, text).rest.map(|rest| text.slice_ref(rest));
                Ok(Self { format, ids, rest })
            }
        }
    }

    /// Takes the next ids, in their order: up to 1 024 of them, none at the end. They replace those in `piece`.
    ///
    /// This is not an iterator. An iterator copies each id several times, right after it was written and in pieces of
    /// another size, so the processor waits for each copy. That was half of what an id cost.
    pub fn take(&mut self, piece: &mut Vec<I>) {
        piece.clear();
        if self.ids.capacity() > 0 {
            // Even if the check left no ids: their memory is used again.
            *piece = std::mem::take(&mut self.ids);
        }
        let Some(text) = &self.rest else { return };
        let mut elements = Elements::<I>::at(self.format, Some(text));
        while piece.len() < PIECE
            && let Some(element) = elements.next()
        {
            // Each branch adds the id itself: a value that both branches return would be copied once more.
            match I::parse_quickly(element) {
                Some(id) => piece.push(id),
                None => piece.extend(I::parse_element(self.format, element)),
            }
        }
        self.rest = elements.rest.map(|rest| text.slice_ref(rest));
    }
}

/// How the ids of a kind stand in a list.
pub trait ListedId: Id {
    /// Which kind it is.
    const KIND: IdKind;

    /// Reads an element that [`Id::parse_quickly`] does not.
    ///
    /// # Errors
    ///
    /// [`InvalidId`].
    fn parse_element(format: ListFormat, element: &[u8]) -> Result<Self, InvalidId>;

    /// The byte between two elements, if it is in no element.
    fn separator(format: ListFormat) -> Option<u8> {
        match (format, Self::KIND) {
            (ListFormat::Lines | ListFormat::JsonLines, _) => Some(b'\n'),
            (ListFormat::JsonArray, IdKind::Integer) => Some(b','),
            (ListFormat::JsonArray, IdKind::Text) => None,
        }
    }
}

impl ListedId for IntegerId {
    const KIND: IdKind = IdKind::Integer;

    /// A line of JSON is read as any line: version one took leading zeros.
    fn parse_element(_: ListFormat, element: &[u8]) -> Result<Self, InvalidId> {
        Self::parse(element)
    }
}

impl ListedId for TextId {
    const KIND: IdKind = IdKind::Text;

    fn parse_element(format: ListFormat, element: &[u8]) -> Result<Self, InvalidId> {
        match format {
            ListFormat::Lines => Self::parse(element),
            ListFormat::JsonLines | ListFormat::JsonArray => Self::parse_json(element),
        }
    }
}

/// The check of a list.
struct Check<I> {
    format: ListFormat,
    /// The first ids, as many as a piece has.
    ids: Vec<I>,
    checked: usize,
}

impl<I: ListedId> Check<I> {
    #[inline]
    fn element(&mut self, element: &[u8]) -> Result<(), InvalidIdList> {
        self.checked += 1;
        if let Some(id) = I::parse_quickly(element) {
            self.keep(id);
        } else {
            let invalid = |_| InvalidIdList::InvalidId { place: self.checked };
            self.keep(I::parse_element(self.format, element).map_err(invalid)?);
        }
        Ok(())
    }

    #[inline]
    fn keep(&mut self, id: I) {
        if self.ids.len() < PIECE {
            self.ids.push(id);
        }
    }

    /// Checks that the text is a JSON array, and that each of its elements is an id.
    ///
    /// It looks at the text of an element. A parsed number would lose digits that a float cannot hold, and might hide a
    /// fraction.
    fn json(&mut self, text: &[u8]) -> Result<(), InvalidIdList> {
        struct Elements<'a, I>(&'a mut Check<I>);

        impl<'de, I: ListedId> Visitor<'de> for Elements<'_, I> {
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

/// The elements of a text.
struct Elements<'a, I> {
    format: ListFormat,
    /// The text after the last separator so far; none at the end.
    rest: Option<&'a [u8]>,
    kind: PhantomData<I>,
}

impl<'a, I: ListedId> Elements<'a, I> {
    /// A JSON array only after the check: then only commas and white space are between its elements.
    fn of(format: ListFormat, text: &'a [u8]) -> Self {
        let rest = match format {
            // No line follows the end of the last line.
            ListFormat::Lines | ListFormat::JsonLines => text.strip_suffix(b"\n").unwrap_or(text),
            ListFormat::JsonArray => inside_brackets(text),
        };
        Self::at(format, (!text.is_empty()).then_some(rest))
    }

    fn at(format: ListFormat, rest: Option<&'a [u8]>) -> Self {
        Self { format, rest, kind: PhantomData }
    }

    /// The next element of a JSON array of strings and integers. It is kept out of the loop over lines, which is hot.
    #[inline(never)]
    fn next_value(&mut self) -> Option<&'a [u8]> {
        let text = self.rest?;
        let mut values = serde_json::Deserializer::from_slice(text).into_iter::<&RawValue>();
        let value = values.next()?.ok()?;
        let after = text[values.byte_offset()..].trim_ascii_start();
        self.rest = after.strip_prefix(b",");
        Some(value.get().as_bytes())
    }
}

impl<'a, I: ListedId> Iterator for Elements<'a, I> {
    type Item = &'a [u8];

    #[inline]
    fn next(&mut self) -> Option<&'a [u8]> {
        let Some(separator) = I::separator(self.format) else { return self.next_value() };
        let text = self.rest?;
        let end = position(separator, text);
        self.rest = end.map(|end| &text[end + 1..]);
        let element = end.map_or(text, |end| &text[..end]);
        Some(match (self.format, I::KIND) {
            (ListFormat::Lines, _) | (ListFormat::JsonLines, IdKind::Integer) => {
                element.strip_suffix(b"\r").unwrap_or(element)
            }
            (ListFormat::JsonLines | ListFormat::JsonArray, _) => element.trim_ascii(),
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

    fn taken(list: IdList) -> Vec<String> {
        match list {
            IdList::Integers(list) => taken_of(list),
            IdList::Texts(list) => taken_of(list),
        }
    }

    fn taken_of<I: ListedId + ToString>(mut list: ListOf<I>) -> Vec<String> {
        let (mut all, mut piece) = (Vec::new(), Vec::new());
        loop {
            list.take(&mut piece);
            if piece.is_empty() {
                return all;
            }
            assert!(piece.len() <= PIECE);
            all.extend(piece.iter().map(I::to_string));
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
                    assert_eq!(
                        taken(IdList::parse(ListFormat::Lines, IdKind::Integer, &text.into()).unwrap()),
                        ids
                    );
                }
            }
            // JSON has none.
            for between in [",", " ,\n\t "] {
                let text = format!(" [ {} ]\n", ids.join(between));
                assert_eq!(
                    taken(IdList::parse(ListFormat::JsonArray, IdKind::Integer, &text.into()).unwrap()),
                    ids
                );
            }
        }
    }

    #[test]
    fn a_bad_id_is_found_wherever_it_is() {
        for place in [1, 2, 1_024, 1_025, 3_000] {
            let mut written: Vec<_> = (0..3_000).map(|n| n.to_string()).collect();
            written[place - 1] = "1.0".to_owned();
            let bad = Err(InvalidIdList::InvalidId { place });
            let lines = IdList::parse(ListFormat::Lines, IdKind::Integer, &written.join("\n").into());
            assert_eq!(lines.map(taken), bad);
            let json = IdList::parse(
                ListFormat::JsonArray,
                IdKind::Integer,
                &format!("[{}]", written.join(",")).into(),
            );
            assert_eq!(json.map(taken), bad);
        }
    }

    #[test]
    fn what_is_no_list_is_refused() {
        use InvalidIdList::{Empty, InvalidId, NoArray};
        use ListFormat::{JsonArray, JsonLines, Lines};
        for (format, text, error) in [
            (Lines, "", Empty),
            (Lines, "\n", InvalidId { place: 1 }),
            (Lines, "1\n\n2", InvalidId { place: 2 }),
            (Lines, "1\n\n", InvalidId { place: 2 }),
            (Lines, "12345678 \n", InvalidId { place: 1 }),
            (JsonLines, "1\n\"2\"", InvalidId { place: 2 }),
            (JsonArray, "", NoArray),
            (JsonArray, "[]", Empty),
            (JsonArray, "[1,]", NoArray),
            (JsonArray, "[1.5,", NoArray),
            (JsonArray, "[1][2]", NoArray),
            (JsonArray, "[1,[2]]", InvalidId { place: 2 }),
            (JsonArray, "[1,\"2\"]", InvalidId { place: 2 }),
        ] {
            assert_eq!(
                IdList::parse(format, IdKind::Integer, &text.into()).map(taken),
                Err(error),
                "{text:?}"
            );
        }
    }

    #[test]
    fn texts_are_read_alike_in_every_format() {
        // As a line, and as JSON.
        let written =
            [("a,b", r#""a,b""#), ("]", r#""]""#), ("007", r#""007""#), ("7", "7"), ("\"\\", r#""\"\\""#)];
        let more = [
            (" é ", r#"" \u00e9 ""#),
            ("\u{1f600}", r#""\ud83d\ude00""#),
            ("18446744073709551615", "18446744073709551615"),
        ];
        let all: Vec<_> = written.into_iter().chain(more).cycle().take(3_000).collect();
        let ids: Vec<_> = all.iter().map(|(line, _)| (*line).to_owned()).collect();
        let read = |format, text: String| taken(IdList::parse(format, IdKind::Text, &text.into()).unwrap());
        let json: Vec<_> = all.iter().map(|(_, json)| *json).collect();
        for end in ["\n", "\r\n"] {
            assert_eq!(read(ListFormat::Lines, ids.join(end)), ids);
            assert_eq!(read(ListFormat::JsonLines, json.join(end)), ids);
        }
        for between in [",", " ,\n\t "] {
            assert_eq!(read(ListFormat::JsonArray, format!(" [ {} ]\n", json.join(between))), ids);
        }
    }

    #[test]
    fn texts_that_are_no_ids_are_refused() {
        use InvalidIdList::{InvalidId, NoArray};
        use ListFormat::{JsonArray, JsonLines, Lines};
        for (format, text, error) in [
            (Lines, "a\n\nb", InvalidId { place: 2 }),
            (Lines, "a\rb", InvalidId { place: 1 }),
            (JsonLines, "\"a\"\nb", InvalidId { place: 2 }),
            (JsonLines, "007", InvalidId { place: 1 }),
            (JsonLines, "1 2", InvalidId { place: 1 }),
            (JsonLines, "\"a\"\"b\"", InvalidId { place: 1 }),
            (JsonLines, "\"\"", InvalidId { place: 1 }),
            (JsonLines, "1e3", InvalidId { place: 1 }),
            (JsonLines, "18446744073709551616", InvalidId { place: 1 }),
            (JsonLines, "-9223372036854775809", InvalidId { place: 1 }),
            (JsonLines, "null", InvalidId { place: 1 }),
            (JsonArray, "[\"a\",true]", InvalidId { place: 2 }),
            (JsonArray, "[\"a\",\"\\u0000\"]", InvalidId { place: 2 }),
            (JsonArray, "[\"\\ud800\"]", InvalidId { place: 1 }),
            (JsonArray, "[\"a\" \"b\"]", NoArray),
        ] {
            let list = IdList::parse(format, IdKind::Text, &text.into());
            assert_eq!(list.map(taken), Err(error), "{text:?}");
        }
    }
}
