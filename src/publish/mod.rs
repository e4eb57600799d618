//! The publisher: closes windows in order and hands each count to every sink, on the instance that leads.
//!
//! While this instance holds the lease, one loop closes (`leading`): a window that every instance has
//! sealed is counted once, the count stored, and put into the queue of each sink. Every sink has a task of
//! its own (`delivery`) that tries until the sink has the count, so a sink that is away holds up nobody but
//! itself. What has reached every sink is marked as published; that is where the next leader goes on, so a
//! change of leader may show a sink a window again, with the same count.
//!
//! Queues are bounded by the retention: a count that goes past it is skipped, which is logged as an error
//! and counted in `headcount_published_windows_total`. Empty windows are closed like all others, as 0.

mod delivery;
mod dependencies;
mod leading;
pub mod record;
pub mod sinks;

use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::delivery::{Backlog, Delivery, Queue};
pub use self::dependencies::Publisher;
use self::leading::Leading;
use crate::coordination::grant::Grant;
use crate::publish::sinks::CountSink;

/// How long sinks that are behind are waited for at the stop when the next leader can go on instead.
const LAST_DELIVERIES: Duration = Duration::from_secs(2);

/// A sink panicked.
#[derive(Debug, Error)]
#[error("the task of a sink ended: {0}")]
pub struct SinkEnded(#[from] JoinError);

impl Publisher {
    /// Hands windows to `sinks` while this instance leads, until `stop`. Then what is sealed is closed, and this
    /// returns when every sink has every count, or soon if another instance can go on with them.
    ///
    /// # Errors
    ///
    /// [`SinkEnded`] when a sink panicked.
    pub async fn run(self, sinks: Vec<Box<dyn CountSink>>, stop: CancellationToken) -> Result<(), SinkEnded> {
        let backlog = Arc::new(Backlog::new(sinks.len(), Arc::clone(&self.metrics)));
        let mut deliveries = JoinSet::new();
        let mut queues = Vec::new();
        for (index, sink) in sinks.into_iter().enumerate() {
            let (queue, delivery) = Delivery::new(sink, index, &self, &backlog, &stop);
            queues.push(queue);
            deliveries.spawn(delivery.run());
        }
        let grant = tokio::select! {
            grant = self.lead_by_turns(&queues, &backlog, &stop) => grant,
            Some(ended) = deliveries.join_next() => return ended.map_err(SinkEnded::from),
        };
        // Queues without a sender tell the deliveries that this was all.
        drop(queues);
        let last_deliveries = async {
            while let Some(ended) = deliveries.join_next().await {
                ended?;
            }
            Ok(())
        };
        let mut result = Ok(());
        if !self.coordinator.outlives_process() {
            result = last_deliveries.await;
        } else if let Ok(ended) = tokio::time::timeout(LAST_DELIVERIES, last_deliveries).await {
            result = ended;
        } else {
            warn!("sinks that are behind are left to the next leader");
        }
        if let Some(grant) = grant {
            self.mark_the_last(&grant, &backlog).await;
        }
        result
    }

    /// Leads whenever the lease is here. At the stop it says under which grant, if any.
    async fn lead_by_turns(
        &self,
        queues: &[Queue],
        backlog: &Backlog,
        stop: &CancellationToken,
    ) -> Option<Grant> {
        let mut grants = self.grant.clone();
        loop {
            let grant = tokio::select! {
                grant = next_grant(&mut grants) => grant?,
                () = stop.cancelled() => return None,
            };
            if self.coordinator.outlives_process() {
                info!(fencing_token = grant.token(), "this instance leads");
            }
            self.metrics.leader.set(1.0);
            Leading::new(self, queues, backlog, grant.clone()).run(stop).await;
            if stop.is_cancelled() {
                return Some(grant);
            }
            self.metrics.leader.set(0.0);
            warn!("this instance leads no more");
        }
    }

    /// What is not marked is published again by the next leader.
    async fn mark_the_last(&self, grant: &Grant, backlog: &Backlog) {
        let delivered = *backlog.delivered().borrow();
        if let Some(window) = delivered
            && grant.is_valid()
            && let Err(error) = self.coordinator.mark_published(grant, window).await
        {
            warn!(%error, "the last windows are published, but could not be marked so");
        }
    }
}

/// Waits for a grant that is valid; none when there will be no more.
async fn next_grant(grants: &mut watch::Receiver<Option<Grant>>) -> Option<Grant> {
    let valid = |grant: &Option<Grant>| grant.as_ref().is_some_and(Grant::is_valid);
    grants.wait_for(valid).await.ok()?.clone()
}
