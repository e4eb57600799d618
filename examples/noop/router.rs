//! The routes of the no-op: those of the service, without a store.

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderValue, Method, StatusCode};
use axum::response::Response;
use axum::routing::any;
use headcount::model::id::{Id, IntegerId};
use url::form_urlencoded;

/// The same as in the service's answers.
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");

fn answer(status: StatusCode, body: &'static str) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, TEXT);
    response.headers_mut().insert(CACHE_CONTROL, NO_STORE);
    response
}

/// One handler for all methods, as in the service.
async fn accept(State(body_limit): State<usize>, request: Request) -> Response {
    match *request.method() {
        Method::GET => accept_one(request.uri().query().unwrap_or_default()),
        Method::POST => Box::pin(accept_many(request.into_body(), body_limit)).await,
        _ => answer(StatusCode::METHOD_NOT_ALLOWED, "failed"),
    }
}

fn accept_one(query: &str) -> Response {
    let id = form_urlencoded::parse(query.as_bytes()).find_map(|(key, value)| (key == "id").then_some(value));
    match id.map(|id| IntegerId::parse(id.as_bytes())) {
        Some(Ok(_)) => answer(StatusCode::OK, "ok"),
        _ => answer(StatusCode::BAD_REQUEST, "failed"),
    }
}

async fn accept_many(body: Body, limit: usize) -> Response {
    match to_bytes(body, limit).await {
        Ok(body) if !body.is_empty() => answer(StatusCode::OK, "ok"),
        _ => answer(StatusCode::BAD_REQUEST, "failed"),
    }
}

/// The router. It parses ids and reads bodies up to `body_limit` bytes, but counts nothing.
pub(crate) fn router(body_limit: usize) -> Router {
    Router::new().route("/api/verve/accept", any(accept)).with_state(body_limit)
}
