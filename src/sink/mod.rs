//! Sinks: where the counts of closed windows go.

pub mod log;

use std::error::Error;

use async_trait::async_trait;

use crate::window::WindowCount;

/// Takes the counts of closed windows, in order, one at a time.
#[async_trait]
pub trait CountSink: Send {
    /// The word for it in logs and metrics.
    fn name(&self) -> &'static str;

    /// Hands over a count. `Ok` once it is where it belongs; after an error the same count is handed
    /// over again, so a sink may see one more than once and should say so where it shows.
    async fn publish(&mut self, count: &WindowCount) -> Result<(), SinkError>;
}

/// The sink could not take a count this time.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct SinkError(#[from] Box<dyn Error + Send + Sync>);
