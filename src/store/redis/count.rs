//! Counts the different ids that Redis has of a window, over all its shards.

use ::redis::Pipeline;

use super::config::SHARDS_A_PIPELINE;
use crate::model::mode::Mode;
use crate::model::shard::Shards;
use crate::model::window::Window;
use crate::redis::Redis;
use crate::redis::keys::Keys;

/// The commands that count, for some shards at a time, with the keys that they read. In a cluster these are in one slot.
pub fn count_commands(
    redis: &Redis,
    keys: &Keys,
    mode: Mode,
    shards: Shards,
    window: Window,
) -> Vec<(Vec<String>, Pipeline)> {
    let command = match mode {
        Mode::Hll => "PFCOUNT",
        Mode::Exact => "SCARD",
    };
    let of_shards: Vec<_> =
        (0..usize::from(shards.count())).map(|shard| keys.ids(mode, shard, shards, window)).collect();
    let ask = |some: &[String]| {
        let mut commands = Pipeline::new();
        for key in some {
            commands.cmd("EXISTS").arg(key);
            commands.cmd(command).arg(key);
        }
        (some.to_vec(), commands)
    };
    redis.groups(&of_shards, String::as_str, SHARDS_A_PIPELINE).into_iter().map(ask).collect()
}

/// The sum of all answers to [`count_commands`]; none if Redis has no key of the window.
pub fn sum_counts(answers: &[u64]) -> Option<u64> {
    let (there, counts): (Vec<_>, Vec<_>) = answers.chunks_exact(2).map(|one| (one[0], one[1])).unzip();
    there.contains(&1).then(|| counts.iter().sum())
}
