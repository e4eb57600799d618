//! `/status`: what the live page shows.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::header::CACHE_CONTROL;
use axum::response::{IntoResponse, Response};
use quanta::Instant;
use serde::Serialize;

use super::state::Routes;
use super::unique;
use crate::http::error::NO_STORE;
use crate::model::window::{UniqueCount, WindowCount};

#[derive(Serialize)]
struct Status {
    version: &'static str,
    instance: String,
    leader: Option<String>,
    mode: &'static str,
    standard_error: f64,
    window_seconds: u32,
    degraded: bool,
    /// Of this instance since its start.
    requests_total: u64,
    /// The same.
    accepted_ids_total: u64,
    /// None while it cannot be known.
    current: Option<UniqueCount>,
    /// Oldest first.
    windows: Vec<WindowCount>,
}

pub(super) async fn status(State(routes): State<Arc<Routes>>, request: Request) -> Response {
    let started = Instant::now();
    let result = match routes.api.admit_reader(&request) {
        Ok(()) => Ok(read(&routes).await),
        Err(failure) => Err(failure),
    };
    routes.status.answer(started, result)
}

async fn read(routes: &Routes) -> impl IntoResponse + use<> {
    let api = &routes.api;
    // Before the windows, so that none is missing in between.
    let current = unique::current(routes).await.ok();
    let status = Status {
        version: env!("CARGO_PKG_VERSION"),
        instance: api.instance.clone(),
        leader: api.leader.borrow().clone(),
        mode: api.counting.mode.as_str(),
        standard_error: api.counting.standard_error(),
        window_seconds: api.counting.window.seconds(),
        degraded: api.store.is_degraded(),
        requests_total: routes.accept.all.ok.get() + routes.bulk.all.ok.get(),
        accepted_ids_total: api.metrics.accepted_ids.get(),
        current,
        windows: api.closed.all(),
    };
    ([(CACHE_CONTROL, NO_STORE)], Json(status))
}
