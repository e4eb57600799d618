//! The counter in Redis: for any number of instances that count together.
//!
//! # Where an id goes
//!
//! First into this instance's own sketch of the window and shard, then as a `PFADD` into the shared one,
//! through the [pipeline](mod@pipeline). The request is answered when its own reply is there. In mode `exact` it is a `SADD`, and
//! there is nothing local.
//!
//! # When Redis is away
//!
//! A union can wait. So after the first write that fails or is late the [breaker] opens, and no request waits
//! any more: in mode `hll` it is answered when the local sketch has the id, in mode `exact` when the id is in a set of
//! those that Redis has not acknowledged, of which there may be so many. A [recovery] hands over what is kept
//! here when Redis is back, and closes the breaker.
//!
//! # The seal
//!
//! When a window is over the watermark moves on, under the write half of a lock of which every addition holds
//! the read half while it enters; so from then on none enters. Those that are under way are waited for:
//! each has a deadline. Then the local sketch is merged into the shared one, or the exact ids that Redis has
//! not acknowledged are added, and how many ids were accepted is noted. After that everything that this instance
//! has accepted for the window is in Redis.
//!
//! The merge looks superfluous, since all ids were sent one by one. It is what makes the count whole when
//! Redis was flushed, was restarted, or failed over to a replica that had not got the last writes: a sketch of
//! 12 KB makes up for all of it, and merging twice is merging once. In mode `exact` there is no such
//! thing; what Redis acknowledged and then lost is lost.
//!
//! # What is kept
//!
//! Local sketches live until the window is published, so that they can be merged once more should Redis
//! lose everything before that; of sealed windows the newest, as far as there is room for them.

mod batch;
mod breaker;
mod config;
mod handover;
mod local;
mod pipeline;
mod recovery;
mod unacknowledged;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ::redis::aio::MultiplexedConnection;
use async_trait::async_trait;
use smallvec::SmallVec;
use tokio::task::{JoinError, JoinSet};
use tokio_util::task::task_tracker::TaskTrackerToken;
use tracing::{debug, warn};

use self::batch::Receipt;
use self::breaker::Breaker;
use self::config::SHARDS_A_PIPELINE;
pub use self::config::{OnRedisDown, RedisCounterConfig, RedisWrites};
use self::handover::Handover;
use self::local::{Held, Intake, LocalWindow, LocalWindows, Sealed};
use self::pipeline::{Pipeline, PipelineTask, pipelines};
use self::recovery::Recovery;
use self::unacknowledged::Unacknowledged;
use super::{AddError, Added, Adding, CountError, Tally, UniqueCounter};
use crate::hll::Observation;
use crate::model::id::Id;
use crate::model::mode::Mode;
use crate::model::window::Window;
use crate::platform::unavailable::Unavailable;
use crate::platform::workers::{self, Workers};
use crate::redis::{Call, Redis};
use crate::telemetry::metrics::Metrics;

/// Ids in one command: a large list holds up Redis no longer than many small ones.
const IDS_A_COMMAND: usize = 1024;

/// Counts in Redis, together with all instances of the namespace.
pub struct RedisCounter {
    config: Arc<RedisCounterConfig>,
    redis: Redis,
    breaker: Arc<Breaker>,
    /// One for each worker.
    pipelines: Box<[Pipeline]>,
    local: Arc<LocalWindows>,
    handover: Arc<Handover>,
}

/// The tasks behind a counter.
pub struct RedisCounterTasks {
    pipelines: Vec<PipelineTask>,
    recovery: Recovery,
}

impl RedisCounterTasks {
    /// Writes, each pipeline on its worker, and finds back to Redis, until the counter is gone.
    ///
    /// # Errors
    ///
    /// When one of them has panicked.
    pub async fn run(self, workers: Arc<Workers>) -> Result<(), JoinError> {
        let mut pipelines = JoinSet::new();
        for (number, pipeline) in self.pipelines.into_iter().enumerate() {
            let task = workers.spawn_on(number, pipeline.run());
            pipelines.spawn(task);
        }
        tokio::select! {
            Some(ended) = pipelines.join_next() => ended.and_then(std::convert::identity),
            () = self.recovery.run(&workers) => Ok(()),
        }
    }
}

/// What Redis has to be told of a request.
struct News<'a> {
    /// Ids and their shards, ordered by these.
    ids: SmallVec<[(usize, &'a Id); 1]>,
    /// How many ids changed the local sketch.
    changed: u64,
}

/// Replies that are to come, one for each write.
type Receipts = SmallVec<[Receipt; 1]>;

impl RedisCounter {
    /// A counter for requests on so many workers, and the tasks that do its writing: they have to run.
    pub fn new(
        config: RedisCounterConfig,
        redis: &Redis,
        workers: usize,
        metrics: &Metrics,
    ) -> (Self, RedisCounterTasks) {
        let config = Arc::new(config);
        metrics.unacknowledged_ids_max.set(config.most_unacknowledged_ids().unwrap_or_default());
        let breaker = Arc::new(Breaker::new(config.on_redis_down));
        let unacknowledged = Arc::new(Unacknowledged::new(config.unacknowledged_max));
        let missed_ids = metrics.missed_ids.clone();
        let local = Arc::new(LocalWindows::new(Arc::clone(&config), unacknowledged, missed_ids));
        let handover = Arc::new(Handover::new(Arc::clone(&config), redis, metrics));
        let (pipelines, tasks) = pipelines(workers, redis, config.timeout, &breaker, metrics);
        let recovery = Recovery {
            breaker: Arc::clone(&breaker),
            local: Arc::clone(&local),
            handover: Arc::clone(&handover),
            connections: tasks.iter().map(|task| task.redis().clone()).collect(),
        };
        let (redis, pipelines) = (redis.another(), pipelines.into());
        let counter = Self { config, redis, breaker, pipelines, local, handover };
        (counter, RedisCounterTasks { pipelines: tasks, recovery })
    }

    /// That of this worker.
    fn pipeline(&self) -> &Pipeline {
        // Elsewhere than on a worker any will do.
        &self.pipelines[workers::current().unwrap_or_default() % self.pipelines.len()]
    }

    /// Adds ids to the local sketch, and says which of them Redis has to be told.
    fn add_locally<'a>(&self, local: &LocalWindow, ids: &'a [Id]) -> News<'a> {
        let mut news = News { ids: SmallVec::with_capacity(ids.len()), changed: 0 };
        let pipeline = self.pipeline();
        for id in ids {
            let shard = self.config.shards.of(id.as_bytes());
            if let Held::Sketches { sketches, .. } = &local.held {
                let observation = Observation::of(id.as_bytes());
                news.changed += u64::from(sketches[shard].raise(observation));
                if pipeline.is_acknowledged(&local.targets[shard], observation) {
                    continue;
                }
            }
            news.ids.push((shard, id));
        }
        if local.targets.len() > 1 {
            news.ids.sort_unstable_by_key(|(shard, _)| *shard);
        }
        news
    }

    /// Puts what Redis has to be told into the pipeline: a command a shard, or several if it would be long.
    fn send(
        &self,
        local: &LocalWindow,
        news: &News<'_>,
        under_way: &TaskTrackerToken,
    ) -> Result<Receipts, Unavailable> {
        let (mut receipts, pipeline) = (Receipts::new(), self.pipeline());
        for of_a_shard in news.ids.chunk_by(|(one, _), (other, _)| one == other) {
            for ids in of_a_shard.chunks(IDS_A_COMMAND) {
                let (target, ids) = (&local.targets[ids[0].0], ids.iter().map(|(_, id)| *id));
                let sent = pipeline.send(target, ids, under_way);
                receipts.push(sent.inspect_err(|error| self.breaker.open(error))?);
            }
        }
        Ok(receipts)
    }

    /// Waits until Redis has been told. How many of the ids were new there; for `PFADD`, how many commands changed
    /// something.
    async fn sent(receipts: Receipts) -> Result<u64, Unavailable> {
        let mut added = 0;
        for receipt in receipts {
            added += receipt.await?;
        }
        Ok(added)
    }

    /// Notes that ids are where they are to be, by whatever way.
    fn accepted(local: &LocalWindow, ids: &[Id], changed: u64) -> Added {
        local.accept(ids.len());
        Added { changed }
    }

    /// What is left to do with ids that Redis does not take.
    fn without_redis(&self, local: &LocalWindow, ids: &[Id], error: Unavailable) -> Result<u64, Unavailable> {
        match self.config.on_redis_down {
            OnRedisDown::Fail => Err(error),
            OnRedisDown::Count => {
                let changed = self.local.keep(local, ids)?;
                self.breaker.note_kept(ids.len());
                Ok(changed)
            }
        }
    }

    /// How many different ids a window has, over all shards.
    async fn unique_ids(&self, window: Window) -> Result<u64, Unavailable> {
        let RedisCounterConfig { mode, shards, keys, .. } = &*self.config;
        let command = match mode {
            Mode::Hll => "PFCOUNT",
            Mode::Exact => "SCARD",
        };
        let all: Vec<_> = (0..usize::from(shards.count())).collect();
        let mut total = 0;
        for some in all.chunks(SHARDS_A_PIPELINE) {
            let mut commands = ::redis::Pipeline::new();
            for shard in some {
                commands.cmd(command).arg(keys.ids(*mode, *shard, *shards, window));
            }
            let of_shards: Vec<_> =
                some.iter().map(|shard| vec![keys.ids(*mode, *shard, *shards, window)]).collect();
            let counts: Vec<u64> = self.handover.mending(&of_shards, Call::Count, &commands).await?;
            total += counts.iter().sum::<u64>();
        }
        Ok(total)
    }

    /// What a window holds, by what instances said that they accepted, as far as they have sealed it, and what this one
    /// has so far.
    async fn tally(
        &self,
        window: Window,
        mut intakes: BTreeMap<String, Intake>,
    ) -> Result<Tally, Unavailable> {
        if let Some(own) = self.local.intake(window) {
            intakes.insert(self.config.process.clone(), own);
        }
        let Intake { accepted, new, lost, .. } = intakes.into_values().sum();
        let unique_ids = self.unique_ids(window).await?;
        let missing = match self.config.mode {
            Mode::Exact => new.saturating_sub(unique_ids),
            Mode::Hll => 0,
        };
        // Whatever else is known: there were some.
        let none_left = u64::from(unique_ids == 0 && accepted > 0);
        Ok(Tally { unique_ids, accepted_ids: accepted, lost_ids: (lost + missing).max(none_left) })
    }

    /// Exact ids take memory and are somebody's: once they are counted they soon expire.
    async fn let_expire(&self, windows: &[Window]) {
        let RedisCounterConfig { mode, shards, keys, .. } = &*self.config;
        for window in windows {
            let mut commands = ::redis::Pipeline::new();
            for shard in 0..usize::from(shards.count()) {
                let key = keys.ids(*mode, shard, *shards, *window);
                commands.cmd("EXPIRE").arg(key).arg(2 * window.length().seconds());
            }
            if let Err(error) =
                self.run(Call::Seal, async |connection| commands.exec_async(connection).await).await
            {
                warn!(%window, %error, "exact ids expire later than they could");
            }
        }
    }

    async fn run<T>(
        &self,
        call: Call,
        work: impl AsyncFnOnce(&mut MultiplexedConnection) -> ::redis::RedisResult<T>,
    ) -> Result<T, Unavailable> {
        self.redis.run(call, work).await
    }
}

#[async_trait]
impl UniqueCounter for RedisCounter {
    fn add<'a>(&'a self, window: Window, ids: &'a [Id]) -> Adding<'a> {
        let (local, under_way) = match self.local.enter(window) {
            Ok(entered) => entered,
            Err(error) => return Adding::done(Err(error)),
        };
        if self.breaker.is_open() {
            let kept = self.without_redis(&local, ids, Unavailable::because("Redis is away"));
            return Adding::done(
                kept.map(|changed| Self::accepted(&local, ids, changed)).map_err(AddError::from),
            );
        }
        let news = self.add_locally(&local, ids);
        let (sent, changed) = (self.send(&local, &news, &under_way), news.changed);
        if let Ok(receipts) = &sent
            && receipts.is_empty()
        {
            return Adding::done(Ok(Self::accepted(&local, ids, changed)));
        }
        Adding::under_way(async move {
            let added = match sent {
                Ok(receipts) => Self::sent(receipts).await,
                Err(error) => Err(error),
            };
            let changed = match added {
                Ok(added) if self.config.mode == Mode::Exact => added,
                // PFADD says only whether any did.
                Ok(0) => 0,
                Ok(_) => changed.max(1),
                // All of them: to find out which are there already would be more work than to add them again.
                Err(error) => changed + self.without_redis(&local, ids, error)?,
            };
            let added = Self::accepted(&local, ids, changed);
            // Not before: what is not in Redis is kept for it.
            drop(under_way);
            Ok(added)
        })
    }

    async fn seal(&self, window: Window) -> Result<(), Unavailable> {
        let sealing = self.local.close_up_to(window);
        // First: what is sealed below tells later calls up to where this has been done.
        for idle in self.local.idle_up_to(window) {
            self.handover.seal_idle(idle).await?;
            self.local.sealed_idle(idle);
        }
        for local in sealing {
            self.handover.seal(&local).await?;
            self.local.sealed(local);
        }
        Ok(())
    }

    fn windows(&self) -> Vec<Window> {
        self.local.all()
    }

    async fn count(&self, window: Window) -> Result<Tally, CountError> {
        if self.local.is_evicted(window) {
            return Err(CountError::Evicted(window));
        }
        let intakes = self.handover.intakes(window).await?;
        Ok(self.tally(window, intakes).await?)
    }

    async fn settle(&self, window: Window, parties: &BTreeSet<String>) -> Result<Tally, CountError> {
        if self.local.is_evicted(window) {
            return Err(CountError::Evicted(window));
        }
        // First, because a window that is closed by force may still grow.
        let mut intakes = self.handover.intakes(window).await?;
        for party in parties {
            // It has sealed the window, and what it said then is gone.
            intakes.entry(party.clone()).or_insert(Intake::UNKNOWN);
        }
        let in_doubt = match self.config.mode {
            Mode::Hll => self.handover.gather(window, &intakes).await?,
            Mode::Exact => 0,
        };
        let mut tally = self.tally(window, intakes).await?;
        tally.lost_ids += in_doubt;
        Ok(tally)
    }

    async fn recall(&self, window: Window) -> Result<Option<Tally>, Unavailable> {
        let RedisCounterConfig { mode, shards, keys, .. } = &*self.config;
        let mut ask = ::redis::cmd("EXISTS");
        for shard in 0..usize::from(shards.count()) {
            ask.arg(keys.ids(*mode, shard, *shards, window));
        }
        let there: u64 = self.run(Call::Count, async |connection| ask.query_async(connection).await).await?;
        if there == 0 {
            return Ok(None);
        }
        let intakes = self.handover.intakes(window).await?;
        self.tally(window, intakes).await.map(Some)
    }

    async fn closed(&self, window: Window) {
        for local in self.local.with_part(window) {
            if let Err(error) = self.handover.remove_part(&local).await {
                debug!(window = %local.window, %error, "a part of a closed window expires later than it could");
                return;
            }
        }
    }

    async fn forget(&self, window: Window) {
        let forgotten = self.local.forget(window);
        if self.config.mode == Mode::Exact {
            self.let_expire(&forgotten).await;
        }
    }

    async fn restore(&self) -> Result<(), Unavailable> {
        self.pipeline().forget_acknowledged();
        let generation = self.redis.generation();
        for sealed in self.local.all_sealed() {
            match sealed {
                Sealed::Kept(local) => {
                    local.note_loss(generation);
                    self.handover.seal(&local).await?;
                }
                Sealed::Dropped(window, intake) => self.handover.report_lost(window, intake).await?,
            }
        }
        let open = self.local.open();
        for local in &open {
            local.note_loss(generation);
        }
        self.handover.hand_over_all(&open).await
    }

    fn is_degraded(&self) -> bool {
        self.breaker.is_open()
    }

    fn unacknowledged_ids(&self) -> u64 {
        self.local.unacknowledged_ids()
    }

    fn take_kept_apart(&self, first: Window, last: Window) -> u64 {
        self.local.take_kept_apart(first, last)
    }
}
