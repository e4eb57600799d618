//! Findings: what `headcount check` and `headcount verify` say, a line each.

use std::fmt::{self, Display};
use std::io::{self, Write};

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
