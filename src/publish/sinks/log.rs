//! The log sink: a line in the service's own log for every closed window.

use std::time::Duration;

use async_trait::async_trait;
use tracing::info;

use super::{CountSink, Origin, SinkError};
use crate::coordination::grant::Grant;
use crate::model::window::WindowCount;
use crate::telemetry::log_progress::{LogProgress, Logged, WINDOWS};

/// How long a line may take to be written.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Logs every count as an event at level info, and waits until the line is written to standard output.
pub struct LogSink {
    origin: Origin,
    progress: LogProgress,
    /// A line that took too long. It is still in the queue, so nothing else is logged until it is written.
    late: Option<(WindowCount, Logged)>,
}

impl LogSink {
    /// Into the log whose progress this is.
    pub fn new(origin: Origin, progress: LogProgress) -> Self {
        Self { origin, progress, late: None }
    }

    /// Waits for a line, but not for long: whoever reads standard output may have paused.
    async fn wait_for(&mut self, count: WindowCount, line: Logged) -> Result<(), SinkError> {
        match tokio::time::timeout(TIMEOUT, self.progress.written(&line)).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(SinkError::unavailable(
                "standard output cannot be written: is its disk full, or its reader gone? Lines are lost",
            )),
            Err(_) => {
                self.late = Some((count, line));
                Err(SinkError::unavailable("standard output is not read: lines wait"))
            }
        }
    }
}

#[async_trait]
impl CountSink for LogSink {
    fn name(&self) -> &'static str {
        "log"
    }

    async fn publish(&mut self, count: &WindowCount, _grant: &Grant) -> Result<(), SinkError> {
        if let Some((late, line)) = self.late.take() {
            let written = self.wait_for(late, line).await;
            if late == *count || self.late.is_some() {
                return written;
            }
        }
        let line = self.progress.log(|| {
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
        self.wait_for(*count, line).await
    }
}
