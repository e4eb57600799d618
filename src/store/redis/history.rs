//! Hours and days in Redis: windows are merged into them, and ranges are read from them.
//!
//! Redis merges: all keys of a shard are in one slot. But the service makes the union of a range. A `PFCOUNT` of many keys would
//! hold up Redis for 50 µs a key; to read them holds it up for a few.

use ::redis::Pipeline;

use super::config::RedisStoreConfig;
use super::replay::Replay;
use crate::hll::Sketch;
use crate::model::mode::Mode;
use crate::model::parts::Part;
use crate::model::period::Period;
use crate::model::window::Window;
use crate::platform::unavailable::Unavailable;
use crate::redis::Call;
use crate::redis::damage::{self, Holds};
use crate::store::answers::{Grown, RolledUp, Union};

/// Sketches that are read by one pipeline.
const READ_AT_ONCE: usize = 16;

impl RedisStoreConfig {
    fn key_of(&self, shard: usize, part: Part) -> String {
        match part {
            Part::Window(window) => self.keys.ids(Mode::Hll, shard, self.shards, window),
            Part::Period { period, .. } => self.keys.period(shard, self.shards, period),
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
                let expires = period.end() + keep.of(period.level).as_secs();
                commands.cmd("EXPIREAT").arg(&key).arg(expires).ignore();
                commands.cmd("PFCOUNT").arg(&key);
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

    /// The union of parts.
    pub(super) async fn union(&self, parts: &[Part]) -> Result<Union, Unavailable> {
        let mut union = Union { sketches: Vec::new(), of_parts: vec![0; parts.len()] };
        for shard in 0..self.config.shards.count().into() {
            let keys: Vec<_> = parts.iter().map(|part| self.config.key_of(shard, *part)).collect();
            let of_shard = Sketch::new();
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
                            of_shard.merge(&part);
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
