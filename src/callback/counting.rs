//! The count that a callback sends.

use std::sync::Arc;

use bytes::Bytes;

use crate::coordination::ClosedWindows;
use crate::model::window::{UniqueCount, Window};
use crate::store::{CountError, Store};

#[derive(Clone)]
pub(super) struct Counts {
    pub(super) store: Arc<Store>,
    pub(super) closed: ClosedWindows,
}

impl Counts {
    /// The JSON body of every callback for `window`.
    pub(super) async fn body(&self, window: Window) -> Result<Bytes, String> {
        let count = UniqueCount { timestamp: window, unique_request_count: self.unique_ids(window).await? };
        serde_json::to_vec(&count).map(Bytes::from).map_err(|error| error.to_string())
    }

    async fn unique_ids(&self, window: Window) -> Result<u64, String> {
        // During an outage every try would wait for its time-out.
        if self.store.is_degraded() {
            return Err("the store is not reachable".to_owned());
        }
        match (self.store.count(window).await, self.closed.get(window)) {
            (Ok(counted), _) => Ok(counted.unique_ids),
            // The window was closed and evicted after the request came.
            (Err(CountError::Evicted(_)), Some(count)) => Ok(count.unique_request_count),
            (Err(error), _) => Err(error.to_string()),
        }
    }
}
