//! Routes for operators: `/livez`, `/readyz`, `/metrics`.

use std::sync::Arc;

use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};

use super::schemas::Exposition;
use super::state::Routes;
use crate::coordination::Rolled;
use crate::http::api::{Api, Phase};
use crate::http::error::{NO_STORE, TEXT};
use crate::model::period::{Level, Period};
use crate::platform::unavailable::Unavailable;

/// The Prometheus text format.
const EXPOSITION: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

/// Orchestrators restart a process that does not answer here.
pub(in crate::http) const LIVEZ: &str = "/livez";

/// Is the process alive?
///
/// The service answers this also on connections beyond its limits, because a full service needs no restart.
#[utoipa::path(get, path = "/livez", operation_id = "live", tag = "operations")]
// It checks nothing, because the process exits by itself when one of its tasks ends.
pub(in crate::http) async fn livez() -> Response {
    plain(StatusCode::OK, "alive")
}

/// `/readyz` before the routes are set.
pub(in crate::http) async fn not_ready() -> Response {
    starting()
}

fn starting() -> Response {
    plain(StatusCode::SERVICE_UNAVAILABLE, "starting")
}

/// Should a load balancer send requests here?
///
/// It stays 200 while Redis is away. Otherwise an outage of Redis would take all instances out of the load balancer.
#[utoipa::path(get, path = "/readyz", operation_id = "ready", tag = "operations")]
pub(super) async fn readyz(State(routes): State<Arc<Routes>>) -> Response {
    let clock_is_wrong = *routes.api.clock_is_wrong.borrow();
    match *routes.api.phase.borrow() {
        Phase::Starting => starting(),
        Phase::Ready if clock_is_wrong => plain(StatusCode::SERVICE_UNAVAILABLE, "clock"),
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
    // During an outage the count would wait for a time-out, and delay the metrics that show the outage.
    let counted = if is_degraded { None } else { api.store.count(api.running_window()).await.ok() };
    // NaN, not the last count: dashboards show the largest count of all instances.
    api.metrics.current_unique_ids.set(counted.map_or(f64::NAN, |counted| counted.unique_ids as f64));
    let rolled = if is_degraded { None } else { newest_periods(api).await.ok() };
    show_periods(api, &rolled.unwrap_or_default());
    ([(CONTENT_TYPE, EXPOSITION), (CACHE_CONTROL, NO_STORE)], api.metrics.render()).into_response()
}

/// The hour and the day of the last window that was rolled up. All instances read the same, so none shows an older count.
async fn newest_periods(api: &Api) -> Result<Rolled, Unavailable> {
    let rolled = api.coordinator.rolled(&[]).await?;
    match rolled.last {
        Some(last) => api.coordinator.rolled(&Period::of(last).collect::<Vec<_>>()).await,
        None => Ok(rolled),
    }
}

/// NaN for what is not known, or not kept, as above.
fn show_periods(api: &Api, rolled: &Rolled) {
    for level in Level::ALL {
        let is_kept = !api.counting.keep.total.of(level).is_zero();
        let newest = rolled.periods.iter().find(|(period, _)| is_kept && period.level == level);
        let (count, complete) = newest.map_or((f64::NAN, f64::NAN), |(period, newest)| {
            // Another window may have been rolled up since the first answer.
            let so_far =
                rolled.last.map_or(0, |last| last.next().unix_seconds().saturating_sub(period.start));
            (newest.unique_request_count as f64, f64::from(newest.has_all_of(so_far)))
        });
        api.metrics.period_unique_ids(level.as_str()).set(count);
        api.metrics.period_complete(level.as_str()).set(complete);
    }
}

fn plain(status: StatusCode, body: &'static str) -> Response {
    (status, [(CONTENT_TYPE, TEXT), (CACHE_CONTROL, NO_STORE)], body).into_response()
}
