//! Writes a line for each window to a target that may hang: a file, or standard output.

use std::fmt::Display;
use std::io;
use std::time::Duration;

use tokio::task::JoinHandle;

use super::SinkError;
use crate::model::window::WindowCount;

/// How long the write of a line may take. A file may be on a server that is away, or the reader of standard output may have
/// paused.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Writes one line after another, each on a thread that may block.
#[derive(Default)]
pub(super) struct Lines {
    /// A line that took too long. It may still be written, so the next line waits for the result.
    late: Option<(WindowCount, JoinHandle<io::Result<()>>)>,
}

impl Lines {
    /// Writes the line of a count, or waits for that line if it is late. An error names the target `to`.
    pub(super) async fn write(
        &mut self,
        count: &WindowCount,
        to: impl Display,
        write: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> Result<(), SinkError> {
        let failed = |cause: io::Error| SinkError::unavailable(format!("cannot write to {to}: {cause}"));
        if let Some((late, task)) = self.late.take() {
            let written = self.wait_for(late, task).await;
            if late == *count || self.late.is_some() {
                return written.map_err(failed);
            }
        }
        self.wait_for(*count, tokio::task::spawn_blocking(write)).await.map_err(failed)
    }

    async fn wait_for(&mut self, count: WindowCount, mut task: JoinHandle<io::Result<()>>) -> io::Result<()> {
        let Ok(done) = tokio::time::timeout(TIMEOUT, &mut task).await else {
            self.late = Some((count, task));
            return Err(io::Error::other(format!("no answer within {} s", TIMEOUT.as_secs())));
        };
        done?
    }
}
