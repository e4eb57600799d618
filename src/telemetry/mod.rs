//! What the service says of itself: metrics and the log.

pub mod log_progress;
pub mod logging;
pub mod metrics;
