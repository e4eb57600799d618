//! What a publisher works with, and its flags.

use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tokio::sync::watch;

use crate::coordination::grant::Grant;
use crate::coordination::{ClosedWindows, Coordinator};
use crate::model::window::{Clock, Window, WindowLength};
use crate::platform::args;
use crate::store::UniqueCounter;
use crate::telemetry::metrics::Metrics;

/// How windows are closed.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Publishing")]
pub struct PublisherArgs {
    /// How long after its end a window waits for an instance that lives and has not finished it, and gets no
    /// further with it; then it is published without, as incomplete
    #[arg(
        long, env = "HEADCOUNT_CLOSE_TIMEOUT", value_name = "DURATION", default_value = "10s",
        value_parser = args::positive_duration
    )]
    pub close_timeout: Duration,
}

/// What a publisher works with.
pub struct Publisher {
    /// Says when a window has ended.
    pub clock: Arc<dyn Clock>,
    /// Counts it.
    pub counter: Arc<dyn UniqueCounter>,
    /// Knows who has sealed it, and keeps the count.
    pub coordinator: Arc<dyn Coordinator>,
    /// The lease, while this instance has it.
    pub grant: watch::Receiver<Option<Grant>>,
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
