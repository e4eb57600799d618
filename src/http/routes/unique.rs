//! `/api/verve/unique`: the running window's count so far, and that of the last closed window.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::header::CACHE_CONTROL;
use axum::response::{IntoResponse, Response};
use quanta::Instant;
use serde::Serialize;
use tracing::warn;
use utoipa::ToSchema;

use super::state::Routes;
use crate::http::error::{Failure, NO_STORE};
use crate::model::mode::Mode;
use crate::model::window::{UniqueCount, WindowCount};

/// Counts, and how the service counts.
#[derive(Serialize, ToSchema)]
#[schema(examples(json!({
    "mode": "hll",
    "standard_error": 0.008_125,
    "window_seconds": 60,
    "current": { "timestamp": "2026-11-23T04:13:00Z", "unique_request_count": 4 },
    "last": { "timestamp": "2026-11-23T04:12:00Z", "unique_request_count": 1, "accepted_ids": 1, "complete": true }
})))]
pub(super) struct Unique {
    #[schema(inline)]
    mode: Mode,
    /// Relative to the true count. Two of three counts are within one standard error, 95 of 100 within two. It is 0 in
    /// mode `exact`.
    #[schema(minimum = 0, maximum = 1)]
    standard_error: f64,
    /// Length of a window, in seconds. A day is a multiple of it.
    #[schema(minimum = 1, maximum = 86_400)]
    window_seconds: u32,
    current: UniqueCount,
    /// Null before the first window has closed.
    #[schema(required)]
    last: Option<WindowCount>,
}

/// The running window's count, and the last closed window
#[utoipa::path(
    get, path = "/api/verve/unique", operation_id = "uniqueCount", tag = "counts",
    responses((status = 200, description = "The counts.", body = Unique)),
    security((), ("token" = []))
)]
pub(super) async fn unique(State(routes): State<Arc<Routes>>, request: Request) -> Response {
    let started = Instant::now();
    let result = match routes.api.admit_reader(&request) {
        Ok(()) => read(&routes).await,
        Err(failure) => Err(failure),
    };
    routes.unique.answer(started, result)
}

async fn read(routes: &Routes) -> Result<impl IntoResponse + use<>, Failure> {
    let current = current(routes).await?;
    let api = &routes.api;
    let unique = Unique {
        mode: api.counting.mode,
        standard_error: api.counting.standard_error(),
        window_seconds: api.counting.window.seconds(),
        current,
        last: api.closed.last(),
    };
    Ok(([(CACHE_CONTROL, NO_STORE)], Json(unique)))
}

/// The running window's count so far.
///
/// # Errors
///
/// [`Failure::Overloaded`] and [`Failure::StoreUnavailable`].
pub(super) async fn current(routes: &Routes) -> Result<UniqueCount, Failure> {
    routes.in_flight.admit()?;
    let _permit = routes.in_flight.wait();
    let api = &routes.api;
    if api.store.is_degraded() {
        return Err(Failure::StoreUnavailable);
    }
    let window = api.running_window();
    let counted = api.store.count(window).await.map_err(|error| {
        warn!(%error, "the store could not count the running window");
        Failure::StoreUnavailable
    })?;
    Ok(UniqueCount { timestamp: window, unique_request_count: counted.unique_ids })
}
