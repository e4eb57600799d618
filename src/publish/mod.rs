//! The publisher: on the instance that leads, it closes windows in order and publishes each count to every sink.
//!
//! While this instance holds the lease, one loop closes windows (`leading`). When every instance has sealed a window, the loop
//! counts it once, stores the count, and appends it to one list (`unpublished`). Each sink has a task (`delivery`) that
//! follows the list, and a cursor that moves when the sink has a count. So a sink that is away holds up no other. When every
//! cursor is past a count, the count leaves the list, and the leader commits its window as published. The next leader resumes
//! after the last such window. After a change of leader a sink may see a window again, with the same count.
//!
//! The retention bounds the list. A count that becomes older is skipped, with an error in the log, and
//! `headcount_published_windows_total` counts it. The counts of its counters are skipped earlier, after
//! `--counter-retention`, because they may be many. Empty windows are closed like all others, as 0.

mod delivery;
mod dependencies;
mod leading;
mod record;
mod roll_up;
pub mod sinks;
mod unpublished;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::delivery::Delivery;
pub use self::dependencies::Publisher;
use self::leading::Leading;
use self::unpublished::{Skipped, Unpublished};
use crate::coordination::term::Term;
use crate::coordination::{ClosedCounters, StoredWindow};
use crate::platform::unavailable::Unavailable;
use crate::publish::sinks::CountSink;

/// How long a stop waits for sinks that are behind, if another instance can publish to them instead.
const LAST_DELIVERIES: Duration = Duration::from_secs(2);

impl Publisher {
    /// Publishes windows to `sinks` while this instance leads, until `stop`. Then it closes the sealed windows, and returns
    /// when every sink has every count. It returns soon if another instance can publish them instead.
    ///
    /// # Errors
    ///
    /// [`JoinError`] when a sink panicked.
    pub async fn run(self, sinks: Vec<Box<dyn CountSink>>, stop: CancellationToken) -> Result<(), JoinError> {
        let publisher = Arc::new(self);
        let unpublished = Arc::new(publisher.unpublished(&sinks));
        let mut deliveries = JoinSet::new();
        for (number, sink) in sinks.into_iter().enumerate() {
            deliveries.spawn(Delivery::new(sink, number, &publisher, &unpublished, &stop).run());
        }
        let term = tokio::select! {
            term = publisher.lead_by_turns(&unpublished, &stop) => term,
            Some(ended) = deliveries.join_next() => return ended,
        };
        unpublished.end();
        let last_deliveries = async {
            while let Some(ended) = deliveries.join_next().await {
                ended?;
            }
            Ok(())
        };
        let mut result = Ok(());
        if !publisher.coordinator.is_shared() {
            result = last_deliveries.await;
        } else if let Ok(ended) = tokio::time::timeout(LAST_DELIVERIES, last_deliveries).await {
            result = ended;
        } else {
            warn!("sinks that are behind are left to the next leader");
        }
        if let Some(term) = term {
            publisher.commit_the_last(&term, &unpublished).await;
        }
        result
    }

    fn unpublished(&self, sinks: &[Box<dyn CountSink>]) -> Unpublished {
        // All windows of a retention, and some that are just passing it.
        let capacity = (self.retention.as_secs() / u64::from(self.window.seconds())) as usize + 3;
        let skipped = sinks.iter().map(|sink| Skipped {
            windows: self.metrics.published_windows(sink.name(), "skipped"),
            counters: self.metrics.skipped_counters(sink.name()),
        });
        Unpublished::new(skipped.collect(), capacity, self.counter_retention, Arc::clone(&self.metrics))
    }

    /// Leads whenever this instance holds the lease. At the stop it returns the term, if this instance leads.
    async fn lead_by_turns(&self, unpublished: &Unpublished, stop: &CancellationToken) -> Option<Term> {
        let mut terms = self.term.clone();
        loop {
            let term = tokio::select! {
                term = next_term(&mut terms) => term?,
                () = stop.cancelled() => return None,
            };
            if self.coordinator.is_shared() {
                info!(fencing_token = term.token(), "this instance leads");
            }
            self.metrics.leader.set(1.0);
            Leading::new(self, unpublished, term.clone()).run(stop).await;
            if stop.is_cancelled() {
                return Some(term);
            }
            unpublished.clear();
            self.metrics.leader.set(0.0);
            warn!("this instance no longer leads");
        }
    }

    /// The counts of a closed window's counters. None if Redis does not have them any more.
    async fn counters_of(&self, window: &StoredWindow) -> Result<Option<Arc<ClosedCounters>>, Unavailable> {
        match self.closed.counters_of(window) {
            Some(known) => Ok(Some(known)),
            None => self.coordinator.counters_of(window).await,
        }
    }

    /// Commits the published position before this leader ends. The next leader publishes later windows again.
    async fn commit_the_last(&self, term: &Term, unpublished: &Unpublished) {
        if let Some(window) = unpublished.delivered()
            && term.is_valid()
            && let Err(error) = self.coordinator.commit_published(term, window).await
        {
            warn!(%error, "cannot commit the published position: the next leader publishes windows again");
        }
    }
}

/// Waits for a term that is valid; none when no more will come.
async fn next_term(terms: &mut watch::Receiver<Option<Term>>) -> Option<Term> {
    let valid = |term: &Option<Term>| term.as_ref().is_some_and(Term::is_valid);
    terms.wait_for(valid).await.ok()?.clone()
}
