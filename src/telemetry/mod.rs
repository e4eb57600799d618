//! What the service says of itself: metrics and the log.

pub mod logging;
pub mod metrics;
mod standard_output;
