//! The body of a bulk request: ids, one a line or in a JSON array.
//!
//! A body is walked twice: once to see that every id in it is one, so that a bad id refuses all, and
//! once to add them. So no list of ids is ever made, and a request takes the memory of its body alone (twice that
//! while the body comes in).

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_ENCODING, CONTENT_TYPE, EXPECT};
use http_body_util::{BodyExt, Limited};
use serde::de::{Deserializer, SeqAccess, Visitor};
use serde_json::value::RawValue;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::error;

use super::HttpArgs;
use super::error::Failure;
use crate::id::Id;

/// Bodies up to this size are checked where they are; larger ones on a thread of their own, because
/// that takes longer than other requests should wait.
const CHECKED_IN_PLACE: usize = 64 * 1024;
/// Bodies of the largest size that are handled at a time, or so many more smaller ones.
const LARGEST_BODIES: usize = 32;
/// How much of a body that is refused is read after all, and for how long. A client that is still
/// sending would not see the answer if the connection were closed at once.
const LINGER: (usize, Duration) = (64 * 1024 * 1024, Duration::from_secs(1));

/// Bounds the bytes of all bulk bodies that are handled at a time.
pub(super) struct Budget(Arc<Semaphore>);

impl Budget {
    pub(super) fn new(limits: &HttpArgs) -> Self {
        Self(Arc::new(Semaphore::new(LARGEST_BODIES * limits.body_limit as usize)))
    }

    fn take(&self, bytes: u32) -> Result<OwnedSemaphorePermit, Failure> {
        Arc::clone(&self.0).try_acquire_many_owned(bytes).map_err(|_| Failure::Overloaded)
    }
}

/// A body of which every element is an id, and of which there is at least one.
pub(super) struct Ids {
    format: Format,
    body: Bytes,
    /// Given back with the body.
    _budget: OwnedSemaphorePermit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    /// An id a line.
    Lines,
    /// A JSON array of integers.
    Json,
}

/// Reads the whole body: all its ids, or why it is refused. Nothing is counted yet.
pub(super) async fn read(request: Request, limits: &HttpArgs, budget: &Budget) -> Result<Ids, Failure> {
    let expects_continue = request.headers().contains_key(EXPECT);
    let announced = request.body().size_hint().lower();
    let begun = format(request.headers()).and_then(|format| {
        if announced > u64::from(limits.body_limit) { Err(Failure::BodyTooLarge) } else { Ok(format) }
    });
    let mut body = request.into_body();
    let read = match begun {
        Ok(format) => {
            tokio::time::timeout(limits.body_read_timeout, collect(&mut body, limits.body_limit, budget))
                .await
                .unwrap_or(Err(Failure::InvalidBody))
                .map(|(body, budget)| Ids { format, body, _budget: budget })
        }
        Err(failure) => Err(failure),
    };
    match read {
        Ok(ids) => ids.checked().await,
        Err(failure) => {
            linger(body, expects_continue).await;
            Err(failure)
        }
    }
}

fn format(headers: &HeaderMap) -> Result<Format, Failure> {
    if headers.contains_key(CONTENT_ENCODING) {
        return Err(Failure::UnsupportedMediaType);
    }
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    // What follows a semicolon are parameters, such as the charset: digits are the same in all.
    match content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase().as_str() {
        "text/plain" | "application/x-ndjson" => Ok(Format::Lines),
        "application/json" => Ok(Format::Json),
        _ => Err(Failure::UnsupportedMediaType),
    }
}

/// Reads the body, and takes of the budget as it comes: who sends nothing holds nothing.
async fn collect(
    body: &mut Body,
    limit: u32,
    budget: &Budget,
) -> Result<(Bytes, OwnedSemaphorePermit), Failure> {
    let (mut read, mut held) = (Vec::new(), budget.take(0)?);
    while let Some(frame) = body.frame().await {
        let Ok(piece) = frame.map_err(|_| Failure::InvalidBody)?.into_data() else { continue };
        if read.len() + piece.len() > limit as usize {
            return Err(Failure::BodyTooLarge);
        }
        held.merge(budget.take(piece.len() as u32)?);
        // Copied: a piece of one byte would keep the whole buffer that it was read into.
        read.extend_from_slice(&piece);
    }
    Ok((read.into(), held))
}

/// Does with the body of a request that is refused for its head what is done with any that is refused.
pub(super) async fn refuse(request: Request) {
    let expects_continue = request.headers().contains_key(EXPECT);
    linger(request.into_body(), expects_continue).await;
}

/// Who asked whether to send the body gets the answer instead of the body's being read.
async fn linger(body: Body, expects_continue: bool) {
    if expects_continue {
        return;
    }
    let (bytes, time) = LINGER;
    let mut body = Limited::new(body, bytes);
    let _ = tokio::time::timeout(time, async { while let Some(Ok(_)) = body.frame().await {} }).await;
}

impl Ids {
    async fn checked(self) -> Result<Self, Failure> {
        if self.body.len() <= CHECKED_IN_PLACE {
            return self.check().map(|()| self);
        }
        let check = tokio::task::spawn_blocking(move || self.check().map(|()| self));
        check.await.unwrap_or_else(|error| {
            error!(%error, "the check of a bulk body panicked");
            Err(Failure::StoreUnavailable)
        })
    }

    fn check(&self) -> Result<(), Failure> {
        let elements = match self.format {
            Format::Lines => self.texts().enumerate().try_fold(0, check_element)?,
            Format::Json => check_json(&self.body)?,
        };
        if elements == 0 { Err(Failure::MissingId) } else { Ok(()) }
    }

    /// All ids of the body, in its order.
    pub(super) fn ids(&self) -> impl Iterator<Item = Id> {
        self.texts().filter_map(|text| Id::parse(text).ok())
    }

    /// What stands between the separators. For JSON only after the check, which has seen that the body
    /// is an array of integers: then nothing but commas, white space and the brackets can be between
    /// them.
    fn texts(&self) -> impl Iterator<Item = &[u8]> {
        let (body, separator) = match self.format {
            // The last line need not end, and what follows the end of the last line is no line.
            Format::Lines => (self.body.strip_suffix(b"\n").unwrap_or(&self.body), b'\n'),
            Format::Json => (inside_brackets(&self.body), b','),
        };
        let format = self.format;
        let none = self.body.is_empty();
        body.split(move |byte| *byte == separator).filter(move |_| !none).map(move |text| match format {
            Format::Lines => text.strip_suffix(b"\r").unwrap_or(text),
            Format::Json => text.trim_ascii(),
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

fn check_element(before: usize, (index, text): (usize, &[u8])) -> Result<usize, Failure> {
    match Id::parse(text) {
        Ok(_) => Ok(before + 1),
        Err(_) => Err(Failure::InvalidId { line: Some(index + 1) }),
    }
}

/// Sees that the body is a JSON array, and that each of its elements is an id. Returns how many.
///
/// Elements are taken as they are written, so that a number too large for a float's precision, or one
/// with a fraction, is seen for what it is.
fn check_json(body: &[u8]) -> Result<usize, Failure> {
    struct Elements;

    impl<'de> Visitor<'de> for Elements {
        type Value = Result<usize, Failure>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an array")
        }

        // To the end also after a bad element: it may not be JSON at all.
        fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Self::Value, A::Error> {
            let mut checked = Ok(0);
            let mut index = 0;
            while let Some(element) = elements.next_element::<&RawValue>()? {
                checked = checked.and_then(|before| check_element(before, (index, element.get().as_bytes())));
                index += 1;
            }
            Ok(checked)
        }
    }

    let mut json = serde_json::Deserializer::from_slice(body);
    let checked = json.deserialize_seq(Elements).map_err(|_| Failure::InvalidBody)?;
    json.end().map_err(|_| Failure::InvalidBody)?;
    checked
}
