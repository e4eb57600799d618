//! `/`: the live page.
//!
//! One file with its own style and script. The script asks only routes of this service that read counts, as
//! [`status`](super::status) and [`overlap`](super::overlap). The content security policy has the hashes of style and script,
//! so the browser runs and loads nothing else. That holds even if a name on the page contains markup.

use std::sync::LazyLock;

use axum::http::HeaderValue;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use ring::digest::{SHA256, digest};

use crate::http::error::NO_STORE;

const PAGE: &str = include_str!("ui.html");
const HTML: HeaderValue = HeaderValue::from_static("text/html; charset=utf-8");

/// The fallback never applies: it would be a page without style and script.
static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    HeaderValue::from_str(&policy(PAGE)).unwrap_or(HeaderValue::from_static("default-src 'none'"))
});

/// The live page
///
/// Shows the data of `/status` and the largest counters, and answers questions about ranges of time, returns and overlaps.
/// With `--no-ui` it is 404.
#[utoipa::path(
    get, path = "/", tag = "counts",
    responses((status = 200, description = "The page.", body = String, content_type = "text/html"))
)]
// Needs no token, because the page itself holds no numbers.
pub(super) async fn page() -> Response {
    let headers = [
        (CONTENT_TYPE, HTML),
        (CACHE_CONTROL, NO_STORE),
        (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (CONTENT_SECURITY_POLICY, POLICY.clone()),
    ];
    (headers, PAGE).into_response()
}

fn policy(page: &str) -> String {
    let (style, script) = (source(page, "style"), source(page, "script"));
    format!(
        "default-src 'none'; style-src {style}; script-src {script}; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
}

/// The policy's source expression for the page's only element of this name.
fn source(page: &str, element: &str) -> String {
    let (start, end) = (format!("<{element}>"), format!("</{element}>"));
    let content = page.split_once(&start).and_then(|(_, rest)| rest.split_once(&end));
    content.map_or_else(
        || "'none'".to_owned(),
        |(content, _)| format!("'sha256-{}'", BASE64_STANDARD.encode(digest(&SHA256, content.as_bytes()))),
    )
}
