//! The store in Redis: for any number of instances that count together.
//!
//! # Where an id goes
//!
//! First into this instance's own sketch of the window and shard, then as a `PFADD` into the shared one,
//! through the [pipeline](mod@pipeline). The request is answered when its own reply is there. In mode `exact` it is a
//! `SADD`, and there is nothing local.
//!
//! # When Redis is away
//!
//! A union can wait. So after the first write that fails or is late the [breaker] opens, and no request waits
//! any more. In mode `hll` it is answered when the local sketch has the id. In mode `exact` it is answered when the id
//! is in the set of [pending] ids, which has a bound. When Redis is back, a [recovery] [replays](replay) what is kept
//! here, and closes the breaker.
//!
//! # The seal
//!
//! When a window is over, the watermark moves on (see [`windows`](super::windows)): from then on no addition enters.
//! The seal waits for additions that are under way: each has a deadline. Then it merges the local sketch into the
//! shared one, or adds the pending exact ids. Last, it stores how many ids were accepted. After that Redis has
//! everything that this instance has accepted for the window.
//!
//! The merge looks superfluous, since all ids were sent one by one. But it makes the count whole after Redis was
//! flushed or restarted, or failed over to a replica without the last writes. A sketch of 12 KB makes up for all of
//! it, and merging twice is merging once. Mode `exact` has nothing like it: ids that Redis acknowledged and then lost
//! are lost.
//!
//! # In a cluster
//!
//! Each shard and each bucket of counters is in one slot. Each primary has a breaker and a recovery of its own. While one is away,
//! ids of its shards are kept here, and others go on. The seal waits for it.
//!
//! # What is kept
//!
//! Local sketches live until the window is published, so that they can be merged once more if Redis loses everything
//! before that. Of many sealed windows, only the newest keep their sketches.

mod absences;
mod addition;
mod around;
mod batch;
mod breaker;
mod compare;
mod config;
mod count;
mod counter_count;
mod counter_replay;
mod counters;
mod history;
mod local;
mod pending;
mod pipeline;
mod pipelines;
mod primaries;
mod primary;
mod recovery;
mod replay;
mod settle;
mod stats;
mod target;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use smallvec::SmallVec;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tracing::{debug, warn};

use self::absences::Absences;
use self::addition::Addition;
use self::around::Around;
use self::batch::Receipts;
use self::config::IDS_A_COMMAND;
pub use self::config::{OnRedisDown, RedisStoreConfig, RedisWrites};
pub use self::count::{count_commands, sum_counts};
use self::counters::Sent;
use self::local::{LocalWindow, LocalWindows, Sealed};
use self::pipelines::Pipelines;
use self::primaries::{Primaries, Task};
use self::recovery::Recovery;
use self::replay::Replay;
pub use self::stats::accepted_ids;
use self::target::Target;
use super::answers::{AddError, Added, CounterRecord, RolledUp, Union};
use super::ids::Ids;
use super::import::Import;
use crate::hll::Observation;
use crate::model::counter::{CounterCount, CounterCounts, CounterNames, Subject, bucket_of};
use crate::model::id::Id;
use crate::model::mode::Mode;
use crate::model::parts::Part;
use crate::model::period::Period;
use crate::model::window::Window;
use crate::platform::unavailable::Unavailable;
use crate::platform::workers::{self, Workers};
use crate::redis::{Call, Redis, Routed};
use crate::telemetry::metrics::Metrics;

/// So much before `--close-timeout` an instance seals a window without counters whose server is away. If the leader closed it
/// first, the total would not be complete either.
const SOONER_THAN_THE_LEADER: Duration = Duration::from_secs(4);
/// Windows without ids whose stats are stored by one pipeline.
const IDLE_AT_ONCE: usize = 100;

/// Ids that Redis does not have, each with its shard.
type News<'a> = SmallVec<[(usize, &'a [u8]); 1]>;

/// Counts in Redis, together with all instances of the namespace. [`Store`](super::Store) says what the methods promise.
pub struct RedisStore {
    config: Arc<RedisStoreConfig>,
    redis: Redis,
    primaries: Arc<Primaries>,
    /// One for each worker.
    pipelines: Box<[Pipelines]>,
    local: Arc<LocalWindows>,
    replay: Arc<Replay>,
    /// Of servers that windows could not be counted without.
    uncounted: Arc<Absences>,
    /// Of servers that windows could not be sealed without.
    unsealed: Arc<Absences>,
}

/// The tasks behind a store.
pub struct RedisStoreTasks {
    tasks: UnboundedReceiver<Task>,
    redis: Redis,
    local: Arc<LocalWindows>,
    replay: Arc<Replay>,
    absences: [Arc<Absences>; 2],
}

impl RedisStoreTasks {
    /// Runs the pipelines on their workers, and the recoveries, until the store is dropped.
    ///
    /// # Errors
    ///
    /// When one of them has panicked.
    pub async fn run(mut self, workers: Arc<Workers>) -> Result<(), JoinError> {
        let (mut pipelines, mut recoveries) = (JoinSet::new(), JoinSet::new());
        loop {
            let task = tokio::select! {
                Some(ended) = pipelines.join_next() => return ended.and_then(std::convert::identity),
                Some(ended) = recoveries.join_next() => return ended,
                task = self.tasks.recv() => task,
            };
            match task {
                Some(Task::Pipeline(worker, pipeline)) => {
                    let task = workers.spawn_on(worker, pipeline.run());
                    pipelines.spawn(task);
                }
                Some(Task::Recovery(primary)) => {
                    let (local, replay) = (Arc::clone(&self.local), Arc::clone(&self.replay));
                    let absences = self.absences.clone();
                    let recovery = Recovery { primary, redis: self.redis.clone(), local, replay, absences };
                    recoveries.spawn(recovery.run(Arc::clone(&workers)));
                }
                None => return Ok(()),
            }
        }
    }
}

impl RedisStore {
    /// Returns a store for requests on so many workers, and its tasks. The caller must run the tasks.
    pub fn new(
        config: RedisStoreConfig,
        redis: &Redis,
        workers: usize,
        metrics: &Arc<Metrics>,
    ) -> (Self, RedisStoreTasks) {
        let config = Arc::new(config);
        metrics.pending_ids_max.set(config.most_pending_ids().unwrap_or_default());
        let local = Arc::new(LocalWindows::new(Arc::clone(&config), metrics.missed_ids.clone()));
        let epoch = Arc::new(AtomicU64::new(1));
        let replay = Arc::new(Replay::new(Arc::clone(&config), redis, Arc::clone(&epoch), metrics));
        let (to_start, tasks) = unbounded_channel();
        let primaries = Arc::new(Primaries::new(redis, config.on_redis_down, metrics, to_start));
        let of_worker = |worker| Pipelines::new(worker, redis, &primaries, config.timeout, &epoch, metrics);
        let pipelines: Box<[_]> = (0..workers.max(1)).map(of_worker).collect();
        for node in redis.nodes_with_slots() {
            for of_worker in &pipelines {
                // It begins with the first write otherwise.
                let _ = of_worker.to(node.number());
            }
        }
        let (uncounted, unsealed) = (Arc::<Absences>::default(), Arc::<Absences>::default());
        let tasks = RedisStoreTasks {
            tasks,
            redis: redis.clone(),
            local: Arc::clone(&local),
            replay: Arc::clone(&replay),
            absences: [Arc::clone(&uncounted), Arc::clone(&unsealed)],
        };
        let redis = redis.another();
        (Self { config, redis, primaries, pipelines, local, replay, uncounted, unsealed }, tasks)
    }

    /// The pipelines of this worker. The caller may also run elsewhere: then it takes the first.
    fn pipelines(&self) -> &Pipelines {
        &self.pipelines[workers::current().unwrap_or_default() % self.pipelines.len()]
    }

    pub(super) async fn add<I: Id>(
        &self,
        window: Window,
        ids: &[I],
        counters: &CounterNames<'_>,
    ) -> Result<Added, AddError> {
        let (local, under_way) = self.local.enter(window)?;
        let all = Addition { ids, to_counters: ids, counters };
        let added = if self.primaries.some_are_away() {
            self.write_around(&local, all, &under_way).await?
        } else {
            self.write(&local, all, &under_way).await?
        };
        local.note_accepted(ids.len());
        if let Some(counters) = &local.counters {
            counters.note_overflow(added.overflow);
        }
        // Only now may the window be sealed: Redis has the ids, or they are pending.
        drop(under_way);
        Ok(added)
    }

    pub(super) async fn import(
        &self,
        window: Window,
        import: &Import,
        counters: &CounterNames<'_>,
    ) -> Result<Added, AddError> {
        let (local, under_way) = self.local.enter(window)?;
        let (may_keep, primaries) = (self.config.on_redis_down == OnRedisDown::Count, &self.primaries);
        if !may_keep && primaries.some_are_away() {
            return Err(Unavailable::because("Redis is away").into());
        }
        let (away, failed) =
            (|| primaries.around_those_away(), |around: &Around| primaries.note_failed(around));
        let (added, done) = self.replay.import(&local, import, counters, away, failed).await?;
        if let Err(error) = done {
            if !may_keep {
                return Err(error.into());
            }
            local.note_missed_import();
            self.primaries.note_kept(1);
        }
        // Only now may the window be sealed: Redis has it, or it is pending.
        drop(under_way);
        Ok(added)
    }

    /// Keeps what is for servers that are away, and writes the rest.
    async fn write_around<I: Id>(
        &self,
        local: &LocalWindow,
        all: Addition<'_, '_, I>,
        under_way: &TaskTrackerToken,
    ) -> Result<Added, Unavailable> {
        let is_away = |target: &Target| self.primaries.is_away(target.slot);
        let of_id = |id: &&I| is_away(&local.targets[self.config.shards.of((*id).as_ref())]);
        let (kept_ids, sent_ids): (Vec<I>, Vec<I>) = all.ids.iter().cloned().partition(|id| of_id(&id));
        let away =
            |name: &str| local.counters.as_ref().is_some_and(|of| is_away(of.names_of(bucket_of(name))));
        let (kept_names, sent_names) = all.counters.partition(away);
        let mut added = Added::default();
        if !kept_ids.is_empty() || !kept_names.is_empty() {
            let kept = Addition { ids: &kept_ids, to_counters: all.to_counters, counters: &kept_names };
            added = self.keep(local, kept, Unavailable::because("Redis is away"))?;
        }
        if !sent_ids.is_empty() || !sent_names.is_empty() {
            let sent = Addition { ids: &sent_ids, to_counters: all.to_counters, counters: &sent_names };
            let written = self.write(local, sent, under_way).await?;
            added.changed += written.changed;
            added.overflow = added.overflow.max(written.overflow);
        }
        Ok(added)
    }

    /// Adds ids here and in Redis. Returns how many changed anything.
    async fn write<I: Id>(
        &self,
        local: &LocalWindow,
        all: Addition<'_, '_, I>,
        under_way: &TaskTrackerToken,
    ) -> Result<Added, Unavailable> {
        let (news, changed) = self.add_locally(local, all.ids);
        // Most requests with `--redis-writes changed`. The rest would make lists and futures that stay empty: 1 000 instructions.
        if news.is_empty() && all.counters.is_empty() {
            return Ok(Added::default());
        }
        let sent = self.send(local, news, under_way);
        let to_counters = match &local.counters {
            Some(local) if !all.counters.is_empty() => {
                local.send(all.to_counters, all.counters, self.pipelines(), under_way)
            }
            _ => Ok(Sent::default()),
        };
        let answered = match (sent, to_counters) {
            (Ok(receipts), Ok(mut to_counters)) => {
                let of_counters = std::mem::take(&mut to_counters.receipts);
                match (answers(receipts).await, answers(of_counters).await) {
                    (Ok(new), Ok(_)) => {
                        to_counters.note_acknowledged();
                        Ok((new, to_counters.overflow))
                    }
                    (Err(error), _) | (_, Err(error)) => Err(error),
                }
            }
            (Err(error), _) | (_, Err(error)) => Err(error),
        };
        match answered {
            Ok((new, overflow)) if self.config.mode == Mode::Exact => Ok(Added { changed: new, overflow }),
            Ok((0, overflow)) => Ok(Added { changed: 0, overflow }),
            // PFADD says only whether any id changed the sketch.
            Ok((_, overflow)) => Ok(Added { changed: changed.max(1), overflow }),
            // All ids: adding some of them twice is less work than finding out which ones Redis has.
            Err(error) => {
                let kept = self.keep(local, all, error)?;
                Ok(Added { changed: changed + kept.changed, ..kept })
            }
        }
    }

    /// Adds ids to the local sketch. Returns those that Redis does not have, and how many changed the local sketch.
    fn add_locally<'a, I: Id>(&self, local: &LocalWindow, ids: &'a [I]) -> (News<'a>, u64) {
        let pipelines = self.pipelines();
        let (mut news, mut changed) = (News::with_capacity(ids.len()), 0);
        for id in ids.iter().map(AsRef::as_ref) {
            let shard = self.config.shards.of(id);
            if let Ids::Hll { sketches, .. } = &local.ids {
                let observation = Observation::of(id);
                changed += u64::from(sketches[shard].raise(observation));
                if pipelines.is_acknowledged(&local.targets[shard], observation) {
                    continue;
                }
            }
            news.push((shard, id));
        }
        (news, changed)
    }

    /// Puts ids into the pipeline: a command a shard, or several if it would be long.
    fn send(
        &self,
        local: &LocalWindow,
        mut news: News<'_>,
        under_way: &TaskTrackerToken,
    ) -> Result<Receipts, Unavailable> {
        let pipelines = self.pipelines();
        if local.targets.len() > 1 {
            news.sort_unstable_by_key(|(shard, _)| *shard);
        }
        let of_shards = news.chunk_by(|(one, _), (other, _)| one == other);
        let sent = of_shards.flat_map(|of_a_shard| of_a_shard.chunks(IDS_A_COMMAND)).map(|some| {
            let target = &local.targets[some[0].0];
            pipelines.send(target, some.iter().map(|(_, id)| *id), under_way)
        });
        sent.collect()
    }

    /// Keeps ids that Redis does not take, or refuses them, as `--on-redis-down` says.
    fn keep<I: Id>(
        &self,
        local: &LocalWindow,
        all: Addition<'_, '_, I>,
        error: Unavailable,
    ) -> Result<Added, Unavailable> {
        match self.config.on_redis_down {
            OnRedisDown::Fail => Err(error),
            OnRedisDown::Count => {
                let added = local.keep(all)?;
                self.primaries.note_kept(all.ids.len());
                Ok(added)
            }
        }
    }

    pub(super) async fn seal(&self, window: Window) -> Result<(), Unavailable> {
        self.local.counter_memory.give_back_after_peak();
        let sealing = self.local.table.close_up_to(window);
        // First, because a later call begins after the last sealed window.
        for idle in self.local.idle_up_to(window).chunks(IDLE_AT_ONCE) {
            self.replay.seal_idle(idle).await?;
            self.local.note_sealed_idle(idle);
        }
        for (_, local) in sealing {
            // The leader waits for this instance, and this instance for the servers of counters, but not for as long.
            let timeout = self.config.close_timeout;
            let patience = timeout.saturating_sub(SOONER_THAN_THE_LEADER).max(timeout / 2);
            let (mut around, away) = (Around::default(), &self.unsealed);
            let may_lack = |around: &Around| away.all_last_for(around, patience, Instant::now()).is_ok();
            let sealed = self.replay.seal(&local, &mut around, may_lack).await;
            away.note(&around, Instant::now());
            sealed?;
            self.local.note_sealed(local);
        }
        Ok(())
    }

    pub(super) async fn seal_closed(&self, window: Window) -> Result<(), Unavailable> {
        if !self.redis.is_cluster() {
            return self.seal(window).await;
        }
        let mut around = Around::default();
        for (_, local) in self.local.table.close_up_to(window) {
            if let Err(error) = self.replay.seal(&local, &mut around, |_| true).await {
                debug!(window = %local.window, %error, "a closed window is sealed, though a server lacks some of its ids");
            }
            self.local.note_sealed(local);
        }
        self.local.note_sealed_idle(&self.local.idle_up_to(window));
        Ok(())
    }

    pub(super) fn goes_on_without_some(&self) -> bool {
        self.redis.is_cluster()
    }

    pub(super) fn windows(&self) -> Vec<Window> {
        self.local.all()
    }

    /// Bytes that counters take in this instance.
    pub(super) fn counter_memory(&self) -> u64 {
        self.local.counter_memory.used()
    }

    pub(super) async fn closed(&self, window: Window) {
        self.local.give_up_counters(window);
        for local in self.local.with_part(window) {
            if let Err(error) = self.replay.remove_part(&local).await {
                debug!(window = %local.window, %error, "a part of a closed window expires later than it could");
                return;
            }
        }
    }

    pub(super) async fn let_counters_expire(
        &self,
        window: Window,
        counts: &CounterCounts,
    ) -> Result<(), Unavailable> {
        self.replay.let_counters_expire(window, counts).await
    }

    pub(super) fn has_sketches(&self) -> bool {
        self.config.mode == Mode::Hll
    }

    pub(super) async fn roll_up(&self, window: Window, periods: &[Period]) -> Result<RolledUp, Unavailable> {
        self.replay.roll_up(window, periods).await
    }

    pub(super) async fn roll_up_counters(
        &self,
        window: Window,
        counters: &[CounterCount],
        periods: &[Period],
    ) -> Result<(), Unavailable> {
        self.replay.roll_up_counters(window, counters, periods).await
    }

    pub(super) async fn counter_records(
        &self,
        counter: &str,
        periods: &[Period],
    ) -> Result<Vec<Option<CounterRecord>>, Unavailable> {
        self.replay.counter_records(counter, periods).await
    }

    pub(super) async fn union(&self, of: &Subject, parts: &[Part]) -> Result<Union, Unavailable> {
        self.replay.union(of, parts).await
    }

    pub(super) async fn evict(&self, window: Window) {
        let evicted = self.local.evict(window);
        if self.config.mode == Mode::Exact {
            self.let_expire(&evicted).await;
        }
    }

    /// Exact ids take memory and may be personal data. So they soon expire after they are counted.
    async fn let_expire(&self, windows: &[Window]) {
        let RedisStoreConfig { mode, shards, keys, .. } = &*self.config;
        for window in windows {
            let shards: Vec<_> = (0..usize::from(shards.count()))
                .map(|shard| keys.ids(*mode, shard, *shards, *window))
                .collect();
            for some in self.redis.groups(&shards, String::as_str, shards.len()) {
                let mut commands = ::redis::Pipeline::new();
                for key in some {
                    commands.cmd("EXPIRE").arg(key).arg(2 * window.length().seconds());
                }
                let expire = async |connection: &mut Routed| commands.exec_async(connection).await;
                if let Err(error) = self.redis.run(Call::Seal, &some[0], expire).await {
                    warn!(%window, %error, "exact ids expire later than they could");
                }
            }
        }
    }

    pub(super) async fn restore(&self, loss: u64) -> Result<(), Unavailable> {
        self.pipelines().begin_epoch();
        let generation = self.redis.generation();
        let (mut around, mut stored) = (Around::default(), Ok(()));
        for (window, sealed) in self.local.table.sealed() {
            let done = match sealed {
                Sealed::Kept(local) => {
                    local.note_loss(loss, generation);
                    self.replay.seal(&local, &mut around, |_| false).await
                }
                Sealed::Dropped(stats) => self.replay.store_lost(window, &stats).await,
            };
            stored = stored.and(done);
            if stored.is_err() && !self.redis.is_cluster() {
                return stored;
            }
        }
        let open = self.local.open();
        for local in &open {
            local.note_loss(loss, generation);
        }
        stored.and(self.replay.replay_all(&open).await.all_done())
    }

    pub(super) fn is_degraded(&self) -> bool {
        self.primaries.some_are_away()
    }

    pub(super) fn pending_ids(&self) -> u64 {
        self.local.pending_ids()
    }

    /// While a server of a cluster is away, the rest is given again and again, which is no progress.
    pub(super) fn counters_left(&self) -> u64 {
        let is_vain = self.redis.is_cluster() && self.primaries.some_are_away();
        if is_vain { 0 } else { self.replay.left.load(Ordering::Relaxed) }
    }

    pub(super) fn take_missed(&self, first: Window, last: Window) -> u64 {
        self.local.take_missed(first, last)
    }
}

/// Waits for the replies. Returns how many of the ids were new; for `PFADD`, how many commands changed something.
async fn answers(receipts: Receipts) -> Result<u64, Unavailable> {
    let mut added = 0;
    for receipt in receipts {
        added += receipt.await?;
    }
    Ok(added)
}
