//! The application: the only place that picks the parts, and the one that says in which order they
//! start and stop.
//!
//! # Stopping
//!
//! 1. `/readyz` says no, and for `--drain-delay` everything goes on, so that load balancers notice.
//! 2. No more connections; requests that were begun are finished. Then nobody adds ids any more.
//! 3. Callbacks that wait are sent.
//! 4. The sealer seals everything, the running window too.
//! 5. The publisher closes what it can and hands what is left to the sinks.
//! 6. The lease is given up, and the others are told goodbye.
//!
//! All of it within `--shutdown-timeout`, of which the last part is kept back for steps 4 to 6: a client
//! that never finishes its request is cut off, so that the counts of all others come out.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinHandle};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::callback::signature::SigningKey;
use crate::callback::{self, CallbackArgs, Callbacks, Dependencies, NoClient};
use crate::cli::backend::{Backend, BackendArgs, BackendEnded};
use crate::cli::listeners::Listeners;
use crate::cli::starting::introduce_until;
use crate::coordination::sealer::Sealer;
use crate::coordination::{ClosedWindows, ReportError};
use crate::http::server::{self, Stop};
use crate::http::{self, Api, ApiToken, HttpArgs, LateRouter, Phase};
use crate::model::id_key::IdKey;
use crate::model::window::{Clock, SystemClock, WindowLength};
use crate::platform::args;
use crate::platform::secret::Secret;
use crate::platform::workers::Workers;
use crate::publish::sinks::Origin;
use crate::publish::sinks::args::{SinkArgs, Sinks};
use crate::publish::sinks::file::UnwritableLogDir;
use crate::publish::{Publisher, PublisherArgs, SinkEnded};
use crate::redis::{Address, CannotConnect};
use crate::store::CountingArgs;
use crate::telemetry::log_progress::LogProgress;
use crate::telemetry::metrics::Metrics;

/// Time between two upkeeps of the metrics. Histograms keep every value until then.
const UPKEEP_EVERY: Duration = Duration::from_millis(250);
/// What is kept back of the shutdown time-out for giving up the lease and saying goodbye.
const GOODBYE: Duration = Duration::from_secs(1);
/// What is kept back of the shutdown time-out for the last publish, at most half of it.
const LAST_PUBLISH: Duration = Duration::from_secs(5);

/// All that can be said about serving.
#[derive(Debug, Clone, Args)]
pub struct ServeArgs {
    /// What is counted, and how.
    #[command(flatten)]
    pub counting: CountingArgs,

    #[command(flatten)]
    http: HttpArgs,

    /// Where.
    #[command(flatten)]
    pub backend: BackendArgs,

    /// When windows are closed.
    #[command(flatten)]
    pub publisher: PublisherArgs,

    #[command(flatten)]
    sinks: SinkArgs,

    #[command(flatten)]
    callbacks: CallbackArgs,

    #[command(flatten)]
    stopping: StoppingArgs,
}

/// How long stopping may take.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Stopping")]
struct StoppingArgs {
    /// How long to go on serving after the signal to stop, with /readyz saying no: longer than a
    /// load balancer takes to notice
    #[arg(
        long, env = "HEADCOUNT_DRAIN_DELAY", value_name = "DURATION", default_value = "0s",
        value_parser = args::duration
    )]
    drain_delay: Duration,

    /// How long stopping may take in all
    #[arg(
        long, env = "HEADCOUNT_SHUTDOWN_TIMEOUT", value_name = "DURATION", default_value = "25s",
        value_parser = args::positive_duration
    )]
    shutdown_timeout: Duration,
}

impl ServeArgs {
    /// Looks at what a single flag cannot know.
    ///
    /// # Errors
    ///
    /// A line for the user.
    pub fn validate(self) -> Result<Config, String> {
        let retention = self.counting.retention()?;
        let id_key = self.counting.id_key()?;
        let token = self.http.access.token()?;
        let redis = self.backend.redis.address()?;
        let sinks = self.sinks.validate(&self.backend.redis.namespace, redis.is_some())?;
        let signing_key = self.callbacks.signing_key()?;
        let StoppingArgs { drain_delay, shutdown_timeout } = self.stopping;
        if drain_delay >= shutdown_timeout {
            return Err(format!(
                "invalid value '{}' for '--drain-delay <DURATION>': expected less than --shutdown-timeout, {}",
                humantime::format_duration(drain_delay),
                humantime::format_duration(shutdown_timeout),
            ));
        }
        Ok(Config { args: self, retention, id_key, token, redis, sinks, signing_key })
    }
}

/// Arguments that agree with each other.
#[derive(Debug, Clone)]
pub struct Config {
    /// As they were given.
    pub args: ServeArgs,
    /// How long windows are kept.
    pub retention: Duration,
    /// What ids are hashed with, if they are.
    pub id_key: Option<IdKey>,
    /// What requests have to bear, if anything.
    pub token: Option<ApiToken>,
    /// Where Redis is, if the counter is there.
    pub redis: Option<Address>,
    /// Where counts go.
    pub sinks: Sinks,
    /// What callbacks are signed with.
    pub signing_key: Option<Secret<SigningKey>>,
}

impl Config {
    /// Where to listen, and the limits there.
    pub fn http(&self) -> &HttpArgs {
        &self.args.http
    }

    /// What sinks are told about the counts.
    pub fn origin(&self, instance: String) -> Origin {
        let counting = &self.args.counting;
        Origin {
            namespace: self.args.backend.redis.namespace.clone(),
            instance,
            mode: counting.mode,
            standard_error: counting.standard_error(),
            window: counting.window,
        }
    }
}

/// Why a service ended that nobody stopped, or could not start.
#[derive(Debug, Error)]
pub enum RunError {
    /// The log directory.
    #[error(transparent)]
    LogDir(#[from] UnwritableLogDir),
    /// Callbacks.
    #[error(transparent)]
    Callbacks(#[from] NoClient),
    /// A sink.
    #[error(transparent)]
    Sink(#[from] SinkEnded),
    /// A task that runs as long as the service does has panicked.
    #[error("a part of the service ended: {0}")]
    TaskEnded(#[from] JoinError),
    /// A task that runs as long as the service does has returned.
    #[error("{0} ended though nobody stopped it")]
    Returned(&'static str),
    /// Redis.
    #[error(transparent)]
    Redis(#[from] CannotConnect),
    /// A part of the backend.
    #[error(transparent)]
    Backend(#[from] BackendEnded),
    /// This instance must not take part, or could not ask whether it may.
    #[error(transparent)]
    Report(#[from] ReportError),
    /// The store did not take the last ids in time.
    #[error(
        "not everything was sealed within --shutdown-timeout: {kept_ids} ids that only this instance has are lost"
    )]
    Unsealed {
        /// Accepted while Redis was away.
        kept_ids: u64,
    },
    /// The sinks did not take the last counts in time.
    #[error("not all counts were published within --shutdown-timeout")]
    Unpublished,
    /// The system has no threads for us.
    #[error("cannot start the threads that serve connections, is --threads too high? {0}")]
    NoWorkers(io::Error),
    /// A socket that was bound does not know its address.
    #[error("a listener has no address: {0}")]
    NoAddress(#[from] io::Error),
}

/// Serves until `shutdown`, then stops in order. A shutdown while it starts ends it at once: nothing has been accepted.
///
/// # Errors
///
/// [`RunError`] when it could not start, when a part of it ended, or when the last counts could not
/// be published in time.
pub async fn run(
    config: Config,
    listeners: Listeners,
    log: LogProgress,
    shutdown: CancellationToken,
) -> Result<(), RunError> {
    let Some(mut service) = Service::start(config, listeners, log, &shutdown).await? else {
        info!("stopped before it was ready");
        return Ok(());
    };
    tokio::select! {
        () = shutdown.cancelled() => service.stop().await,
        ended = service.ended() => Err(ended),
    }
}

/// The running parts.
struct Service {
    backend: Backend,
    stopping: StoppingArgs,
    phase: watch::Sender<Phase>,
    stop_http: Stop,
    stop_admin: Stop,
    stop_callbacks: Stop,
    stop_sealer: CancellationToken,
    stop_publisher: CancellationToken,
    http: JoinHandle<()>,
    admin: JoinHandle<()>,
    callbacks: JoinHandle<()>,
    sealer: JoinHandle<Result<(), ReportError>>,
    publisher: JoinHandle<Result<(), SinkEnded>>,
    upkeep: JoinHandle<()>,
}

impl Service {
    /// None if it was told to stop meanwhile.
    async fn start(
        config: Config,
        listeners: Listeners,
        log: LogProgress,
        shutdown: &CancellationToken,
    ) -> Result<Option<Self>, RunError> {
        let ServeArgs { counting, http: limits, backend, publisher, callbacks, stopping, .. } =
            config.args.clone();
        let retention = config.retention;
        let metrics = Arc::new(Metrics::new());
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let (stop_http, stop_admin, stop_callbacks) = (Stop::default(), Stop::default(), Stop::default());
        let workers = Arc::new(limits.workers().map_err(RunError::NoWorkers)?);
        let addresses = listeners.addresses()?;
        // Whoever asks meanwhile is told.
        let (public, operations) = (LateRouter::starting(), LateRouter::starting());
        let serve = |listener, router: &LateRouter, stop: &Stop| {
            let (metrics, workers) = (Arc::clone(&metrics), Arc::clone(&workers));
            spawn_server(listener, router.clone(), &limits, metrics, workers, stop.clone())
        };
        let http = serve(listeners.public, &public, &stop_http);
        let admin = match listeners.admin {
            Some(listener) => serve(listener, &operations, &stop_admin),
            None => tokio::spawn(std::future::pending()),
        };
        let patience = Instant::now() + backend.redis.redis_wait;
        let connecting = connect(&config, &workers, &metrics, stop_http.drain.clone());
        let backend = tokio::select! {
            connected = connecting => connected?,
            () = shutdown.cancelled() => return Ok(None),
        };
        let closed = ClosedWindows::new(Arc::clone(&metrics));
        let (stop_sealer, stop_publisher) = (CancellationToken::new(), CancellationToken::new());
        let (phase, phase_receiver) = watch::channel(Phase::Starting);

        let origin = config.origin(backend.process.clone());
        let sinks = config.sinks.open(&origin, backend.redis.as_ref(), retention, log, &metrics)?;
        let introduce = || introduce(&clock, &backend, counting.window, &metrics, &closed);
        let Some(sealer) = introduce_until(patience, introduce, shutdown).await? else {
            // Its first report may have been taken: others need not wait for it.
            let _ = tokio::time::timeout(GOODBYE, backend.stop(true)).await;
            return Ok(None);
        };
        backend.take_part();
        let publisher = Publisher {
            clock: Arc::clone(&clock),
            counter: Arc::clone(&backend.counter),
            coordinator: Arc::clone(&backend.coordinator),
            grant: backend.grant.clone(),
            watermark: sealer.watermark(),
            window: counting.window,
            retention,
            close_timeout: publisher.close_timeout,
            metrics: Arc::clone(&metrics),
            closed: closed.clone(),
        };
        set_info(&metrics, backend.name, &counting);
        raise_descriptor_limit(&limits, &callbacks, workers.count());
        let dependencies = Dependencies {
            signing_key: config.signing_key,
            own: addresses.clone(),
            counter: Arc::clone(&backend.counter),
            closed: closed.clone(),
            clock: Arc::clone(&clock),
        };
        let (callbacks, callback_tasks) = Callbacks::new(&callbacks, dependencies, &metrics)?;

        let routers = http::routers(Api {
            counter: Arc::clone(&backend.counter),
            callbacks,
            clock,
            closed,
            instance: backend.process.clone(),
            leader: backend.leader.clone(),
            phase: phase_receiver,
            clock_is_wrong: sealer.clock_is_wrong(),
            counting: counting.clone(),
            id_key: config.id_key,
            token: config.token,
            limits: limits.clone(),
            metrics: Arc::clone(&metrics),
        });
        public.arrive(routers.public);
        routers.admin.into_iter().for_each(|routes| operations.arrive(routes));
        let service = Self {
            sealer: tokio::spawn(sealer.run(stop_sealer.clone())),
            publisher: tokio::spawn(publisher.run(sinks, stop_publisher.clone())),
            http,
            admin,
            callbacks: tokio::spawn(
                callback_tasks.run(stop_callbacks.drain.clone(), stop_callbacks.abort.clone()),
            ),
            upkeep: tokio::spawn(keep_up(metrics)),
            backend,
            stopping,
            phase,
            stop_http,
            stop_admin,
            stop_callbacks,
            stop_sealer,
            stop_publisher,
        };
        service.phase.send_replace(Phase::Ready);
        log_start(service.backend.name, &counting, &addresses);
        Ok(Some(service))
    }

    /// Waits for a part to end that should not.
    async fn ended(&mut self) -> RunError {
        tokio::select! {
            ended = &mut self.http => returned("the HTTP server", ended),
            ended = &mut self.admin => returned("the HTTP server for operations", ended),
            ended = &mut self.callbacks => returned("the callbacks", ended),
            ended = self.backend.ended() => ended.into(),
            ended = &mut self.sealer => failed("the sealer", ended),
            ended = &mut self.upkeep => returned("the upkeep of the metrics", ended),
            ended = &mut self.publisher => failed("the publisher", ended),
        }
    }

    async fn stop(mut self) -> Result<(), RunError> {
        let StoppingArgs { drain_delay, shutdown_timeout } = self.stopping;
        let deadline = Instant::now() + shutdown_timeout;
        let last_publish = LAST_PUBLISH.min(shutdown_timeout.saturating_sub(drain_delay) / 2);
        info!(
            drain_delay = %humantime::format_duration(drain_delay),
            shutdown_timeout = %humantime::format_duration(shutdown_timeout),
            "stopping"
        );

        self.phase.send_replace(Phase::Draining);
        tokio::time::sleep(drain_delay).await;

        self.stop_http.drain.cancel();
        let drained = tokio::time::timeout_at(deadline - last_publish, &mut self.http).await;
        // Whichever way, when the server has ended it is sure that nobody adds an id.
        if let Ok(ended) = drained {
            ended?;
        } else {
            warn!("clients that have not finished their requests are cut off");
            self.stop_http.abort.cancel();
            (&mut self.http).await?;
        }

        // Before the windows are sealed, and then forgotten, that they are to tell of.
        self.stop_callbacks.drain.cancel();
        let end = deadline - GOODBYE.min(last_publish / 2);
        if tokio::time::timeout_at(deadline - last_publish, &mut self.callbacks).await.is_err() {
            self.stop_callbacks.abort.cancel();
            // At once: it only has to say how many are left.
            let _ = tokio::time::timeout_at(end, &mut self.callbacks).await;
        }

        self.stop_sealer.cancel();
        let sealed = tokio::time::timeout_at(end, &mut self.sealer).await;
        self.stop_publisher.cancel();
        let published = tokio::time::timeout_at(end, &mut self.publisher).await;
        let kept_ids = self.backend.counter.unacknowledged_ids();
        // Also when not everything was published: the others need not wait for this instance. But whoever has
        // not sealed everything vanishes.
        let goodbye =
            tokio::time::timeout(GOODBYE, self.backend.stop(matches!(sealed, Ok(Ok(Ok(())))))).await;
        if goodbye.is_err() {
            warn!("no time to give up the lease and say goodbye");
        }
        self.stop_admin.drain.cancel();
        self.stop_admin.abort.cancel();
        self.upkeep.abort();
        sealed.map_err(|_| RunError::Unsealed { kept_ids })???;
        published.map_err(|_| RunError::Unpublished)???;
        info!("stopped");
        Ok(())
    }
}

fn introduce(
    clock: &Arc<dyn Clock>,
    backend: &Backend,
    window: WindowLength,
    metrics: &Arc<Metrics>,
    closed: &ClosedWindows,
) -> impl Future<Output = Result<Sealer, ReportError>> + use<> {
    Sealer::introduce(
        Arc::clone(clock),
        Arc::clone(&backend.counter),
        Arc::clone(&backend.coordinator),
        window,
        Arc::clone(metrics),
        closed.clone(),
    )
}

fn spawn_server(
    listener: TcpListener,
    router: LateRouter,
    limits: &HttpArgs,
    metrics: Arc<Metrics>,
    workers: Arc<Workers>,
    stop: Stop,
) -> JoinHandle<()> {
    let limits = limits.clone();
    tokio::spawn(async move { server::serve(listener, router, &limits, metrics, workers, stop).await })
}

/// What remembers the ids, once it answers.
async fn connect(
    config: &Config,
    workers: &Arc<Workers>,
    metrics: &Metrics,
    draining: CancellationToken,
) -> Result<Backend, CannotConnect> {
    let ServeArgs { counting, backend, .. } = &config.args;
    let Some(address) = &config.redis else { return Ok(Backend::in_memory(counting, draining)) };
    let id_key = config.id_key.as_ref();
    Backend::in_redis(backend, address, counting, id_key, config.retention, workers, metrics).await
}

fn returned(part: &'static str, ended: Result<(), JoinError>) -> RunError {
    match ended {
        Ok(()) => RunError::Returned(part),
        Err(error) => error.into(),
    }
}

/// The same of a part that says what is wrong.
fn failed(part: &'static str, ended: Result<Result<(), impl Into<RunError>>, JoinError>) -> RunError {
    match ended {
        Ok(Err(error)) => error.into(),
        Ok(Ok(())) => RunError::Returned(part),
        Err(error) => error.into(),
    }
}

fn set_info(metrics: &Metrics, backend: &'static str, counting: &CountingArgs) {
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
fn raise_descriptor_limit(limits: &HttpArgs, callbacks: &CallbackArgs, workers: usize) {
    /// For listeners, files, standard streams, Redis, brokers, and connections that are told that there are too
    /// many.
    const OTHERS: u64 = 250;
    // A callback may look up a name while it has a connection.
    let for_callbacks =
        2 * u64::from(callbacks.callback_concurrency) + callback::MOST_IDLE_CONNECTIONS as u64;
    // A runtime, and a connection to Redis.
    let for_workers = 5 * workers as u64;
    let needed = u64::from(limits.max_connections) + for_callbacks + for_workers + OTHERS;
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
fn log_start(backend: &str, counting: &CountingArgs, addresses: &[SocketAddr]) {
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
