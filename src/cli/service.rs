//! The running parts, and the order in which they stop.
//!
//! # Stopping
//!
//! 1. `/readyz` says no. Everything else goes on for `--drain-delay`, so that load balancers notice.
//! 2. The server takes no more connections and finishes the requests that have begun. After that no request adds ids.
//! 3. The task of the callbacks sends those that are pending.
//! 4. The sealer seals every window, the running one too.
//! 5. The publisher closes the windows that it can, and hands their counts to the sinks.
//! 6. The instance gives up the lease and leaves, so that other instances do not wait for it.
//!
//! All of this takes at most `--shutdown-timeout`. The last part of that time is reserved for steps 4 to 6. So a client
//! that never finishes its request is cut off, and the counts are published all the same.

use std::time::Duration;

use anyhow::{anyhow, bail};
use tokio::sync::watch;
use tokio::task::{JoinError, JoinHandle};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::cli::backend::Backend;
use crate::cli::settings::Stopping;
use crate::coordination::HeartbeatError;
use crate::http::server::Stop;
use crate::http::{LateRouter, Phase};
use crate::platform::service_manager;

/// The part of the shutdown time-out that is reserved for giving up the lease and leaving.
pub(super) const LEAVING: Duration = Duration::from_secs(1);
/// The part of the shutdown time-out that is reserved for the last publish, at most half of it.
const LAST_PUBLISH: Duration = Duration::from_secs(5);

/// The running parts.
pub(super) struct Service {
    /// For the API.
    pub(super) public: Server,
    /// For operations, with `--admin-listen`.
    pub(super) admin: Server,
    pub(super) backend: Backend,
    pub(super) stopping: Stopping,
    pub(super) phase: watch::Sender<Phase>,
    pub(super) stop_callbacks: Stop,
    pub(super) stop_sealer: CancellationToken,
    pub(super) stop_publisher: CancellationToken,
    pub(super) callbacks: JoinHandle<()>,
    pub(super) sealer: JoinHandle<Result<(), HeartbeatError>>,
    pub(super) publisher: JoinHandle<Result<(), JoinError>>,
    pub(super) upkeep: JoinHandle<()>,
}

/// A server. It runs before its routes are ready.
pub(super) struct Server {
    pub(super) task: JoinHandle<()>,
    pub(super) stop: Stop,
    pub(super) routes: LateRouter,
}

impl Service {
    /// Waits until a part ends too early.
    pub(super) async fn ended(&mut self) -> anyhow::Error {
        tokio::select! {
            ended = &mut self.public.task => returned("the HTTP server", ended),
            ended = &mut self.admin.task => returned("the HTTP server for operations", ended),
            ended = &mut self.callbacks => returned("the callbacks", ended),
            ended = self.backend.ended() => ended,
            ended = &mut self.sealer => failed("the sealer", ended),
            ended = &mut self.upkeep => returned("the upkeep of the metrics", ended),
            ended = &mut self.publisher => failed("the publisher", ended),
        }
    }

    pub(super) async fn stop(mut self) -> anyhow::Result<()> {
        let Stopping { drain_delay, shutdown_timeout } = self.stopping;
        let deadline = Instant::now() + shutdown_timeout;
        let last_publish = LAST_PUBLISH.min(shutdown_timeout.saturating_sub(drain_delay) / 2);
        info!(
            drain_delay = %humantime::format_duration(drain_delay),
            shutdown_timeout = %humantime::format_duration(shutdown_timeout),
            "stopping"
        );

        service_manager::stopping();
        self.phase.send_replace(Phase::Draining);
        tokio::time::sleep(drain_delay).await;

        self.public.stop.drain.cancel();
        let drained = tokio::time::timeout_at(deadline - last_publish, &mut self.public.task).await;
        // Either way, no request adds an id after the server has ended.
        if let Ok(ended) = drained {
            part(ended)?;
        } else {
            warn!("clients that have not finished their requests are cut off");
            self.public.stop.abort.cancel();
            part((&mut self.public.task).await)?;
        }

        // Before the seal: callbacks need the counts of windows that are evicted after it.
        self.stop_callbacks.drain.cancel();
        let end = deadline - LEAVING.min(last_publish / 2);
        if tokio::time::timeout_at(deadline - last_publish, &mut self.callbacks).await.is_err() {
            self.stop_callbacks.abort.cancel();
            // This is quick: the task only logs how many callbacks are left.
            let _ = tokio::time::timeout_at(end, &mut self.callbacks).await;
        }

        self.stop_sealer.cancel();
        let sealed = tokio::time::timeout_at(end, &mut self.sealer).await;
        self.stop_publisher.cancel();
        let published = tokio::time::timeout_at(end, &mut self.publisher).await;
        let pending_ids = self.backend.store.pending_ids();
        // Also when a count was not published: other instances do not need this one for it. But an instance that has
        // not sealed every window must not leave: the others would take its windows for complete.
        let left = tokio::time::timeout(LEAVING, self.backend.stop(matches!(sealed, Ok(Ok(Ok(())))))).await;
        if left.is_err() {
            warn!("no time left to give up the lease and leave");
        }
        self.admin.stop.drain.cancel();
        self.admin.stop.abort.cancel();
        self.upkeep.abort();
        let Ok(sealed) = sealed else {
            bail!(
                "not all windows were sealed within --shutdown-timeout: {pending_ids} ids that only this instance has \
                are lost"
            );
        };
        part(sealed)??;
        let Ok(published) = published else {
            bail!("not all counts were published within --shutdown-timeout")
        };
        part(published)??;
        info!("stopped");
        Ok(())
    }
}

/// What a part returned, unless it panicked.
fn part<T>(ended: Result<T, JoinError>) -> anyhow::Result<T> {
    ended.map_err(|error| anyhow!("a part of the service ended: {error}"))
}

fn returned(name: &'static str, ended: Result<(), JoinError>) -> anyhow::Error {
    part(ended).err().unwrap_or_else(|| anyhow!("{name} ended unexpectedly"))
}

/// As [`returned`], for a part that returns its error.
fn failed(
    name: &'static str,
    ended: Result<Result<(), impl Into<anyhow::Error>>, JoinError>,
) -> anyhow::Error {
    match ended {
        Ok(Err(error)) => error.into(),
        Ok(Ok(())) => returned(name, Ok(())),
        Err(error) => returned(name, Err(error)),
    }
}
