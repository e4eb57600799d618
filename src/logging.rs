//! The service's own log, on standard output.

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use clap::{Args, ValueEnum};
use tracing_appender::non_blocking::{NonBlocking, WorkerGuard};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

use crate::log_progress::{LogProgress, Written};

/// What is logged, and how.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Logging")]
pub struct LoggingArgs {
    /// What to log: off, error, warn, info, debug, trace, or a list such as info,hyper=debug.
    /// Closed windows are logged at info
    #[arg(
        long, env = "HEADCOUNT_LOG_LEVEL", value_name = "LEVEL", default_value = "info",
        value_parser = parse_level
    )]
    log_level: Targets,

    /// How to log
    #[arg(long, env = "HEADCOUNT_LOG_FORMAT", value_enum, default_value_t = Format::Text)]
    log_format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A line for people
    Text,
    /// A JSON object a line
    Json,
}

/// A word alone has to be a level: to the parser of `Targets` it could be the name of a module too,
/// so that a typing error would silence everything.
fn parse_level(text: &str) -> Result<Targets, String> {
    let sound = |part: &str| part.contains('=') || !part.is_empty() && part.parse::<LevelFilter>().is_ok();
    text.parse().ok().filter(|_| text.split(',').all(sound)).ok_or_else(|| {
        "expected off, error, warn, info, debug, trace, or a list such as info,hyper=debug".to_owned()
    })
}

/// Starts logging. Lines go through a thread of their own, so that whoever reads standard output
/// slowly slows down nothing else; what is left is written when the guard is dropped.
pub fn start(args: &LoggingArgs) -> (WorkerGuard, LogProgress) {
    let written = Arc::new(Written::default());
    let output = StandardOutput { failing: false, written: Arc::clone(&written) };
    let (lines, guard) = tracing_appender::non_blocking(output);
    let progress = LogProgress { queued: Arc::default(), dropped: lines.error_counter(), written };
    let queue = Queue { lines, queued: Arc::clone(&progress.queued) };
    let lines = fmt::layer().with_writer(move || queue.clone()).with_ansi(io::stdout().is_terminal());
    let lines = match args.log_format {
        Format::Text => lines.with_target(false).boxed(),
        Format::Json => lines.json().with_current_span(false).with_span_list(false).boxed(),
    };
    tracing_subscriber::registry().with(lines.with_filter(args.log_level.clone())).init();
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
        let taken = self.lines.write(line);
        self.queued.fetch_add(1, Ordering::AcqRel);
        taken
    }

    fn flush(&mut self) -> io::Result<()> {
        self.lines.flush()
    }
}

/// Standard output, which says on standard error when it cannot be written: once for each time that it
/// stops working. Nobody else would, because lines are written behind the back of those who log.
struct StandardOutput {
    failing: bool,
    written: Arc<Written>,
}

impl Write for StandardOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = io::stdout().write(bytes);
        // One that is interrupted is tried again; what fails otherwise is given up.
        let goes_on = match &written {
            Ok(length) => *length < bytes.len(),
            Err(error) => error.kind() == io::ErrorKind::Interrupted,
        };
        if !goes_on {
            self.written.lines.fetch_add(1, Ordering::AcqRel);
            self.written.more.notify_waiters();
        }
        self.note(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        let flushed = io::stdout().flush();
        self.note(flushed)
    }
}

impl StandardOutput {
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
