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

use super::range::{self, Counting, Permit, RangeQuery};
use super::state::{QUERY_PATIENCE, Routes};
use crate::coordination::PastCount;
use crate::http::error::{Failure, NO_STORE};
use crate::model::counter::Subject;
use crate::model::mode::Mode;
use crate::model::parts::NotKept;
use crate::model::period::{Level, Period};
use crate::model::range::{InvalidRange, Range};
use crate::model::window::Window;

/// Windows that have ended and are not closed yet, of which the counts so far are answered, at most.
const MOST_UNCLOSED: usize = 16;
/// Hours or days that are not over, or not rolled up yet, of which the counts so far are answered, at most.
const MOST_UNROLLED: usize = 2;

/// One count for each step of a range of time.
#[derive(Serialize, ToSchema)]
#[schema(examples(json!({
    "mode": "hll", "standard_error": 0.008_125, "step": "window", "step_seconds": 60,
    "from": "2026-11-23T04:12:00Z", "to": "2026-11-23T04:13:00Z",
    "counts": [{ "timestamp": "2026-11-23T04:12:00Z", "unique_request_count": 1, "complete": true }]
})))]
pub(super) struct Series {
    /// The counter, if one was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String)]
    counter: Option<Box<str>>,
    #[schema(inline)]
    mode: Mode,
    /// As that of `/api/verve/unique`.
    #[schema(minimum = 0, maximum = 1)]
    standard_error: f64,
    /// What a step is: a window, or an hour or a day (UTC).
    #[schema(pattern = "^(window|hour|day)$")]
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
    /// False where ids may be missing: also for the running window, hour or day, for those in which an instance was not always
    /// there, and where the count is lost.
    complete: bool,
}

/// A count for each window, hour or day of a range of time
#[utoipa::path(
    get, path = "/api/verve/series", operation_id = "series", tag = "counts",
    params(
        ("from" = String, Query, description = "The start of the first step: RFC 3339, or seconds since 1970.",
            example = "2026-11-23T04:12:00Z"),
        ("to" = String, Query, description = "The end of the last step, as `from`. With a time in the running window, hour or day, \
            or after it, that is the last step.", example = "2026-11-23T04:13:00Z"),
        ("step" = Option<String>, Query, pattern = "^(window|hour|day)$", description = "What a step is: `window`, or `hour` or \
            `day` (UTC)."),
        ("counter" = Option<String>, Query, description = "The counter to count instead of the total, with `step=hour` or \
            `step=day`."),
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
    let query = RangeQuery::parse(query)?;
    let answer = match query.step.as_deref() {
        None | Some(b"window") => of_windows(routes, &query).await?,
        Some(b"hour") => of_periods(routes, &query, Level::Hour).await?,
        Some(b"day") => of_periods(routes, &query, Level::Day).await?,
        Some(_) => return Err(InvalidRange::Step.into()),
    };
    Ok(([(CACHE_CONTROL, NO_STORE)], Json(answer)))
}

async fn of_windows(routes: &Routes, query: &RangeQuery<'_>) -> Result<Series, Failure> {
    let api = &routes.api;
    if query.names_counters() {
        return Err(InvalidRange::StepOfCounter.into());
    }
    let range = query.range(api.running_window())?;
    let windows = range.windows()?;
    check_kept(range, Some(api.series.oldest(api.clock.now()).unix_seconds()))?;
    let _permit = routes.queries.try_acquire().map_err(|_| Failure::Overloaded)?;
    let counted = tokio::time::timeout(QUERY_PATIENCE, count(routes, range)).await;
    let counts = counted.map_err(|_| Failure::Overloaded)??;
    Ok(answer(
        routes,
        Subject::Total,
        "window",
        range,
        windows.map(|window| (window, counts.get(&window).copied())),
    ))
}

async fn of_periods(routes: &Routes, query: &RangeQuery<'_>, level: Level) -> Result<Series, Failure> {
    let api = &routes.api;
    let of = query.subject(&api.counting)?;
    if !level.takes(api.counting.window) {
        return Err(InvalidRange::NoHours.into());
    }
    let range = query.range(level.length().starting_at(api.running_window().unix_seconds()))?;
    let steps = range.windows()?;
    let permit = range::admit(routes)?;
    let counting = Counting { routes, of: &of };
    let oldest = match of {
        // Their records are kept longer than their sketches.
        Subject::Total if api.counting.keep.total.of(level).is_zero() => None,
        Subject::Total => api.counting.keep.total.oldest_record(api.clock.now()),
        Subject::Counter(_) => counting.oldest(level),
    };
    check_kept(range, oldest)?;
    let periods: Vec<_> = steps.clone().map(|step| level.at(step.unix_seconds())).collect();
    let counted = tokio::time::timeout(QUERY_PATIENCE, count_periods(&counting, &periods, permit)).await;
    let counts = counted.map_err(|_| Failure::Overloaded)??;
    Ok(answer(routes, of.clone(), level.as_str(), range, steps.zip(counts)))
}

/// The oldest that is kept begins at `oldest`, if anything is kept.
fn check_kept(range: Range, oldest: Option<u64>) -> Result<(), Failure> {
    let from = range.from.unix_seconds();
    match oldest.unwrap_or(range.to.unix_seconds()) {
        oldest if oldest <= from => Ok(()),
        oldest => Err(Failure::RangeNotKept { at: NotKept { at: from, level: None, oldest } }),
    }
}

fn answer(
    routes: &Routes,
    of: Subject,
    step: &'static str,
    range: Range,
    counts: impl Iterator<Item = (Window, Option<PastCount>)>,
) -> Series {
    let unknown = PastCount { unique_request_count: 0, complete: false };
    let counts = counts.map(|(timestamp, count)| {
        let PastCount { unique_request_count, complete } = count.unwrap_or(unknown);
        StepCount { timestamp, unique_request_count, complete }
    });
    Series {
        mode: routes.api.counting.mode,
        standard_error: range::error_of(routes, &of),
        counter: range::name_of(of),
        step,
        step_seconds: range.from.length().seconds(),
        from: range.from,
        to: range.to,
        counts: counts.collect(),
    }
}

/// The counts of hours or days, which are in order. None of one that is lost, or in which no instance was there.
async fn count_periods(
    counting: &Counting<'_>,
    periods: &[Period],
    permit: Permit,
) -> Result<Vec<Option<PastCount>>, Failure> {
    let Counting { routes, of } = counting;
    let rolled = routes.api.coordinator.rolled(periods).await.map_err(range::unavailable)?;
    let rolled_up = rolled.last.map_or(0, |last| last.next().unix_seconds());
    let over = periods.partition_point(|period| period.end() <= rolled_up);
    let (over, rest) = periods.split_at(over);
    let mut counts: Vec<_> = match of {
        Subject::Total => {
            let count = |period: &Period| {
                let rolled = rolled.periods.get(period)?;
                let complete = rolled.has_all_of(period.level.seconds());
                Some(PastCount { unique_request_count: rolled.unique_request_count, complete })
            };
            over.iter().map(count).collect()
        }
        Subject::Counter(_) => {
            counting.counts_of(over, Arc::clone(&permit)).await?.into_iter().map(Some).collect()
        }
    };
    let end = routes.api.running_window().next();
    // The newest ones. Of those before them nothing is known yet.
    let unknown = rest.len().saturating_sub(MOST_UNROLLED);
    counts.extend(std::iter::repeat_n(None, unknown));
    for period in &rest[unknown..] {
        let window = |second: u64| end.length().starting_at(second);
        let range = Range { from: window(period.start), to: window(period.end()).min(end) };
        counts.push(match counting.count(range, Arc::clone(&permit)).await {
            Ok(count) => Some(count),
            // Not even its windows, or it is not rolled up yet and has too many.
            Err(
                Failure::RangeNotKept { .. }
                | Failure::InvalidRange { why: InvalidRange::TooManySteps { .. } },
            ) => None,
            Err(failure) => return Err(failure),
        });
    }
    Ok(counts)
}

/// The counts of windows.
async fn count(routes: &Routes, range: Range) -> Result<BTreeMap<Window, PastCount>, Failure> {
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
    Ok(counts)
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
