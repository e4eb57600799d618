//! `/api/verve/series`: one count for each step of a range of time.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::header::CACHE_CONTROL;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tracing::warn;
use utoipa::ToSchema;

use super::range::RangeQuery;
use super::state::{QUERY_PATIENCE, Routes};
use crate::coordination::PastCount;
use crate::http::error::{Failure, NO_STORE};
use crate::model::mode::Mode;
use crate::model::parts::NotKept;
use crate::model::range::{InvalidRange, Range};
use crate::model::window::Window;

/// Windows that have ended and are not closed yet, of which the counts so far are answered, at most.
const MOST_UNCLOSED: usize = 16;

/// One count for each step of a range of time.
#[derive(Serialize, ToSchema)]
#[schema(examples(json!({
    "mode": "hll", "standard_error": 0.008_125, "step": "window", "step_seconds": 60,
    "from": "2026-11-23T04:12:00Z", "to": "2026-11-23T04:13:00Z",
    "counts": [{ "timestamp": "2026-11-23T04:12:00Z", "unique_request_count": 1, "complete": true }]
})))]
pub(super) struct Series {
    #[schema(inline)]
    mode: Mode,
    /// As that of `/api/verve/unique`.
    #[schema(minimum = 0, maximum = 1)]
    standard_error: f64,
    /// What a step is.
    #[schema(pattern = "^window$")]
    step: &'static str,
    /// The length of a step, in seconds.
    #[schema(minimum = 1, maximum = 86_400)]
    step_seconds: u32,
    /// The start of the first step.
    from: Window,
    /// The end of the last one.
    to: Window,
    /// Oldest first.
    #[schema(inline, max_items = 1500)]
    counts: Vec<StepCount>,
}

/// The count of a step.
#[derive(Serialize, ToSchema)]
struct StepCount {
    /// Its start.
    timestamp: Window,
    unique_request_count: u64,
    /// False where ids may be missing: also for the running window, for windows in which no instance was there, and where the
    /// count is lost.
    complete: bool,
}

/// A count for each window of a range of time
#[utoipa::path(
    get, path = "/api/verve/series", operation_id = "series", tag = "counts",
    params(
        ("from" = String, Query, description = "The start of the first window: RFC 3339, or seconds since 1970.",
            example = "2026-11-23T04:12:00Z"),
        ("to" = String, Query, description = "The end of the last window, as `from`. With a time in the running window, or after \
            it, that window is the last one.", example = "2026-11-23T04:13:00Z"),
        ("step" = Option<String>, Query, pattern = "^window$", description = "What a step is: a window."),
    ),
    responses((status = 200, description = "The counts.", body = Series)),
    security((), ("token" = []))
)]
pub(super) async fn series(State(routes): State<Arc<Routes>>, request: Request) -> Response {
    let admitted = routes.api.admit_reader(&request);
    let query = request.uri().query().unwrap_or_default();
    routes.series.answer_reader(admitted, read(&routes, query)).await
}

async fn read(routes: &Routes, query: &str) -> Result<impl IntoResponse + use<>, Failure> {
    let api = &routes.api;
    let range = parse(query, api.running_window())?;
    let windows = range.windows()?;
    let oldest = api.series.oldest(api.clock.now());
    if range.from < oldest {
        return Err(Failure::RangeNotKept {
            at: NotKept { at: range.from.unix_seconds(), level: None, oldest: oldest.unix_seconds() },
        });
    }
    let _permit = routes.queries.try_acquire().map_err(|_| Failure::Overloaded)?;
    let counts = match tokio::time::timeout(QUERY_PATIENCE, count(routes, range, windows)).await {
        Ok(counts) => counts?,
        Err(_) => return Err(Failure::Overloaded),
    };
    let answer = Series {
        mode: api.counting.mode,
        standard_error: api.counting.standard_error(),
        step: "window",
        step_seconds: api.counting.window.seconds(),
        from: range.from,
        to: range.to,
        counts,
    };
    Ok(([(CACHE_CONTROL, NO_STORE)], Json(answer)))
}

fn parse(query: &str, running: Window) -> Result<Range, InvalidRange> {
    let query = RangeQuery::parse(query)?;
    if query.counter.is_some() {
        return Err(InvalidRange::StepOfCounter);
    }
    if query.step.as_ref().is_some_and(|step| **step != *b"window") {
        return Err(InvalidRange::Step);
    }
    query.range(running)
}

async fn count(
    routes: &Routes,
    range: Range,
    windows: impl Iterator<Item = Window>,
) -> Result<Vec<StepCount>, Failure> {
    let api = &routes.api;
    if api.store.is_degraded() {
        return Err(Failure::StoreUnavailable);
    }
    // First, so that a window that is closed meanwhile is in the series, or counted below.
    let closed = api.closed.last().map(|count| count.window);
    let mut counts = api.coordinator.series(range).await.map_err(|error| {
        warn!(%error, "the counts of past windows cannot be read");
        Failure::StoreUnavailable
    })?;
    count_unclosed(routes, range, closed, &mut counts).await;
    let unknown = PastCount { unique_request_count: 0, complete: false };
    let counts = windows.map(|window| {
        let PastCount { unique_request_count, complete } = counts.get(&window).copied().unwrap_or(unknown);
        StepCount { timestamp: window, unique_request_count, complete }
    });
    Ok(counts.collect())
}

/// Adds the counts so far of the running window, and of those before it that are not closed yet.
async fn count_unclosed(
    routes: &Routes,
    range: Range,
    closed: Option<Window>,
    counts: &mut BTreeMap<Window, PastCount>,
) {
    let closed = closed.max(counts.keys().next_back().copied());
    let newest_first = std::iter::successors(Some(range.to.previous()), |window| Some(window.previous()));
    let unclosed = newest_first.take_while(|window| *window >= range.from && closed < Some(*window));
    for window in unclosed.take(MOST_UNCLOSED) {
        // It may have been closed and evicted meanwhile: then its count is in the next answer.
        let Ok(counted) = routes.api.store.count(window).await else { continue };
        counts.insert(window, PastCount { unique_request_count: counted.unique_ids, complete: false });
    }
}
