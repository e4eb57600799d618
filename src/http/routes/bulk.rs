//! Reads the body of a bulk request, within bounds of time and memory.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::header::{CONTENT_ENCODING, CONTENT_TYPE, EXPECT};
use axum::http::{HeaderMap, HeaderValue};
use http_body_util::{BodyExt, Limited};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::error;

use crate::hll::Sketch;
use crate::http::error::Failure;
use crate::http::settings::Settings;
use crate::model::element::ListCounters;
use crate::model::id::IdKind;
use crate::model::id_list::{IdList, ListFormat};
use crate::model::shard::Shards;

/// Larger bodies are checked on another thread, because the check would delay other requests too long.
const CHECKED_IN_PLACE: usize = 64 * 1024;
/// The budget has room for this many bodies of the largest size, or for as many bytes of smaller ones.
const LARGEST_BODIES: usize = 32;
/// How much of a refused body is still read, and for how long. A client that is still sending would not see the answer
/// if the server closed the connection at once.
pub(in crate::http) const LINGER: (usize, Duration) = (64 * 1024 * 1024, Duration::from_secs(1));

/// What a document has beside its sketches, at most.
const BESIDE_SKETCHES: usize = 4096;

/// The longest document with a sketch for each shard, in bytes.
pub(super) fn longest_document(shards: Shards) -> u32 {
    let longest = BESIDE_SKETCHES + usize::from(shards.count()) * Sketch::LONGEST_STRING.div_ceil(3) * 4;
    u32::try_from(longest).unwrap_or(u32::MAX)
}

/// Bounds the bytes of all bulk bodies in memory.
pub(super) struct Budget(Arc<Semaphore>);

impl Budget {
    /// For lists up to `--body-limit`, and for bodies of another kind that are up to `longest` bytes.
    pub(super) fn new(limits: &Settings, longest: u32) -> Self {
        Self(Arc::new(Semaphore::new(LARGEST_BODIES * limits.body_limit.max(longest) as usize)))
    }

    fn take(&self, bytes: u32) -> Result<OwnedSemaphorePermit, Failure> {
        Arc::clone(&self.0).try_acquire_many_owned(bytes).map_err(|_| Failure::Overloaded)
    }
}

/// A body that is a list of ids.
pub(super) struct Bulk {
    pub(super) ids: IdList,
    _budget: OwnedSemaphorePermit,
}

/// Reads and checks the whole body. Nothing is counted yet.
pub(super) async fn read(
    request: Request,
    kind: IdKind,
    counters: ListCounters,
    limits: &Settings,
    budget: &Budget,
) -> Result<Bulk, Failure> {
    let format = format(request.headers());
    let (request, format) = go_on(request, format).await?;
    let (body, budget) = read_whole(request, limits.body_limit, limits.body_read_timeout, budget).await?;
    Ok(Bulk { ids: parse(format, kind, counters, body).await?, _budget: budget })
}

/// Reads a whole body of up to `longest` bytes. It has its place in the budget until the permit is dropped.
pub(super) async fn read_whole(
    request: Request,
    longest: u32,
    patience: Duration,
    budget: &Budget,
) -> Result<(Bytes, OwnedSemaphorePermit), Failure> {
    let expects_continue = request.headers().contains_key(EXPECT);
    let announced = request.body().size_hint().lower();
    let mut body = request.into_body();
    let read = if announced > u64::from(longest) {
        Err(Failure::BodyTooLarge)
    } else {
        let read = tokio::time::timeout(patience, collect(&mut body, longest, budget)).await;
        read.unwrap_or(Err(Failure::InvalidBody { line: None }))
    };
    if read.is_err() {
        linger(body, expects_continue).await;
    }
    read
}

fn format(headers: &HeaderMap) -> Result<ListFormat, Failure> {
    if !headers.get_all(CONTENT_ENCODING).iter().all(is_unencoded) {
        return Err(Failure::UnsupportedMediaType);
    }
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    // Digits are the same in all charsets.
    match &*media_type(content_type) {
        "text/plain" => Ok(ListFormat::Lines),
        "application/x-ndjson" => Ok(ListFormat::JsonLines),
        "application/json" => Ok(ListFormat::JsonArray),
        _ => Err(Failure::UnsupportedMediaType),
    }
}

/// A media type without its parameters, such as the charset, in lower case.
pub(super) fn media_type(value: &str) -> String {
    value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// Whether a value of `content-encoding` means that the body is not encoded (RFC 9110, 8.4.1 and 12.5.3).
fn is_unencoded(encodings: &HeaderValue) -> bool {
    let is_identity = |encoding: &[u8]| {
        encoding.trim_ascii().is_empty() || encoding.trim_ascii().eq_ignore_ascii_case(b"identity")
    };
    encodings.as_bytes().split(|byte| *byte == b',').all(is_identity)
}

/// Reads the body. It takes from the budget as bytes arrive: a client that sends nothing holds nothing.
async fn collect(
    body: &mut Body,
    limit: u32,
    budget: &Budget,
) -> Result<(Bytes, OwnedSemaphorePermit), Failure> {
    let (mut read, mut held) = (Vec::new(), budget.take(0)?);
    while let Some(frame) = body.frame().await {
        let Ok(piece) = frame.map_err(|_| Failure::InvalidBody { line: None })?.into_data() else { continue };
        if read.len() + piece.len() > limit as usize {
            return Err(Failure::BodyTooLarge);
        }
        held.merge(budget.take(piece.len() as u32)?);
        // Copied: a piece of one byte would keep its whole buffer in memory.
        read.extend_from_slice(&piece);
    }
    Ok((read.into(), held))
}

/// Goes on with a request if its head is good. Otherwise its body is read on, as by [`refuse`].
pub(super) async fn go_on<T>(request: Request, head: Result<T, Failure>) -> Result<(Request, T), Failure> {
    match head {
        Ok(read) => Ok((request, read)),
        Err(failure) => {
            refuse(request).await;
            Err(failure)
        }
    }
}

/// Reads on, as [`LINGER`] says, after a request was refused for its head.
pub(super) async fn refuse(request: Request) {
    let expects_continue = request.headers().contains_key(EXPECT);
    linger(request.into_body(), expects_continue).await;
}

/// Reads the rest of a refused body. A client that asked before sending (`expect`) gets the answer at once.
async fn linger(body: Body, expects_continue: bool) {
    if expects_continue {
        return;
    }
    let (bytes, time) = LINGER;
    let mut body = Limited::new(body, bytes);
    let _ = tokio::time::timeout(time, async { while let Some(Ok(_)) = body.frame().await {} }).await;
}

async fn parse(
    format: ListFormat,
    kind: IdKind,
    counters: ListCounters,
    body: Bytes,
) -> Result<IdList, Failure> {
    if body.len() <= CHECKED_IN_PLACE {
        return IdList::parse(format, kind, counters, &body).map_err(Failure::from);
    }
    let check = tokio::task::spawn_blocking(move || {
        IdList::parse(format, kind, counters, &body).map_err(Failure::from)
    });
    check.await.unwrap_or_else(|error| {
        error!(%error, "a panic ended the check of a bulk body");
        Err(Failure::StoreUnavailable)
    })
}
