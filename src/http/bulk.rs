//! The body of a bulk request: ids, one a line or in a JSON array.

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde_json::value::RawValue;

use super::HttpArgs;
use super::error::Failure;
use crate::id::Id;

/// Bodies up to this size are parsed where they are; larger ones on a thread of their own, because
/// parsing takes longer than other requests should wait.
const PARSED_IN_PLACE: usize = 64 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    /// An id a line.
    Lines,
    /// A JSON array of integers.
    Json,
}

/// Reads the whole body: all its ids, or why it is refused. Nothing is counted yet.
pub(super) async fn read(request: Request, limits: &HttpArgs) -> Result<Vec<Id>, Failure> {
    let format = format(request.headers())?;
    let body =
        tokio::time::timeout(limits.body_read_timeout, collect(request.into_body(), limits.body_limit))
            .await
            .map_err(|_| Failure::InvalidBody)??;
    if body.len() <= PARSED_IN_PLACE {
        return parse(format, &body);
    }
    // The error is a panic in the parser, which is ours.
    tokio::task::spawn_blocking(move || parse(format, &body)).await.map_err(|_| Failure::InvalidBody)?
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

async fn collect(body: Body, limit: u32) -> Result<Bytes, Failure> {
    // A length that says so itself is refused before a byte of it is read.
    if body.size_hint().lower() > u64::from(limit) {
        return Err(Failure::BodyTooLarge);
    }
    match Limited::new(body, limit as usize).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(Failure::BodyTooLarge),
        Err(_) => Err(Failure::InvalidBody),
    }
}

fn parse(format: Format, body: &[u8]) -> Result<Vec<Id>, Failure> {
    let ids = match format {
        Format::Lines => parse_lines(body)?,
        Format::Json => parse_json(body)?,
    };
    if ids.is_empty() { Err(Failure::MissingId) } else { Ok(ids) }
}

/// Lines end in LF or CR LF; the last one need not.
fn parse_lines(body: &[u8]) -> Result<Vec<Id>, Failure> {
    if body.is_empty() {
        return Ok(Vec::new());
    }
    body.strip_suffix(b"\n")
        .unwrap_or(body)
        .split(|byte| *byte == b'\n')
        .map(|line| line.strip_suffix(b"\r").unwrap_or(line))
        .enumerate()
        .map(parse_id)
        .collect()
}

/// Elements are taken as they are written, so that a number too large for a float's precision, or
/// one with a fraction, is seen for what it is.
fn parse_json(body: &[u8]) -> Result<Vec<Id>, Failure> {
    let elements: Vec<&RawValue> = serde_json::from_slice(body).map_err(|_| Failure::InvalidBody)?;
    elements.iter().map(|element| element.get().as_bytes()).enumerate().map(parse_id).collect()
}

fn parse_id((index, text): (usize, &[u8])) -> Result<Id, Failure> {
    Id::parse(text).map_err(|_| Failure::InvalidId { line: Some(index + 1) })
}
