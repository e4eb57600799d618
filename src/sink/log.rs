//! The log sinks: a line in the service's own log for every closed window and, with `--log-dir`, one
//! in a file.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use clap::Args;
use serde::Serialize;
use thiserror::Error;
use tracing::info;
use tracing_appender::rolling::{InitError, RollingFileAppender, Rotation};
use tracing_subscriber::fmt::MakeWriter;

use super::{CountSink, SinkError};
use crate::counter::Mode;
use crate::window::WindowCount;

/// Where closed windows are logged.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Publishing")]
pub struct LogSinkArgs {
    /// Also write every closed window to a file in this directory, one JSON object a line, a new
    /// file every day (UTC)
    #[arg(long, env = "HEADCOUNT_LOG_DIR", value_name = "DIR")]
    pub log_dir: Option<PathBuf>,
}

/// How the counts were made; the same for all that a service publishes.
#[derive(Debug, Clone, Copy)]
pub struct Method {
    /// `hll` or `exact`.
    pub mode: Mode,
    /// Relative to the truth.
    pub standard_error: f64,
}

/// Logs every count as an event at level info, at once.
pub struct LogSink(pub Method);

#[async_trait]
impl CountSink for LogSink {
    fn name(&self) -> &'static str {
        "log"
    }

    async fn publish(&mut self, count: &WindowCount) -> Result<(), SinkError> {
        info!(
            timestamp = %count.window,
            unique_request_count = count.unique_request_count,
            accepted_ids = count.accepted_ids,
            mode = self.0.mode.as_str(),
            standard_error = self.0.standard_error,
            complete = count.complete,
            "window closed"
        );
        Ok(())
    }
}

/// Appends every count to `<dir>/headcount.<yyyy-MM-dd>.jsonl`.
pub struct FileSink {
    method: Method,
    files: Arc<RollingFileAppender>,
    /// The last write failed and may have left half a line.
    torn: bool,
}

/// The directory cannot be written to.
#[derive(Debug, Error)]
#[error("cannot write to '{dir}', choose another directory with --log-dir: {cause}")]
pub struct UnwritableLogDir {
    dir: String,
    cause: String,
}

#[derive(Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    count: &'a WindowCount,
    mode: &'static str,
    standard_error: f64,
}

impl FileSink {
    /// Opens today's file in `dir`, which is made if it does not exist.
    ///
    /// # Errors
    ///
    /// [`UnwritableLogDir`] when the file cannot be made or opened.
    pub fn open(dir: &Path, method: Method) -> Result<Self, UnwritableLogDir> {
        let files = RollingFileAppender::builder()
            .rotation(Rotation::DAILY)
            .filename_prefix("headcount")
            .filename_suffix("jsonl")
            .build(dir)
            .map_err(|error: InitError| UnwritableLogDir {
                dir: dir.display().to_string(),
                cause: root_cause(&error),
            })?;
        Ok(Self { method, files: Arc::new(files), torn: false })
    }
}

/// The innermost error says what is wrong; the outer ones say that something is.
fn root_cause(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => root_cause(source),
        None => error.to_string(),
    }
}

#[async_trait]
impl CountSink for FileSink {
    fn name(&self) -> &'static str {
        "file"
    }

    async fn publish(&mut self, count: &WindowCount) -> Result<(), SinkError> {
        let Method { mode, standard_error } = self.method;
        let line = Line { count, mode: mode.as_str(), standard_error };
        let mut bytes = if self.torn { vec![b'\n'] } else { Vec::new() };
        serde_json::to_writer(&mut bytes, &line).map_err(boxed)?;
        bytes.push(b'\n');

        self.torn = true;
        let files = Arc::clone(&self.files);
        tokio::task::spawn_blocking(move || -> io::Result<()> { files.make_writer().write_all(&bytes) })
            .await
            .map_err(boxed)?
            .map_err(boxed)?;
        self.torn = false;
        Ok(())
    }
}

fn boxed(error: impl std::error::Error + Send + Sync + 'static) -> SinkError {
    SinkError::from(Box::from(error))
}
