//! Metrics: every name, its help and its unit, in one place.
//!
//! Handles are made once and kept: no request looks up a metric. The recorder belongs to the service, not to the
//! process, so that several services can run in one process.

use std::borrow::Cow;
use std::sync::atomic::{AtomicU64, Ordering};

use ::metrics::{Counter, Gauge, Histogram, Label};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

/// Upper bounds of the buckets of every histogram of durations, in seconds. All instances have the same, so that their
/// histograms add up.
const DURATION_BUCKETS: [f64; 15] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];

/// Upper bounds of the buckets of batch sizes: powers of two, up to the largest batch.
const SIZE_BUCKETS: [f64; 11] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];

/// Upper bounds of the buckets of the publish lag, in seconds: from a healthy service to one that catches up after a
/// day.
const LAG_BUCKETS: [f64; 15] =
    [0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0, 86400.0];

const REQUESTS: &str = "headcount_requests_total";
const REQUEST_DURATION: &str = "headcount_request_duration_seconds";
const CLOSED_WINDOWS: &str = "headcount_closed_windows_total";
const COUNTER_UNIQUE_IDS: &str = "headcount_counter_unique_ids";
const PERIOD_UNIQUE_IDS: &str = "headcount_period_unique_ids";
const PERIOD_COMPLETE: &str = "headcount_period_complete";
const PUBLISHED_WINDOWS: &str = "headcount_published_windows_total";
const SKIPPED_COUNTERS: &str = "headcount_skipped_counters_total";
const PUBLISH_LAG: &str = "headcount_publish_lag_seconds";
const REDIS_DURATION: &str = "headcount_redis_command_duration_seconds";
const REDIS_ERRORS: &str = "headcount_redis_errors_total";
const REDIS_REDIRECTS: &str = "headcount_redis_redirects_total";
const REDIS_PRIMARY_AWAY: &str = "headcount_redis_primary_away";
const CALLBACKS: &str = "headcount_callbacks_total";
const CONNECTIONS_TIMED_OUT: &str = "headcount_connections_timed_out_total";
const INFO: &str = "headcount_info";

/// Declares the metrics without labels: the doc comment of a field is its help text.
macro_rules! declare {
    ($($(#[doc = $help:literal])+ $field:ident: $kind:ident = $name:literal,)+) => {
        /// The handles of the metrics without labels, and the recorder behind all.
        pub struct Metrics {
            recorder: PrometheusRecorder,
            process: metrics_process::Collector,
            $($(#[doc = $help])+ pub $field: $kind,)+
        }

        impl Metrics {
            fn with_recorder(recorder: PrometheusRecorder) -> Self {
                ::metrics::with_local_recorder(&recorder, || {
                    $($kind::describe($name, concat!($($help),+).trim());)+
                    Self::describe_labelled();
                    metrics_process::Collector::default().describe();
                });
                let ($($field,)+) =
                    ::metrics::with_local_recorder(&recorder, || ($($kind::register($name, Vec::new()),)+));
                let process = metrics_process::Collector::default();
                let metrics = Self { recorder, process, $($field,)+ };
                let _ = [true, false].map(|complete| metrics.closed_windows(complete));
                let _ = ["hour", "day"].map(|level| (metrics.period_unique_ids(level), metrics.period_complete(level)));
                metrics
            }
        }
    };
}

declare! {
    /// Ids that were accepted, repeats among them.
    accepted_ids: Total = "headcount_accepted_ids_total",
    /// Ids that changed the store: new ones in mode exact, those that raised a register in mode
    /// hll, which are fewer.
    changed_ids: Counter = "headcount_changed_ids_total",
    /// Ids that were counted in a later window than the one they arrived in, because that window was
    /// sealed already.
    late_ids: Counter = "headcount_late_ids_total",
    /// Ids that were counted in the counter _other, because a counter of theirs found no place or no memory.
    counter_overflow_ids: Counter = "headcount_counter_overflow_ids_total",
    /// Requests with sketches that were merged into a window.
    imported_sketches: Counter = "headcount_imported_sketches_total",
    /// Counters of the last closed window that had ids.
    counters: Gauge = "headcount_counters",
    /// Memory that counters take in this instance.
    counter_memory: Gauge = "headcount_counter_memory_bytes",
    /// Different ids of the last closed window.
    unique_ids: Gauge = "headcount_unique_ids",
    /// Accepted ids of the last closed window, repeats among them; NaN if clients sent sketches into it, of which nobody knows that.
    window_accepted_ids: Gauge = "headcount_window_accepted_ids",
    /// Different ids of the running window so far; NaN while they cannot be counted.
    current_unique_ids: Gauge = "headcount_current_unique_ids",
    /// Standard error of the counts, relative to the truth: 0.01 is one percent; 0 in mode exact.
    standard_error: Gauge = "headcount_standard_error_ratio",
    /// Length of a window, in seconds.
    window_seconds: Gauge = "headcount_window_seconds",
    /// Closed windows that are not in every sink yet.
    unpublished_windows: Gauge = "headcount_unpublished_windows",
    /// Start of the last window that is in every sink, in seconds since 1970; 0 before the first.
    last_published_window: Gauge = "headcount_last_published_window_timestamp_seconds",
    /// Requests and pieces of requests that wait to be sent to Redis.
    redis_queue_length: Gauge = "headcount_redis_queue_length",
    /// Requests and pieces of requests that were sent to Redis in one pipeline.
    redis_batch_size: Histogram = "headcount_redis_batch_size",
    /// 1 while Redis is away: this instance keeps ids, or refuses them, until Redis is back.
    degraded: Gauge = "headcount_degraded",
    /// Ids that were accepted and that Redis has not acknowledged: different ones in mode exact, all in mode
    /// hll.
    pending_ids: Gauge = "headcount_unacknowledged_ids",
    /// Limit of the ids that Redis has not acknowledged; 0 without a limit, as in mode hll.
    pending_ids_max: Gauge = "headcount_unacknowledged_ids_max",
    /// Ids that this instance accepted while Redis was away, for windows that others closed without it.
    missed_ids: Counter = "headcount_missed_ids_total",
    /// Kafka brokers that this instance is connected to, while it publishes there.
    kafka_brokers_up: Gauge = "headcount_kafka_brokers_up",
    /// Records that wait to be sent to Kafka.
    kafka_queue_length: Gauge = "headcount_kafka_queue_length",
    /// Errors that the Kafka client has met: of brokers, connections and deliveries.
    kafka_errors: Counter = "headcount_kafka_errors_total",
    /// 1 on the instance that leads, which is the one that closes windows; else 0.
    leader: Gauge = "headcount_leader",
    /// Times that this instance acted as the leader, and Redis said that another one had taken the lease.
    lease_fenced: Counter = "headcount_lease_fenced_total",
    /// The store's clock minus this machine's, in seconds.
    clock_offset: Gauge = "headcount_clock_offset_seconds",
    /// Callbacks that wait to be sent.
    callback_queue_length: Gauge = "headcount_callback_queue_length",
    /// From the start of sending a callback until its answer or its failure.
    callback_duration: Histogram = "headcount_callback_duration_seconds",
    /// Connections that are open.
    connections: Gauge = "headcount_connections",
}

impl Metrics {
    /// Declares all metrics, each at zero.
    pub fn new() -> Self {
        let builder = PrometheusBuilder::new();
        let recorder = builder
            .set_buckets_for_metric(Matcher::Suffix("_duration_seconds".to_owned()), &DURATION_BUCKETS)
            .and_then(|builder| {
                builder.set_buckets_for_metric(Matcher::Suffix("_size".to_owned()), &SIZE_BUCKETS)
            })
            .and_then(|builder| {
                builder.set_buckets_for_metric(Matcher::Full(PUBLISH_LAG.to_owned()), &LAG_BUCKETS)
            })
            // The only error is an empty list of buckets.
            .unwrap_or_default()
            .build_recorder();
        Self::with_recorder(recorder)
    }

    fn describe_labelled() {
        Counter::describe(REQUESTS, "Requests, by route and by result: ok or the failure reason.");
        Histogram::describe(REQUEST_DURATION, "From a request's head to its answer, by route.");
        Counter::describe(
            CLOSED_WINDOWS,
            "Windows that this instance closed, as the leader; complete is false if ids may be missing.",
        );
        Gauge::describe(
            COUNTER_UNIQUE_IDS,
            "Different ids of a counter in the last closed window, for each --metrics-counter.",
        );
        Gauge::describe(
            PERIOD_UNIQUE_IDS,
            "Different ids of the hour or day (UTC) of the last window that was rolled up, so far; NaN while that is not \
                         known, or not kept.",
        );
        Gauge::describe(
            PERIOD_COMPLETE,
            "1 if that hour or day has all ids of its windows so far, 0 if ids may be missing; NaN as above.",
        );
        Histogram::describe(PUBLISH_LAG, "From a window's end until a sink had its count, by sink.");
        Counter::describe(
            PUBLISHED_WINDOWS,
            "Closed windows, by sink and by result: ok, retry (the sink did not take it this time), skipped \
                         (its retention ended first).",
        );
        Counter::describe(
            SKIPPED_COUNTERS,
            "Counts of counters that a sink did not get, because it was away for longer than --counter-retention.",
        );
        Histogram::describe(
            REDIS_DURATION,
            "Duration of successful calls of Redis, by purpose; a pipeline is one call.",
        );
        Counter::describe(REDIS_ERRORS, "Calls of Redis that failed, by purpose.");
        Counter::describe(
            REDIS_REDIRECTS,
            "Commands that a Redis Cluster sent to another server, by kind: moved (the slot is there now) or ask (the slot \
                         is being moved).",
        );
        Gauge::describe(
            REDIS_PRIMARY_AWAY,
            "1 while ids for this primary of a Redis Cluster are kept here because it is away, otherwise 0.",
        );
        Counter::describe(
            CALLBACKS,
            "Callbacks, by result: ok, bad_status, timeout, failed, forbidden (the host's name led to an \
                         address that callbacks must not go to), or dropped before they were sent: queue_full, host_limit, \
                         no_count, unsent (the service stopped).",
        );
        Counter::describe(
            CONNECTIONS_TIMED_OUT,
            "Connections that were closed because the client was late, by reason: idle (the next request), \
                         header (the rest of a head), write (reading an answer).",
        );
        Gauge::describe(INFO, "Always 1; the labels say what is running.");
    }

    pub(crate) fn requests(&self, route: &'static str, result: &'static str) -> Counter {
        self.labelled(REQUESTS, &[("route", route.into()), ("result", result.into())])
    }

    pub(crate) fn route(&self, route: &'static str) -> RouteMetrics {
        RouteMetrics {
            ok: Total::new(self.requests(route, "ok")),
            duration: self.labelled(REQUEST_DURATION, &[("route", route.into())]),
        }
    }

    /// Closed windows whose count has all ids (`complete`), or may lack some.
    pub(crate) fn closed_windows(&self, complete: bool) -> Counter {
        let complete = if complete { "true" } else { "false" };
        self.labelled(CLOSED_WINDOWS, &[("complete", complete.into())])
    }

    /// Different ids of a counter in the last closed window. Only for names that the operator chose, never for those of clients.
    pub(crate) fn counter_unique_ids(&self, counter: &str) -> Gauge {
        self.labelled(COUNTER_UNIQUE_IDS, &[("counter", counter.to_owned().into())])
    }

    /// Different ids of the newest `hour` or `day` that was rolled up, so far.
    pub(crate) fn period_unique_ids(&self, level: &'static str) -> Gauge {
        self.labelled(PERIOD_UNIQUE_IDS, &[("level", level.into())])
    }

    /// Whether that hour or day has all ids of its windows so far.
    pub(crate) fn period_complete(&self, level: &'static str) -> Gauge {
        self.labelled(PERIOD_COMPLETE, &[("level", level.into())])
    }

    /// How long after a window's end `sink` had its count.
    pub(crate) fn publish_lag(&self, sink: &'static str) -> Histogram {
        self.labelled(PUBLISH_LAG, &[("sink", sink.into())])
    }

    pub(crate) fn published_windows(&self, sink: &'static str, result: &'static str) -> Counter {
        self.labelled(PUBLISHED_WINDOWS, &[("sink", sink.into()), ("result", result.into())])
    }

    /// Counts of counters that `sink` did not get within `--counter-retention`.
    pub(crate) fn skipped_counters(&self, sink: &'static str) -> Counter {
        self.labelled(SKIPPED_COUNTERS, &[("sink", sink.into())])
    }

    pub(crate) fn redis_command_duration(&self, purpose: &'static str) -> Histogram {
        self.labelled(REDIS_DURATION, &[("command", purpose.into())])
    }

    pub(crate) fn redis_errors(&self, purpose: &'static str) -> Counter {
        self.labelled(REDIS_ERRORS, &[("command", purpose.into())])
    }

    pub(crate) fn redis_redirects(&self, kind: &'static str) -> Counter {
        self.labelled(REDIS_REDIRECTS, &[("kind", kind.into())])
    }

    /// Of the primary at this address.
    pub(crate) fn redis_primary_away(&self, node: String) -> Gauge {
        self.labelled(REDIS_PRIMARY_AWAY, &[("node", node.into())])
    }

    pub(crate) fn callbacks(&self, result: &'static str) -> Counter {
        self.labelled(CALLBACKS, &[("result", result.into())])
    }

    pub(crate) fn connections_timed_out(&self, reason: &'static str) -> Counter {
        self.labelled(CONNECTIONS_TIMED_OUT, &[("reason", reason.into())])
    }

    pub(crate) fn set_info(&self, labels: &[(&'static str, Cow<'static, str>)]) {
        self.labelled::<Gauge>(INFO, labels).set(1.0);
    }

    /// All metrics, those of the process among them, in the Prometheus text format.
    pub fn render(&self) -> String {
        ::metrics::with_local_recorder(&self.recorder, || self.process.collect());
        self.handle().render()
    }

    /// Moves the values of histograms into their buckets. Until then a histogram keeps every value. So this must run
    /// regularly, also when no scrape comes.
    pub(crate) fn upkeep(&self) {
        self.handle().run_upkeep();
    }

    fn handle(&self) -> PrometheusHandle {
        self.recorder.handle()
    }

    fn labelled<K: Kind>(&self, name: &'static str, labels: &[(&'static str, Cow<'static, str>)]) -> K {
        let labels = labels.iter().map(|(key, value)| Label::new(*key, value.clone())).collect();
        ::metrics::with_local_recorder(&self.recorder, || K::register(name, labels))
    }
}

/// The metrics of a route.
pub(crate) struct RouteMetrics {
    pub(crate) ok: Total,
    /// Of all requests, with any result.
    pub(crate) duration: Histogram,
}

/// A counter that can be read: `/status` shows it.
pub struct Total {
    counter: Counter,
    total: AtomicU64,
}

impl Total {
    fn new(counter: Counter) -> Self {
        Self { counter, total: AtomicU64::new(0) }
    }

    pub(crate) fn increment(&self, by: u64) {
        self.counter.increment(by);
        self.total.fetch_add(by, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// What the three kinds of metrics have in common.
trait Kind {
    fn describe(name: &'static str, help: &'static str);
    fn register(name: &'static str, labels: Vec<Label>) -> Self;
}

impl Kind for Counter {
    fn describe(name: &'static str, help: &'static str) {
        ::metrics::describe_counter!(name, help);
    }

    fn register(name: &'static str, labels: Vec<Label>) -> Self {
        ::metrics::counter!(name, labels)
    }
}

impl Kind for Total {
    fn describe(name: &'static str, help: &'static str) {
        Counter::describe(name, help);
    }

    fn register(name: &'static str, labels: Vec<Label>) -> Self {
        Self::new(Counter::register(name, labels))
    }
}

impl Kind for Gauge {
    fn describe(name: &'static str, help: &'static str) {
        ::metrics::describe_gauge!(name, help);
    }

    fn register(name: &'static str, labels: Vec<Label>) -> Self {
        let gauge = ::metrics::gauge!(name, labels);
        gauge.set(0.0);
        gauge
    }
}

impl Kind for Histogram {
    fn describe(name: &'static str, help: &'static str) {
        ::metrics::describe_histogram!(name, help);
    }

    fn register(name: &'static str, labels: Vec<Label>) -> Self {
        ::metrics::histogram!(name, labels)
    }
}
