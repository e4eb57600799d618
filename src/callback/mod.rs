//! Callbacks: the POST to the `endpoint` that a request names.
//!
//! # From the request to the endpoint
//!
//! An accepted request puts its endpoint into a queue and is answered: no request waits for a callback. One [task]
//! takes callbacks from the queue and asks the store once for all of them. It sends each callback when the limits of
//! its [host](hosts) allow it:
//!
//! ```text
//! accept ─► queue ─► one count, at most every 10 ms ─► a queue for each host ─► requests under way ─► endpoint
//! ```
//!
//! A callback sends the total, or the count of the counter that its request named. The count starts after the request's own id was counted, so it includes that id. Callbacks that come during a count
//! wait for the next one: a count costs the same for one callback and for ten thousand.
//!
//! # Bounds
//!
//! A callback holds one of `--callback-queue` permits from the request until it is sent. Without a permit, or beyond
//! the limits of its host, it is dropped, and a metric counts it. It is sent once, within a time-out, and its outcome
//! is logged. A receiver that needs every count reads Kafka or the Redis stream.
//!
//! The [guard] decides where callbacks may go.

mod counting;
pub mod guard;
mod hosts;
mod outcomes;
mod sender;
pub(crate) mod signature;
mod special_purpose;
mod task;

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use self::counting::{Counts, Key};
use self::guard::{Allow, Endpoint, Guard};
use self::hosts::Hosts;
pub(crate) use self::hosts::MOST_IDLE_CONNECTIONS;
use self::outcomes::Outcomes;
pub(crate) use self::sender::NoClient;
use self::sender::Sender;
use self::signature::SigningKey;
use self::task::{Callback, Pending, Task};
use crate::coordination::ClosedWindows;
use crate::model::window::{Clock, Window};
use crate::platform::secret::Secret;
use crate::store::Store;
use crate::telemetry::metrics::Metrics;

/// Where callbacks may go, and how many.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Whether requests may name an endpoint.
    pub enabled: bool,
    /// Where callbacks may go besides public addresses.
    pub allow: Vec<Allow>,
    /// Signs callbacks; without it they have no signature.
    pub signing_key: Option<Secret<SigningKey>>,
    /// Callbacks that may wait.
    pub queue: u32,
    /// Callbacks that are under way at a time.
    pub concurrency: u32,
    /// Callbacks that one host is sent a second, and how many may wait for it.
    pub host_rate: u32,
}

/// Accepts callbacks.
pub struct Callbacks {
    guard: Arc<Guard>,
    /// The channel itself is unbounded: `pending` bounds it.
    queue: mpsc::UnboundedSender<Callback>,
    pending: Pending,
    outcomes: Outcomes,
}

/// The parts of the service that callbacks use.
pub struct Dependencies {
    /// The addresses that this service listens on.
    pub own: Vec<SocketAddr>,
    /// Counts the windows that it still has.
    pub store: Arc<Store>,
    /// The counts of windows that the store has just evicted.
    pub closed: ClosedWindows,
    /// Stamps callbacks.
    pub clock: Arc<dyn Clock>,
}

impl Callbacks {
    /// Returns the callbacks and the task that sends them. The caller must run the task.
    ///
    /// # Errors
    ///
    /// [`NoClient`] when TLS cannot be set up.
    pub fn new(
        settings: Settings,
        dependencies: Dependencies,
        metrics: &Metrics,
    ) -> Result<(Self, CallbackTask), NoClient> {
        let Dependencies { own, store, closed, clock } = dependencies;
        let guard = Arc::new(Guard::new(settings.enabled, settings.allow, own));
        let outcomes = Outcomes::new(metrics);
        let pending = Pending::new(settings.queue);
        let (queue, submitted) = mpsc::unbounded_channel();
        let task = if settings.enabled {
            let sender = Sender::new(&guard, settings.signing_key, clock, outcomes.clone())?;
            let (counts, hosts) = (Counts { store, closed }, Hosts::new(settings.host_rate));
            let concurrency = settings.concurrency as usize;
            let outcomes = outcomes.clone();
            Some(Task::new(submitted, pending.clone(), counts, hosts, concurrency, sender, outcomes))
        } else {
            None
        };
        Ok((Self { guard, queue, pending, outcomes }, CallbackTask(task)))
    }

    pub(crate) fn guard(&self) -> &Guard {
        &self.guard
    }

    /// Queues a callback with the count of `window`, of a counter if one is given. Never waits: a callback without a permit is
    /// dropped.
    pub(crate) fn submit(&self, endpoint: Endpoint, window: Window, counter: Option<&str>) {
        let Some(permit) = self.pending.admit() else { return self.outcomes.queue_full.increment(1) };
        let key = Key { window, counter: counter.map(Arc::from) };
        if self.queue.send(Callback { endpoint, key, permit }).is_err() {
            self.outcomes.unsent.increment(1);
        }
    }

    pub(crate) fn waiting(&self) -> usize {
        self.pending.count()
    }
}

/// The task that sends callbacks; none if they are off.
pub struct CallbackTask(Option<Task>);

impl CallbackTask {
    /// Sends callbacks until `stop`, then those that wait, until `abort`.
    pub(crate) async fn run(self, stop: CancellationToken, abort: CancellationToken) {
        match self.0 {
            Some(task) => task.run(stop, abort).await,
            None => stop.cancelled().await,
        }
    }
}
