//! `/api/verve/retention`: how many ids of a first hour or day came again in the later ones.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::header::CACHE_CONTROL;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::overlap::rounded;
use super::range::{self, Counted, Counting, Permit, RangeQuery};
use super::state::{QUERY_PATIENCE, Routes};
use crate::hll::{Overlap, Sketch};
use crate::http::error::{Failure, NO_STORE};
use crate::model::counter::Subject;
use crate::model::mode::Mode;
use crate::model::period::Level;
use crate::model::range::{InvalidRange, Range};
use crate::model::window::Window;
use crate::platform::unavailable::Unavailable;

/// Steps of an answer, with the first one.
const MOST_STEPS: u64 = 35;
/// Shards of a total of which the overlaps are added up, at most.
const MOST_SHARDS: u16 = 16;

/// How many ids of the first step came again.
#[derive(Serialize, ToSchema)]
#[schema(examples(json!({
    "mode": "hll", "standard_error": 0.008_125, "step": "day", "step_seconds": 86_400,
    "from": "2026-11-21T00:00:00Z", "to": "2026-11-23T00:00:00Z",
    "unique_request_count": 1_204_511, "complete": true,
    "steps": [{
        "timestamp": "2026-11-22T00:00:00Z", "unique_request_count": 1_190_873,
        "returned": 381_240, "returned_standard_error": 5_120.4, "complete": true
    }]
})))]
pub(super) struct Retention {
    /// The counter, if one was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String)]
    counter: Option<Box<str>>,
    #[schema(inline)]
    mode: Mode,
    /// Of the counts of ids of a step, as that of `/api/verve/unique`.
    #[schema(minimum = 0, maximum = 1)]
    standard_error: f64,
    /// What a step is: an hour or a day (UTC).
    #[schema(pattern = "^(hour|day)$")]
    step: &'static str,
    /// The length of a step, in seconds.
    #[schema(minimum = 3_600, maximum = 86_400)]
    step_seconds: u32,
    /// The start of the first step.
    from: Window,
    /// The end of the last one.
    to: Window,
    /// How many different ids the first step has.
    unique_request_count: u64,
    /// Whether all ids of the first step are counted.
    complete: bool,
    /// The later steps, oldest first.
    #[schema(inline, max_items = 34)]
    steps: Vec<LaterStep>,
}

/// How many ids of the first step came again in a later one.
#[derive(Serialize, ToSchema)]
struct LaterStep {
    /// Its start.
    timestamp: Window,
    /// How many different ids this step has.
    unique_request_count: u64,
    /// How many of them the first step has, too.
    returned: u64,
    /// In ids. Two of three are within one standard error, 95 of 100 within two.
    #[schema(minimum = 0)]
    returned_standard_error: f64,
    /// Whether all ids of this step are counted. False for the running one, and where ids may be missing.
    complete: bool,
}

/// How many ids of an hour or a day came again in the later ones
#[utoipa::path(
    get, path = "/api/verve/retention", operation_id = "retention", tag = "counts",
    params(
        ("from" = String, Query, description = "The start of the first step: RFC 3339, or seconds since 1970.",
            example = "2026-11-21T00:00:00Z"),
        ("step" = String, Query, pattern = "^(hour|day)$", description = "What a step is: `hour` or `day` (UTC)."),
        ("steps" = u64, Query, minimum = 2, maximum = 35, description = "How many steps, with the first one. The last one is \
            the running hour or day, if there are not so many yet."),
        ("counter" = Option<String>, Query, description = "The counter to count instead of the total. A total is compared shard by \
            shard, for up to 16 `--shards`."),
    ),
    responses((status = 200, description = "The counts.", body = Retention)),
    security((), ("token" = []))
)]
pub(super) async fn retention(State(routes): State<Arc<Routes>>, request: Request) -> Response {
    let admitted = routes.api.admit_reader(&request);
    let query = request.uri().query().unwrap_or_default();
    routes.retention.answer_reader(admitted, read(&routes, query)).await
}

async fn read(routes: &Routes, query: &str) -> Result<impl IntoResponse + use<>, Failure> {
    let query = RangeQuery::parse(query)?;
    let (api, of) = (&routes.api, query.subject(&routes.api.counting)?);
    let level = match query.step.as_deref() {
        Some(b"hour") => Level::Hour,
        Some(b"day") => Level::Day,
        _ => return Err(Failure::InvalidParameter { detail: "step is hour or day" }),
    };
    if !level.takes(api.counting.window) {
        return Err(InvalidRange::NoHours.into());
    }
    let running = level.length().starting_at(api.running_window().unix_seconds());
    let range = query.steps(running, 2..=MOST_STEPS)?;
    if of == Subject::Total && api.counting.shards.count() > MOST_SHARDS {
        return Err(Failure::NotAvailable {
            why: "retention of the total needs --shards of 16 or less: name a counter",
        });
    }
    let permit = range::admit(routes)?;
    let counting = Counting { routes, of: &of };
    let counted = tokio::time::timeout(QUERY_PATIENCE, count(&counting, range, permit)).await;
    let (first, steps) = counted.map_err(|_| Failure::Overloaded)??;
    let retention = Retention {
        mode: api.counting.mode,
        standard_error: range::error_of(routes, &of),
        counter: range::name_of(of),
        step: level.as_str(),
        step_seconds: range.from.length().seconds(),
        from: range.from,
        to: range.to,
        unique_request_count: first.sketches.iter().map(Sketch::estimate).sum(),
        complete: first.complete,
        steps,
    };
    Ok(([(CACHE_CONTROL, NO_STORE)], Json(retention)))
}

/// The first step, and how many of its ids each later one has.
async fn count(
    counting: &Counting<'_>,
    range: Range,
    permit: Permit,
) -> Result<(Arc<Counted>, Vec<LaterStep>), Failure> {
    let end = counting.routes.api.running_window().next();
    let window = |second: u64| end.length().starting_at(second);
    let windows_of = |step: Window| Range {
        from: window(step.unix_seconds()),
        to: window(step.next().unix_seconds()).min(end),
    };
    let mut all = range.windows()?;
    let first = windows_of(all.next().unwrap_or(range.from));
    let first = Arc::new(counting.sketches(first, Arc::clone(&permit)).await?);
    let mut steps = Vec::new();
    for step in all {
        let counted = match counting.sketches(windows_of(step), Arc::clone(&permit)).await {
            // It is over and has too many windows to read them all, and is not rolled up yet, or they are not kept.
            Err(Failure::RangeNotKept { .. } | Failure::InvalidRange { .. }) => {
                Counted { sketches: Vec::new(), complete: false }
            }
            counted => counted?,
        };
        let (first, permit) = (Arc::clone(&first), Arc::clone(&permit));
        let compare = tokio::task::spawn_blocking(move || {
            // Held until the work ends, even if the client does not wait for it.
            let _permit = permit;
            LaterStep::of(&first, step, &counted)
        });
        steps.push(compare.await.map_err(|error| range::unavailable(Unavailable::because(error)))?);
    }
    Ok((first, steps))
}

impl LaterStep {
    /// An id is in the same shard always. So what shards have in common adds up, and so do the squares of the errors.
    fn of(first: &Counted, timestamp: Window, counted: &Counted) -> Self {
        let (mut unique_request_count, mut returned, mut squares) = (0, 0, 0.0);
        if counted.sketches.is_empty() {
            // Nothing is known of the step: it may have none of the ids, or all.
            let all: u64 = first.sketches.iter().map(Sketch::estimate).sum();
            squares = (all as f64).powi(2);
        }
        for (before, sketch) in first.sketches.iter().zip(&counted.sketches) {
            let overlap = Overlap::of(before, sketch);
            unique_request_count += overlap.second;
            returned += overlap.intersection;
            squares += overlap.standard_error.powi(2);
        }
        Self {
            timestamp,
            unique_request_count,
            returned,
            returned_standard_error: rounded(squares.sqrt(), 10.0),
            complete: counted.complete,
        }
    }
}
