//! The state of the routes: the API, limits, and a metric handle for each result.

use std::sync::Arc;
use std::time::Duration;

use ::metrics::Counter;
use axum::response::{IntoResponse, Response};
use quanta::Instant;
use tokio::sync::Semaphore;

use super::bulk::{self, Budget};
use super::in_flight::InFlight;
use crate::http::api::Api;
use crate::http::error::Failure;
use crate::telemetry::metrics::{Metrics, RouteMetrics};

/// How long a list, a series or a range may take.
pub(super) const QUERY_PATIENCE: Duration = Duration::from_secs(2);

pub(super) struct Routes {
    pub(super) api: Api,
    pub(super) bulk_budget: Budget,
    pub(super) in_flight: InFlight,
    pub(super) accept: RouteHandles,
    pub(super) bulk: RouteHandles,
    pub(super) unique: RouteHandles,
    pub(super) counters: RouteHandles,
    pub(super) series: RouteHandles,
    pub(super) overlap: RouteHandles,
    pub(super) retention: RouteHandles,
    pub(super) sketch: RouteHandles,
    pub(super) merge: RouteHandles,
    /// A permit for each query that may run at a time.
    pub(super) queries: Arc<Semaphore>,
    /// A permit for each request whose sketches may be merged at a time.
    pub(super) merges: Arc<Semaphore>,
    pub(super) status: RouteHandles,
    pub(super) not_found: Counter,
}

impl Routes {
    pub(super) fn new(api: Api) -> Self {
        let route = |name| RouteHandles::new(&api.metrics, name);
        let longest_sketches =
            if api.settings.allow_sketches { bulk::longest_document(api.counting.shards) } else { 0 };
        Self {
            accept: route("accept"),
            bulk: route("bulk"),
            unique: route("unique"),
            counters: route("counters"),
            series: route("series"),
            overlap: route("overlap"),
            retention: route("retention"),
            sketch: route("sketch"),
            merge: route("merge"),
            queries: Arc::new(Semaphore::new(api.settings.max_queries as usize)),
            merges: Arc::new(Semaphore::new(api.settings.max_queries as usize)),
            status: route("status"),
            not_found: api.metrics.requests("other", "not_found"),
            bulk_budget: Budget::new(&api.settings, longest_sketches),
            in_flight: InFlight::new(&api.settings),
            api,
        }
    }
}

/// The metric handles of one route. Made once, because to look one up costs more than to increment it.
pub(super) struct RouteHandles {
    pub(super) all: RouteMetrics,
    failed: Vec<(&'static str, Counter)>,
}

impl RouteHandles {
    fn new(metrics: &Metrics, route: &'static str) -> Self {
        let failed =
            Failure::ALL.map(|failure| (failure.reason(), metrics.requests(route, failure.reason())));
        Self { all: metrics.route(route), failed: failed.into() }
    }

    /// Answers a request that only reads. It is read if the request was `admitted`.
    pub(super) async fn answer_reader<T: IntoResponse>(
        &self,
        admitted: Result<(), Failure>,
        read: impl Future<Output = Result<T, Failure>>,
    ) -> Response {
        let started = Instant::now();
        let result = match admitted {
            Ok(()) => read.await,
            Err(failure) => Err(failure),
        };
        self.answer(started, result)
    }

    /// Records a request and makes its answer.
    pub(super) fn answer<T: IntoResponse>(&self, started: Instant, result: Result<T, Failure>) -> Response {
        self.all.duration.record(started.elapsed());
        match result {
            Ok(answer) => {
                self.all.ok.increment(1);
                answer.into_response()
            }
            Err(failure) => {
                let failed = self.failed.iter().find(|(reason, _)| *reason == failure.reason());
                debug_assert!(failed.is_some(), "{failure:?} is not in Failure::ALL");
                if let Some((_, counter)) = failed {
                    counter.increment(1);
                }
                failure.into_response()
            }
        }
    }
}
