//! `headcount count`: how many different lines a text has.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind, IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use crate::cli::output;
use crate::cli::sketch_file::{self, Destination};
use crate::hll::Sketch;
use crate::model::mode::Mode;
use crate::model::shard::Shards;
use crate::platform::words::position;
use crate::store::standard_error;

const BUFFER: usize = 256 * 1024;
/// A count that is quicker than this shows no progress.
const PATIENCE: Duration = Duration::from_secs(1);

/// What to count, and how.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) source: Source,
    /// `Hll` where sketches are read or written.
    pub(super) mode: Mode,
    /// Where to write the sketch.
    pub(super) sketch_out: Option<PathBuf>,
    /// Whether to print JSON.
    pub(super) as_json: bool,
}

/// Where the lines are.
#[derive(Debug)]
pub(super) enum Source {
    /// In this file; in standard input without one, or with `-`.
    Lines(Option<PathBuf>),
    /// They have been counted: their sketches are in these files.
    Sketches(Vec<PathBuf>),
}

/// Counts, writes the sketch, and prints the count, also if the sketch cannot be written: the count may have taken long.
pub(super) fn run(task: Task) -> anyhow::Result<()> {
    // Before the count, which may take long.
    let sketch_out = task.sketch_out.map(Destination::new).transpose()?;
    let mut seen = Seen::new(task.mode);
    match &task.source {
        Source::Lines(file) => count_lines(file.as_deref(), &mut seen)?,
        Source::Sketches(files) => {
            for file in files {
                seen.merge(&sketch_file::read(file)?);
            }
        }
    }
    let written = match (&sketch_out, &seen) {
        (Some(sketch_out), Seen::Hll(sketch)) => sketch_out.write(sketch),
        _ => Ok(()),
    };
    let printed = if task.as_json {
        output::print_json(&seen.json()?)
    } else {
        output::print_lines(&[seen.to_string()])
    };
    written.and(printed)
}

/// Counts the different lines, as `sort -u | wc -l` does. A line ends in LF, which the last one need not have. All its
/// other bytes count.
fn count_lines(file: Option<&Path>, seen: &mut Seen) -> anyhow::Result<()> {
    let name = file.filter(|file| file.as_os_str() != "-");
    let unreadable = || {
        let name = name.map_or_else(|| "standard input".to_owned(), |file| file.display().to_string());
        format!("cannot read '{name}'")
    };
    let (text, size): (Box<dyn Read>, _) = match name {
        Some(file) => {
            let file = File::open(file).with_context(unreadable)?;
            let size = file.metadata().ok().filter(std::fs::Metadata::is_file).map(|data| data.len());
            (Box::new(file), size)
        }
        None => (Box::new(io::stdin().lock()), None),
    };
    let lines = BufReader::with_capacity(BUFFER, text);
    count(lines, seen, Progress::new(size)).with_context(unreadable)
}

fn count(mut text: impl BufRead, seen: &mut Seen, mut progress: Progress) -> io::Result<()> {
    // The beginning of a line that ends in a later piece.
    let mut begun = Vec::new();
    loop {
        let piece = match text.fill_buf() {
            Ok([]) => break,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            piece => piece?,
        };
        let mut rest = piece;
        while let Some(end) = position(b'\n', rest) {
            if begun.is_empty() {
                seen.add(&rest[..end]);
            } else {
                begun.extend_from_slice(&rest[..end]);
                seen.add(&begun);
                begun.clear();
            }
            rest = &rest[end + 1..];
        }
        begun.extend_from_slice(rest);
        let read = piece.len();
        text.consume(read);
        progress.advance(read as u64);
    }
    if !begun.is_empty() {
        seen.add(&begun);
    }
    Ok(())
}

/// The lines so far.
enum Seen {
    Hll(Sketch),
    Exact(HashSet<Box<[u8]>>),
}

impl Seen {
    fn new(mode: Mode) -> Self {
        match mode {
            Mode::Hll => Self::Hll(Sketch::new()),
            Mode::Exact => Self::Exact(HashSet::new()),
        }
    }

    fn add(&mut self, line: &[u8]) {
        match self {
            Self::Hll(sketch) => {
                sketch.add(line);
            }
            // Looked up before it is copied: most lines of a long text are repeats.
            Self::Exact(lines) => {
                if !lines.contains(line) {
                    lines.insert(line.into());
                }
            }
        }
    }

    /// Adds what another sketch was shown. Lines that are kept themselves have no sketch, so they stay as they are.
    fn merge(&mut self, other: &Sketch) {
        if let Self::Hll(sketch) = self {
            sketch.absorb(other);
        }
    }

    fn mode(&self) -> Mode {
        match self {
            Self::Hll(_) => Mode::Hll,
            Self::Exact(_) => Mode::Exact,
        }
    }

    fn count(&self) -> u64 {
        match self {
            Self::Hll(sketch) => sketch.estimate(),
            Self::Exact(lines) => lines.len() as u64,
        }
    }

    fn standard_error(&self) -> f64 {
        standard_error(self.mode(), Shards::ONE)
    }

    fn json(&self) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec(&json!({
            "mode": self.mode(), "standard_error": self.standard_error(), "unique_count": self.count(),
        }))
    }
}

/// The count comes first, so that a script can cut it off. Its error follows.
impl std::fmt::Display for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.mode() {
            Mode::Hll => {
                write!(f, "{} (standard error {:.2} %)", self.count(), 100.0 * self.standard_error())
            }
            Mode::Exact => write!(f, "{} (exact)", self.count()),
        }
    }
}

/// A bar on standard error, if that is a terminal and the count takes longer than [`PATIENCE`].
struct Progress {
    started: Instant,
    size: Option<u64>,
    read: u64,
    bar: Option<ProgressBar>,
}

impl Progress {
    fn new(size: Option<u64>) -> Self {
        Self { started: Instant::now(), size, read: 0, bar: None }
    }

    fn advance(&mut self, bytes: u64) {
        self.read += bytes;
        if self.bar.is_none() && self.started.elapsed() > PATIENCE && io::stderr().is_terminal() {
            self.bar = Some(bar(self.size).with_elapsed(self.started.elapsed()));
        }
        if let Some(bar) = &self.bar {
            bar.set_position(self.read);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn bar(size: Option<u64>) -> ProgressBar {
    match size {
        Some(size) => ProgressBar::new(size)
            .with_style(style("{wide_bar} {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left")),
        None => ProgressBar::new_spinner().with_style(style("{spinner} {bytes}, {bytes_per_sec}")),
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A reader that is interrupted before each time it reads.
    struct Interrupted<'a>(&'a [u8], bool);

    impl Read for Interrupted<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.1 = !self.1;
            if self.1 { Err(ErrorKind::Interrupted.into()) } else { self.0.read(buffer) }
        }
    }

    #[test]
    fn lines_end_wherever_pieces_end() {
        let longer = "nineteen characters\n".repeat(3);
        let texts = ["", "\n", "\n\n", "a", "a\nb", "a\nb\n\na\n", "ab\nabc\n\nabcd\nab", longer.as_str()];
        for text in texts {
            let ends = text.strip_suffix('\n').unwrap_or(text);
            let lines: HashSet<Box<[u8]>> = ends.split('\n').map(|line| line.as_bytes().into()).collect();
            let lines = if text.is_empty() { HashSet::new() } else { lines };
            for capacity in 1..=9 {
                let reader = BufReader::with_capacity(capacity, Interrupted(text.as_bytes(), false));
                let mut seen = Seen::new(Mode::Exact);
                count(reader, &mut seen, Progress::new(None)).unwrap();
                let Seen::Exact(seen) = seen else { unreachable!() };
                assert_eq!(seen, lines, "{text:?} in pieces of {capacity}");
            }
        }
    }
}
