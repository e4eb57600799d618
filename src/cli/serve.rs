//! `headcount serve`: puts the parts together and starts them. [`service`](crate::cli::service) says how they stop.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::callback::{self, Callbacks, Dependencies};
use crate::cli::backend::Backend;
use crate::cli::listeners::Listeners;
use crate::cli::service::{GOODBYE, Service};
use crate::cli::settings::Settings;
use crate::cli::starting::introduce_until;
use crate::coordination::sealer::Sealer;
use crate::coordination::{ClosedWindows, HeartbeatError};
use crate::http::server::{self, Stop};
use crate::http::{self, Api, LateRouter, Phase};
use crate::model::window::{Clock, SystemClock, WindowLength};
use crate::platform::workers::Workers;
use crate::publish::Publisher;
use crate::store::Counting;
use crate::telemetry::logging::WindowLog;
use crate::telemetry::metrics::Metrics;

/// Time between two upkeeps of the metrics. Histograms keep every value until then.
const UPKEEP_EVERY: Duration = Duration::from_millis(250);
/// Serves until `shutdown`, then stops in order. A shutdown while it starts ends it at once: nothing has been accepted.
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

/// None if it was told to stop meanwhile.
async fn start(
    settings: Settings,
    listeners: Listeners,
    log: Option<WindowLog>,
    shutdown: &CancellationToken,
) -> anyhow::Result<Option<Service>> {
    let Settings { counting, http: limits, .. } = &settings;
    let metrics = Arc::new(Metrics::new());
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let (stop_http, stop_admin, stop_callbacks) = (Stop::default(), Stop::default(), Stop::default());
    let workers = Workers::start(limits.threads)
        .context("cannot start the threads that serve connections, is --threads too high?")?;
    let workers = Arc::new(workers);
    let addresses = listeners.addresses().context("a listener has no address")?;
    // Whoever asks meanwhile is told.
    let (public, operations) = (LateRouter::starting(), LateRouter::starting());
    let serve = |listener, router: &LateRouter, stop: &Stop| {
        let (metrics, workers) = (Arc::clone(&metrics), Arc::clone(&workers));
        spawn_server(listener, router.clone(), limits, metrics, workers, stop.clone())
    };
    let http = serve(listeners.public, &public, &stop_http);
    let admin = match listeners.admin {
        Some(listener) => serve(listener, &operations, &stop_admin),
        None => tokio::spawn(std::future::pending()),
    };
    let patience = settings.redis.as_ref().map_or(Duration::ZERO, |redis| redis.wait);
    let patience = Instant::now() + patience;
    let connecting = Backend::new(&settings, &workers, &metrics, stop_http.drain.clone());
    let backend = tokio::select! {
        connected = connecting => connected?,
        () = shutdown.cancelled() => return Ok(None),
    };
    let closed = ClosedWindows::new(Arc::clone(&metrics));
    let (stop_sealer, stop_publisher) = (CancellationToken::new(), CancellationToken::new());
    let (phase, phase_receiver) = watch::channel(Phase::Starting);

    let origin = settings.origin(backend.instance_id.clone());
    let sinks =
        settings.sinks.clone().open(&origin, backend.redis.as_ref(), counting.retention, log, &metrics)?;
    let introduce = || introduce(&clock, &backend, counting.window, &metrics, &closed);
    let Some(sealer) = introduce_until(patience, introduce, shutdown).await? else {
        // Its first heartbeat may have been taken: others need not wait for it.
        let _ = tokio::time::timeout(GOODBYE, backend.stop(true)).await;
        return Ok(None);
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
        close_timeout: settings.close_timeout,
        metrics: Arc::clone(&metrics),
        closed: closed.clone(),
    };
    set_info(&metrics, backend.name, counting);
    raise_descriptor_limit(limits.max_connections, settings.callbacks.concurrency, workers.count());
    let dependencies = Dependencies {
        own: addresses.clone(),
        store: Arc::clone(&backend.store),
        closed: closed.clone(),
        clock: Arc::clone(&clock),
    };
    let (callbacks, callback_tasks) = Callbacks::new(settings.callbacks.clone(), dependencies, &metrics)?;

    let routers = http::routers(Api {
        store: Arc::clone(&backend.store),
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
    public.arrive(routers.public);
    routers.admin.into_iter().for_each(|routes| operations.arrive(routes));
    let service = Service {
        sealer: tokio::spawn(sealer.run(stop_sealer.clone())),
        publisher: tokio::spawn(publisher.run(sinks, stop_publisher.clone())),
        http,
        admin,
        callbacks: tokio::spawn(
            callback_tasks.run(stop_callbacks.drain.clone(), stop_callbacks.abort.clone()),
        ),
        upkeep: tokio::spawn(keep_up(metrics)),
        backend,
        stopping: settings.stopping,
        phase,
        stop_http,
        stop_admin,
        stop_callbacks,
        stop_sealer,
        stop_publisher,
    };
    service.phase.send_replace(Phase::Ready);
    log_start(service.backend.name, counting, &addresses);
    Ok(Some(service))
}

fn introduce(
    clock: &Arc<dyn Clock>,
    backend: &Backend,
    window: WindowLength,
    metrics: &Arc<Metrics>,
    closed: &ClosedWindows,
) -> impl Future<Output = Result<Sealer, HeartbeatError>> + use<> {
    Sealer::introduce(
        Arc::clone(clock),
        Arc::clone(&backend.store),
        Arc::clone(&backend.coordinator),
        window,
        Arc::clone(metrics),
        closed.clone(),
    )
}

fn spawn_server(
    listener: TcpListener,
    router: LateRouter,
    limits: &http::Settings,
    metrics: Arc<Metrics>,
    workers: Arc<Workers>,
    stop: Stop,
) -> JoinHandle<()> {
    let limits = limits.clone();
    tokio::spawn(async move { server::serve(listener, router, &limits, metrics, workers, stop).await })
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
    ]);
}

/// A connection takes a descriptor, and common limits allow fewer of them than connections.
fn raise_descriptor_limit(connections: u32, callbacks: u32, workers: usize) {
    /// For listeners, files, standard streams, Redis, brokers, and connections that are told that there are too
    /// many.
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

/// Said when it is true: whoever waits for this line may send requests.
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

async fn keep_up(metrics: Arc<Metrics>) {
    let mut ticks = tokio::time::interval(UPKEEP_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        metrics.upkeep();
    }
}
