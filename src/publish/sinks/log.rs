//! The log sink: a line in the service's own log for every closed window.

use std::time::Duration;

use async_trait::async_trait;
use tracing::info;

use super::{CountSink, Origin, SinkError};
use crate::coordination::grant::Grant;
use crate::model::window::WindowCount;
use crate::telemetry::log_progress::{LogProgress, WINDOWS};

/// How long a line may take to be written.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Logs every count as an event at level info, and waits until the line is written to standard output.
pub struct LogSink {
    origin: Origin,
    progress: LogProgress,
}

impl LogSink {
    /// Into the log whose progress this is.
    pub fn new(origin: Origin, progress: LogProgress) -> Self {
        Self { origin, progress }
    }
}

#[async_trait]
impl CountSink for LogSink {
    fn name(&self) -> &'static str {
        "log"
    }

    async fn publish(&mut self, count: &WindowCount, _grant: &Grant) -> Result<(), SinkError> {
        let written = self.progress.written(|| {
            info!(
                target: WINDOWS,
                timestamp = %count.window,
                unique_request_count = count.unique_request_count,
                accepted_ids = count.accepted_ids,
                mode = self.origin.mode.as_str(),
                standard_error = self.origin.standard_error,
                complete = count.complete,
                "window closed"
            );
        });
        match tokio::time::timeout(TIMEOUT, written).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(SinkError::unavailable(
                "standard output cannot be written: is its disk full, or its reader gone? Lines are lost",
            )),
            Err(_) => Err(SinkError::unavailable("standard output is not read: lines wait")),
        }
    }
}
