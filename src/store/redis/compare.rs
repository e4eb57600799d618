//! What the sets of two counters have in common, in mode `exact`.

use ::redis::Pipeline;

use super::replay::Replay;
use crate::model::mode::Mode;
use crate::model::window::Window;
use crate::platform::unavailable::Unavailable;
use crate::redis::{Call, Routed};
use crate::store::answers::Compared;

/// Ids of the smaller set, at most. Redis serves nobody else meanwhile.
const MOST_IDS: u64 = 100_000;

impl Replay {
    /// Compares two counters of a window: in a single Redis, which has `SINTERCARD` from version 7.0 on.
    pub(super) async fn compare(&self, window: Window, counters: [&str; 2]) -> Result<Compared, Unavailable> {
        if self.redis.is_cluster() {
            return Ok(Compared::Not("a Redis Cluster cannot compare sets that are on different nodes"));
        }
        let keys = counters.map(|name| self.config.keys.counter(Mode::Exact, name, window));
        let mut count = Pipeline::new();
        for key in &keys {
            count.cmd("SCARD").arg(key);
        }
        let counting = async |connection: &mut Routed| count.query_async(connection).await;
        let counts: [u64; 2] = self.redis.run(Call::Count, &keys[0], counting).await?;
        if counts[0].min(counts[1]) > MOST_IDS {
            return Ok(Compared::Not(
                "mode exact compares only counters of which one has 100000 ids or fewer",
            ));
        }
        let mut compare = Pipeline::new();
        // Of one moment.
        compare.atomic();
        for key in &keys {
            compare.cmd("SCARD").arg(key);
        }
        compare.cmd("SINTERCARD").arg(2).arg(&keys);
        let comparing = async |connection: &mut Routed| match compare.query_async(connection).await {
            Err(error) if is_unknown(&error) => Ok(None),
            compared => compared.map(Some),
        };
        let compared: Option<(u64, u64, u64)> = self.redis.run(Call::Count, &keys[0], comparing).await?;
        Ok(match compared {
            Some((first, second, common)) => Compared::Sets { counts: [first, second], common },
            None => Compared::Not("this Redis has no SINTERCARD, or the user of --redis-url may not run it"),
        })
    }
}

/// Whether the server does not know a command, or the user may not run it.
fn is_unknown(error: &::redis::RedisError) -> bool {
    matches!(error.code(), Some("ERR" | "NOPERM" | "EXECABORT"))
}
