//! The service's own log, on standard output.

use std::io::{self, IsTerminal, Write};
use std::mem;
use std::sync::Arc;

use parking_lot::Mutex;
use tracing::{Level, Subscriber};
use tracing_appender::non_blocking::WorkerGuard;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

use super::standard_output::StandardOutput;

/// The target of the lines of closed windows, as in `--log-level warn,headcount::sink::log=info`.
pub(crate) const WINDOWS: &str = "headcount::sink::log";

/// What is logged, and how.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The lowest level that is logged, for each module.
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

/// Starts logging. A thread of its own writes the lines, so that a slow reader of standard output slows down nothing
/// else. When the guard is dropped, it writes the lines that are left. The [`WindowLog`] writes the lines of closed
/// windows, without that thread; it is none if they are not logged.
///
/// If the log is the `only_sink`, closed windows are logged at every level.
pub fn start(settings: Settings, only_sink: bool) -> (WorkerGuard, Option<WindowLog>) {
    let output = Arc::new(Mutex::new(StandardOutput::new()));
    let (lines, guard) = tracing_appender::non_blocking(Lines(Arc::clone(&output)));
    let windows = WindowLog { output, line: Arc::default() };
    let logs_windows = only_sink || settings.level.would_enable(WINDOWS, &Level::INFO);

    let other = settings.level.with_target(WINDOWS, LevelFilter::OFF);
    let of_windows = Targets::new().with_target(WINDOWS, LevelFilter::INFO);
    let line = Arc::clone(&windows.line);
    tracing_subscriber::registry()
        .with(layer(settings.format, lines).with_filter(other))
        .with(layer(settings.format, move || Buffer(Arc::clone(&line))).with_filter(of_windows))
        .init();
    (guard, logs_windows.then_some(windows))
}

/// Turns every event into a line.
fn layer<S, W>(format: Format, writer: W) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let layer = fmt::layer().with_writer(writer).with_ansi(io::stdout().is_terminal());
    match format {
        Format::Text => layer.with_target(false).boxed(),
        Format::Json => layer.json().with_current_span(false).with_span_list(false).boxed(),
    }
}

/// Logs closed windows without the queue, so that the sink knows when a line has been written.
#[derive(Clone)]
pub struct WindowLog {
    output: Arc<Mutex<StandardOutput>>,
    /// The line that the tracing layer made of the event of a window.
    line: Arc<Mutex<Vec<u8>>>,
}

impl WindowLog {
    /// Writes the line of an event that has the target [`WINDOWS`]. It blocks until standard output has taken the line.
    /// After an error, at most a part of the line was written.
    pub(crate) fn write(&self, event: impl FnOnce()) -> io::Result<()> {
        event();
        let line = mem::take(&mut *self.line.lock());
        self.output.lock().write_line(&line)
    }
}

/// Takes the line of a closed window.
struct Buffer(Arc<Mutex<Vec<u8>>>);

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Takes all other lines, each in one piece, on the thread that writes them.
struct Lines(Arc<Mutex<StandardOutput>>);

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.lock().write_line(line).map(|()| line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
