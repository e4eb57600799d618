//! Findings: what `headcount check` and `headcount verify` say, a line each.

use std::fmt::{self, Display};
use std::io::{self, Write};

use crate::model::window::WindowLength;

/// Windows that a line names, at most.
const NAMED: usize = 5;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Ok,
    /// headcount would serve, with a drawback.
    Warn,
    /// headcount would not serve, or a count would be wrong.
    Fail,
}

/// Writes each finding as a line, at once.
pub(super) struct Findings<W> {
    out: W,
    failed: bool,
}

impl<W: Write> Findings<W> {
    pub(super) fn new(out: W) -> Self {
        Self { out, failed: false }
    }

    pub(super) fn failed(&self) -> bool {
        self.failed
    }

    pub(super) fn add(&mut self, verdict: Verdict, subject: &str, text: impl Display) -> io::Result<()> {
        self.failed |= verdict == Verdict::Fail;
        writeln!(self.out, "{verdict} {subject}: {text}")?;
        self.out.flush()
    }

    /// Adds how many windows there are, and names some by their starts. It is well if there are none.
    pub(super) fn windows(
        &mut self,
        verdict: Verdict,
        subject: &str,
        length: WindowLength,
        starts: &[u64],
    ) -> io::Result<()> {
        if starts.is_empty() {
            return self.add(Verdict::Ok, subject, "none");
        }
        let named = some(starts.iter().map(|start| length.starting_at(*start).to_string()));
        self.add(verdict, subject, format_args!("{}: {named}", starts.len()))
    }
}

/// The first of some items, and whether there are more.
pub(super) fn some(items: impl IntoIterator<Item = String>) -> String {
    let mut items = items.into_iter();
    let mut named = items.by_ref().take(NAMED).collect::<Vec<_>>().join(", ");
    if items.next().is_some() {
        named += ", …";
    }
    named
}

impl Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ok => "ok  ",
            Self::Warn => "warn",
            Self::Fail => "FAIL",
        })
    }
}
