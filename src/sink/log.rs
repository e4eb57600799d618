//! The log sinks: a line in the service's own log for every closed window and, with `--log-dir`, one
//! in a file.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use clap::Args;
use serde::Serialize;
use thiserror::Error;
use tracing::info;

use super::{CountSink, Origin, SinkError};
use crate::grant::Grant;
use crate::log_progress::{LogProgress, WINDOWS};
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

/// Appends every count to `<dir>/headcount.<date>.jsonl`, by the date of the window (UTC).
///
/// The file is opened anew for every line: that is once a window, and it heals whatever happened to
/// the file or its directory in between.
pub struct FileSink {
    dir: PathBuf,
    origin: Origin,
}

/// The directory cannot be written to.
#[derive(Debug, Error)]
#[error("cannot write to '{dir}', choose another directory with --log-dir: {cause}")]
pub struct UnwritableLogDir {
    dir: String,
    cause: io::Error,
}

#[derive(Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    count: &'a WindowCount,
    mode: &'static str,
    standard_error: f64,
}

impl FileSink {
    /// Sees whether a file can be made in `dir`, which is made if it does not exist.
    ///
    /// # Errors
    ///
    /// [`UnwritableLogDir`] when it cannot.
    pub fn open(dir: &Path, origin: Origin) -> Result<Self, UnwritableLogDir> {
        let probe = dir.join(".headcount-probe");
        fs::create_dir_all(dir)
            .and_then(|()| File::create(&probe))
            .and_then(|_| fs::remove_file(&probe))
            .map_err(|cause| UnwritableLogDir { dir: dir.display().to_string(), cause })?;
        Ok(Self { dir: dir.to_owned(), origin })
    }
}

#[async_trait]
impl CountSink for FileSink {
    fn name(&self) -> &'static str {
        "file"
    }

    async fn publish(&mut self, count: &WindowCount, _grant: &Grant) -> Result<(), SinkError> {
        let Origin { mode, standard_error, .. } = self.origin;
        let line = Line { count, mode: mode.as_str(), standard_error };
        let line = serde_json::to_vec(&line).map_err(SinkError::unavailable)?;
        let path = self.dir.join(format!("headcount.{}.jsonl", count.window.date()));
        tokio::task::spawn_blocking(move || append(&path, line))
            .await
            .map_err(SinkError::unavailable)?
            .map_err(SinkError::unavailable)
    }
}

/// Appends a whole line, or nothing.
fn append(path: &Path, mut line: Vec<u8>) -> io::Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    let mut file = File::options().read(true).append(true).create(true).open(path)?;
    let length = file.metadata()?.len();
    line.push(b'\n');
    // Half a line that a crash has left behind is ended first.
    if !ends_in_newline(&mut file, length)? {
        line.insert(0, b'\n');
    }
    file.write_all(&line).inspect_err(|_| {
        // What a full disk took of it. Should this fail too, the next line begins on a new one.
        let _ = file.set_len(length);
    })
}

fn ends_in_newline(file: &mut File, length: u64) -> io::Result<bool> {
    let Some(last) = length.checked_sub(1) else { return Ok(true) };
    let mut byte = [0];
    file.seek(SeekFrom::Start(last))?;
    file.read_exact(&mut byte)?;
    Ok(byte == *b"\n")
}
