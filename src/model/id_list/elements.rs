//! How lists are written: where one element ends and the next begins, and how the ids of a kind stand there.

use std::marker::PhantomData;

use serde_json::value::RawValue;

use crate::model::element::trim_json;
use crate::model::id::{Id, IdKind, IntegerId, InvalidId, TextId};
use crate::platform::words::position;

/// How a list is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListFormat {
    /// A line is an id as it stands. Lines end in LF or CR LF; the last one need not.
    Lines,
    /// A line is a JSON value (NDJSON): an integer, a string where ids are texts, or an [object](crate::model::element).
    /// Integers may have leading zeros where all ids are integers.
    JsonLines,
    /// A JSON array of such values.
    JsonArray,
}

/// How the elements of a list are told from each other.
#[derive(Debug, Clone, Copy)]
pub(super) struct Notation {
    pub(super) format: ListFormat,
    /// Some element is an object, so that a comma may be inside an element.
    pub(super) has_objects: bool,
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

/// The elements of a text.
pub(super) struct Elements<'a, I> {
    notation: Notation,
    /// The text after the last separator so far; none at the end.
    pub(super) rest: Option<&'a [u8]>,
    kind: PhantomData<I>,
}

impl<'a, I: ListedId> Elements<'a, I> {
    /// A JSON array only after the check: then only commas and white space are between its elements.
    pub(super) fn of(notation: Notation, text: &'a [u8]) -> Self {
        let rest = match notation.format {
            // No line follows the end of the last line.
            ListFormat::Lines | ListFormat::JsonLines => text.strip_suffix(b"\n").unwrap_or(text),
            ListFormat::JsonArray => inside_brackets(text),
        };
        Self::at(notation, (!text.is_empty()).then_some(rest))
    }

    pub(super) fn at(notation: Notation, rest: Option<&'a [u8]>) -> Self {
        Self { notation, rest, kind: PhantomData }
    }

    /// The byte between two elements, if it is in no element.
    fn separator(&self) -> Option<u8> {
        match (self.notation.format, I::KIND) {
            (ListFormat::Lines | ListFormat::JsonLines, _) => Some(b'\n'),
            (ListFormat::JsonArray, IdKind::Integer) if !self.notation.has_objects => Some(b','),
            (ListFormat::JsonArray, _) => None,
        }
    }

    /// Takes up to `most` of the next elements, as long as they are ids that are read quickly.
    ///
    /// The text stays in a register: in `self`, each id would wait for the one before to be stored and loaded again.
    #[expect(clippy::inline_always, reason = "measured: it is a third of what an id costs")]
    #[inline(always)]
    pub(super) fn take_ids(&mut self, most: usize, mut take: impl FnMut(I)) {
        let (Some(separator), Some(mut text)) = (self.separator(), self.rest) else { return };
        for _ in 0..most {
            let Some((id, len)) = I::parse_up_to(separator, text) else { break };
            text = &text[len + 1..];
            take(id);
        }
        self.rest = Some(text);
    }

    /// The next element of a JSON array in which a comma may be inside an element. It is kept out of the loop over lines, which
    /// is hot.
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
        let Some(separator) = self.separator() else { return self.next_value() };
        let text = self.rest?;
        let end = position(separator, text);
        self.rest = end.map(|end| &text[end + 1..]);
        let element = end.map_or(text, |end| &text[..end]);
        Some(match (self.notation.format, I::KIND) {
            (ListFormat::Lines, _) | (ListFormat::JsonLines, IdKind::Integer) => {
                element.strip_suffix(b"\r").unwrap_or(element)
            }
            (ListFormat::JsonLines | ListFormat::JsonArray, _) => trim_json(element),
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
