//! Finds out the numbers that callbacks tell: one count for all that wait for it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::guard::Endpoint;
use super::outcome::{Outcome, Outcomes};
use super::sending::Letter;
use crate::coordination::ClosedWindows;
use crate::model::window::{UniqueCount, Window};
use crate::store::{CountError, UniqueCounter};

/// Between two counts.
const COUNT_EVERY: Duration = Duration::from_millis(10);

/// A callback that waits for its number.
pub(super) struct Callback {
    pub(super) endpoint: Endpoint,
    pub(super) window: Window,
    pub(super) place: OwnedSemaphorePermit,
}

/// Finds out the numbers.
pub(super) struct Counting {
    waiting: mpsc::UnboundedReceiver<Callback>,
    letters: mpsc::UnboundedSender<Letter>,
    counter: Arc<dyn UniqueCounter>,
    closed: ClosedWindows,
    outcomes: Outcomes,
    /// The last count failed, and it has been said.
    is_failing: bool,
}

impl Counting {
    /// Takes what is `waiting`, and makes `letters` of it.
    pub(super) fn new(
        waiting: mpsc::UnboundedReceiver<Callback>,
        letters: mpsc::UnboundedSender<Letter>,
        counter: Arc<dyn UniqueCounter>,
        closed: ClosedWindows,
        outcomes: Outcomes,
    ) -> Self {
        Self { waiting, letters, counter, closed, outcomes, is_failing: false }
    }

    /// Until `stop`, and then what waits, until `abort`. How many were not counted for want of time.
    pub(super) async fn run(mut self, stop: CancellationToken, abort: CancellationToken) -> usize {
        let mut batches = BTreeMap::new();
        tokio::select! {
            () = self.count_all(&mut batches, stop) => {}
            () = abort.cancelled() => {}
        }
        batches.values().map(Vec::len).sum::<usize>() + self.waiting.len()
    }

    async fn count_all(&mut self, batches: &mut BTreeMap<Window, Vec<Callback>>, stop: CancellationToken) {
        let mut pace = tokio::time::interval(COUNT_EVERY);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            if batches.is_empty() {
                let first = tokio::select! {
                    biased;
                    first = self.waiting.recv() => first,
                    () = stop.cancelled(), if !self.waiting.is_closed() => {
                        self.waiting.close();
                        continue;
                    }
                };
                let Some(first) = first else { return };
                batches.entry(first.window).or_default().push(first);
            }
            pace.tick().await;
            // All that came while there was no count.
            while let Ok(next) = self.waiting.try_recv() {
                batches.entry(next.window).or_default().push(next);
            }
            let Some(window) = batches.keys().next().copied() else { continue };
            let body = self.body(window).await;
            // Taken out only now: who is cut off while counting still has them.
            self.hand_on(window, batches.remove(&window).unwrap_or_default(), body);
        }
    }

    fn hand_on(&mut self, window: Window, callbacks: Vec<Callback>, body: Result<Bytes, String>) {
        let body = match body {
            Ok(body) => body,
            Err(error) => {
                if !self.is_failing {
                    warn!(%window, %error, "callbacks are dropped until they can be told a count");
                }
                self.is_failing = true;
                return self.outcomes.add(Outcome::NoCount, callbacks.len());
            }
        };
        self.is_failing = false;
        for Callback { endpoint, place, .. } in callbacks {
            let letter = Letter { endpoint, body: body.clone(), place };
            if self.letters.send(letter).is_err() {
                self.outcomes.add(Outcome::Unsent, 1);
            }
        }
    }

    async fn body(&self, window: Window) -> Result<Bytes, String> {
        let count = UniqueCount { timestamp: window, unique_request_count: self.unique_ids(window).await? };
        serde_json::to_vec(&count).map(Bytes::from).map_err(|error| error.to_string())
    }

    async fn unique_ids(&self, window: Window) -> Result<u64, String> {
        // Nobody is to wait for a store that is away.
        if self.counter.is_degraded() {
            return Err("what is shared cannot be reached".to_owned());
        }
        match (self.counter.count(window).await, self.closed.get(window)) {
            (Ok(tally), _) => Ok(tally.unique_ids),
            // It was closed, and forgotten, since the request was accepted in its last moment.
            (Err(CountError::Evicted(_)), Some(count)) => Ok(count.unique_request_count),
            (Err(error), _) => Err(error.to_string()),
        }
    }
}
