//! `headcount serve`: puts the parts together and starts them. [`service`](crate::cli::service) says how they stop.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::callback::{self, Callbacks, Dependencies};
use crate::cli::backend::{Backend, kept_series};
use crate::cli::listeners::Listeners;
use crate::cli::service::{LEAVING, Server, Service};
use crate::cli::settings::Settings;
use crate::coordination::sealer::Sealer;
use crate::coordination::{ClosedWindows, HeartbeatError};
use crate::http::server::{self, Stop};
use crate::http::{self, Api, LateRouter, Phase};
use crate::model::window::{Clock, SystemClock, WindowLength};
use crate::platform::service_manager;
use crate::platform::workers::Workers;
use crate::publish::Publisher;
use crate::store::Counting;
use crate::telemetry::logging::WindowLog;
use crate::telemetry::metrics::Metrics;

/// Time between two upkeeps of the metrics. Histograms keep every value until then.
const UPKEEP_EVERY: Duration = Duration::from_millis(250);
/// The wait before the first heartbeat is sent again. It doubles up to [`HEARTBEAT_AGAIN_MAX`].
const HEARTBEAT_AGAIN: Duration = Duration::from_millis(100);
const HEARTBEAT_AGAIN_MAX: Duration = Duration::from_secs(1);

/// Serves until `shutdown`, then stops in order. A shutdown during the start ends it at once: no id has been accepted.
///
/// # Errors
///
/// A line for the user when it could not start, when a part of it ended, or when the last counts could not
/// be published in time.
pub async fn run(
    settings: Settings,
    listeners: Listeners,
    log: Option<WindowLog>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let Some(mut service) = start(settings, listeners, log, &shutdown).await? else {
        info!("stopped before it was ready");
        return Ok(());
    };
    tokio::select! {
        () = shutdown.cancelled() => service.stop().await,
        ended = service.ended() => Err(ended),
    }
}

/// None if `shutdown` came meanwhile.
async fn start(
    settings: Settings,
    listeners: Listeners,
    log: Option<WindowLog>,
    shutdown: &CancellationToken,
) -> anyhow::Result<Option<Service>> {
    let Settings { counting, http: limits, .. } = &settings;
    let metrics = Arc::new(Metrics::new());
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let workers = Workers::start(limits.threads)
        .context("cannot start the threads that serve connections, is --threads too high?")?;
    let workers = Arc::new(workers);
    let addresses = listeners.addresses().context("a listener has no address")?;
    // Requests that come while the service starts are answered too.
    let server = |listener| start_server(listener, limits, &metrics, &workers);
    let (public, admin) = (server(Some(listeners.public)), server(listeners.admin));

    let deadline = Instant::now() + settings.redis.as_ref().map_or(Duration::ZERO, |redis| redis.wait);
    let connecting = Backend::new(&settings, &workers, &metrics, public.stop.drain.clone());
    let backend = tokio::select! {
        connected = connecting => connected?,
        () = shutdown.cancelled() => return Ok(None),
    };
    let closed = ClosedWindows::new(Arc::clone(&metrics)).exporting(&counting.exported_counters);
    let origin = settings.origin(backend.instance_id.clone());
    let (retention, counter_retention) = (counting.retention, counting.counter_retention);
    let sinks = settings.sinks.clone();
    let sinks = sinks.open(&origin, backend.redis.as_ref(), retention, counter_retention, log, &metrics)?;
    let sealer = tokio::select! {
        sealer = introduce(&backend, &clock, counting.window, &metrics, &closed, deadline) => sealer?,
        () = shutdown.cancelled() => {
            // Redis may have its first heartbeat: other instances must not wait for it.
            let _ = tokio::time::timeout(LEAVING, backend.stop(true)).await;
            return Ok(None);
        }
    };
    backend.take_part();

    let publisher = Publisher {
        clock: Arc::clone(&clock),
        store: Arc::clone(&backend.store),
        coordinator: Arc::clone(&backend.coordinator),
        term: backend.term.clone(),
        watermark: sealer.watermark(),
        window: counting.window,
        retention: counting.retention,
        counter_retention: counting.counter_retention,
        shards: counting.shards,
        keep: counting.keep,
        close_timeout: settings.close_timeout,
        metrics: Arc::clone(&metrics),
        closed: closed.clone(),
    };
    let dependencies = Dependencies {
        own: addresses.clone(),
        store: Arc::clone(&backend.store),
        closed: closed.clone(),
        clock: Arc::clone(&clock),
    };
    let upkeep = keep_up(Arc::clone(&metrics), Arc::clone(&workers));
    let (callbacks, callback_task) = Callbacks::new(settings.callbacks.clone(), dependencies, &metrics)?;
    let (phase, phase_receiver) = watch::channel(Phase::Starting);
    let routers = http::routers(Api {
        store: Arc::clone(&backend.store),
        coordinator: Arc::clone(&backend.coordinator),
        series: kept_series(counting),
        callbacks,
        clock,
        closed,
        instance: backend.instance_id.clone(),
        leader: backend.leader.clone(),
        phase: phase_receiver,
        clock_is_wrong: sealer.clock_is_wrong(),
        counting: counting.clone(),
        settings: limits.clone(),
        metrics: Arc::clone(&metrics),
    });
    set_info(&metrics, backend.name, counting);
    raise_descriptor_limit(limits.max_connections, settings.callbacks.concurrency, workers.count());
    public.routes.arrive(routers.public);
    routers.admin.into_iter().for_each(|routes| admin.routes.arrive(routes));

    let stop_callbacks = Stop::default();
    let (stop_sealer, stop_publisher) = (CancellationToken::new(), CancellationToken::new());
    let service = Service {
        sealer: tokio::spawn(sealer.run(stop_sealer.clone())),
        publisher: tokio::spawn(publisher.run(sinks, stop_publisher.clone())),
        callbacks: tokio::spawn(
            callback_task.run(stop_callbacks.drain.clone(), stop_callbacks.abort.clone()),
        ),
        upkeep: tokio::spawn(upkeep),
        public,
        admin,
        backend,
        stopping: settings.stopping,
        phase,
        stop_callbacks,
        stop_sealer,
        stop_publisher,
    };
    service.phase.send_replace(Phase::Ready);
    log_start(service.backend.name, counting, &addresses);
    service_manager::ready();
    Ok(Some(service))
}

/// Without a listener, a task that never ends takes the server's place.
fn start_server(
    listener: Option<TcpListener>,
    limits: &http::Settings,
    metrics: &Arc<Metrics>,
    workers: &Arc<Workers>,
) -> Server {
    let (routes, stop) = (LateRouter::starting(), Stop::default());
    let (limits, metrics, workers) = (limits.clone(), Arc::clone(metrics), Arc::clone(workers));
    let (late, stopped) = (routes.clone(), stop.clone());
    let task = tokio::spawn(async move {
        match listener {
            Some(listener) => server::serve(listener, late, &limits, metrics, workers, stopped).await,
            None => std::future::pending().await,
        }
    });
    Server { task, stop, routes }
}

/// Sends the first heartbeat until Redis takes it or `deadline` has passed. A refusal for good, as when the other
/// instances have other settings, is returned at once.
async fn introduce(
    backend: &Backend,
    clock: &Arc<dyn Clock>,
    window: WindowLength,
    metrics: &Arc<Metrics>,
    closed: &ClosedWindows,
    deadline: Instant,
) -> Result<Sealer, HeartbeatError> {
    let mut wait = HEARTBEAT_AGAIN;
    loop {
        let introduced = Sealer::introduce(
            Arc::clone(clock),
            Arc::clone(&backend.store),
            Arc::clone(&backend.coordinator),
            window,
            Arc::clone(metrics),
            closed.clone(),
        );
        match introduced.await {
            Err(HeartbeatError::Unavailable(error)) if Instant::now() + wait < deadline => {
                debug!(%error, "cannot send the first heartbeat, trying again");
                tokio::time::sleep(wait).await;
                wait = (2 * wait).min(HEARTBEAT_AGAIN_MAX);
            }
            outcome => return outcome,
        }
    }
}

fn set_info(metrics: &Metrics, backend: &'static str, counting: &Counting) {
    metrics.standard_error.set(counting.standard_error());
    metrics.window_seconds.set(counting.window.seconds());
    metrics.set_info(&[
        ("version", env!("CARGO_PKG_VERSION").into()),
        ("counter", backend.into()),
        ("mode", counting.mode.as_str().into()),
        ("window", counting.window.seconds().to_string().into()),
        ("shards", counting.shards.count().to_string().into()),
        // Tells a restart from another container that got the same address.
        ("host", gethostname::gethostname().to_string_lossy().into_owned().into()),
    ]);
}

/// A connection takes a file descriptor, and common limits are lower than `--max-connections`.
fn raise_descriptor_limit(connections: u32, callbacks: u32, workers: usize) {
    /// For listeners, files, standard streams, Redis, brokers, and connections beyond the limit, which get 503.
    const OTHERS: u64 = 250;
    // A callback may look up a name while it has a connection.
    let for_callbacks = 2 * u64::from(callbacks) + callback::MOST_IDLE_CONNECTIONS as u64;
    // A runtime, and a connection to Redis.
    let for_workers = 5 * workers as u64;
    let needed = u64::from(connections) + for_callbacks + for_workers + OTHERS;
    match rlimit::increase_nofile_limit(needed) {
        Ok(limit) if limit >= needed => {}
        limit => warn!(
            limit = limit.ok(),
            needed,
            "too few file descriptors for --max-connections: raise the limit (ulimit -n) or lower the flag"
        ),
    }
}

/// Logged last: after this line clients may send requests.
fn log_start(backend: &str, counting: &Counting, addresses: &[SocketAddr]) {
    info!(
        version = env!("CARGO_PKG_VERSION"),
        address = addresses.first().map(tracing::field::display),
        admin_address = addresses.get(1).map(tracing::field::display),
        counter = backend,
        mode = counting.mode.as_str(),
        standard_error = counting.standard_error(),
        window_seconds = counting.window.seconds(),
        shards = counting.shards.count(),
        "listening"
    );
}

async fn keep_up(metrics: Arc<Metrics>, workers: Arc<Workers>) {
    tokio::join!(keep_up_metrics(metrics), report_life(workers));
}

/// If systemd wants to know, tells it that this runtime and the threads that serve requests go on.
async fn report_life(workers: Arc<Workers>) {
    let Some(every) = service_manager::alive_every() else { return };
    loop {
        tokio::time::sleep(every).await;
        if workers.all_respond().await {
            service_manager::alive();
        }
    }
}

async fn keep_up_metrics(metrics: Arc<Metrics>) {
    let mut ticks = tokio::time::interval(UPKEEP_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        metrics.upkeep();
    }
}
