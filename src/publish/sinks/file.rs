//! The file sink: a JSON line in a file for every closed window, and in another file for each of its counters.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;

use super::lines::Lines;
use super::{CountSink, Origin, SinkError};
use crate::coordination::term::Term;
use crate::coordination::{ClosedCounters, ClosedWindow};
use crate::model::window::{Window, WindowCount};
use crate::publish::record::{Record, counter_lines};

/// Appends every count to `<dir>/headcount.<date>.jsonl`, by the date of the window (UTC). Before that it appends the counts
/// of the window's counters to `<dir>/headcount-counters.<date>.jsonl`, in one piece. So a reader who finds a window in the
/// first file finds its counters in the second, unless they waited too long and were skipped. After a crash between the two, they may be there twice.
///
/// The sink opens the files anew for every window. So it works even if the file or its directory was
/// moved in between.
pub struct FileSink {
    dir: PathBuf,
    origin: Origin,
    lines: Lines,
    counter_lines: Lines,
    /// The last window whose counters are in their file.
    counters_of: Option<Window>,
}

impl FileSink {
    /// Makes `dir` if it does not exist, and checks that files can be written there.
    ///
    /// # Errors
    ///
    /// [`SinkError`] when they cannot be written.
    pub fn open(dir: &Path, origin: Origin) -> Result<Self, SinkError> {
        fs::create_dir_all(dir).and_then(|()| try_to_write(dir)).map_err(unwritable(dir))?;
        Ok(Self {
            dir: dir.to_owned(),
            origin,
            lines: Lines::default(),
            counter_lines: Lines::default(),
            counters_of: None,
        })
    }

    /// Checks whether [`FileSink::open`] would succeed, without making `dir`. Returns whether `dir` exists.
    pub(crate) fn preflight(dir: &Path) -> Result<bool, SinkError> {
        let is_there = |path: &&Path| path.symlink_metadata().is_ok();
        let there = dir.ancestors().filter(|path| !path.as_os_str().is_empty()).find(is_there);
        try_to_write(there.unwrap_or(Path::new("."))).map_err(unwritable(dir))?;
        Ok(there == Some(dir))
    }
}

#[async_trait]
impl CountSink for FileSink {
    fn name(&self) -> &'static str {
        "file"
    }

    async fn publish(&mut self, window: &ClosedWindow, term: &Term) -> Result<(), SinkError> {
        let count = &window.count;
        if let Some(counters) = window.counters.counts()
            && self.counters_of != Some(count.window)
        {
            self.append_counters(count, counters).await?;
            self.counters_of = Some(count.window);
        }
        let line = Record::new(window, &self.origin, term).line();
        let mut line = serde_json::to_vec(&line).map_err(SinkError::unavailable)?;
        line.push(b'\n');
        let path = self.dir.join(format!("headcount.{}.jsonl", count.window.date()));
        let to = path.clone();
        self.lines.write(count, path.display(), move || append(&to, line)).await
    }
}

impl FileSink {
    async fn append_counters(
        &mut self,
        count: &WindowCount,
        counters: &Arc<ClosedCounters>,
    ) -> Result<(), SinkError> {
        let path = self.dir.join(format!("headcount-counters.{}.jsonl", count.window.date()));
        let (to, counters, mode) = (path.clone(), Arc::clone(counters), self.origin.mode);
        // There may be many lines, so they are made on the thread that writes them.
        let write = move || append(&to, counter_lines(&counters, mode)?);
        self.counter_lines.write(count, path.display(), write).await
    }
}

fn unwritable(dir: &Path) -> impl FnOnce(io::Error) -> SinkError {
    let dir = dir.display();
    move |cause| {
        SinkError::Fatal(format!("cannot write to '{dir}', choose another directory with --log-dir: {cause}"))
    }
}

/// Writes a file of one byte and deletes it. A full disk may take an empty file, but not the byte.
fn try_to_write(dir: &Path) -> io::Result<()> {
    let probe = dir.join(".headcount-probe");
    let written = fs::write(&probe, b"\n");
    // The file may exist though the write failed.
    let removed = fs::remove_file(&probe);
    written.and(removed)
}

/// Appends whole lines, or nothing.
fn append(path: &Path, mut lines: Vec<u8>) -> io::Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    let mut file = File::options().read(true).append(true).create(true).open(path)?;
    let length = file.metadata()?.len();
    // A crash may have left half a line: it is ended first.
    if !ends_in_newline(&mut file, length)? {
        lines.insert(0, b'\n');
    }
    file.write_all(&lines).inspect_err(|_| {
        // A full disk may have taken a part of the lines: it is removed. If this fails too, the next call ends that line.
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
