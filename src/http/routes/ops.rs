//! Routes for operations: `/livez`, `/readyz`, `/metrics`.

use std::sync::Arc;

use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};

use super::schemas::Exposition;
use super::state::Routes;
use crate::http::api::Phase;
use crate::http::error::{NO_STORE, TEXT};

/// The Prometheus text format.
const EXPOSITION: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

/// Where orchestrators ask whether to restart the process.
pub(in crate::http) const LIVEZ: &str = "/livez";

/// Does the process live?
///
/// Answered also where the connections are at their cap: who is full is not dead.
#[utoipa::path(get, path = "/livez", operation_id = "live", tag = "operations")]
// The process ends by itself when one of its parts does.
pub(in crate::http) async fn livez() -> Response {
    plain(StatusCode::OK, "alive")
}

/// No load balancer should send requests here yet.
pub(in crate::http) async fn not_ready() -> Response {
    starting()
}

fn starting() -> Response {
    plain(StatusCode::SERVICE_UNAVAILABLE, "starting")
}

/// Should a load balancer send requests here?
///
/// It stays 200 while Redis is away, because an outage of Redis must not take all instances out of the load balancer.
#[utoipa::path(get, path = "/readyz", operation_id = "ready", tag = "operations")]
pub(super) async fn readyz(State(routes): State<Arc<Routes>>) -> Response {
    let clock_is_wrong = *routes.api.clock_is_wrong.borrow();
    match *routes.api.phase.borrow() {
        Phase::Starting => starting(),
        Phase::Ready if clock_is_wrong => plain(StatusCode::SERVICE_UNAVAILABLE, "clock"),
        // What makes all of them degraded must not take all of them out of the load balancer.
        Phase::Ready if routes.api.store.is_degraded() => plain(StatusCode::OK, "degraded"),
        Phase::Ready => plain(StatusCode::OK, "ready"),
        Phase::Draining => plain(StatusCode::SERVICE_UNAVAILABLE, "draining"),
    }
}

/// Metrics for Prometheus
#[utoipa::path(
    get, path = "/metrics", tag = "operations",
    responses((
        status = 200, description = "All metrics, in the text format 0.0.4 of Prometheus.", body = inline(Exposition),
        content_type = "text/plain"
    ))
)]
pub(super) async fn metrics(State(routes): State<Arc<Routes>>) -> Response {
    let api = &routes.api;
    let is_degraded = api.store.is_degraded();
    api.metrics.degraded.set(f64::from(is_degraded));
    api.metrics.pending_ids.set(api.store.pending_ids() as f64);
    api.metrics.counter_memory.set(api.store.counter_memory() as f64);
    api.metrics.callback_queue_length.set(api.callbacks.waiting() as f64);
    // Nobody is to wait for metrics because of what they would show.
    let counted = if is_degraded { None } else { api.store.count(api.running_window()).await.ok() };
    // Not the number of before: the largest of all instances is taken for that of all.
    api.metrics.current_unique_ids.set(counted.map_or(f64::NAN, |counted| counted.unique_ids as f64));
    ([(CONTENT_TYPE, EXPOSITION), (CACHE_CONTROL, NO_STORE)], api.metrics.render()).into_response()
}

fn plain(status: StatusCode, body: &'static str) -> Response {
    (status, [(CONTENT_TYPE, TEXT), (CACHE_CONTROL, NO_STORE)], body).into_response()
}
