//! `/api/verve/unique`: the running window's count so far, and that of the last closed window; or the count of a range.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::header::CACHE_CONTROL;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tracing::warn;
use utoipa::ToSchema;

use super::in_flight::Permit;
use super::query::{form_text, pairs};
use super::range::{self, RangeCount, RangeQuery};
use super::state::Routes;
use crate::http::error::{Failure, NO_STORE};
use crate::model::counter::CounterName;
use crate::model::mode::Mode;
use crate::model::shard::Shards;
use crate::model::window::{UniqueCount, Window, is_false};
use crate::store::standard_error;

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
    /// The counter, if one was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String)]
    counter: Option<String>,
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
    last: Option<ClosedCount>,
}

/// The count of the last closed window.
#[derive(Serialize, ToSchema)]
pub(super) struct ClosedCount {
    timestamp: Window,
    unique_request_count: u64,
    /// How many ids were accepted, repeats among them. Not known of a counter.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = u64)]
    accepted_ids: Option<u64>,
    /// Present, and true, where sketches were merged into the window: of these nobody knows how many ids were accepted.
    #[serde(skip_serializing_if = "is_false")]
    #[schema(required = false)]
    accepted_ids_is_lower_bound: bool,
    /// False where ids may be missing, or were not accepted from the window's start to its end.
    complete: bool,
}

/// What was asked for.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum Answer {
    /// Without a range.
    Now(Unique),
    /// With one.
    Range(RangeCount),
}

/// The running window's count and the last closed window, or the count of a range
#[utoipa::path(
    get, path = "/api/verve/unique", operation_id = "uniqueCount", tag = "counts",
    params(("counter" = Option<String>, Query, description = "The counter to count instead of the total. One that nobody has \
        named has 0. `_other` has the ids whose counter found no place."),
        ("from" = Option<String>, Query, description = "With `to`: the start of a range. RFC 3339, or seconds since 1970.",
            example = "2026-11-23T00:00:00Z"),
        ("to" = Option<String>, Query, description = "With `from`: its end. With a time in the running window, or after it, the \
            range has that window too.", example = "2026-11-24T00:00:00Z")),
    responses((status = 200, description = "The counts.", body = Answer)),
    security((), ("token" = []))
)]
pub(super) async fn unique(State(routes): State<Arc<Routes>>, request: Request) -> Response {
    let admitted = routes.api.admit_reader(&request);
    let query = request.uri().query().unwrap_or_default();
    routes.unique.answer_reader(admitted, read(&routes, query)).await
}

async fn read(routes: &Routes, query: &str) -> Result<impl IntoResponse + use<>, Failure> {
    let is_of_range = pairs(query).any(|(key, _)| key == "from" || key == "to");
    let answer = if is_of_range { of_range(routes, query).await? } else { now(routes, query).await? };
    Ok(([(CACHE_CONTROL, NO_STORE)], Json(answer)))
}

async fn of_range(routes: &Routes, query: &str) -> Result<Answer, Failure> {
    let query = RangeQuery::parse(query)?;
    let of = query.subject(&routes.api.counting)?;
    let range = query.range(routes.api.running_window())?;
    range::count(routes, of, range).await.map(Answer::Range)
}

async fn now(routes: &Routes, query: &str) -> Result<Answer, Failure> {
    let mut counters = pairs(query).filter(|(key, _)| key == "counter");
    let answer = match counters.next() {
        None => of_total(routes).await?,
        Some((_, name)) if counters.next().is_none() => {
            routes.api.counting.may_count()?;
            let name = CounterName::parse_for_reading(form_text(name))?;
            of_counter(routes, &name).await?
        }
        Some(_) => return Err(Failure::InvalidParameter { detail: "counter is given twice" }),
    };
    Ok(Answer::Now(answer))
}

async fn of_counter(routes: &Routes, name: &CounterName<'_>) -> Result<Unique, Failure> {
    let _permit = admit(routes)?;
    let (api, name) = (&routes.api, name.as_str());
    let window = api.running_window();
    let counts = api.store.counts_of(window, &[name]).await.map_err(|error| {
        warn!(%error, "a counter of the running window cannot be counted");
        Failure::StoreUnavailable
    })?;
    let count = counts.first().copied().unwrap_or_default();
    Ok(Unique {
        counter: Some(name.to_owned()),
        mode: api.counting.mode,
        standard_error: standard_error(api.counting.mode, Shards::ONE),
        window_seconds: api.counting.window.seconds(),
        current: UniqueCount { timestamp: window, unique_request_count: count },
        last: api.closed.counters().map(|closed| ClosedCount {
            timestamp: closed.window(),
            unique_request_count: closed.counts.get(name),
            accepted_ids: None,
            accepted_ids_is_lower_bound: false,
            complete: closed.is_complete(name),
        }),
    })
}

async fn of_total(routes: &Routes) -> Result<Unique, Failure> {
    let current = current(routes).await?;
    let api = &routes.api;
    Ok(Unique {
        counter: None,
        mode: api.counting.mode,
        standard_error: api.counting.standard_error(),
        window_seconds: api.counting.window.seconds(),
        current,
        last: api.closed.last().map(|count| ClosedCount {
            timestamp: count.window,
            unique_request_count: count.unique_request_count,
            accepted_ids: Some(count.accepted_ids),
            accepted_ids_is_lower_bound: count.has_imports,
            complete: count.complete,
        }),
    })
}

/// Admits a question about the running window, which waits for the store. While Redis is away, this instance keeps ids that no count
/// has.
///
/// # Errors
///
/// [`Failure::Overloaded`] and [`Failure::StoreUnavailable`].
fn admit(routes: &Routes) -> Result<Permit<'_>, Failure> {
    routes.in_flight.admit()?;
    if routes.api.store.is_degraded() {
        return Err(Failure::StoreUnavailable);
    }
    Ok(routes.in_flight.wait())
}

/// The running window's count so far.
///
/// # Errors
///
/// [`Failure::Overloaded`] and [`Failure::StoreUnavailable`].
pub(super) async fn current(routes: &Routes) -> Result<UniqueCount, Failure> {
    let _permit = admit(routes)?;
    let api = &routes.api;
    let window = api.running_window();
    let counted = api.store.count(window).await.map_err(|error| {
        warn!(%error, "the store could not count the running window");
        Failure::StoreUnavailable
    })?;
    Ok(UniqueCount { timestamp: window, unique_request_count: counted.unique_ids })
}
