//! The time between binding the sockets and being ready: Redis may be away, or slow.
//!
//! Whoever asks meanwhile is answered, an instance that is not taken at first tries again, and a wish to stop is heard.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::coordinator::ReportError;
use crate::http::server::{self, Stop};
use crate::http::{self, HttpArgs, Routers};
use crate::listeners::Listeners;
use crate::metrics::Metrics;
use crate::sealer::Sealer;
use crate::workers::Workers;

/// The first wait after a first report that was not taken; it doubles up to the other.
const FIRST_REPORT_AGAIN: Duration = Duration::from_millis(100);
const FIRST_REPORT_AGAIN_MAX: Duration = Duration::from_secs(1);

/// The first report, until it is taken, there is no more time, or `shutdown`, when it is none. An instance that is refused
/// for good does not try again.
///
/// # Errors
///
/// The last [`ReportError`].
pub async fn introduce_until<F>(
    deadline: Instant,
    introduce: impl Fn() -> F,
    shutdown: &CancellationToken,
) -> Result<Option<Sealer>, ReportError>
where
    F: Future<Output = Result<Sealer, ReportError>>,
{
    tokio::select! {
        introduced = try_until(deadline, introduce) => introduced.map(Some),
        () = shutdown.cancelled() => Ok(None),
    }
}

async fn try_until<F>(deadline: Instant, introduce: impl Fn() -> F) -> Result<Sealer, ReportError>
where
    F: Future<Output = Result<Sealer, ReportError>>,
{
    let mut wait = FIRST_REPORT_AGAIN;
    loop {
        match introduce().await {
            Err(ReportError::Unavailable(error)) if Instant::now() + wait < deadline => {
                debug!(%error, "the first report was not taken, trying again");
                tokio::time::sleep(wait).await;
                wait = (2 * wait).min(FIRST_REPORT_AGAIN_MAX);
            }
            outcome => return outcome,
        }
    }
}

/// What answers until the service is ready: on the same sockets, so that nobody who connects meanwhile is lost.
pub struct Starting {
    stop: Stop,
    /// The routes of each listener, once there are some.
    routes: Vec<watch::Sender<Option<Router>>>,
}

impl Starting {
    /// From now on, on sockets that are duplicates of these.
    ///
    /// # Errors
    ///
    /// When the system has no descriptors left.
    pub fn serve(listeners: &Listeners, limits: &HttpArgs, workers: &Arc<Workers>) -> io::Result<Self> {
        let stop = Stop::default();
        let mut routes = Vec::new();
        for listener in listeners.duplicates()? {
            let (limits, workers, stop) = (limits.clone(), Arc::clone(workers), stop.clone());
            // Metrics of their own: the service has not begun.
            let metrics = Arc::new(Metrics::new());
            let (sender, later) = watch::channel(None);
            routes.push(sender);
            tokio::spawn(async move {
                server::serve(listener, http::starting(later), &limits, metrics, workers, stop).await;
            });
        }
        Ok(Self { stop, routes })
    }

    /// Requests that wait are answered by these routes, and their connections closed; new ones go to the servers.
    pub fn hand_over(self, routers: &Routers) {
        let routers = std::iter::once(&routers.public).chain(&routers.admin);
        for (sender, router) in self.routes.iter().zip(routers) {
            sender.send_replace(Some(router.clone()));
        }
        self.stop.drain.cancel();
    }
}
