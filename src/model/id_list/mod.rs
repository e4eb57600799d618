//! Lists of ids as clients write them: one a line, or a JSON array.
//!
//! The whole list is checked before any id is taken, so that one bad id refuses all. The check keeps the ids of a short
//! list. A long list is read a second time, piece by piece: its ids would take up to ten times the memory of its text.

mod elements;

use std::borrow::Cow;
use std::collections::HashMap;

use bytes::Bytes;
use serde::de::{Deserializer, SeqAccess, Visitor};
use serde_json::value::RawValue;
use smallvec::{SmallVec, smallvec};
use thiserror::Error;

use self::elements::{Elements, Notation};
pub use self::elements::{ListFormat, ListedId};
use crate::model::counter::{CounterNames, InvalidCounter};
use crate::model::element::{InvalidElement, ListCounters, is_object, read_object, trim_json};
use crate::model::id::{IdKind, IntegerId, TextId};

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
    /// One of them is an object, but has not the fields that it should.
    #[error("the element number {place} is no object with the fields id and counters")]
    InvalidObject {
        /// Counted from 1.
        place: usize,
    },
    /// One of them names counters that it may not.
    #[error("the element number {place} names a counter: {why}")]
    InvalidCounter {
        /// Counted from 1.
        place: usize,
        /// Why not.
        why: InvalidCounter,
    },
    /// It is no JSON array.
    #[error("not a JSON array")]
    NoArray,
}

/// Ids with the same counters, and these.
type Groups<'a, I> = SmallVec<[(Cow<'a, [I]>, Option<&'a CounterNames<'static>>); 1]>;

/// Ids that are taken together, and the counters that some of them name.
#[derive(Debug)]
pub struct Piece<I> {
    ids: Vec<I>,
    /// By the place of the id. The other ids count in the counters of the whole list.
    named: Vec<(usize, CounterNames<'static>)>,
}

impl<I> Default for Piece<I> {
    fn default() -> Self {
        Self { ids: Vec::new(), named: Vec::new() }
    }
}

impl<I> Piece<I> {
    /// The ids.
    pub fn ids(&self) -> &[I] {
        &self.ids
    }

    /// The ids by the counters that they name; none if those of the whole list. To add a hundred ids to a counter takes hardly more
    /// time than to add one. The groups are in the order of their first ids: where there is not room for all names, the first get it.
    pub fn groups(&self) -> Groups<'_, I>
    where
        I: Clone,
    {
        if self.named.is_empty() {
            return smallvec![(Cow::Borrowed(self.ids()), None)];
        }
        let (mut groups, mut places) = (Groups::new(), HashMap::with_capacity(self.named.len() + 1));
        for (ids, counters) in self.runs() {
            let place = *places.entry(counters).or_insert(groups.len());
            match groups.get_mut(place) {
                Some((group, _)) => group.to_mut().extend_from_slice(ids),
                None => groups.push((ids.into(), counters)),
            }
        }
        groups
    }

    /// The ids in their order, those together that have no counters of their own.
    fn runs(&self) -> impl Iterator<Item = (&[I], Option<&CounterNames<'static>>)> {
        let (mut place, mut named) = (0, self.named.iter().peekable());
        std::iter::from_fn(move || {
            let first = place;
            let own = named.next_if(|(at, _)| *at == first).map(|(_, counters)| counters);
            place = match own {
                Some(_) => first + 1,
                None => named.peek().map_or(self.ids.len(), |(at, _)| *at),
            };
            (first < place).then(|| (&self.ids[first..place], own))
        })
    }
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
    pub fn parse(
        format: ListFormat,
        kind: IdKind,
        counters: ListCounters,
        text: &Bytes,
    ) -> Result<Self, InvalidIdList> {
        match kind {
            IdKind::Integer => ListOf::parse(format, counters, text).map(Self::Integers),
            IdKind::Text => ListOf::parse(format, counters, text).map(Self::Texts),
        }
    }
}

/// A list with at least one id, until its ids are taken.
#[derive(Debug)]
pub struct ListOf<I> {
    notation: Notation,
    counters: ListCounters,
    /// The ids that the check kept.
    kept: Piece<I>,
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
    pub fn parse(format: ListFormat, counters: ListCounters, text: &Bytes) -> Result<Self, InvalidIdList> {
        // An id and what separates it from the next take at least two bytes.
        let ids = Vec::with_capacity(PIECE.min(text.len() / 2 + 1));
        let kept = Piece { ids, named: Vec::new() };
        let notation = Notation { format, has_objects: false };
        let mut check = Check::<I> { notation, counters, kept, checked: 0 };
        match format {
            ListFormat::Lines | ListFormat::JsonLines => {
                let mut elements = Elements::of(notation, text);
                while let Some(other) = check.quick_ones(&mut elements) {
                    check.other_element(other)?;
                }
            }
            ListFormat::JsonArray => check.json(text)?,
        }
        let Check { notation, counters, mut kept, checked } = check;
        if checked == 0 {
            return Err(InvalidIdList::Empty);
        }
        let mut rest = None;
        if checked > kept.ids.len() {
            kept.ids.clear();
            kept.named.clear();
            rest = Elements::<I>::of(notation, text).rest.map(|rest| text.slice_ref(rest));
        }
        Ok(Self { notation, counters, kept, rest })
    }

    /// The counters of the whole list.
    pub fn counters(&self) -> &CounterNames<'static> {
        &self.counters.of_all
    }

    /// Takes the next ids, in their order: up to 1 024 of them, none at the end. They replace those in `piece`.
    ///
    /// This is not an iterator. An iterator copies each id several times, right after it was written and in pieces of
    /// another size, so the processor waits for each copy. That was half of what an id cost.
    pub fn take(&mut self, piece: &mut Piece<I>) {
        piece.ids.clear();
        piece.named.clear();
        if self.kept.ids.capacity() > 0 {
            // Even if the check left no ids: their memory is used again.
            *piece = std::mem::take(&mut self.kept);
        }
        let Some(text) = &self.rest else { return };
        let mut elements = Elements::<I>::at(self.notation, Some(text));
        loop {
            elements.take_ids(PIECE - piece.ids.len(), |id| piece.ids.push(id));
            if piece.ids.len() == PIECE {
                break;
            }
            let Some(element) = elements.next() else { break };
            // Each branch adds the id itself: a value that both branches return would be copied once more.
            match I::parse_quickly(element) {
                Some(id) => piece.ids.push(id),
                None => {
                    // The check found no fault in it.
                    let _ = add_other(piece, self.notation.format, &self.counters, element);
                }
            }
        }
        self.rest = elements.rest.map(|rest| text.slice_ref(rest));
    }
}

/// Reads an element that [`parse_quickly`](crate::model::id::Id::parse_quickly) does not, and adds it to a piece. It is
/// kept out of the loop over canonical integers, which is hot.
#[inline(never)]
fn add_other<I: ListedId>(
    piece: &mut Piece<I>,
    format: ListFormat,
    counters: &ListCounters,
    element: &[u8],
) -> Result<(), InvalidElement> {
    if format != ListFormat::Lines && is_object(element) {
        let names = read_object(element, counters, &mut piece.ids)?;
        piece.named.push((piece.ids.len() - 1, names));
    } else {
        piece.ids.push(I::parse_element(format, element)?);
    }
    Ok(())
}

/// The check of a list.
struct Check<I> {
    notation: Notation,
    counters: ListCounters,
    /// The first ids, as many as a piece has.
    kept: Piece<I>,
    checked: usize,
}

impl<I: ListedId> Check<I> {
    /// Takes elements as long as they can be read quickly. Returns the next one, which cannot.
    #[inline]
    fn quick_ones<'a>(&mut self, elements: &mut Elements<'a, I>) -> Option<&'a [u8]> {
        loop {
            elements.take_ids(usize::MAX, |id| self.keep(id));
            let element = elements.next()?;
            let Some(id) = I::parse_quickly(element) else {
                self.checked += 1;
                return Some(element);
            };
            self.keep(id);
        }
    }

    fn element(&mut self, element: &[u8]) -> Result<(), InvalidIdList> {
        if let Some(id) = I::parse_quickly(element) {
            self.keep(id);
            return Ok(());
        }
        self.checked += 1;
        self.other_element(element)
    }

    #[expect(clippy::inline_always, reason = "a call would copy the id")]
    #[inline(always)]
    fn keep(&mut self, id: I) {
        self.checked += 1;
        if self.kept.ids.len() < PIECE {
            self.kept.ids.push(id);
        }
    }

    /// Kept out of the loop over canonical integers, which is hot.
    #[cold]
    #[inline(never)]
    fn other_element(&mut self, element: &[u8]) -> Result<(), InvalidIdList> {
        self.notation.has_objects |= is_object(element);
        let place = self.checked;
        let added = add_other(&mut self.kept, self.notation.format, &self.counters, element);
        if self.kept.ids.len() > PIECE {
            self.kept.ids.pop();
            self.kept.named.pop_if(|(at, _)| *at == PIECE);
        }
        added.map_err(|invalid| match invalid {
            InvalidElement::Id => InvalidIdList::InvalidId { place },
            InvalidElement::Counter(why) => InvalidIdList::InvalidCounter { place, why },
            InvalidElement::Object => InvalidIdList::InvalidObject { place },
        })
    }

    /// Checks that the text is a JSON array, and that each of its elements is an id.
    ///
    /// Canonical integers with commas between them need no reader of JSON: they are JSON. If anything else is there, the
    /// check begins anew, with one.
    fn json(&mut self, text: &[u8]) -> Result<(), InvalidIdList> {
        if I::KIND == IdKind::Integer
            && let [b'[', inside @ .., b']'] = trim_json(text)
        {
            let mut elements = Elements::at(self.notation, Some(inside));
            if self.quick_ones(&mut elements).is_none() {
                return Ok(());
            }
        }
        self.checked = 0;
        self.kept.ids.clear();
        self.any_json(text)
    }

    /// It looks at the text of an element. A parsed number would lose digits that a float cannot hold, and might hide a
    /// fraction.
    fn any_json(&mut self, text: &[u8]) -> Result<(), InvalidIdList> {
        struct Reader<'a, I>(&'a mut Check<I>);

        impl<'de, I: ListedId> Visitor<'de> for Reader<'_, I> {
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
        let all = json.deserialize_seq(Reader(self)).map_err(|_| InvalidIdList::NoArray)?;
        json.end().map_err(|_| InvalidIdList::NoArray)?;
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::counter::CounterName;
    use crate::model::id::Id;

    fn parse(format: ListFormat, kind: IdKind, text: &Bytes) -> Result<IdList, InvalidIdList> {
        let mut of_all = CounterNames::default();
        of_all.add(CounterName::parse("all".into()).unwrap()).unwrap();
        IdList::parse(format, kind, ListCounters { of_all, available: Ok(()) }, text)
    }

    fn taken(list: IdList) -> Vec<String> {
        match list {
            IdList::Integers(list) => taken_of(list),
            IdList::Texts(list) => taken_of(list),
        }
    }

    fn taken_of<I: ListedId + ToString>(mut list: ListOf<I>) -> Vec<String> {
        let (mut all, mut piece) = (Vec::new(), Piece::default());
        loop {
            list.take(&mut piece);
            if piece.ids().is_empty() {
                return all;
            }
            assert!(piece.ids().len() <= PIECE);
            assert_grouped(&piece);
            for (ids, counters) in piece.runs() {
                let counters = counters.map_or(String::new(), |names| {
                    format!(" {}", names.iter().collect::<Vec<_>>().join(","))
                });
                all.extend(ids.iter().map(|id| format!("{}{counters}", id.to_string())));
            }
        }
    }

    /// Each id is in the group of its counters.
    fn assert_grouped<I: Id + ToString>(piece: &Piece<I>) {
        let mut grouped = Vec::new();
        let mut all_counters = Vec::new();
        for (ids, counters) in piece.groups() {
            assert!(!all_counters.contains(&counters), "{counters:?}");
            all_counters.push(counters);
            grouped.extend(ids.iter().map(|id| (id.to_string(), format!("{counters:?}"))));
        }
        let one_by_one = piece
            .runs()
            .flat_map(|(ids, counters)| ids.iter().map(move |id| (id.to_string(), format!("{counters:?}"))));
        let mut one_by_one: Vec<_> = one_by_one.collect();
        one_by_one.sort_unstable();
        grouped.sort_unstable();
        assert_eq!(grouped, one_by_one);
        let mut in_order = Vec::new();
        for (_, counters) in piece.runs() {
            if !in_order.contains(&counters) {
                in_order.push(counters);
            }
        }
        assert_eq!(all_counters, in_order);
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
                    assert_eq!(taken(parse(ListFormat::Lines, IdKind::Integer, &text.into()).unwrap()), ids);
                }
            }
            // JSON has none.
            for between in [",", " ,\n\t "] {
                let text = format!(" [ {} ]\n", ids.join(between));
                assert_eq!(taken(parse(ListFormat::JsonArray, IdKind::Integer, &text.into()).unwrap()), ids);
            }
        }
    }

    #[test]
    fn a_bad_id_is_found_wherever_it_is() {
        for place in [1, 2, 1_024, 1_025, 3_000] {
            let mut written: Vec<_> = (0..3_000).map(|n| n.to_string()).collect();
            written[place - 1] = "1.0".to_owned();
            let bad = Err(InvalidIdList::InvalidId { place });
            let lines = parse(ListFormat::Lines, IdKind::Integer, &written.join("\n").into());
            assert_eq!(lines.map(taken), bad);
            let json =
                parse(ListFormat::JsonArray, IdKind::Integer, &format!("[{}]", written.join(",")).into());
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
            assert_eq!(parse(format, IdKind::Integer, &text.into()).map(taken), Err(error), "{text:?}");
        }
    }

    /// Arrays of integers are hardly ever shown to the reader of JSON. It must agree.
    #[test]
    fn every_byte_at_every_place_of_an_array_is_looked_at() {
        fn check<I: Id + ToString>(kind: IdKind, array: &[u8]) {
            for (place, byte) in (0..array.len()).flat_map(|place| (0..=255).map(move |byte| (place, byte))) {
                let mut text = array.to_vec();
                text[place] = byte;
                let read = || {
                    let elements: Vec<&RawValue> =
                        serde_json::from_slice(&text).map_err(|_| InvalidIdList::NoArray)?;
                    let ids = elements.iter().enumerate().map(|(before, element)| {
                        let id = I::parse_json(element.get().as_bytes());
                        id.map_err(|_| InvalidIdList::InvalidId { place: before + 1 })
                    });
                    ids.map(|id| Ok(id?.to_string())).collect::<Result<Vec<_>, _>>()
                };
                let list = parse(ListFormat::JsonArray, kind, &text.clone().into());
                assert_eq!(list.map(taken), read(), "{}", text.escape_ascii());
            }
        }
        check::<IntegerId>(IdKind::Integer, b"[1234567,0 ,12,-3,12345678,\n1234567890123456789]");
        check::<TextId>(IdKind::Text, br#"["a",7 ,-0,"b,c"]"#);
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
        let read = |format, text: String| taken(parse(format, IdKind::Text, &text.into()).unwrap());
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
            (JsonLines, "\u{c}7", InvalidId { place: 1 }),
            (JsonArray, "[\"a\",true]", InvalidId { place: 2 }),
            (JsonArray, "[\"a\",\"\\u0000\"]", InvalidId { place: 2 }),
            (JsonArray, "[\"\\ud800\"]", InvalidId { place: 1 }),
            (JsonArray, "[\"a\" \"b\"]", NoArray),
            (JsonArray, "[a]", NoArray),
            (JsonArray, "[,1]", NoArray),
        ] {
            let list = parse(format, IdKind::Text, &text.into());
            assert_eq!(list.map(taken), Err(error), "{text:?}");
        }
    }

    #[test]
    fn elements_may_name_counters() {
        let one = r#"{"id":7,"counters":["a","all"]}"#;
        let other = r#" { "counters" : ["x:,]}"], "id" : -0 } "#.replace(":,]}", ":");
        let none = r#"{"id":9,"counters":[]}"#;
        let cycle =
            [("1", "1"), (one, "7 all,a"), (&*other, "0 all,x:"), ("2", "2"), ("3", "3"), (none, "9 all")];
        for count in [6, 3_000] {
            let (written, read): (Vec<&str>, Vec<&str>) = cycle.iter().copied().cycle().take(count).unzip();
            for kind in [IdKind::Integer, IdKind::Text] {
                let lines = parse(ListFormat::JsonLines, kind, &written.join("\n").into()).unwrap();
                assert_eq!(taken(lines), read);
                let array =
                    parse(ListFormat::JsonArray, kind, &format!("[{}]", written.join(",")).into()).unwrap();
                assert_eq!(taken(array), read);
            }
        }
        let text = r#"{"id":"a,\"b","counters":["c"]}"#;
        assert_eq!(taken(parse(ListFormat::JsonLines, IdKind::Text, &text.into()).unwrap()), ["a,\"b all,c"]);
    }

    #[test]
    fn objects_with_other_fields_are_refused() {
        let object = Err(InvalidIdList::InvalidObject { place: 2 });
        let counter = |why| Err(InvalidIdList::InvalidCounter { place: 2, why });
        let eight: Vec<_> = (0..8).map(|n| format!("\"n{n}\"")).collect();
        let eight = format!(r#"{{"id":1,"counters":[{}]}}"#, eight.join(","));
        // Also if a name is repeated.
        let nine = [r#""a""#; 9].join(",");
        let nine_after_id = format!(r#"{{"id":1,"counters":[{nine}]}}"#);
        let nine_before_id = format!(r#"{{"counters":[{nine}],"id":1}}"#);
        for (element, error) in [
            (r#"{"id":1}"#, object.clone()),
            (r#"{"counters":["a"]}"#, object.clone()),
            (r#"{"id":1,"counter":["a"]}"#, object.clone()),
            (r#"{"id":1,"counters":["a"],"x":1}"#, object.clone()),
            (r#"{"id":1,"id":1,"counters":["a"]}"#, object.clone()),
            (r#"{"id":1,"counters":["a"],"counters":["a"]}"#, object.clone()),
            (r#"{"id":1,"counters":"a"}"#, object.clone()),
            (r#"{"id":1,"counters":[1]}"#, object.clone()),
            (r#"{"id":1,"counters":null}"#, object.clone()),
            (r#"{"id":1.5,"counters":[]}"#, Err(InvalidIdList::InvalidId { place: 2 })),
            (r#"{"id":1,"counters":["_other"]}"#, counter(InvalidCounter::Name)),
            (r#"{"id":1,"counters":[""]}"#, counter(InvalidCounter::Name)),
            (&*eight, counter(InvalidCounter::TooMany)),
            (&*nine_after_id, counter(InvalidCounter::TooMany)),
            (&*nine_before_id, counter(InvalidCounter::TooMany)),
        ] {
            let array = parse(ListFormat::JsonArray, IdKind::Integer, &format!("[1,{element}]").into());
            assert_eq!(array.map(taken), error, "{element}");
            let lines = parse(ListFormat::JsonLines, IdKind::Integer, &format!("1\n{element}").into());
            assert_eq!(lines.map(taken), error, "{element}");
        }
        let cut_off = parse(ListFormat::JsonLines, IdKind::Integer, &"1\n{\"id\":1".into());
        assert_eq!(cut_off.map(taken), object);
        let counters = ListCounters { of_all: CounterNames::default(), available: Err(InvalidCounter::Off) };
        let list = |element: &'static str| {
            IdList::parse(ListFormat::JsonLines, IdKind::Integer, counters.clone(), &element.into())
                .map(taken)
        };
        let off = Err(InvalidIdList::InvalidCounter { place: 1, why: InvalidCounter::Off });
        assert_eq!(list(r#"{"id":1,"counters":["a"]}"#), off);
        assert_eq!(list(r#"{"id":1,"counters":[]}"#), Ok(vec!["1 ".to_owned()]));
    }
}
