//! What a publisher works with.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::coordination::term::Term;
use crate::coordination::{ClosedWindows, Coordinator};
use crate::model::window::{Clock, Window, WindowLength};
use crate::store::Store;
use crate::telemetry::metrics::Metrics;

/// What a publisher works with.
pub struct Publisher {
    /// Says when a window has ended.
    pub clock: Arc<dyn Clock>,
    /// Counts it.
    pub store: Arc<Store>,
    /// Knows who has sealed it, and keeps the count.
    pub coordinator: Arc<Coordinator>,
    /// The lease, while this instance has it.
    pub term: watch::Receiver<Option<Term>>,
    /// How far this instance has sealed.
    pub watermark: watch::Receiver<Window>,
    /// The length of windows.
    pub window: WindowLength,
    /// How long after its end a window may still be published.
    pub retention: Duration,
    /// How long after its end a window waits for an instance that lives and does not seal it.
    pub close_timeout: Duration,
    /// Told about every window.
    pub metrics: Arc<Metrics>,
    /// Shows the closed windows.
    pub closed: ClosedWindows,
}
