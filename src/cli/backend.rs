//! The backend: what remembers the ids and what coordinates the instances, in memory or in Redis.

use std::hash::{BuildHasher, RandomState};
use std::process;
use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinHandle};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::cli::settings::Settings;
use crate::coordination::lease::Lease;
use crate::coordination::redis::{RedisCoordinator, RedisCoordinatorConfig};
use crate::coordination::term::Term;
use crate::coordination::{self, Coordinator, KeptSeries};
use crate::model::id::IdKind;
use crate::model::mode::Mode;
use crate::model::period::Level;
use crate::platform::workers::Workers;
use crate::redis::keys::Keys;
use crate::redis::server::ServerFacts;
use crate::redis::{self, CannotConnect, Redis};
use crate::store::memory::MemoryStore;
use crate::store::redis::{RedisStore, RedisStoreConfig};
use crate::store::{Counting, Store};
use crate::telemetry::metrics::Metrics;

/// Bytes that an id takes in a set of Redis, measured with ids of ten digits.
const BYTES_AN_EXACT_ID: f64 = 54.0;
/// The same of a keyed id, which has 19 or 20.
const BYTES_A_KEYED_ID: f64 = 70.0;
/// What Redis takes for a text of 36 bytes. Others may be shorter or longer.
const BYTES_A_UUID: f64 = 88.0;
/// Different ids a second that the forecast of memory assumes.
const FORECAST_RATE: f64 = 10_000.0;

/// A store, a coordinator, and their tasks.
pub(super) struct Backend {
    /// For the label `counter` in logs and metrics.
    pub(super) name: &'static str,
    pub(super) instance_id: String,
    pub(super) redis: Option<Redis>,
    pub(super) store: Arc<Store>,
    pub(super) coordinator: Arc<Coordinator>,
    /// The lease, while this instance has it.
    pub(super) term: watch::Receiver<Option<Term>>,
    /// The instance id of the leader, as far as this instance knows it.
    pub(super) leader: watch::Receiver<Option<String>>,
    counting: JoinHandle<Result<(), JoinError>>,
    lease: JoinHandle<()>,
    take_part: CancellationToken,
    stop_lease: CancellationToken,
}

impl Backend {
    /// Counts in Redis if the settings name one. Then it waits until Redis answers.
    pub(super) async fn new(
        settings: &Settings,
        workers: &Arc<Workers>,
        metrics: &Arc<Metrics>,
        draining: CancellationToken,
    ) -> Result<Self, CannotConnect> {
        match &settings.redis {
            Some(server) => Self::in_redis(server, settings, workers, metrics).await,
            None => Ok(Self::in_memory(&settings.counting, draining)),
        }
    }

    /// For a standalone instance.
    fn in_memory(counting: &Counting, draining: CancellationToken) -> Self {
        let instance_id = instance_id();
        Self {
            name: "memory",
            leader: watch::channel(Some(instance_id.clone())).1,
            instance_id,
            redis: None,
            store: Arc::new(Store::Memory(
                MemoryStore::with_counters(counting.mode, counting.shards, counting.counters)
                    .keeping(counting.keep),
            )),
            coordinator: Arc::new(Coordinator::standalone(
                kept_series(counting),
                keep_rolled(counting),
                draining,
            )),
            term: watch::channel(Some(Term::for_ever())).1,
            counting: tokio::spawn(std::future::pending()),
            lease: tokio::spawn(std::future::pending()),
            take_part: CancellationToken::new(),
            stop_lease: CancellationToken::new(),
        }
    }

    /// For an instance that counts together with all others of the namespace.
    async fn in_redis(
        server: &redis::Settings,
        settings: &Settings,
        workers: &Arc<Workers>,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, CannotConnect> {
        let counting = &settings.counting;
        let redis = server.connect(metrics).await?;
        look_at_server(&redis, counting).await;
        if counting.mode == Mode::Exact {
            forecast_memory(counting);
        }
        let instance_id = instance_id();
        let coordination = Coordination::new(settings, &redis, &instance_id);
        let (store, store_tasks) = RedisStore::new(
            RedisStoreConfig {
                mode: counting.mode,
                shards: counting.shards,
                close_timeout: settings.close_timeout,
                retention: counting.retention,
                keep: counting.keep,
                writes: settings.redis_writes,
                on_redis_down: settings.on_redis_down,
                pending_max: settings.pending_max,
                counters: counting.counters,
                timeout: server.timeout,
                keys: Keys::new(&settings.namespace),
                instance_id: instance_id.clone(),
            },
            &redis,
            workers.count(),
            metrics,
        );
        let Coordination { coordinator, lease } = coordination;
        let (take_part, stop_lease) = (CancellationToken::new(), CancellationToken::new());
        let (may_lead, stop) = (take_part.clone(), stop_lease.clone());
        Ok(Self {
            name: "redis",
            instance_id,
            redis: Some(redis),
            store: Arc::new(Store::Redis(store)),
            coordinator: Arc::new(Coordinator::Redis(coordinator)),
            term: lease.term(),
            leader: lease.leader(),
            counting: tokio::spawn(store_tasks.run(Arc::clone(workers))),
            lease: tokio::spawn(async move {
                may_lead.cancelled().await;
                lease.run(stop).await;
            }),
            take_part,
            stop_lease,
        })
    }

    /// Lets this instance lead. The caller has sent its first heartbeat.
    pub(super) fn take_part(&self) {
        self.take_part.cancel();
    }

    /// Waits until a task ends too early.
    pub(super) async fn ended(&mut self) -> anyhow::Error {
        let (part, ended) = tokio::select! {
            ended = &mut self.counting => ("counting in Redis", ended.and_then(std::convert::identity)),
            ended = &mut self.lease => ("the lease", ended),
        };
        match ended {
            Ok(()) => anyhow!("{part} ended unexpectedly"),
            Err(error) => anyhow!("{part} ended: {error}"),
        }
    }

    /// Gives up the lease. Leaves too, if every window is `sealed`.
    pub(super) async fn stop(self, sealed: bool) {
        self.stop_lease.cancel();
        // A task of the lease that has not begun would wait for this.
        self.take_part.cancel();
        if self.coordinator.is_shared()
            && let Err(error) = self.lease.await
        {
            warn!(%error, "the lease was not given up");
        }
        if sealed && let Err(error) = self.coordinator.leave().await {
            warn!(%error, "cannot leave: other instances notice it when heartbeats stop");
        }
    }
}

/// How an instance takes part in a namespace.
pub(super) struct Coordination {
    pub(super) coordinator: RedisCoordinator,
    pub(super) lease: Lease,
}

impl Coordination {
    /// Sends nothing to Redis yet.
    pub(super) fn new(settings: &Settings, redis: &Redis, instance_id: &str) -> Self {
        let (keys, counting) = (Keys::new(&settings.namespace), &settings.counting);
        let config = RedisCoordinatorConfig {
            keys: keys.clone(),
            instance_id: instance_id.to_owned(),
            window: counting.window,
            retention: counting.retention,
            counter_retention: counting.counter_retention,
            series: kept_series(counting),
            shards: counting.shards,
            keep_rolled: keep_rolled(counting),
            settings: coordination::Settings::new(
                counting.ids,
                counting.mode,
                counting.window,
                counting.shards,
                counting.id_key.as_ref(),
            ),
        };
        Self {
            coordinator: RedisCoordinator::new(config, redis),
            lease: Lease::new(redis, keys, instance_id.to_owned(), settings.lease_ttl),
        }
    }
}

/// Records of a day are kept for as long as its hours, and as the day.
fn keep_rolled(counting: &Counting) -> Duration {
    counting.keep.longest() + Duration::from_secs(Level::Day.seconds())
}

pub(super) fn kept_series(counting: &Counting) -> KeptSeries {
    KeptSeries::new(counting.window, counting.keep.total.longest())
}

/// The machine's name and a random number.
pub(super) fn instance_id() -> String {
    let random = RandomState::new().hash_one(process::id());
    let host = gethostname::gethostname().to_string_lossy().into_owned();
    // The scripts take only printable ASCII for an instance id.
    let host: String = host.chars().map(|c| if c.is_ascii_graphic() { c } else { '-' }).collect();
    format!("{host}/{random:016x}")
}

async fn look_at_server(redis: &Redis, counting: &Counting) {
    let servers = match ServerFacts::of_all(redis).await {
        Ok(servers) => servers,
        Err(error) => return warn!(%error, "connected to Redis, but it does not tell its version"),
    };
    for server in &servers {
        let at = server.at.as_deref();
        info!(%server, at, "connected to Redis");
        if !server.is_new_enough() {
            warn!(%server, at, "this version of Redis is too old: use Redis 6.2 or later, or Valkey");
        }
        if server.evicts() {
            warn!(
                at,
                maxmemory_policy = server.eviction_policy,
                "Redis may drop keys that are still needed: set its maxmemory-policy to noeviction"
            );
        }
    }
    if let Some(warning) = counting.too_much_history(ServerFacts::max_memory_of(&servers)) {
        warn!("{warning}");
    }
}

/// Logs how much memory Redis needs for all ids of a retention.
fn forecast_memory(counting: &Counting) {
    let seconds = (counting.retention + counting.window.duration()).as_secs_f64();
    let bytes = match (counting.id_key.is_some(), counting.ids) {
        (true, _) => BYTES_A_KEYED_ID,
        (false, IdKind::Integer) => BYTES_AN_EXACT_ID,
        (false, IdKind::Text) => BYTES_A_UUID,
    };
    let megabytes = FORECAST_RATE * seconds * bytes / 1e6;
    info!(
        "exact counting: at {FORECAST_RATE} different ids a second Redis holds up to {megabytes:.0} MB, if no \
         window can be published within --retention"
    );
}
