//! Staged counts: what a leader counted of a window's counters, before and after the window is closed.
//!
//! A window may have many counters, and a script that stored them all would hold up Redis. So a close has two steps. The
//! leader first writes the counts to a list of its own, in chunks. Then one script stores the total's count together with the
//! name of that list. Only now are the counts of the counters stored as well, and nobody alters them any more. A list whose name
//! is not stored expires.
//!
//! Each try has a list of its own. A chunk of an earlier try may reach Redis late, over a connection that was given up: it must not
//! end up among the counts of a later try.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tracing::debug;

use super::term::Term;
use crate::model::counter::{CounterCount, CounterCounts};
use crate::model::window::Window;
use crate::platform::unavailable::Unavailable;
use crate::redis::keys::Keys;
use crate::redis::{Call, Redis};

/// Counters in one command.
const IN_A_CHUNK: usize = 500;
/// Chunks that are read by one command.
const READ_AT_ONCE: isize = 4;
/// How long Redis keeps counts whose list is not stored, in milliseconds.
const STAGED_EXPIRES: u64 = 600_000;

/// Where the counts of a window's counters are. It is stored beside the window's own count.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredCounters {
    /// The list.
    pub(super) key: String,
    /// How many counters had ids.
    pub(super) names: u64,
    /// Ids found no place in their counter.
    pub(super) overflow: bool,
    /// Redis may have lost names.
    pub(super) lacks_names: bool,
}

/// Lists that are remembered until they are deleted, at most.
const MOST_LEFT: usize = 16;

/// The count of a counter in a list: name, different ids, and whether Redis has all of them.
type Entry = (String, u64, bool);

impl StoredCounters {
    /// How many counters had ids, `_other` included.
    pub fn number(&self) -> u64 {
        self.names
    }
}

/// The lists of one instance.
pub(super) struct Staging {
    redis: Redis,
    keys: Keys,
    /// How many there were so far.
    tries: AtomicU64,
    /// Lists of tries that had no clear end.
    left: Mutex<Vec<Left>>,
}

/// A list of a try that had no clear end.
struct Left {
    window: Window,
    key: String,
    /// The script that stores its name was not answered.
    may_be_stored: bool,
}

impl Staging {
    pub(super) fn new(redis: &Redis, keys: Keys) -> Self {
        Self { redis: redis.another(), keys, tries: AtomicU64::new(0), left: Mutex::default() }
    }

    /// Writes counts to a new list. None if there is nothing to say about counters.
    pub(super) async fn write(
        &self,
        term: &Term,
        window: Window,
        counts: &CounterCounts,
    ) -> Result<Option<StoredCounters>, Unavailable> {
        let (all, overflow, lacks_names) = (counts.all(), counts.has_overflowed(), counts.lacks_names());
        if all.is_empty() && !overflow && !lacks_names {
            return Ok(None);
        }
        let key = self.keys.counter_counts(window, term.token(), self.tries.fetch_add(1, Ordering::Relaxed));
        self.delete_left().await;
        // Taken back below, unless an error ends this function.
        self.leave(Left { window, key: key.clone(), may_be_stored: false });
        for (number, some) in all.chunks(IN_A_CHUNK).enumerate() {
            let entries: Vec<_> =
                some.iter().map(|count| json!([count.name, count.unique_ids, count.is_whole])).collect();
            let mut push = ::redis::Pipeline::new();
            push.atomic();
            push.cmd("RPUSH").arg(&key).arg(json!(entries).to_string());
            push.cmd("PEXPIRE").arg(&key).arg(STAGED_EXPIRES).ignore();
            let (length,): (usize,) = self
                .redis
                .run(Call::Close, &key, async |connection| push.query_async(connection).await)
                .await?;
            if length != number + 1 {
                return Err(Unavailable::because("Redis has lost counts of counters that were just written"));
            }
        }
        self.left.lock().retain(|left| left.key != key);
        Ok(Some(StoredCounters { key, names: all.len() as u64, overflow, lacks_names }))
    }

    /// Notes that it is not known whether a list is stored.
    pub(super) fn note_doubt(&self, window: Window, staged: &StoredCounters) {
        self.leave(Left { window, key: staged.key.clone(), may_be_stored: true });
    }

    /// Notes which list of a window is stored, if any, and deletes those of other tries.
    pub(super) async fn note_stored(&self, window: Window, stored: Option<&StoredCounters>) {
        self.left.lock().retain_mut(|left| {
            let is_stored = stored.is_some_and(|stored| stored.key == left.key);
            // Another leader may publish those of other windows.
            let is_of_another = left.window != window && left.may_be_stored;
            left.may_be_stored = false;
            !is_stored && !is_of_another
        });
        self.delete_left().await;
    }

    /// Deletes a list that is not stored. If that fails, it expires.
    pub(super) async fn delete(&self, window: Window, staged: &StoredCounters) {
        self.leave(Left { window, key: staged.key.clone(), may_be_stored: false });
        self.delete_left().await;
    }

    /// Remembers a list. The oldest is forgotten, if Redis is away for long: it expires.
    fn leave(&self, list: Left) {
        let mut left = self.left.lock();
        if left.len() == MOST_LEFT {
            left.remove(0);
        }
        left.push(list);
    }

    /// Deletes lists that are not stored. Otherwise they would pile up while Redis is slow.
    async fn delete_left(&self) {
        let is_unstored = |left: &&Left| !left.may_be_stored;
        let keys: Vec<_> = self.left.lock().iter().filter(is_unstored).map(|left| left.key.clone()).collect();
        if keys.is_empty() {
            return;
        }
        let mut delete = ::redis::cmd("DEL");
        delete.arg(&keys);
        match self
            .redis
            .run(Call::Close, &keys[0], async |connection| delete.exec_async(connection).await)
            .await
        {
            Ok(()) => self.left.lock().retain(|left| !keys.contains(&left.key)),
            Err(error) => debug!(%error, "counts that are not needed are still there"),
        }
    }

    /// Lets stored lists expire so soon: sinks do not need them any more.
    pub(super) async fn let_expire<'a>(
        &self,
        lists: impl Iterator<Item = &'a StoredCounters>,
        soon: Duration,
    ) {
        let (mut expire, mut first) = (::redis::Pipeline::new(), None);
        for list in lists {
            expire.cmd("PEXPIRE").arg(&list.key).arg(soon.as_millis() as u64);
            first = first.or(Some(&list.key));
        }
        let Some(key) = first else { return };
        if let Err(error) =
            self.redis.run(Call::Close, key, async |connection| expire.exec_async(connection).await).await
        {
            debug!(%error, "counts of counters expire later than they could");
        }
    }

    /// Reads counts. None if Redis does not have all of them any more.
    pub(super) async fn read(&self, stored: &StoredCounters) -> Result<Option<CounterCounts>, Unavailable> {
        let mut counts = Vec::new();
        let mut first = 0;
        while (counts.len() as u64) < stored.names {
            let mut read = ::redis::cmd("LRANGE");
            read.arg(&stored.key).arg(first).arg(first + READ_AT_ONCE - 1);
            let chunks: Vec<Vec<u8>> = self
                .redis
                .run(Call::Close, &stored.key, async |connection| read.query_async(connection).await)
                .await?;
            if chunks.is_empty() {
                return Ok(None);
            }
            for chunk in chunks {
                let Ok(entries) = serde_json::from_slice::<Vec<Entry>>(&chunk) else { return Ok(None) };
                let count = |(name, unique_ids, is_whole): Entry| CounterCount {
                    name: name.into(),
                    unique_ids,
                    is_whole,
                };
                counts.extend(entries.into_iter().map(count));
            }
            first += READ_AT_ONCE;
        }
        let is_all = counts.len() as u64 == stored.names;
        Ok(is_all.then(|| CounterCounts::new(counts, stored.overflow).lacking_names(stored.lacks_names)))
    }
}
