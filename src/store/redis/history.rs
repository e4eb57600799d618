//! Hours and days in Redis: windows are merged into them, and ranges are read from them.
//!
//! Redis merges: all keys of a shard are in one slot. But the service makes the union of a range. A `PFCOUNT` of many keys would
//! hold up Redis for 50 µs a key; to read them holds it up for a few.

use std::sync::LazyLock;

use ::redis::{Pipeline, Script};

use super::config::RedisStoreConfig;
use super::replay::Replay;
use crate::hll::Sketch;
use crate::model::counter::{CounterCount, Subject, bucket_of};
use crate::model::mode::Mode;
use crate::model::parts::Part;
use crate::model::period::Period;
use crate::model::window::Window;
use crate::platform::unavailable::Unavailable;
use crate::redis::damage::{self, Holds};
use crate::redis::{Call, Routed};
use crate::store::answers::{CounterRecord, Grown, RolledUp, Union};

/// Sketches that are read by one pipeline.
const READ_AT_ONCE: usize = 16;
/// Merges of counters in one pipeline. Redis serves nobody else meanwhile.
const ROLLED_UP_AT_ONCE: usize = 16;
/// Periods of which one pipeline reads the records.
const RECORDS_AT_ONCE: usize = 100;

const ROLL_UP_COUNTER: &str = include_str!("roll_up_counter.lua");
/// The name that Redis gives the script.
static ROLL_UP_COUNTER_SHA: LazyLock<String> =
    LazyLock::new(|| Script::new(ROLL_UP_COUNTER).get_hash().to_owned());

impl RedisStoreConfig {
    /// The keys of the sketches of a part: one for each shard, or that of a counter.
    fn keys_of(&self, of: &Subject, parts: &[Part]) -> Vec<Vec<String>> {
        let keys = &self.keys;
        match of {
            Subject::Total => {
                let key = |shard, part: &Part| match part {
                    Part::Window(window) => keys.ids(Mode::Hll, shard, self.shards, *window),
                    Part::Period { period, .. } => keys.period(shard, self.shards, *period),
                };
                let of_shard = |shard| parts.iter().map(|part| key(shard, part)).collect();
                (0..self.shards.count().into()).map(of_shard).collect()
            }
            Subject::Counter(name) => {
                let key = |part: &Part| match part {
                    Part::Window(window) => keys.counter(Mode::Hll, name, *window),
                    Part::Period { period, .. } => keys.counter_period(name, *period),
                };
                vec![parts.iter().map(key).collect()]
            }
        }
    }
}

impl Replay {
    /// Merges a closed window into periods. To do it twice changes nothing.
    pub(super) async fn roll_up(&self, window: Window, periods: &[Period]) -> Result<RolledUp, Unavailable> {
        let RedisStoreConfig { keys, shards, keep, .. } = &*self.config;
        let mut rolled = RolledUp { window: 0, periods: vec![Grown::default(); periods.len()] };
        for shard in 0..shards.count().into() {
            let of_window = keys.ids(Mode::Hll, shard, *shards, window);
            let (mut commands, mut touched) = (Pipeline::new(), vec![of_window.clone()]);
            // No period without an expiry.
            commands.atomic();
            commands.cmd("PFCOUNT").arg(&of_window);
            for period in periods {
                let key = keys.period(shard, *shards, *period);
                commands.cmd("PFCOUNT").arg(&key);
                commands.cmd("PFMERGE").arg(&key).arg(&of_window).ignore();
                // Before it expires: it may be too old already.
                commands.cmd("PFCOUNT").arg(&key);
                let expires = period.end() + keep.total.of(period.level).as_secs();
                commands.cmd("EXPIREAT").arg(&key).arg(expires).ignore();
                touched.push(key);
            }
            let counts: Vec<u64> = self.mending(Holds::Sketch, &[touched], Call::Seal, &commands).await?;
            rolled.window += counts[0];
            for (sum, counts) in rolled.periods.iter_mut().zip(counts[1..].chunks_exact(2)) {
                sum.before += counts[0];
                sum.after += counts[1];
            }
        }
        Ok(rolled)
    }

    /// Merges counters of a closed window into periods. To do it twice changes nothing.
    pub(super) async fn roll_up_counters(
        &self,
        window: Window,
        counters: &[CounterCount],
        periods: &[Period],
    ) -> Result<(), Unavailable> {
        let RedisStoreConfig { keys, instance_id, keep, .. } = &*self.config;
        let mut keys_of: Vec<_> = counters
            .iter()
            .map(|counter| (counter, keys.counter(Mode::Hll, &counter.name, window)))
            .collect();
        self.redis.sort_by_slot(&mut keys_of, |(_, key)| key);
        for some in self.redis.groups(&keys_of, |(_, key)| key, ROLLED_UP_AT_ONCE / periods.len().max(1)) {
            let (mut commands, mut sketches, mut hashes) = (Pipeline::new(), Vec::new(), Vec::new());
            // Redis may have forgotten the script.
            commands.cmd("SCRIPT").arg("LOAD").arg(ROLL_UP_COUNTER).ignore();
            for (counter, period) in
                some.iter().flat_map(|(counter, _)| periods.iter().map(move |of| (counter, of)))
            {
                let bucket = bucket_of(&counter.name);
                let of_window = keys.counter(Mode::Hll, &counter.name, window);
                let of_period = keys.counter_period(&counter.name, *period);
                let records = keys.counter_records(bucket, *period);
                let merge = keys.merge_of_bucket(bucket, instance_id);
                commands.cmd("EVALSHA").arg(ROLL_UP_COUNTER_SHA.as_str()).arg(4);
                commands.arg(&of_window).arg(&of_period).arg(merge).arg(&records);
                commands
                    .arg(window.unix_seconds())
                    .arg(&*counter.name)
                    .arg(counter.unique_ids)
                    .arg(u8::from(counter.is_whole));
                commands.arg(period.end() + keep.counters.of(period.level).as_secs()).ignore();
                sketches.push(vec![of_window, of_period]);
                hashes.push(vec![records]);
            }
            if self.unless_damaged::<()>(Call::Seal, &some[0].1, &commands).await?.is_none() {
                for (keys, holds) in [(&sketches, Holds::Sketch), (&hashes, Holds::Hash)] {
                    for of_slot in keys {
                        damage::put_aside(&self.redis, Call::Seal, holds, of_slot).await?;
                    }
                }
                let again = async |connection: &mut Routed| commands.exec_async(connection).await;
                self.redis.run(Call::Seal, &some[0].1, again).await?;
            }
        }
        Ok(())
    }

    /// What is known of a counter in periods. None where its bucket has no records.
    pub(super) async fn counter_records(
        &self,
        counter: &str,
        periods: &[Period],
    ) -> Result<Vec<Option<CounterRecord>>, Unavailable> {
        let mut records = Vec::with_capacity(periods.len());
        for some in periods.chunks(RECORDS_AT_ONCE) {
            let (mut read, mut keys) = (Pipeline::new(), Vec::new());
            for period in some {
                let key = self.config.keys.counter_records(bucket_of(counter), *period);
                read.cmd("HMGET").arg(&key).arg("").arg(counter);
                keys.push(key);
            }
            let answers: Vec<[Option<Vec<u8>>; 2]> =
                self.mending(Holds::Hash, &[keys], Call::Count, &read).await?;
            let record = |[since, record]: [Option<Vec<u8>>; 2]| {
                let since = number(&since?)?;
                Some(CounterRecord { since: Some(since), ..read_record(record.as_deref()) })
            };
            records.extend(answers.into_iter().map(record));
        }
        Ok(records)
    }

    /// The union of parts.
    pub(super) async fn union(&self, of: &Subject, parts: &[Part]) -> Result<Union, Unavailable> {
        let mut union = Union { sketches: Vec::new(), of_parts: vec![0; parts.len()] };
        for keys in self.config.keys_of(of, parts) {
            let mut of_shard = Sketch::new();
            for (some, counts) in keys.chunks(READ_AT_ONCE).zip(union.of_parts.chunks_mut(READ_AT_ONCE)) {
                let mut read = Pipeline::new();
                for key in some {
                    read.cmd("GET").arg(key);
                }
                let stored: Vec<Option<Vec<u8>>> =
                    self.mending(Holds::Sketch, &[some.to_vec()], Call::Count, &read).await?;
                let found = stored.iter().map(|stored| stored.as_deref().map(Sketch::from_bytes));
                let mut has_damage = false;
                for (found, count) in found.zip(counts) {
                    match found {
                        Some(Ok(part)) => {
                            of_shard.absorb(&part);
                            *count += part.estimate();
                        }
                        Some(Err(_)) => has_damage = true,
                        None => {}
                    }
                }
                if has_damage {
                    damage::put_aside(&self.redis, Call::Count, Holds::Sketch, some).await?;
                }
            }
            union.sketches.push(of_shard);
        }
        Ok(union)
    }
}

/// The record of a counter. Without one, the counter had no ids. What another program wrote vouches for nothing.
fn read_record(stored: Option<&[u8]>) -> CounterRecord {
    let Some(stored) = stored else { return CounterRecord { unique_ids: 0, is_whole: true, since: None } };
    let unique_ids = number(stored);
    CounterRecord { unique_ids: unique_ids.unwrap_or(0), is_whole: unique_ids.is_some(), since: None }
}

fn number(stored: &[u8]) -> Option<u64> {
    std::str::from_utf8(stored).ok()?.parse().ok()
}
