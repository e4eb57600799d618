//! The service's own log, on standard output.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tracing::Level;
use tracing_appender::non_blocking::{NonBlocking, WorkerGuard};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

use crate::telemetry::log_progress::{LogProgress, WINDOWS, Written};

/// What is logged, and how.
#[derive(Debug, Clone)]
pub struct Settings {
    /// From which level, for each module.
    pub level: Targets,
    /// How a line is written.
    pub format: Format,
}

/// How a line is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Text,
    /// As a JSON object.
    Json,
}

/// Starts logging. Lines go through a thread of their own, so that whoever reads standard output
/// slowly slows down nothing else; what is left is written when the guard is dropped.
///
/// If counts go nowhere else (`only_sink`), closed windows are logged whatever the level is.
pub fn start(settings: Settings, only_sink: bool) -> (WorkerGuard, LogProgress) {
    let written = Arc::new(Written::default());
    let output = StandardOutput::new(Arc::clone(&written));
    let (lines, guard) = tracing_appender::non_blocking(output);
    let mut level = settings.level;
    if only_sink {
        level = level.with_target(WINDOWS, LevelFilter::INFO);
    }
    let has_windows = level.would_enable(WINDOWS, &Level::INFO);
    let progress =
        LogProgress { queued: Arc::default(), dropped: lines.error_counter(), written, has_windows };
    let queue = Queue { lines, queued: Arc::clone(&progress.queued) };
    let lines = fmt::layer().with_writer(move || queue.clone()).with_ansi(io::stdout().is_terminal());
    let lines = match settings.format {
        Format::Text => lines.with_target(false).boxed(),
        Format::Json => lines.json().with_current_span(false).with_span_list(false).boxed(),
    };
    tracing_subscriber::registry().with(lines.with_filter(level)).init();
    (guard, progress)
}

/// Counts the lines that are put into the queue.
#[derive(Clone)]
struct Queue {
    lines: NonBlocking,
    queued: Arc<AtomicU64>,
}

impl Write for Queue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        // First: it can be written or dropped before this goes on.
        self.queued.fetch_add(1, Ordering::AcqRel);
        self.lines.write(line)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.lines.flush()
    }
}

/// Standard output, which says on standard error when it cannot be written: once for each time that it
/// stops working. Nobody else would, because lines are written behind the back of those who log.
struct StandardOutput {
    /// Without a buffer in between: what is not written now is given up, or tried again by the one who logged it. None if it is
    /// closed.
    file: Option<File>,
    failing: bool,
    /// A part of a line was written, as when a disk is full: the next one begins on a new line.
    in_line: bool,
    written: Arc<Written>,
}

impl Write for StandardOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.write_some(bytes);
        // One that is interrupted is tried again; what fails otherwise is given up.
        let goes_on = match &written {
            Ok(length) => *length < bytes.len(),
            Err(error) => error.kind() == io::ErrorKind::Interrupted,
        };
        if written.is_err() && !goes_on {
            self.written.failures.fetch_add(1, Ordering::AcqRel);
        }
        if !goes_on {
            self.written.lines.fetch_add(1, Ordering::AcqRel);
            self.written.more.notify_waiters();
        }
        self.note(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl StandardOutput {
    fn new(written: Arc<Written>) -> Self {
        let file = io::stdout().as_fd().try_clone_to_owned().ok().map(File::from);
        Self { file, failing: false, in_line: false, written }
    }

    fn write_some(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(file) = &mut self.file else { return Err(io::ErrorKind::BrokenPipe.into()) };
        if self.failing && self.in_line {
            file.write_all(b"\n")?;
            self.in_line = false;
        }
        let length = file.write(bytes)?;
        if length > 0 {
            self.in_line = bytes[length - 1] != b'\n';
        }
        Ok(length)
    }

    fn note<T>(&mut self, result: io::Result<T>) -> io::Result<T> {
        if let Err(error) = &result
            && !self.failing
        {
            // Nobody is left to tell when standard error is closed too.
            let _ = writeln!(io::stderr(), "error: the log cannot be written to standard output: {error}");
        }
        self.failing = result.is_err();
        result
    }
}
