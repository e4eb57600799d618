//! The replay of counters: Redis gets what this instance has of them.
//!
//! A counter is small and there may be many, so they go in chunks of few commands: Redis serves others in between. The keys of
//! a chunk are in one slot.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ::redis::Pipeline;

use super::around::Around;
use super::config::IDS_A_COMMAND;
use super::counters::{CounterIds, LocalCounter, LocalCounters};
use super::local::LocalWindow;
use super::replay::{MERGE_EXPIRES, Replay};
use super::target::Target;
use crate::model::id::TextId;
use crate::model::mode::Mode;
use crate::platform::unavailable::Unavailable;
use crate::redis::Call;
use crate::redis::damage::{self, Holds};

/// Counters that are merged in one transaction, of four commands each.
const MERGED_AT_ONCE: usize = 16;
/// Counters that are looked for in one pipeline.
const READ_AT_ONCE: usize = 50;
/// Names that are added by one command.
const LISTED_AT_ONCE: usize = 200;
/// Exact ids that are replayed in one pipeline.
const IDS_AT_ONCE: usize = 4 * 1024;

impl Replay {
    /// Gives Redis the pending ids of counters. At the seal it gives all that Redis lacks, and all names once more. Returns the
    /// buckets whose servers are away.
    pub(super) async fn give_counters(
        &self,
        local: &LocalWindow,
        at_seal: bool,
        around: &mut Around,
    ) -> Vec<usize> {
        let mut lacking = Vec::new();
        let Some(counters) = &local.counters else { return lacking };
        let epoch = self.epoch.load(Ordering::Relaxed);
        let mut by_bucket = BTreeMap::<usize, Vec<_>>::new();
        for counter in counters.all().into_iter().filter(|counter| at_seal || counter.has_pending()) {
            by_bucket.entry(counter.bucket).or_default().push(counter);
        }
        self.left.store(by_bucket.values().map(Vec::len).sum::<usize>() as u64, Ordering::Relaxed);
        for (bucket, of_bucket) in by_bucket {
            let node = self.redis.number_of(counters.names_of(bucket).slot);
            if around.skips(node) {
                self.note_given(of_bucket.len());
                lacking.push(bucket);
                continue;
            }
            let given = self.give_bucket(counters, bucket, of_bucket, epoch).await;
            if around.note(node, given).is_none() {
                lacking.push(bucket);
            }
        }
        lacking
    }

    async fn give_bucket(
        &self,
        counters: &LocalCounters,
        bucket: usize,
        of_bucket: Vec<Arc<LocalCounter>>,
        epoch: u64,
    ) -> Result<(), Unavailable> {
        for some in of_bucket.chunks(LISTED_AT_ONCE) {
            self.list(counters.names_of(bucket), some).await?;
        }
        let (mut lacking, there): (Vec<_>, Vec<_>) =
            of_bucket.into_iter().partition(|counter| counter.is_lacking());
        let lost = self.lost_of(&there).await?;
        self.note_given(there.len() - lost.len());
        lacking.extend(lost);
        for some in lacking.chunks(MERGED_AT_ONCE) {
            match self.config.mode {
                Mode::Hll => self.merge_counters(bucket, some, epoch).await?,
                Mode::Exact => self.add_to_counters(counters, some, epoch).await?,
            }
            self.note_given(some.len());
        }
        Ok(())
    }

    /// Notes that Redis has so many counters.
    fn note_given(&self, counters: usize) {
        let left = |left: u64| Some(left.saturating_sub(counters as u64));
        let _ = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, left);
    }

    /// Counters of which Redis acknowledged all ids, and does not have them all any more: another program deleted the key or
    /// wrote to it, or Redis evicted it. What other instances had added may be lost as well.
    async fn lost_of(&self, counters: &[Arc<LocalCounter>]) -> Result<Vec<Arc<LocalCounter>>, Unavailable> {
        let mut lost = Vec::new();
        for some in counters.chunks(READ_AT_ONCE) {
            let are_there = match self.config.mode {
                Mode::Hll => self.are_covered(some).await?,
                Mode::Exact => self.are_there(some).await?,
            };
            // Only now: the call may have led to another server.
            let generation = self.redis.generation();
            for (counter, _) in some.iter().zip(are_there).filter(|(_, is_there)| !is_there) {
                // After a loss that the heartbeat has noticed, all instances give again what they have.
                if counter.target.must_exist(generation) {
                    counter.note_damage();
                }
                lost.push(Arc::clone(counter));
            }
        }
        Ok(lost)
    }

    /// Whether the sketches in Redis have all registers of the local ones. A key that another instance made anew looks like any
    /// other, so only its registers tell.
    async fn are_covered(&self, counters: &[Arc<LocalCounter>]) -> Result<Vec<bool>, Unavailable> {
        let mut read = ::redis::cmd("MGET");
        for counter in counters {
            read.arg(&counter.target.key);
        }
        // A key of another type is answered as if it were not there.
        let stored: Vec<Option<Vec<u8>>> = self
            .redis
            .run(Call::Seal, key_of(counters), async |connection| read.query_async(connection).await)
            .await?;
        let is_covered = |(counter, stored): (&Arc<LocalCounter>, Option<Vec<u8>>)| match &counter.ids {
            CounterIds::Hll(sketch) => stored.is_some_and(|stored| sketch.is_within(&stored)),
            CounterIds::Exact(_) => false,
        };
        Ok(counters.iter().zip(stored).map(is_covered).collect())
    }

    /// Whether there are sets. Also lets them expire: one that was made anew would not. Whether they have all ids shows the
    /// sum over their bucket, when they are counted.
    async fn are_there(&self, counters: &[Arc<LocalCounter>]) -> Result<Vec<bool>, Unavailable> {
        let mut expire = Pipeline::new();
        for counter in counters {
            expire.cmd("PEXPIRE").arg(&counter.target.key).arg(counter.target.keep_for);
        }
        let key = key_of(counters);
        self.redis.run(Call::Seal, key, async |connection| expire.query_async(connection).await).await
    }

    /// Merges the local sketches of counters of a bucket, whose names are listed.
    async fn merge_counters(
        &self,
        bucket: usize,
        some: &[Arc<LocalCounter>],
        epoch: u64,
    ) -> Result<(), Unavailable> {
        self.note_gone(some).await?;
        let mine = self.config.keys.merge_of_bucket(bucket, &self.config.instance_id);
        let (mut commands, mut keys, mut pending) = (Pipeline::new(), vec![mine.clone()], Vec::new());
        // No other merge may come in between, which uses the same key.
        commands.atomic();
        for counter in some {
            let CounterIds::Hll(sketch) = &counter.ids else { continue };
            // Before the registers are read: they have at least these ids.
            pending.push((counter.unmerged(), counter.target.before_merge()));
            let key = &counter.target.key;
            commands.cmd("SET").arg(&mine).arg(sketch.to_bytes()).arg("EX").arg(MERGE_EXPIRES).ignore();
            commands.cmd("PFMERGE").arg(key).arg(&mine).ignore();
            commands.cmd("PEXPIRE").arg(key).arg(counter.target.keep_for).ignore();
            keys.push(key.clone());
        }
        commands.cmd("DEL").arg(&mine).ignore();
        if self.unless_damaged::<()>(Call::Seal, &mine, &commands).await?.is_none() {
            // Another program replaced a sketch. What other instances had added to it is lost.
            let aside = damage::put_aside(&self.redis, Call::Seal, Holds::Sketch, &keys).await?;
            let is_aside = |counter: &&Arc<LocalCounter>| aside.contains(&counter.target.key);
            some.iter().filter(is_aside).for_each(|counter| counter.note_damage());
            self.redis
                .run(Call::Seal, &mine, async |connection| commands.exec_async(connection).await)
                .await?;
        }
        for (counter, (ids, before)) in some.iter().zip(pending) {
            counter.note_merged(ids, before, epoch);
            counter.target.note_acknowledged(self.redis.generation());
        }
        Ok(())
    }

    /// Notes which counters have no key any more, though this server acknowledged ids of them. A merge makes the key anew, without
    /// what other instances had added.
    async fn note_gone(&self, counters: &[Arc<LocalCounter>]) -> Result<(), Unavailable> {
        let generation = self.redis.generation();
        let expected: Vec<_> =
            counters.iter().filter(|counter| counter.target.must_exist(generation)).collect();
        if expected.is_empty() {
            return Ok(());
        }
        let mut look = Pipeline::new();
        for counter in &expected {
            look.cmd("EXISTS").arg(&counter.target.key);
        }
        let are_there: Vec<bool> = self
            .redis
            .run(Call::Seal, key_of(counters), async |connection| look.query_async(connection).await)
            .await?;
        // If the call has led to another server, that one has acknowledged nothing.
        if self.redis.generation() == generation {
            for (counter, _) in expected.iter().zip(are_there).filter(|(_, is_there)| !is_there) {
                counter.note_damage();
            }
        }
        Ok(())
    }

    /// Adds the pending exact ids of counters, whose names are listed.
    async fn add_to_counters(
        &self,
        counters: &LocalCounters,
        some: &[Arc<LocalCounter>],
        epoch: u64,
    ) -> Result<(), Unavailable> {
        for counter in some {
            let CounterIds::Exact(pending) = &counter.ids else { continue };
            loop {
                let ids: Vec<TextId> = pending.lock().iter().take(IDS_AT_ONCE).cloned().collect();
                let added = if ids.is_empty() { Ok(0) } else { self.add_ids(counter, &ids).await };
                // Redis may have added them all the same, and calls none of them new the next time.
                let new = added.inspect_err(|_| counter.target.note_doubt())?;
                counters.note_replayed(counter, &ids, new, epoch);
                counter.target.note_answer(self.redis.generation());
                if ids.len() < IDS_AT_ONCE {
                    break;
                }
            }
        }
        Ok(())
    }

    async fn add_ids(&self, counter: &LocalCounter, ids: &[TextId]) -> Result<u64, Unavailable> {
        let mut commands = Pipeline::new();
        for some in ids.chunks(IDS_A_COMMAND) {
            let add = commands.cmd("SADD").arg(&counter.target.key);
            for id in some {
                add.arg(id.as_bytes());
            }
        }
        commands.cmd("PEXPIRE").arg(&counter.target.key).arg(counter.target.keep_for).ignore();
        let added: Vec<u64> =
            if let Some(added) = self.unless_damaged(Call::Seal, &counter.target.key, &commands).await? {
                added
            } else {
                counter.note_damage();
                self.mending(Holds::Set, &[vec![counter.target.key.clone()]], Call::Seal, &commands).await?
            };
        Ok(added.iter().sum())
    }

    /// Adds names to the set of their bucket.
    async fn list(&self, names: &Target, some: &[Arc<LocalCounter>]) -> Result<(), Unavailable> {
        let mut commands = Pipeline::new();
        let add = commands.cmd("SADD").arg(&names.key);
        for counter in some {
            add.arg(&*counter.name);
        }
        commands.cmd("PEXPIRE").arg(&names.key).arg(names.keep_for).ignore();
        let (new,): (u64,) =
            self.mending(Holds::Set, &[vec![names.key.clone()]], Call::Seal, &commands).await?;
        names.note_new(new);
        Ok(())
    }
}

/// The key of the first of some counters, of which there is at least one.
fn key_of(counters: &[Arc<LocalCounter>]) -> &str {
    counters.first().map_or("", |counter| counter.target.key.as_str())
}
