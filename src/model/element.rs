//! An element of a list that names counters of its own: `{"id":42,"counters":["campaign-7"]}`.

use serde::Deserialize;
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
    /// Those of the whole list, and those that an element names.
    fn join(&self, names: Vec<String>) -> Result<CounterNames<'static>, InvalidCounter> {
        let mut joined = self.of_all.clone();
        if !names.is_empty() {
            self.available?;
        }
        for name in names {
            joined.add(CounterName::parse(name.into())?)?;
        }
        Ok(joined)
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
    counters: Vec<String>,
}

/// Whether an element of JSON is written as an object.
pub(super) fn is_object(element: &[u8]) -> bool {
    element.trim_ascii_start().first() == Some(&b'{')
}

/// Reads an object, and joins its counters with those of the list.
pub(super) fn read_object<I: Id>(
    element: &[u8],
    counters: &ListCounters,
) -> Result<(I, CounterNames<'static>), InvalidElement> {
    let Object { id, counters: names } =
        serde_json::from_slice(element).map_err(|_| InvalidElement::Object)?;
    Ok((I::parse_json(id.get().as_bytes())?, counters.join(names)?))
}
