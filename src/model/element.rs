//! An element of a list that names counters of its own: `{"id":42,"counters":["campaign-7"]}`.

use std::borrow::Cow;
use std::fmt;

use memchr::memchr;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::model::counter::{CounterName, CounterNames, InvalidCounter};
use crate::model::id::{Id, InvalidId};

/// Which counters the elements of a list may name, and which they name all.
#[derive(Debug, Clone)]
pub struct ListCounters {
    /// Those of the whole list.
    pub of_all: CounterNames<'static>,
    /// Whether an element may name others.
    pub available: Result<(), InvalidCounter>,
}

impl ListCounters {
    /// Adds one that an element names.
    fn add(&self, name: Cow<'_, str>, to: &mut CounterNames<'static>) -> Result<(), InvalidCounter> {
        self.available?;
        to.add(CounterName::parse(name)?.into_owned())
    }
}

/// Why an object is no element.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum InvalidElement {
    Id,
    Counter(InvalidCounter),
    /// It is no object with the two fields, or not even JSON.
    Object,
}

impl From<InvalidId> for InvalidElement {
    fn from(_: InvalidId) -> Self {
        Self::Id
    }
}

impl From<InvalidCounter> for InvalidElement {
    fn from(invalid: InvalidCounter) -> Self {
        Self::Counter(invalid)
    }
}

/// The fields. A field that is unknown, missing or repeated is an error, so that no client writes `counter` for `counters`
/// and loses its counts in silence.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Object<'a> {
    #[serde(borrow)]
    id: &'a RawValue,
    counters: Listed,
}

/// The names that an element lists: the first ones, so that they take no more memory than the body.
struct Listed {
    names: Vec<String>,
    /// There are more than [`CounterNames::MOST`]. Repeats count.
    are_too_many: bool,
}

impl<'de> Deserialize<'de> for Listed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;

        impl<'de> Visitor<'de> for Reader {
            type Value = Listed;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array of names")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Listed, A::Error> {
                let mut names = Vec::new();
                while names.len() < CounterNames::MOST {
                    let Some(name) = elements.next_element()? else { break };
                    names.push(name);
                }
                let mut are_too_many = false;
                while elements.next_element::<IgnoredAny>()?.is_some() {
                    are_too_many = true;
                }
                Ok(Listed { names, are_too_many })
            }
        }

        deserializer.deserialize_seq(Reader)
    }
}

/// Whether an element of JSON is written as an object.
pub(super) fn is_object(element: &[u8]) -> bool {
    element.trim_ascii_start().first() == Some(&b'{')
}

/// Reads an object, and joins its counters with those of the list. Adds the id to `ids`.
pub(super) fn read_object<I: Id>(
    element: &[u8],
    counters: &ListCounters,
    ids: &mut Vec<I>,
) -> Result<CounterNames<'static>, InvalidElement> {
    if let Some((id, names)) = usual_parts(element, counters) {
        // Each branch adds the id itself: a value that both return would be copied, and the processor would wait for that.
        if let Some(id) = I::parse_quickly(id) {
            ids.push(id);
            return Ok(names);
        }
        if let Ok(id) = I::parse_json(id) {
            ids.push(id);
            return Ok(names);
        }
    }
    let (id, names) = read_any(element, counters)?;
    ids.push(id);
    Ok(names)
}

fn read_any<I: Id>(
    element: &[u8],
    counters: &ListCounters,
) -> Result<(I, CounterNames<'static>), InvalidElement> {
    let Object { id, counters: listed } =
        serde_json::from_slice(element).map_err(|_| InvalidElement::Object)?;
    let (id, mut joined) = (I::parse_json(id.get().as_bytes())?, counters.of_all.clone());
    for name in listed.names {
        counters.add(name.into(), &mut joined)?;
    }
    if listed.are_too_many { Err(InvalidCounter::TooMany.into()) } else { Ok((id, joined)) }
}

/// The text of the id, and the names, of an object as nearly all programs write it: first the id, without a comma in it, and then
/// names without escapes. A reader of JSON takes longer. `None` says nothing about the object: ask that reader. The caller checks
/// the id.
fn usual_parts<'a>(element: &'a [u8], counters: &ListCounters) -> Option<(&'a [u8], CounterNames<'static>)> {
    let rest = after(br#"{"id":"#, element)?;
    let (id, rest) = rest.split_at(memchr(b',', rest)?);
    let mut names =
        if counters.of_all.is_empty() { CounterNames::default() } else { counters.of_all.clone() };
    let mut rest = after(br#","counters":[""#, rest)?;
    for _ in 0..CounterNames::MOST {
        let (name, behind) = rest.split_at(memchr(b'"', rest)?);
        // It has no escape and no control character: a name must not.
        counters.add(str::from_utf8(name).ok()?.into(), &mut names).ok()?;
        let behind = &behind[1..];
        if let Some(next) = after(br#",""#, behind) {
            rest = next;
            continue;
        }
        let is_all = trim_json_start(after(b"]}", behind)?).is_empty();
        return is_all.then_some((trim_json(id), names));
    }
    None
}

/// What follows `tokens`, whose strings are in quotes. There may be white space before a token, but nearly never is.
#[inline]
fn after<'a>(tokens: &[u8], text: &'a [u8]) -> Option<&'a [u8]> {
    text.strip_prefix(tokens).or_else(|| after_spaced(tokens, text))
}

fn after_spaced<'a>(tokens: &[u8], mut text: &'a [u8]) -> Option<&'a [u8]> {
    let mut is_in_quotes = false;
    for byte in tokens {
        if !is_in_quotes {
            text = trim_json_start(text);
        }
        text = text.strip_prefix(&[*byte])?;
        is_in_quotes ^= *byte == b'"';
    }
    Some(text)
}

fn trim_json_start(mut text: &[u8]) -> &[u8] {
    while let [b' ' | b'\t' | b'\n' | b'\r', rest @ ..] = text {
        text = rest;
    }
    text
}

/// Without the white space of JSON around it.
pub(super) fn trim_json(text: &[u8]) -> &[u8] {
    let mut text = trim_json_start(text);
    while let [rest @ .., b' ' | b'\t' | b'\n' | b'\r'] = text {
        text = rest;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::{IntegerId, TextId};

    fn agree<I: Id>(element: &[u8]) -> bool {
        let counters = ListCounters { of_all: CounterNames::default(), available: Ok(()) };
        let shown = |(id, names): (I, CounterNames<'_>)| {
            (id.as_ref().to_vec(), names.iter().map(str::to_owned).collect::<Vec<_>>())
        };
        let mut ids = Vec::new();
        let read = read_object::<I>(element, &counters, &mut ids).map(|names| shown((ids.remove(0), names)));
        assert!(ids.is_empty(), "an id for each object");
        assert_eq!(read, read_any::<I>(element, &counters).map(shown), "{}", element.escape_ascii());
        usual_parts(element, &counters).is_some()
    }

    /// Most objects are never shown to the reader of JSON. It must agree.
    #[test]
    fn every_byte_at_every_place_of_an_object_is_looked_at() {
        for object in [
            r#"{"id":42,"counters":["a","b/c"]}"#,
            r#" { "id" : -7 , "counters" : [ "a" ] } "#,
            r#"{"id":"x","counters":["a"]}"#,
        ] {
            assert!(agree::<TextId>(object.as_bytes()), "{object}");
            for place in 0..object.len() {
                for byte in 0..=255 {
                    let mut element = object.as_bytes().to_vec();
                    element[place] = byte;
                    agree::<IntegerId>(&element);
                    agree::<TextId>(&element);
                }
                agree::<IntegerId>(&object.as_bytes()[..place]);
            }
        }
    }
}
