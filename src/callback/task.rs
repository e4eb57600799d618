//! The task of the callbacks: it takes them from the queue, asks the store for counts, and sends them.

use std::collections::BTreeMap;
use std::future::pending;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use super::counting::{Counts, Key};
use super::guard::Endpoint;
use super::hosts::{Dispatch, Hosts};
use super::outcomes::Outcomes;
use super::sender::Sender;

/// The shortest time between the starts of two counts.
const COUNT_EVERY: Duration = Duration::from_millis(10);

/// Bounds the pending callbacks: accepted, and not yet sent. Clones share the bound.
#[derive(Clone)]
pub(super) struct Pending {
    permits: Arc<Semaphore>,
    most: usize,
}

impl Pending {
    pub(super) fn new(most: u32) -> Self {
        let most = most as usize;
        Self { permits: Arc::new(Semaphore::new(most)), most }
    }

    pub(super) fn admit(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.permits).try_acquire_owned().ok()
    }

    pub(super) fn count(&self) -> usize {
        self.most - self.permits.available_permits()
    }
}

pub(super) struct Callback {
    pub(super) endpoint: Endpoint,
    /// Which count it sends.
    pub(super) key: Key,
    /// Held until the callback is sent or dropped.
    pub(super) permit: OwnedSemaphorePermit,
}

/// Different counts that are made at a time. Callbacks with more different keys wait for the next time.
const COUNTS_AT_A_TIME: usize = 100;

/// Counts under way, and the callbacks that wait for each.
type Counting = Pin<Box<dyn Future<Output = Vec<(Vec<Callback>, Result<Bytes, String>)>> + Send>>;

pub(super) struct Task {
    queue: mpsc::UnboundedReceiver<Callback>,
    pending: Pending,
    uncounted: BTreeMap<Key, Vec<Callback>>,
    counts: Counts,
    counting: Option<Counting>,
    /// The last count failed, and the log says so.
    is_failing: bool,
    /// Callbacks that have their body.
    hosts: Hosts<(Callback, Bytes)>,
    under_way: JoinSet<()>,
    concurrency: usize,
    sender: Arc<Sender>,
    outcomes: Outcomes,
}

impl Task {
    pub(super) fn new(
        queue: mpsc::UnboundedReceiver<Callback>,
        pending: Pending,
        counts: Counts,
        hosts: Hosts<(Callback, Bytes)>,
        concurrency: usize,
        sender: Sender,
        outcomes: Outcomes,
    ) -> Self {
        Self {
            queue,
            pending,
            uncounted: BTreeMap::new(),
            counts,
            counting: None,
            is_failing: false,
            hosts,
            under_way: JoinSet::new(),
            concurrency,
            sender: Arc::new(sender),
            outcomes,
        }
    }

    /// Sends callbacks until `stop`, then those that are pending, until `abort`.
    pub(super) async fn run(mut self, stop: CancellationToken, abort: CancellationToken) {
        let mut pace = interval(COUNT_EVERY);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !self.is_done() {
            tokio::select! {
                Some(callback) = self.queue.recv() => {
                    self.uncounted.entry(callback.key.clone()).or_default().push(callback);
                }
                _ = pace.tick(), if self.counting.is_none() && !self.uncounted.is_empty() => self.count(),
                counted = finished(&mut self.counting) => {
                    self.counting = None;
                    for (callbacks, body) in counted {
                        self.take_count(callbacks, body);
                    }
                }
                Some(ended) = self.under_way.join_next() => if let Err(panicked) = ended {
                    error!(error = %panicked, "a callback panicked");
                    self.outcomes.failed.increment(1);
                },
                () = stop.cancelled(), if !self.queue.is_closed() => self.queue.close(),
                () = abort.cancelled() => break,
            }
            self.send();
        }
        self.give_up().await;
    }

    fn is_done(&self) -> bool {
        // `hosts` is not asked: callbacks wait there only while others are under way.
        let is_empty = self.queue.is_empty() && self.uncounted.is_empty() && self.counting.is_none();
        self.queue.is_closed() && is_empty && self.under_way.is_empty()
    }

    /// Starts to count for the callbacks that wait, those of the oldest window first. Callbacks that come meanwhile wait for the
    /// next time.
    fn count(&mut self) {
        let some: Vec<_> = std::iter::from_fn(|| self.uncounted.pop_first()).take(COUNTS_AT_A_TIME).collect();
        let counts = self.counts.clone();
        self.counting = Some(Box::pin(async move {
            let mut counted = Vec::with_capacity(some.len());
            for (key, callbacks) in some {
                counted.push((callbacks, counts.body(&key).await));
            }
            counted
        }));
    }

    fn take_count(&mut self, callbacks: Vec<Callback>, body: Result<Bytes, String>) {
        match body {
            Ok(body) => {
                self.is_failing = false;
                for callback in callbacks {
                    let (host, origin) = (Arc::clone(&callback.endpoint.host), callback.endpoint.origin());
                    if !self.hosts.push(&host, origin, (callback, body.clone()), Instant::now()) {
                        self.outcomes.host_limit.increment(1);
                    }
                }
            }
            Err(error) => {
                if !self.is_failing {
                    warn!(%error, "cannot count: callbacks are dropped until a count succeeds");
                }
                self.is_failing = true;
                self.outcomes.no_count.increment(callbacks.len() as u64);
            }
        }
    }

    /// Sends what may be sent now.
    fn send(&mut self) {
        while self.under_way.len() < self.concurrency
            && let Some(Dispatch { item, keep_alive, permit }) = self.hosts.next(Instant::now())
        {
            let (Callback { endpoint, permit: pending, .. }, body) = item;
            drop(pending);
            let sender = Arc::clone(&self.sender);
            self.under_way.spawn(async move {
                sender.send(&endpoint, body, keep_alive).await;
                drop(permit);
            });
        }
    }

    /// Drops the callbacks that are left, if time ran out.
    async fn give_up(mut self) {
        let mut unsent = self.pending.count();
        self.under_way.abort_all();
        while let Some(ended) = self.under_way.join_next().await {
            unsent += usize::from(ended.is_err());
        }
        if unsent > 0 {
            warn!(unsent, "callbacks dropped: the service stops");
            self.outcomes.unsent.increment(unsent as u64);
        }
    }
}

/// Waits for the count under way, or for ever if there is none.
async fn finished(counting: &mut Option<Counting>) -> Vec<(Vec<Callback>, Result<Bytes, String>)> {
    match counting {
        Some(counting) => counting.await,
        None => pending().await,
    }
}
