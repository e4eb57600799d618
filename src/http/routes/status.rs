//! `/status`: the data of the live page.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::header::CACHE_CONTROL;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::state::Routes;
use super::unique;
use crate::http::error::NO_STORE;
use crate::model::mode::Mode;
use crate::model::window::{UniqueCount, WindowCount};

/// The state of this instance, and the counts.
#[derive(Serialize, ToSchema)]
#[schema(examples(json!({
    "version": "0.1.0",
    "instance": "web-1/3a977ecc20ba8a6e",
    "leader": "web-1/3a977ecc20ba8a6e",
    "mode": "hll",
    "standard_error": 0.008_125,
    "window_seconds": 60,
    "counters": true,
    "degraded": false,
    "requests_total": 123,
    "accepted_ids_total": 456,
    "current": { "timestamp": "2026-11-23T04:13:00Z", "unique_request_count": 4 },
    "windows": [{
        "timestamp": "2026-11-23T04:12:00Z", "unique_request_count": 1, "accepted_ids": 1, "complete": true
    }]
})))]
pub(super) struct Status {
    /// The version of the service.
    version: &'static str,
    /// The id of the instance that answers: its host, and a number that is new after each start.
    #[schema(pattern = "^.+/[0-9a-f]{16}$")]
    instance: String,
    /// The id of the instance that leads, as far as this one knows. Null if it does not know.
    #[schema(required, pattern = "^.+/[0-9a-f]{16}$")]
    leader: Option<String>,
    #[schema(inline)]
    mode: Mode,
    /// Relative to the true count. Two of three counts are within one standard error, 95 of 100 within two. It is 0 in
    /// mode `exact`.
    #[schema(minimum = 0, maximum = 1)]
    standard_error: f64,
    /// Length of a window, in seconds. A day is a multiple of it.
    #[schema(minimum = 1, maximum = 86_400)]
    window_seconds: u32,
    /// Whether clients may name counters.
    counters: bool,
    /// Whether Redis is away for this instance.
    degraded: bool,
    /// Requests with ids that this instance has accepted since its start.
    requests_total: u64,
    /// Ids that this instance has accepted since its start, repeats included.
    accepted_ids_total: u64,
    /// The count of the running window so far. Null while this instance cannot read it, as when Redis is away.
    #[schema(required)]
    current: Option<UniqueCount>,
    /// The last closed windows, oldest first.
    #[schema(max_items = 60)]
    windows: Vec<WindowCount>,
}

/// The data of the live page
///
/// The running window's count, the last closed windows, and the state of this instance.
#[utoipa::path(
    get, path = "/status", tag = "counts",
    responses((status = 200, description = "The data.", body = Status)),
    security((), ("token" = []))
)]
pub(super) async fn status(State(routes): State<Arc<Routes>>, request: Request) -> Response {
    let admitted = routes.api.admit_reader(&request);
    routes.status.answer_reader(admitted, async { Ok(read(&routes).await) }).await
}

async fn read(routes: &Routes) -> impl IntoResponse + use<> {
    let api = &routes.api;
    // Read before the closed windows: a window that closes in between is then in both, not in neither.
    let current = unique::current(routes).await.ok();
    let status = Status {
        version: env!("CARGO_PKG_VERSION"),
        instance: api.instance.clone(),
        leader: api.leader.borrow().clone(),
        mode: api.counting.mode,
        standard_error: api.counting.standard_error(),
        window_seconds: api.counting.window.seconds(),
        counters: api.counting.may_count().is_ok(),
        degraded: api.store.is_degraded(),
        requests_total: routes.accept.all.ok.get() + routes.bulk.all.ok.get(),
        accepted_ids_total: api.metrics.accepted_ids.get(),
        current,
        windows: api.closed.all(),
    };
    ([(CACHE_CONTROL, NO_STORE)], Json(status))
}
