//! The body of a bulk request: reading it, within bounds of time and memory.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::header::{CONTENT_ENCODING, CONTENT_TYPE, EXPECT};
use axum::http::{HeaderMap, HeaderValue};
use http_body_util::{BodyExt, Limited};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::error;

use crate::http::error::Failure;
use crate::http::settings::Settings;
use crate::model::id::IdKind;
use crate::model::id_list::{IdList, ListFormat};

/// Bodies up to this size are checked where they are; larger ones on a thread of their own, because
/// that takes longer than other requests should wait.
const CHECKED_IN_PLACE: usize = 64 * 1024;
/// Bodies of the largest size that are handled at a time, or so many more smaller ones.
const LARGEST_BODIES: usize = 32;
/// How much of a body that is refused is read after all, and for how long. A client that is still
/// sending would not see the answer if the connection were closed at once.
pub(in crate::http) const LINGER: (usize, Duration) = (64 * 1024 * 1024, Duration::from_secs(1));

/// Bounds the bytes of all bulk bodies that are handled at a time.
pub(super) struct Budget(Arc<Semaphore>);

impl Budget {
    pub(super) fn new(limits: &Settings) -> Self {
        Self(Arc::new(Semaphore::new(LARGEST_BODIES * limits.body_limit as usize)))
    }

    fn take(&self, bytes: u32) -> Result<OwnedSemaphorePermit, Failure> {
        Arc::clone(&self.0).try_acquire_many_owned(bytes).map_err(|_| Failure::Overloaded)
    }
}

/// A body that is a list of ids.
pub(super) struct Bulk {
    pub(super) ids: IdList,
    /// Given back with the body.
    _budget: OwnedSemaphorePermit,
}

/// Reads the whole body: all its ids, or why it is refused. Nothing is counted yet.
pub(super) async fn read(
    request: Request,
    kind: IdKind,
    limits: &Settings,
    budget: &Budget,
) -> Result<Bulk, Failure> {
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
                .map(|(body, budget)| (format, body, budget))
        }
        Err(failure) => Err(failure),
    };
    match read {
        Ok((format, body, budget)) => Ok(Bulk { ids: parse(format, kind, body).await?, _budget: budget }),
        Err(failure) => {
            linger(body, expects_continue).await;
            Err(failure)
        }
    }
}

fn format(headers: &HeaderMap) -> Result<ListFormat, Failure> {
    if !headers.get_all(CONTENT_ENCODING).iter().all(says_nothing) {
        return Err(Failure::UnsupportedMediaType);
    }
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    // What follows a semicolon are parameters, such as the charset: digits are the same in all.
    match content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase().as_str() {
        "text/plain" => Ok(ListFormat::Lines),
        "application/x-ndjson" => Ok(ListFormat::JsonLines),
        "application/json" => Ok(ListFormat::JsonArray),
        _ => Err(Failure::UnsupportedMediaType),
    }
}

/// Whether a value of `content-encoding` means that nothing was done to the body (RFC 9110, 8.4.1 and 12.5.3).
fn says_nothing(encodings: &HeaderValue) -> bool {
    let is_identity = |encoding: &[u8]| {
        encoding.trim_ascii().is_empty() || encoding.trim_ascii().eq_ignore_ascii_case(b"identity")
    };
    encodings.as_bytes().split(|byte| *byte == b',').all(is_identity)
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

/// Sees that the body is a list of ids.
async fn parse(format: ListFormat, kind: IdKind, body: Bytes) -> Result<IdList, Failure> {
    if body.len() <= CHECKED_IN_PLACE {
        return IdList::parse(format, kind, &body).map_err(Failure::from);
    }
    let check =
        tokio::task::spawn_blocking(move || IdList::parse(format, kind, &body).map_err(Failure::from));
    check.await.unwrap_or_else(|error| {
        error!(%error, "the check of a bulk body panicked");
        Err(Failure::StoreUnavailable)
    })
}
