//! The way back to Redis after the [breaker](super::breaker) has opened.
//!
//! The recovery tries again and again, with a back-off and some jitter, so that many instances do not come all at once. A try
//! is a write over each connection that requests will use, and then real work: it replays all pending ids of windows that are
//! not sealed, the oldest window first. A network that lets only a few bytes through does not pass that test. Only after it do
//! requests wait for Redis again.
//!
//! In a cluster each primary has a recovery. After a fail-over its slots have another primary: then the recovery replays to that
//! one, and the server that is gone is not waited for.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::debug;

use super::absences::Absences;
use super::local::LocalWindows;
use super::primary::Primary;
use super::replay::Replay;
use crate::platform::unavailable::Unavailable;
use crate::platform::workers::Workers;
use crate::redis::Redis;

/// The first wait before a try lasts half of this to all of it; it doubles up to [`LONGEST_WAIT`].
const FIRST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(2);
/// If the breaker opens again so soon after it was closed, the waits go on where they were.
const CALM: Duration = Duration::from_secs(10);

/// Tries to get back to a server whenever its breaker is open.
pub(super) struct Recovery {
    pub(super) primary: Arc<Primary>,
    pub(super) redis: Redis,
    pub(super) local: Arc<LocalWindows>,
    pub(super) replay: Arc<Replay>,
    /// Those who wait for servers that are away.
    pub(super) absences: [Arc<Absences>; 2],
}

impl Recovery {
    /// Runs for ever.
    pub(super) async fn run(self, workers: Arc<Workers>) {
        let breaker = &self.primary.breaker;
        let mut wait = FIRST_WAIT;
        let mut closed: Option<Instant> = None;
        loop {
            breaker.opened().await;
            // One connection has failed. The others would notice one by one.
            self.primary.writers.lock().iter().for_each(|(_, writer)| writer.reconnect());
            if closed.is_none_or(|closed| closed.elapsed() > CALM) {
                wait = FIRST_WAIT;
            }
            loop {
                tokio::time::sleep(jittered(wait)).await;
                wait = (2 * wait).min(LONGEST_WAIT);
                match self.try_to_come_back(&workers).await {
                    Ok(()) => break,
                    Err(error) => debug!(node = self.primary.node.name(), %error, "Redis is not back"),
                }
            }
            breaker.close();
            self.absences.iter().for_each(|absences| absences.forget(self.primary.node.number()));
            closed = Some(Instant::now());
            // Requests that had just seen the breaker open may have kept more ids.
            if let Err(error) = self.replay_open().await {
                breaker.open(&error);
            }
        }
    }

    async fn try_to_come_back(&self, workers: &Workers) -> Result<(), Unavailable> {
        // Another server may have taken its place.
        self.redis.look_around().await?;
        // Each connection is tried on the worker that will use it. All are tried at a time, because connecting may take
        // a second.
        let writers = self.primary.writers.lock().clone();
        let probes = writers.into_iter().map(|(worker, writer)| {
            let replay = Arc::clone(&self.replay);
            workers.spawn_on(worker, async move { replay.probe(&writer).await })
        });
        for probe in probes.collect::<Vec<_>>() {
            probe.await.map_err(Unavailable::because)??;
        }
        self.replay_open().await
    }

    /// Replays all pending ids. Only an error of this server counts: others may be away as well.
    async fn replay_open(&self) -> Result<(), Unavailable> {
        let done = self.replay.replay_all(&self.local.open()).await;
        done.error_of(self.primary.node.number()).map_or(Ok(()), |error| Err(error.clone()))
    }
}

/// A random time from half of `wait` to all of it.
fn jittered(wait: Duration) -> Duration {
    let random = RandomState::new().hash_one(0) as f64 / u64::MAX as f64;
    wait.mul_f64(0.5 + random / 2.0)
}
