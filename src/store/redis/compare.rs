//! What the sets of counters have in common, in mode `exact`.

use std::sync::LazyLock;

use ::redis::Script;

use super::replay::Replay;
use crate::model::mode::Mode;
use crate::model::window::Window;
use crate::platform::unavailable::Unavailable;
use crate::redis::{Call, Routed};
use crate::store::answers::{Compared, lookups};

/// Ids that Redis looks up for a comparison, at most. It serves nobody else meanwhile.
const MOST_LOOKUPS: u64 = 100_000;

static COMPARE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("compare.lua")));

impl Replay {
    /// Compares counters of a window: in a single Redis, which has `SINTERCARD` from version 7.0 on.
    pub(super) async fn compare(&self, window: Window, counters: &[&str]) -> Result<Compared, Unavailable> {
        if self.redis.is_cluster() {
            return Ok(Compared::Not("a Redis Cluster cannot compare sets that are on different nodes"));
        }
        if lookups(&self.counts_of(window, counters).await?) > MOST_LOOKUPS {
            return Ok(Compared::Not(
                "these counters have too many ids to compare them in Redis: it would look up more than 100000",
            ));
        }
        let keys: Vec<_> =
            counters.iter().map(|name| self.config.keys.counter(Mode::Exact, name, window)).collect();
        let mut compare = COMPARE.prepare_invoke();
        for key in &keys {
            compare.key(key);
        }
        let run = async |connection: &mut Routed| match compare.invoke_async(connection).await {
            Err(error) if is_unknown(&error) => Ok(None),
            figures => figures.map(Some),
        };
        let figures: Option<Vec<u64>> = self.redis.run(Call::Count, &keys[0], run).await?;
        Ok(match figures {
            Some(figures) => Compared::read(&figures, keys.len()),
            None => Compared::Not(
                "this Redis has no SINTERCARD, or the user of --redis-url lacks +sintercard or +sunion",
            ),
        })
    }
}

/// Whether the script failed, which only reads: the server does not know a command of it, or the user may not run one.
fn is_unknown(error: &::redis::RedisError) -> bool {
    matches!(error.code(), Some("ERR" | "NOPERM"))
}
