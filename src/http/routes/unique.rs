//! `/api/verve/unique`: the running count, and that of the last closed window.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::header::CACHE_CONTROL;
use axum::response::{IntoResponse, Response};
use quanta::Instant;
use serde::Serialize;
use tracing::warn;

use super::state::Routes;
use crate::http::error::{Failure, NO_STORE};
use crate::model::window::{UniqueCount, WindowCount};

#[derive(Serialize)]
struct Unique {
    mode: &'static str,
    standard_error: f64,
    window_seconds: u32,
    current: UniqueCount,
    last: Option<WindowCount>,
}

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
        mode: api.counting.mode.as_str(),
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
    let _place = routes.in_flight.wait();
    let api = &routes.api;
    if api.store.is_degraded() {
        return Err(Failure::StoreUnavailable);
    }
    let window = api.running_window();
    let counted = api.store.count(window).await.map_err(|error| {
        warn!(%error, "the running window cannot be counted");
        Failure::StoreUnavailable
    })?;
    Ok(UniqueCount { timestamp: window, unique_request_count: counted.unique_ids })
}
