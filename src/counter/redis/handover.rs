//! The handing over of what is kept here to Redis.
//!
//! Everything in here may fail half-way and be done again: a merge is idempotent, adding an id twice is adding
//! it once, and an id is kept until Redis has said that it has it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ::redis::aio::MultiplexedConnection;
use ::redis::{Pipeline, RedisError, RedisResult};

use super::batch::Target;
use super::config::{RedisCounterConfig, SHARDS_A_PIPELINE};
use super::local::{Held, Intake, LocalWindow, expire_at};
use crate::counter::id_set::IdSet;
use crate::id::Id;
use crate::metrics::{HotCounter, Metrics};
use crate::mode::Mode;
use crate::redis::wire::Wire;
use crate::redis::{Call, Redis};
use crate::sketch::Sketch;
use crate::unavailable::Unavailable;
use crate::window::Window;

/// How long what is to be merged lives if the merge does not come, in seconds.
const MERGE_EXPIRES: u64 = 60;
/// Exact ids that are handed over in one pipeline: few enough to be done well within `--redis-timeout`.
const IDS_A_PIPELINE: usize = 8 * 1024;

/// Hands over to Redis.
pub(super) struct Handover {
    config: Arc<RedisCounterConfig>,
    redis: Redis,
    changed_ids: HotCounter,
}

impl Handover {
    /// Over a connection of its own.
    pub(super) fn new(config: Arc<RedisCounterConfig>, redis: &Redis, metrics: &Metrics) -> Self {
        Self { config, redis: redis.another(), changed_ids: metrics.changed_ids.clone() }
    }

    /// Whether a server takes writes.
    pub(super) async fn probe(&self, redis: &Redis<Wire>) -> Result<(), Unavailable> {
        let RedisCounterConfig { keys, shards, process, .. } = &*self.config;
        let mut write = ::redis::cmd("SET");
        write.arg(keys.merge(0, *shards, process)).arg("").arg("EX").arg(MERGE_EXPIRES);
        let write = write.get_packed_command();
        let ask = redis.run(Call::Ask, async |wire| {
            wire.exchange(&write, 1)
                .await?
                .into_iter()
                .collect::<Result<Vec<_>, _>>()
                .map_err(RedisError::from)
        });
        ask.await.map(drop)
    }

    /// Seals a window that nothing enters any more.
    pub(super) async fn seal(&self, local: &LocalWindow) -> Result<(), Unavailable> {
        // Each write has its deadline, so this one only says that something is very wrong.
        local.all_answered(10 * self.config.timeout).await?;
        self.hand_over(local).await?;
        self.report_intake("HSET", local.window, local.intake()).await
    }

    /// Says that what was accepted for a window is lost, unless Redis still knows of it: then it has the rest
    /// too, which came before.
    pub(super) async fn report_lost(&self, window: Window, intake: Intake) -> Result<(), Unavailable> {
        let lost = match self.config.mode {
            // Those that Redis called new are missing from the set.
            Mode::Exact => 0,
            Mode::Hll => intake.accepted,
        };
        self.report_intake("HSETNX", window, Intake { lost, ..intake }).await
    }

    /// Hands over what is kept of windows, one after another.
    pub(super) async fn hand_over_all(&self, windows: &[Arc<LocalWindow>]) -> Result<(), Unavailable> {
        for local in windows {
            self.hand_over(local).await?;
        }
        Ok(())
    }

    /// Hands over what is kept of a window, one caller after another.
    pub(super) async fn hand_over(&self, local: &LocalWindow) -> Result<(), Unavailable> {
        let _turn = local.handing_over.lock().await;
        match &local.held {
            Held::Sketches { sketches, unmerged } => {
                // Ordered after the registers of these ids.
                let ids = unmerged.load(Ordering::Acquire);
                self.merge(local, sketches).await?;
                unmerged.fetch_sub(ids, Ordering::Relaxed);
                local.unacknowledged.release(ids);
                Ok(())
            }
            Held::Ids(ids) => self.add_all(local, ids).await,
        }
    }

    /// Merges the local sketches into the shared ones.
    async fn merge(&self, local: &LocalWindow, sketches: &[Sketch]) -> Result<(), Unavailable> {
        let sketches: Vec<_> = sketches.iter().enumerate().filter(|(_, sketch)| !sketch.is_empty()).collect();
        for some in sketches.chunks(SHARDS_A_PIPELINE) {
            let mut commands = Pipeline::new();
            // Nobody may come in between: the merge of another window uses the same key, and so may one that was
            // sent over a connection that was then given up.
            commands.atomic();
            for (shard, sketch) in some {
                let Target { key, expire_at, .. } = &*local.targets[*shard];
                let merge = self.config.keys.merge(*shard, self.config.shards, &self.config.process);
                commands.cmd("SET").arg(&merge).arg(sketch.to_bytes()).arg("EX").arg(MERGE_EXPIRES);
                commands.cmd("PFMERGE").arg(key).arg(&merge);
                commands.cmd("EXPIREAT").arg(key).arg(expire_at);
                commands.cmd("DEL").arg(&merge);
            }
            self.run(async |connection| commands.exec_async(connection).await).await?;
        }
        Ok(())
    }

    /// Adds the exact ids that Redis does not have, as far as they are there already.
    async fn add_all(&self, local: &LocalWindow, ids: &IdSet) -> Result<(), Unavailable> {
        let mut some = Vec::new();
        for stripe in 0..IdSet::STRIPES {
            some.append(&mut ids.stripe_of(stripe));
            let is_last = stripe + 1 == IdSet::STRIPES;
            while some.len() >= IDS_A_PIPELINE || is_last && !some.is_empty() {
                let rest = some.split_off(some.len().min(IDS_A_PIPELINE));
                self.add_some(local, &some).await?;
                local.unacknowledged.release(ids.remove(&some));
                some = rest;
            }
        }
        Ok(())
    }

    async fn add_some(&self, local: &LocalWindow, ids: &[Id]) -> Result<(), Unavailable> {
        let mut by_shard = vec![Vec::new(); local.targets.len()];
        for id in ids {
            by_shard[self.config.shards.of(id.as_bytes())].push(id);
        }
        let mut commands = Pipeline::new();
        for (target, ids) in local.targets.iter().zip(by_shard).filter(|(_, ids)| !ids.is_empty()) {
            commands.cmd(target.command).arg(&target.key);
            for id in ids {
                commands.arg(id.as_bytes());
            }
            commands.cmd("EXPIREAT").arg(&target.key).arg(target.expire_at).ignore();
        }
        let added: Vec<u64> = self.run(async |connection| commands.query_async(connection).await).await?;
        let new = added.iter().sum();
        local.note_new(new);
        self.changed_ids.increment(new);
        Ok(())
    }

    /// Notes what came for a window.
    async fn report_intake(
        &self,
        set: &'static str,
        window: Window,
        intake: Intake,
    ) -> Result<(), Unavailable> {
        if intake.accepted == 0 {
            return Ok(());
        }
        let key = self.config.keys.accepted(window);
        let mut commands = Pipeline::new();
        commands.cmd(set).arg(&key).arg(&self.config.process).arg(intake.to_string());
        commands.cmd("EXPIREAT").arg(&key).arg(expire_at(window, self.config.retention));
        self.run(async |connection| commands.exec_async(connection).await).await
    }

    async fn run<T>(
        &self,
        work: impl AsyncFnOnce(&mut MultiplexedConnection) -> RedisResult<T>,
    ) -> Result<T, Unavailable> {
        self.redis.run(Call::Seal, work).await
    }
}
