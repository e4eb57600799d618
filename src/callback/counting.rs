//! The count that a callback sends.

use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;

use crate::coordination::ClosedWindows;
use crate::model::window::{UniqueCount, Window};
use crate::store::{CountError, Store};

/// What a callback sends: callbacks with the same key have the same body.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) window: Window,
    /// None for the total.
    pub(super) counter: Option<Arc<str>>,
}

#[derive(Serialize)]
struct Body<'a> {
    #[serde(flatten)]
    count: UniqueCount,
    #[serde(skip_serializing_if = "Option::is_none")]
    counter: Option<&'a str>,
}

#[derive(Clone)]
pub(super) struct Counts {
    pub(super) store: Arc<Store>,
    pub(super) closed: ClosedWindows,
}

impl Counts {
    /// The JSON body of every callback with this key.
    pub(super) async fn body(&self, key: &Key) -> Result<Bytes, String> {
        // During an outage every try would wait for its time-out, and the count would lack the ids that are kept here.
        if self.store.is_degraded() {
            return Err("the store is not reachable".to_owned());
        }
        let Key { window, counter } = key;
        let unique_ids = match counter {
            Some(counter) => self.unique_ids_of(*window, counter).await?,
            None => self.unique_ids(*window).await?,
        };
        let count = UniqueCount { timestamp: *window, unique_request_count: unique_ids };
        let body = Body { count, counter: counter.as_deref() };
        serde_json::to_vec(&body).map(Bytes::from).map_err(|error| error.to_string())
    }

    async fn unique_ids_of(&self, window: Window, counter: &str) -> Result<u64, String> {
        match (self.store.counts_of(window, &[counter]).await, self.closed.counters()) {
            (Ok(counts), _) => Ok(counts.first().copied().unwrap_or_default()),
            (Err(CountError::Evicted(_)), Some(closed)) if closed.window() == window => {
                Ok(closed.counts.get(counter))
            }
            (Err(error), _) => Err(error.to_string()),
        }
    }

    async fn unique_ids(&self, window: Window) -> Result<u64, String> {
        match (self.store.count(window).await, self.closed.get(window)) {
            (Ok(counted), _) => Ok(counted.unique_ids),
            // The window was closed and evicted after the request came.
            (Err(CountError::Evicted(_)), Some(count)) => Ok(count.unique_request_count),
            (Err(error), _) => Err(error.to_string()),
        }
    }
}
