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
use crate::coordinator::LastClosed;
use crate::counter::{CountError, UniqueCounter};
use crate::window::{UniqueCount, Window};

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
    last: LastClosed,
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
        last: LastClosed,
        outcomes: Outcomes,
    ) -> Self {
        Self { waiting, letters, counter, last, outcomes, is_failing: false }
    }

    /// Until `stop`, and then what waits.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let mut pace = tokio::time::interval(COUNT_EVERY);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut batches: BTreeMap<Window, Vec<Callback>> = BTreeMap::new();
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
            if let Some((window, callbacks)) = batches.pop_first() {
                self.count(window, callbacks).await;
            }
        }
    }

    async fn count(&mut self, window: Window, callbacks: Vec<Callback>) {
        let count = self.unique_ids(window).await.and_then(|unique_request_count| {
            let count = UniqueCount { timestamp: window, unique_request_count };
            serde_json::to_vec(&count).map(Bytes::from).map_err(|error| error.to_string())
        });
        let body = match count {
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

    async fn unique_ids(&self, window: Window) -> Result<u64, String> {
        // Nobody is to wait for a store that is away.
        if self.counter.is_degraded() {
            return Err("what is shared cannot be reached".to_owned());
        }
        match (self.counter.count(window).await, self.last.get()) {
            (Ok(tally), _) => Ok(tally.unique_ids),
            // It was closed, and forgotten, since the request was accepted in its last moment.
            (Err(CountError::Evicted(_)), Some(last)) if last.window == window => {
                Ok(last.unique_request_count)
            }
            (Err(error), _) => Err(error.to_string()),
        }
    }
}
