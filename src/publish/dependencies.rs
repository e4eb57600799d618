//! The dependencies of the publisher.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::coordination::term::Term;
use crate::coordination::{ClosedWindows, Coordinator};
use crate::model::shard::Shards;
use crate::model::window::{Clock, Window, WindowLength};
use crate::store::{Keep, Store};
use crate::telemetry::metrics::Metrics;

/// Closes and publishes windows. The fields are its dependencies.
pub struct Publisher {
    /// Says when a window has ended.
    pub clock: Arc<dyn Clock>,
    /// Counts it.
    pub store: Arc<Store>,
    /// Knows which instances have sealed it, and stores the count.
    pub coordinator: Arc<Coordinator>,
    /// The term, while this instance holds the lease.
    pub term: watch::Receiver<Option<Term>>,
    /// How far this instance has sealed.
    pub watermark: watch::Receiver<Window>,
    /// The length of windows.
    pub window: WindowLength,
    /// How long after its end a window may still be published.
    pub retention: Duration,
    /// The same for the counts of its counters, at most as long.
    pub counter_retention: Duration,
    /// Sketches that the ids of a window are split over.
    pub shards: Shards,
    /// How long hours and days are kept.
    pub keep: Keep,
    /// How long after its end a window waits for a live instance that does not seal it.
    pub close_timeout: Duration,
    /// Counts what is closed and published.
    pub metrics: Arc<Metrics>,
    /// Remembers the closed windows for requests.
    pub closed: ClosedWindows,
}
