//! The replay: Redis gets what this instance has of its windows, at the seal, after an outage and after a loss.
//!
//! Every step may fail half-way and be done again. A merge is idempotent, adding an id twice is adding it once, and an id is
//! pending until Redis has acknowledged it.
//!
//! # Parts
//!
//! The sketch of a window is one key for all instances. Such a key can be deleted, evicted or replaced, or it expires because no
//! instance could close the window in time. Then it takes along what sealed instances had merged into it, and the next merge
//! makes a new key that looks as good as the old one. So an instance that seals a window also leaves its own sketch, its *part*,
//! until the window is closed. The leader merges all parts once more before it counts. If a part is missing, the count may lack
//! ids, and is not called complete.
//!
//! # Something else under our name
//!
//! A list where a sketch belongs would also hold up all later windows, because windows are sealed in order. So it is put aside,
//! and what the instances have is merged into a new key.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ::metrics::Counter;
use ::redis::{FromRedisValue, Pipeline};
use tokio::time::Instant;

use super::around::Around;
use super::config::{RedisStoreConfig, SHARDS_A_PIPELINE};
use super::local::LocalWindow;
use super::stats::WindowStats;
use super::target::Target;
use crate::hll::Sketch;
use crate::model::counter::{BUCKETS, CounterNames};
use crate::model::id::TextId;
use crate::model::mode::Mode;
use crate::model::window::Window;
use crate::platform::unavailable::Unavailable;
use crate::redis::damage::{self, Holds, is_damage};
use crate::redis::{Call, Commands, Redis, Routed, Texts, Writer};
use crate::store::answers::Added;
use crate::store::ids::{IdSet, Ids};
use crate::store::import::Import;
use crate::telemetry::metrics::Metrics;

/// A sketch that waits to be merged expires after so many seconds.
pub(super) const MERGE_EXPIRES: u64 = 60;
/// Exact ids that are replayed in one pipeline: few enough to be done well within `--redis-timeout`.
const IDS_A_PIPELINE: usize = 8 * 1024;

/// What Redis has of a window after it was given what it lacked.
struct Given {
    /// In so many shards a part was left.
    parts: u64,
    /// Shards lack ids, because their servers are away.
    lacks_ids: bool,
    /// Buckets of counters that lack ids or names.
    lacking: Vec<usize>,
}

/// What a merge leaves in Redis beside the shared sketch: nothing, or this instance's part.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Leave {
    Nothing,
    Part,
}

pub(super) struct Replay {
    pub(super) config: Arc<RedisStoreConfig>,
    pub(super) redis: Redis,
    changed_ids: Counter,
    /// That of the [pipelines](super::pipeline).
    pub(super) epoch: Arc<AtomicU64>,
    /// Counters that the replay under way has left to give. It only shows that there is progress.
    pub(super) left: AtomicU64,
}

impl Replay {
    /// With a connection of its own.
    pub(super) fn new(
        config: Arc<RedisStoreConfig>,
        redis: &Redis,
        epoch: Arc<AtomicU64>,
        metrics: &Metrics,
    ) -> Self {
        Self {
            config,
            redis: redis.another(),
            changed_ids: metrics.changed_ids.clone(),
            epoch,
            left: AtomicU64::new(0),
        }
    }

    /// Checks that a node takes writes. In a cluster it may have no key of headcount: then there is nothing to check.
    pub(super) async fn probe(&self, writer: &Writer) -> Result<(), Unavailable> {
        let RedisStoreConfig { timeout, .. } = &*self.config;
        let Some(key) = self.key_on(writer.node().number()) else { return Ok(()) };
        let seconds = MERGE_EXPIRES.to_string();
        let mut write = Commands::default();
        write.add(&[b"SET", key.as_bytes(), b"", b"EX", seconds.as_bytes()]);
        // First, so that the write has all of its time. If it had not, on a slow network each try would be late, give up the
        // connection that it had just made, and leave the next try to connect again.
        writer.connect(Call::Ask).await?;
        writer.send(Call::Ask, &write, 0, Instant::now() + *timeout).await.map(drop)
    }

    /// A key of this instance on a node.
    fn key_on(&self, node: usize) -> Option<String> {
        let RedisStoreConfig { keys, shards, instance_id, .. } = &*self.config;
        let of_shards = (0..shards.count().into()).map(|shard| keys.merge(shard, *shards, instance_id));
        let of_buckets = (0..BUCKETS).map(|bucket| keys.merge_of_bucket(bucket, instance_id));
        of_shards.chain(of_buckets).find(|key| self.redis.number_for(key) == node)
    }

    /// Seals a window that no addition enters any more. The servers that are there get what is for them in any case. If shards
    /// lack ids, the window is not sealed. If only counters do, `may_lack` decides.
    pub(super) async fn seal(
        &self,
        local: &LocalWindow,
        around: &mut Around,
        may_lack: impl Fn(&Around) -> bool,
    ) -> Result<(), Unavailable> {
        // Each write has its own deadline. This one passes only if something is very wrong.
        local.all_answered(10 * self.config.timeout).await?;
        let Given { parts, lacks_ids, lacking } = self.give(local, Leave::Part, around).await;
        if let Some(counters) = &local.counters {
            counters.note_lacking(&lacking);
        }
        if lacks_ids || !(lacking.is_empty() || may_lack(around)) {
            return Err(around.error());
        }
        self.store_stats("HSET", &[local.window], &WindowStats { parts, ..local.stats() }).await
    }

    /// Stores the stats of windows without ids. If they were missing, the leader would take the ids for lost.
    pub(super) async fn seal_idle(&self, windows: &[Window]) -> Result<(), Unavailable> {
        self.store_stats("HSETNX", windows, &WindowStats::default()).await
    }

    /// Stores that the accepted ids of a window are lost, unless Redis still has its stats. Then it has the ids too, which
    /// were written before.
    pub(super) async fn store_lost(&self, window: Window, stats: &WindowStats) -> Result<(), Unavailable> {
        let lost = match self.config.mode {
            // The count shows it: ids that Redis called new are missing from the set. But not what was lost before.
            Mode::Exact => stats.lost,
            Mode::Hll => stats.accepted,
        };
        self.store_stats("HSETNX", &[window], &WindowStats { lost, ..stats.clone() }).await
    }

    /// Replays the pending ids of windows, one window after another, to all nodes that are there.
    pub(super) async fn replay_all(&self, windows: &[Arc<LocalWindow>]) -> Around {
        let mut around = Around::default();
        for local in windows {
            self.give(local, Leave::Nothing, &mut around).await;
        }
        around
    }

    /// Merges sketches into a window and its counters, here and as far as the servers are there. Those that are `away`, which is asked
    /// when the work begins, get them when they are back. `failed` learns which servers have failed, before another import begins.
    /// Returns whether some lack the sketches.
    pub(super) async fn import(
        &self,
        local: &LocalWindow,
        import: &Import,
        counters: &CounterNames<'_>,
        away: impl FnOnce() -> Around,
        failed: impl FnOnce(&Around),
    ) -> Result<(Added, Result<(), Unavailable>), Unavailable> {
        // No merge comes in between: one that had not seen all registers would count the import as merged.
        let replaying = tokio::time::timeout(10 * self.config.timeout, local.replaying.lock()).await;
        let _replaying = replaying.map_err(|_| Unavailable::because("the window is being replayed"))?;
        let mut around = away();
        let added = local.import(import, counters);
        self.give_now(local, Leave::Nothing, &mut around).await;
        failed(&around);
        Ok((added, around.all_done()))
    }

    /// Gives Redis what it lacks of a window, as far as its servers are there.
    async fn give(&self, local: &LocalWindow, leave: Leave, around: &mut Around) -> Given {
        let _replaying = local.replaying.lock().await;
        self.give_now(local, leave, around).await
    }

    /// The same for a caller who holds the lock.
    async fn give_now(&self, local: &LocalWindow, leave: Leave, around: &mut Around) -> Given {
        let missed = around.missed();
        let parts = match &local.ids {
            Ids::Hll { sketches, .. } => self.merge(local, sketches, leave, around).await,
            Ids::Exact(pending) => {
                self.add_all(local, pending, around).await;
                0
            }
        };
        let lacks_ids = around.missed() > missed;
        let lacking = self.give_counters(local, leave == Leave::Part, around).await;
        Given { parts, lacks_ids, lacking }
    }

    /// Merges the local sketches into the shared ones.
    async fn merge(
        &self,
        local: &LocalWindow,
        sketches: &[Sketch],
        leave: Leave,
        around: &mut Around,
    ) -> u64 {
        let sketches: Vec<_> = sketches.iter().enumerate().filter(|(_, sketch)| !sketch.is_empty()).collect();
        for some in self.redis.groups(&sketches, |(shard, _)| &local.targets[*shard].key, SHARDS_A_PIPELINE) {
            let node = self.redis.number_of(local.targets[some[0].0].slot);
            if around.skips(node) {
                continue;
            }
            // Before the registers are read: they have at least these ids.
            let ids: Vec<_> = some.iter().map(|(shard, _)| (*shard, local.unmerged(*shard))).collect();
            if around.note(node, self.merge_some(local, some, leave).await).is_some() {
                for (shard, ids) in ids {
                    local.note_merged(shard, ids);
                }
            }
        }
        if leave == Leave::Part { sketches.len() as u64 } else { 0 }
    }

    async fn merge_some(
        &self,
        local: &LocalWindow,
        some: &[(usize, &Sketch)],
        leave: Leave,
    ) -> Result<(), Unavailable> {
        let RedisStoreConfig { keys, shards, instance_id, .. } = &*self.config;
        let (mut commands, mut of_shards) = (Pipeline::new(), Vec::new());
        // No other merge may come in between. That of another window uses the same key, and so may one that was
        // sent over a connection that was then given up.
        commands.atomic();
        for (shard, sketch) in some {
            let Target { key, keep_for, .. } = &*local.targets[*shard];
            let (mine, lives) = match leave {
                Leave::Nothing => (keys.merge(*shard, *shards, instance_id), 1000 * MERGE_EXPIRES),
                Leave::Part => (keys.part(*shard, *shards, local.window, instance_id), *keep_for),
            };
            commands.cmd("SET").arg(&mine).arg(sketch.to_bytes()).arg("PX").arg(lives);
            commands.cmd("PFMERGE").arg(key).arg(&mine);
            commands.cmd("PEXPIRE").arg(key).arg(keep_for);
            if leave == Leave::Nothing {
                commands.cmd("DEL").arg(&mine);
            }
            of_shards.push(vec![key.clone()]);
        }
        if leave == Leave::Part {
            local.has_part.store(true, Ordering::Relaxed);
        }
        self.mending_ids(&of_shards, Call::Seal, &commands).await
    }

    /// Merges the parts of all instances into the sketches of a window that all have sealed. Returns how many ids are
    /// in doubt, because a part is gone.
    pub(super) async fn gather(
        &self,
        window: Window,
        stats: &BTreeMap<String, WindowStats>,
        around: &mut Around,
    ) -> u64 {
        let RedisStoreConfig { mode, keys, shards, .. } = &*self.config;
        let (with_parts, expected): (Vec<&String>, Vec<&WindowStats>) =
            stats.iter().filter(|(_, stats)| stats.parts > 0).unzip();
        if with_parts.is_empty() {
            return 0;
        }
        let mut found = vec![0; with_parts.len()];
        let all: Vec<_> = (0..usize::from(shards.count()))
            .map(|shard| (shard, keys.ids(*mode, shard, *shards, window)))
            .collect();
        for some in self.redis.groups(&all, |(_, key)| key, SHARDS_A_PIPELINE) {
            let (mut commands, mut of_shards) = (Pipeline::new(), Vec::new());
            let node = self.redis.number_for(&some[0].1);
            if around.skips(node) {
                continue;
            }
            for (shard, key) in some {
                let parts: Vec<_> = with_parts
                    .iter()
                    .map(|instance_id| keys.part(*shard, *shards, window, instance_id))
                    .collect();
                commands.cmd("PFMERGE").arg(key).arg(&parts).ignore();
                commands.cmd("PEXPIRE").arg(key).arg(self.config.keep_for(window)).ignore();
                // After the merge: a part that exists now was merged.
                for part in &parts {
                    commands.cmd("EXISTS").arg(part);
                }
                of_shards.push([vec![key.clone()], parts].concat());
            }
            let exists: Option<Vec<u64>> =
                around.note(node, self.mending_ids(&of_shards, Call::Seal, &commands).await);
            for (index, exists) in exists.unwrap_or_default().into_iter().enumerate() {
                found[index % with_parts.len()] += exists;
            }
        }
        let gone = expected.iter().zip(found).filter(|(expected, found)| *found < expected.parts);
        // Where a node was skipped, its parts are not gone.
        if around.lacks_some() { 0 } else { gone.map(|(expected, _)| expected.accepted.max(1)).sum() }
    }

    /// Removes this instance's part of a closed window.
    pub(super) async fn remove_part(&self, local: &LocalWindow) -> Result<(), Unavailable> {
        let RedisStoreConfig { keys, shards, instance_id, .. } = &*self.config;
        let parts: Vec<_> = (0..usize::from(shards.count()))
            .map(|shard| keys.part(shard, *shards, local.window, instance_id))
            .collect();
        for some in self.redis.groups(&parts, String::as_str, parts.len()) {
            let mut commands = ::redis::cmd("DEL");
            commands.arg(some);
            let remove = async |connection: &mut Routed| commands.exec_async(connection).await;
            self.redis.run(Call::Seal, &some[0], remove).await?;
        }
        local.has_part.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// Adds as many exact ids as are pending now. More may come while it runs.
    async fn add_all(&self, local: &LocalWindow, pending: &IdSet, around: &mut Around) {
        let node_of = |id: &[u8]| self.redis.number_of(local.targets[self.config.shards.of(id)].slot);
        let mut left = pending.len();
        while left > 0 {
            let some = pending.some(IDS_A_PIPELINE, |id| !around.has_failed(node_of(id)));
            if some.is_empty() {
                break;
            }
            let mut by_shard = vec![Vec::new(); local.targets.len()];
            for id in &some {
                by_shard[self.config.shards.of(id.as_bytes())].push(id);
            }
            let of_shards = local.targets.iter().zip(by_shard).filter(|(_, ids)| !ids.is_empty());
            let of_shards: Vec<_> = of_shards.collect();
            for group in self.redis.groups(&of_shards, |(target, _)| &target.key, of_shards.len()) {
                let node = self.redis.number_of(group[0].0.slot);
                if around.skips(node) {
                    continue;
                }
                let added = self.add_some(local, group).await;
                // Redis may have added them all the same, and calls none of them new the next time.
                if added.is_err() {
                    for (target, _) in group {
                        target.note_doubt();
                    }
                }
                around.note(node, added);
            }
            left = left.saturating_sub(some.len() as u64);
        }
    }

    async fn add_some(
        &self,
        local: &LocalWindow,
        some: &[(&Arc<Target>, Vec<&TextId>)],
    ) -> Result<(), Unavailable> {
        let (mut commands, mut of_shards) = (Pipeline::new(), Vec::new());
        for (target, ids) in some {
            commands.cmd(target.command).arg(&target.key);
            for id in ids {
                commands.arg(id.as_bytes());
            }
            commands.cmd("PEXPIRE").arg(&target.key).arg(target.keep_for).ignore();
            of_shards.push(vec![target.key.clone()]);
        }
        let added: Vec<u64> =
            if let Some(added) = self.unless_damaged(Call::Seal, &of_shards[0][0], &commands).await? {
                added
            } else {
                // Redis lost ids that it had called new, and may call them new once more.
                local.note_damage();
                self.mending_ids(&of_shards, Call::Seal, &commands).await?
            };
        let (new, generation) = (added.iter().sum(), self.redis.generation());
        let node_of = |target: &Target| self.redis.number_of(target.slot);
        let answered = some.first().map(|(target, _)| node_of(target));
        for target in local.targets.iter().filter(|target| Some(node_of(target)) == answered) {
            target.note_answer(generation);
        }
        local.note_replayed(some.iter().flat_map(|(_, ids)| ids.iter().copied()), new);
        self.changed_ids.increment(new);
        Ok(())
    }

    /// The stats that instances stored when they sealed a window.
    pub(super) async fn stats(&self, window: Window) -> Result<BTreeMap<String, WindowStats>, Unavailable> {
        let key = self.config.keys.accepted(window);
        let mut get = Pipeline::new();
        get.cmd("HGETALL").arg(&key);
        let (Texts(entries),): (Texts,) = self.mending(Holds::Hash, &[vec![key]], Call::Count, &get).await?;
        Ok(entries.into_iter().map(|(instance_id, text)| (instance_id, WindowStats::read(&text))).collect())
    }

    /// Stores this instance's stats. If the key held something else, those of other instances are gone. The leader then
    /// finds them missing when it counts the window.
    async fn store_stats(
        &self,
        set: &'static str,
        windows: &[Window],
        stats: &WindowStats,
    ) -> Result<(), Unavailable> {
        let (mut commands, stored) = (Pipeline::new(), stats.to_stored());
        let keys: Vec<_> = windows.iter().map(|window| self.config.keys.accepted(*window)).collect();
        for (key, window) in keys.iter().zip(windows) {
            commands.cmd(set).arg(key).arg(&self.config.instance_id).arg(&stored);
            commands.cmd("PEXPIRE").arg(key).arg(self.config.keep_for(*window));
        }
        self.mending(Holds::Hash, &[keys], Call::Seal, &commands).await
    }

    /// Runs commands on the keys of a window's ids, grouped by shard. See [`Self::mending`].
    pub(super) async fn mending_ids<T: FromRedisValue>(
        &self,
        of_shards: &[Vec<String>],
        call: Call,
        commands: &Pipeline,
    ) -> Result<T, Unavailable> {
        let holds = match self.config.mode {
            Mode::Hll => Holds::Sketch,
            Mode::Exact => Holds::Set,
        };
        self.mending(holds, of_shards, call, commands).await
    }

    /// Runs commands on keys, grouped by slot; in a cluster of one slot. It must be safe to run them twice. If a key holds something else than it
    /// should, puts that aside and runs them again.
    pub(super) async fn mending<T: FromRedisValue>(
        &self,
        holds: Holds,
        of_slots: &[Vec<String>],
        call: Call,
        commands: &Pipeline,
    ) -> Result<T, Unavailable> {
        let key = of_slots.iter().flatten().next().map_or("", String::as_str);
        if let Some(done) = self.unless_damaged(call, key, commands).await? {
            return Ok(done);
        }
        for keys in of_slots {
            damage::put_aside(&self.redis, call, holds, keys).await?;
        }
        self.redis.run(call, key, async |connection| commands.query_async(connection).await).await
    }

    /// Runs commands on keys in the slot of `key`. None if a key holds something else than it should.
    pub(super) async fn unless_damaged<T: FromRedisValue>(
        &self,
        call: Call,
        key: &str,
        commands: &Pipeline,
    ) -> Result<Option<T>, Unavailable> {
        let work = async |connection: &mut Routed| match commands.query_async(connection).await {
            Err(error) if is_damage(&error) => Ok(None),
            done => done.map(Some),
        };
        self.redis.run(call, key, work).await
    }
}
