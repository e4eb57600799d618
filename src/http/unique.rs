//! `/api/verve/unique`: the running count, and that of the last closed window.

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::Method;
use axum::http::header::CACHE_CONTROL;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tracing::warn;

use super::error::{Failure, NO_STORE};
use super::{Api, Routes};
use crate::window::{Window, WindowCount};

#[derive(Serialize)]
struct Unique {
    mode: &'static str,
    standard_error: f64,
    window_seconds: u32,
    current: Current,
    last: Option<WindowCount>,
}

#[derive(Serialize)]
struct Current {
    timestamp: Window,
    unique_request_count: u64,
}

pub(super) async fn unique(State(routes): State<Arc<Routes>>, request: Request) -> Response {
    let started = Instant::now();
    let result = match *request.method() {
        _ if !routes.api.admits(request.headers()) => Err(Failure::Unauthorized),
        Method::GET | Method::HEAD => read(&routes.api).await,
        _ => Err(Failure::MethodNotAllowed { allow: "GET, HEAD" }),
    };
    routes.unique.answer(started, result)
}

async fn read(api: &Api) -> Result<impl IntoResponse, Failure> {
    if api.counter.is_degraded() {
        return Err(Failure::StoreUnavailable);
    }
    let window = api.running_window();
    let tally = api.counter.count(window).await.map_err(|error| {
        warn!(%error, "the running window cannot be counted");
        Failure::StoreUnavailable
    })?;
    let unique = Unique {
        mode: api.counting.mode.as_str(),
        standard_error: api.counting.standard_error(),
        window_seconds: api.counting.window.seconds(),
        current: Current { timestamp: window, unique_request_count: tally.unique_ids },
        last: api.last.get(),
    };
    Ok(([(CACHE_CONTROL, NO_STORE)], Json(unique)))
}
