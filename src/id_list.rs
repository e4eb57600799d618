//! Lists of ids as clients write them: one a line, or a JSON array.
//!
//! A list is walked twice: once to see that every id in it is one, so that a bad id refuses all, and once to
//! take them. So no list of ids is ever made, and it takes the memory of its text alone.

use bytes::Bytes;
use serde::de::{Deserializer, SeqAccess, Visitor};
use serde_json::value::RawValue;
use thiserror::Error;

use crate::id::Id;

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

/// A text of which every element is an id, and of which there is at least one.
#[derive(Debug, Clone)]
pub struct IdList {
    format: ListFormat,
    text: Bytes,
}

impl IdList {
    /// Looks at every id.
    ///
    /// # Errors
    ///
    /// [`InvalidIdList`] when one is none, or there are none.
    pub fn parse(format: ListFormat, text: Bytes) -> Result<Self, InvalidIdList> {
        let list = Self { format, text };
        let ids = match format {
            ListFormat::Lines => list.elements().enumerate().try_fold(0, check)?,
            ListFormat::Json => check_json(&list.text)?,
        };
        if ids == 0 { Err(InvalidIdList::Empty) } else { Ok(list) }
    }

    /// All ids, in their order.
    pub fn ids(&self) -> impl Iterator<Item = Id> {
        self.elements().filter_map(|text| Id::parse(text).ok())
    }

    /// What stands between the separators. For JSON only after the check, which has seen that the text
    /// is an array of integers: then nothing but commas, white space and the brackets can be between
    /// them.
    fn elements(&self) -> impl Iterator<Item = &[u8]> {
        let (text, separator) = match self.format {
            // What follows the end of the last line is no line.
            ListFormat::Lines => (self.text.strip_suffix(b"\n").unwrap_or(&self.text), b'\n'),
            ListFormat::Json => (inside_brackets(&self.text), b','),
        };
        let format = self.format;
        let none = self.text.is_empty();
        text.split(move |byte| *byte == separator).filter(move |_| !none).map(move |text| match format {
            ListFormat::Lines => text.strip_suffix(b"\r").unwrap_or(text),
            ListFormat::Json => text.trim_ascii(),
        })
    }
}

/// What stands between the brackets of a JSON array.
fn inside_brackets(array: &[u8]) -> &[u8] {
    match array.trim_ascii() {
        [_, inside @ .., _] => inside,
        _ => &[],
    }
}

fn check(before: usize, (index, text): (usize, &[u8])) -> Result<usize, InvalidIdList> {
    match Id::parse(text) {
        Ok(_) => Ok(before + 1),
        Err(_) => Err(InvalidIdList::InvalidId { place: index + 1 }),
    }
}

/// Sees that the text is a JSON array, and that each of its elements is an id. Returns how many.
///
/// Elements are taken as they are written, so that a number too large for a float's precision, or one
/// with a fraction, is seen for what it is.
fn check_json(text: &[u8]) -> Result<usize, InvalidIdList> {
    struct Elements;

    impl<'de> Visitor<'de> for Elements {
        type Value = Result<usize, InvalidIdList>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an array")
        }

        // To the end also after a bad element: it may not be JSON at all.
        fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Self::Value, A::Error> {
            let mut checked = Ok(0);
            let mut index = 0;
            while let Some(element) = elements.next_element::<&RawValue>()? {
                checked = checked.and_then(|before| check(before, (index, element.get().as_bytes())));
                index += 1;
            }
            Ok(checked)
        }
    }

    let mut json = serde_json::Deserializer::from_slice(text);
    let checked = json.deserialize_seq(Elements).map_err(|_| InvalidIdList::NoArray)?;
    json.end().map_err(|_| InvalidIdList::NoArray)?;
    checked
}
