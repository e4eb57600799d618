//! The counter in Redis: for any number of instances that count together.
//!
//! # Where an id goes
//!
//! First into this instance's own sketch of the window and shard, then as a `PFADD` into the shared one,
//! through the [pipeline](super::pipeline). The request is answered when its own reply is there. In mode
//! `exact` it is a `SADD`, and there is nothing local.
//!
//! # The seal
//!
//! When a window is over the watermark moves on, under the write half of a lock of which every addition holds
//! the read half while it enters; so from then on none enters. Those that are under way are waited for:
//! each has a deadline. Then the local sketch is merged into the shared one, and how many ids were accepted
//! is noted. After that everything that this instance has accepted for the window is in Redis.
//!
//! The merge looks superfluous, since all ids were sent one by one. It is what makes the count whole when
//! Redis was flushed, was restarted, or failed over to a replica that had not got the last writes: a sketch of
//! 12 KB makes up for all of it, and merging twice is merging once. In mode `exact` there is no such
//! thing; what Redis acknowledged and then lost is lost.
//!
//! # What is kept
//!
//! Local sketches live until the window is published, so that they can be merged once more should Redis
//! lose everything before that; of sealed windows the last few.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ::redis::aio::MultiplexedConnection;
use async_trait::async_trait;
use clap::{Args, ValueEnum};
use parking_lot::RwLock;
use smallvec::{SmallVec, smallvec};
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tracing::{error, warn};

pub use super::pipeline::PipelineTask;
use super::pipeline::{Pipeline, Target, Write, pipeline};
use super::{AddError, Added, CountError, Tally, UniqueCounter};
use crate::id::Id;
use crate::metrics::Metrics;
use crate::mode::Mode;
use crate::redis::keys::Keys;
use crate::redis::{Call, Redis};
use crate::shard::Shards;
use crate::sketch::{Observation, Sketch};
use crate::unavailable::Unavailable;
use crate::window::Window;

/// Ids in one command: a large list holds up Redis no longer than many small ones.
const IDS_A_COMMAND: usize = 1024;
/// Shards that are merged or counted in one pipeline.
const SHARDS_A_PIPELINE: usize = 16;
/// Sealed windows whose sketches are kept for as long as their counts are not stored.
const SKETCHES_KEPT: usize = 8;
/// How long what is to be merged lives if the merge does not come, in seconds.
const MERGE_EXPIRES: u64 = 60;

/// Which ids are sent to Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RedisWrites {
    /// All of them
    All,
    /// In mode hll only those that can change the sketch: the count is the same, and there is far less to
    /// send
    Changed,
}

/// How ids are sent to Redis.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Redis")]
pub struct RedisCounterArgs {
    /// Which ids are sent to Redis
    #[arg(long, env = "HEADCOUNT_REDIS_WRITES", value_enum, default_value_t = RedisWrites::All)]
    pub redis_writes: RedisWrites,
}

/// What a counter in Redis is made of.
pub struct RedisCounterConfig {
    /// How ids are remembered.
    pub mode: Mode,
    /// Keys that a window's ids are split over.
    pub shards: Shards,
    /// How long after its end a window's keys are kept.
    pub retention: Duration,
    /// Which ids are sent.
    pub writes: RedisWrites,
    /// How long a write may take.
    pub timeout: Duration,
    /// The names of the keys.
    pub keys: Keys,
    /// This process, unlike any other.
    pub process: String,
}

/// Counts in Redis, together with all instances of the namespace.
pub struct RedisCounter {
    config: RedisCounterConfig,
    redis: Redis,
    pipeline: Pipeline,
    state: RwLock<State>,
}

#[derive(Default)]
struct State {
    /// The oldest window that is not sealed; every window is open before the first seal.
    watermark: Option<Window>,
    /// Windows at or past the watermark, and those that are being sealed.
    open: BTreeMap<Window, Arc<LocalWindow>>,
    /// Sealed windows that are not forgotten; the newest few with what was added to them.
    sealed: BTreeMap<Window, Option<Arc<LocalWindow>>>,
    /// The last window that was forgotten.
    forgotten: Option<Window>,
}

/// This instance's part of a window.
struct LocalWindow {
    window: Window,
    /// For each shard.
    targets: Box<[Arc<Target>]>,
    /// For each shard; none in mode `exact`.
    sketches: Box<[Sketch]>,
    /// Additions that have entered and not been answered.
    under_way: TaskTracker,
}

/// What Redis has to be told.
#[derive(Default)]
struct News {
    /// Ids by shard, in the order of the shards.
    parts: SmallVec<[(usize, SmallVec<[Id; 1]>); 1]>,
    /// How many of them changed the local sketch.
    changed: u64,
}

impl RedisCounter {
    /// A counter, and the task that does its writing: it has to run.
    pub fn new(config: RedisCounterConfig, redis: &Redis, metrics: &Metrics) -> (Self, PipelineTask) {
        let (pipeline, task) = pipeline(redis, config.timeout, metrics);
        (Self { config, redis: redis.another(), pipeline, state: RwLock::default() }, task)
    }

    /// Enters a window: until the token is dropped, it cannot be sealed.
    fn enter(&self, window: Window) -> Result<(Arc<LocalWindow>, TaskTrackerToken), AddError> {
        loop {
            let state = self.state.read();
            if let Some(open) = state.watermark
                && window < open
            {
                return Err(AddError::Sealed { open });
            }
            if let Some(local) = state.open.get(&window) {
                return Ok((Arc::clone(local), local.under_way.token()));
            }
            drop(state);
            // Made before the lock is taken, and dropped again if another caller was faster.
            let new = Arc::new(LocalWindow::new(&self.config, window));
            let mut state = self.state.write();
            if state.watermark.is_none_or(|open| open <= window) {
                state.drop_older(window.start().checked_sub(self.config.retention));
                state.open.entry(window).or_insert(new);
            }
        }
    }

    /// Adds ids to the local sketch, and says which of them Redis has to be told.
    fn add_locally(&self, local: &LocalWindow, ids: &[Id]) -> News {
        let mut news = News::default();
        for id in ids {
            let shard = self.config.shards.of(id.as_bytes());
            let target = &local.targets[shard];
            if let Some(sketch) = local.sketches.get(shard) {
                let observation = Observation::of(id.as_bytes());
                news.changed += u64::from(sketch.raise(observation));
                if self.pipeline.is_acknowledged(target, observation) {
                    target.accept(1);
                    continue;
                }
            }
            match news.parts.binary_search_by_key(&shard, |(shard, _)| *shard) {
                Ok(place) => news.parts[place].1.push(*id),
                Err(place) => news.parts.insert(place, (shard, smallvec![*id])),
            }
        }
        news
    }

    async fn seal_one(&self, local: &LocalWindow) -> Result<(), Unavailable> {
        local.under_way.close();
        // Each write has its deadline, so this one only says that something is very wrong.
        let patience = 10 * self.config.timeout;
        tokio::time::timeout(patience, local.under_way.wait())
            .await
            .map_err(|_| Unavailable::because("writes of a window that is to be sealed do not end"))?;
        self.merge(local).await?;
        self.report_accepted(local).await
    }

    /// Merges the local sketches into the shared ones.
    async fn merge(&self, local: &LocalWindow) -> Result<(), Unavailable> {
        let sketches: Vec<_> =
            local.sketches.iter().enumerate().filter(|(_, sketch)| !sketch.is_empty()).collect();
        for some in sketches.chunks(SHARDS_A_PIPELINE) {
            let mut commands = ::redis::Pipeline::new();
            for (shard, sketch) in some {
                let Target { key, expire_at, .. } = &*local.targets[*shard];
                let merge = self.config.keys.merge(*shard, self.config.shards, &self.config.process);
                commands.cmd("SET").arg(&merge).arg(sketch.to_bytes()).arg("EX").arg(MERGE_EXPIRES);
                commands.cmd("PFMERGE").arg(key).arg(&merge);
                commands.cmd("EXPIREAT").arg(key).arg(expire_at);
                commands.cmd("DEL").arg(&merge);
            }
            self.run(Call::Seal, async |connection| commands.exec_async(connection).await).await?;
        }
        Ok(())
    }

    async fn report_accepted(&self, local: &LocalWindow) -> Result<(), Unavailable> {
        let accepted = local.accepted();
        if accepted == 0 {
            return Ok(());
        }
        let key = self.config.keys.accepted(local.window);
        let mut commands = ::redis::Pipeline::new();
        commands.cmd("HSET").arg(&key).arg(&self.config.process).arg(accepted);
        commands.cmd("EXPIREAT").arg(&key).arg(expire_at(local.window, self.config.retention));
        self.run(Call::Seal, async |connection| commands.exec_async(connection).await).await
    }

    /// How many different ids a window has, over all shards.
    async fn unique_ids(&self, window: Window) -> Result<u64, Unavailable> {
        let RedisCounterConfig { mode, shards, keys, .. } = &self.config;
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
            let counts: Vec<u64> =
                self.run(Call::Count, async |connection| commands.query_async(connection).await).await?;
            total += counts.iter().sum::<u64>();
        }
        Ok(total)
    }

    /// How many ids all instances have accepted, as far as they have sealed the window, and this one so far.
    async fn accepted_ids(&self, window: Window) -> Result<u64, Unavailable> {
        let mut get = ::redis::cmd("HGETALL");
        get.arg(self.config.keys.accepted(window));
        let mut reported: BTreeMap<String, u64> =
            self.run(Call::Count, async |connection| get.query_async(connection).await).await?;
        let open = self.state.read().open.get(&window).map(|local| local.accepted());
        if let Some(accepted) = open {
            reported.insert(self.config.process.clone(), accepted);
        }
        Ok(reported.values().sum())
    }

    /// Exact ids take memory and are somebody's: once they are counted they soon expire.
    async fn let_expire(&self, windows: &[Window]) {
        let RedisCounterConfig { mode, shards, keys, .. } = &self.config;
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
    async fn add(&self, window: Window, ids: &[Id]) -> Result<Added, AddError> {
        let (local, under_way) = self.enter(window)?;
        let News { parts, changed } = self.add_locally(&local, ids);
        let mut replies: SmallVec<[oneshot::Receiver<_>; 1]> = SmallVec::new();
        for (shard, ids) in parts {
            for ids in ids.chunks(IDS_A_COMMAND) {
                let (reply, receiver) = oneshot::channel();
                let (target, under_way) = (Arc::clone(&local.targets[shard]), under_way.clone());
                self.pipeline.send(Write { target, ids: ids.into(), reply: Some(reply), under_way })?;
                replies.push(receiver);
            }
        }
        let mut added = 0;
        for reply in replies {
            added += reply.await.map_err(|_| Unavailable::because("the pipeline to Redis has ended"))??;
        }
        let changed = match self.config.mode {
            Mode::Exact => added,
            // PFADD says only whether any did.
            Mode::Hll if added == 0 => 0,
            Mode::Hll => changed.max(1),
        };
        Ok(Added { changed })
    }

    async fn seal(&self, window: Window) -> Result<(), Unavailable> {
        let sealing: Vec<_> = {
            let mut state = self.state.write();
            state.watermark = state.watermark.max(Some(window.next()));
            state.open.range(..=window).map(|(_, local)| Arc::clone(local)).collect()
        };
        for local in sealing {
            self.seal_one(&local).await?;
            self.state.write().sealed(local);
        }
        Ok(())
    }

    fn windows(&self) -> Vec<Window> {
        let state = self.state.read();
        state.sealed.keys().chain(state.open.keys()).copied().collect()
    }

    async fn count(&self, window: Window) -> Result<Tally, CountError> {
        {
            let state = self.state.read();
            let is_past_retention = |open: Window| window.end() + self.config.retention < open.start();
            if state.forgotten >= Some(window) || state.watermark.is_some_and(is_past_retention) {
                return Err(CountError::Evicted(window));
            }
        }
        let unique_ids = self.unique_ids(window).await?;
        let accepted_ids = self.accepted_ids(window).await?;
        Ok(Tally { unique_ids, accepted_ids })
    }

    async fn recall(&self, window: Window) -> Result<Option<Tally>, Unavailable> {
        let RedisCounterConfig { mode, shards, keys, .. } = &self.config;
        let mut ask = ::redis::cmd("EXISTS");
        ask.arg(keys.accepted(window));
        for shard in 0..usize::from(shards.count()) {
            ask.arg(keys.ids(*mode, shard, *shards, window));
        }
        let there: u64 = self.run(Call::Count, async |connection| ask.query_async(connection).await).await?;
        if there == 0 {
            return Ok(None);
        }
        let unique_ids = self.unique_ids(window).await?;
        Ok(Some(Tally { unique_ids, accepted_ids: self.accepted_ids(window).await? }))
    }

    async fn forget(&self, window: Window) {
        let forgotten: Vec<_> = {
            let mut state = self.state.write();
            state.forgotten = state.forgotten.max(Some(window));
            let kept = state.sealed.split_off(&window.next());
            std::mem::replace(&mut state.sealed, kept).into_keys().collect()
        };
        if self.config.mode == Mode::Exact {
            self.let_expire(&forgotten).await;
        }
    }

    async fn restore(&self) -> Result<(), Unavailable> {
        self.pipeline.forget_acknowledged();
        let (sealed, open): (Vec<_>, Vec<_>) = {
            let state = self.state.read();
            (state.sealed.values().flatten().cloned().collect(), state.open.values().cloned().collect())
        };
        for local in sealed {
            self.merge(&local).await?;
            self.report_accepted(&local).await?;
        }
        for local in open {
            self.merge(&local).await?;
        }
        Ok(())
    }
}

impl State {
    /// What could not be sealed within the retention has expired in Redis too. Without this an outage that does
    /// not end would take all memory.
    fn drop_older(&mut self, kept_since: Option<SystemTime>) {
        let is_past_retention = |window: &Window| kept_since.is_some_and(|since| window.end() < since);
        while let Some(oldest) = self.open.first_entry().filter(|oldest| is_past_retention(oldest.key())) {
            error!(window = %oldest.key(), "a window past retention could not be sealed: its ids are lost");
            oldest.remove();
        }
        self.sealed.retain(|window, _| !is_past_retention(window));
    }

    fn sealed(&mut self, local: Arc<LocalWindow>) {
        let window = local.window;
        self.open.remove(&window);
        self.sealed.insert(window, Some(local));
        for old in self.sealed.values_mut().rev().skip(SKETCHES_KEPT) {
            *old = None;
        }
    }
}

impl LocalWindow {
    fn new(config: &RedisCounterConfig, window: Window) -> Self {
        let RedisCounterConfig { mode, shards, retention, writes, keys, .. } = config;
        let (command, sketches) = match mode {
            Mode::Hll => ("PFADD", shards.count()),
            Mode::Exact => ("SADD", 0),
        };
        let remember = *mode == Mode::Hll && *writes == RedisWrites::Changed;
        let target = |shard| {
            let key = keys.ids(*mode, shard, *shards, window);
            Arc::new(Target::new(command, key, expire_at(window, *retention), remember))
        };
        Self {
            window,
            targets: (0..usize::from(shards.count())).map(target).collect(),
            sketches: (0..sketches).map(|_| Sketch::new()).collect(),
            under_way: TaskTracker::new(),
        }
    }

    fn accepted(&self) -> u64 {
        self.targets.iter().map(|target| target.accepted.load(Ordering::Relaxed)).sum()
    }
}

/// When a window's keys expire, in seconds since 1970.
fn expire_at(window: Window, retention: Duration) -> u64 {
    (window.end() + retention).duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
