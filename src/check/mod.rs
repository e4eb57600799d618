//! `headcount check`: looks at everything that serving with the same flags would need, and changes nothing.
//!
//! Every finding is a line that begins with `ok`, `warn` or `FAIL`. Instances that are running are not
//! disturbed: nothing is reported, no lease is asked for, and what is tried is tried on keys of its own.

mod redis;
mod rights;

use std::fmt::{self, Display};
use std::io::{self, Write};

use crate::app::Config;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Ok,
    /// It would serve, but not as one would wish.
    Warn,
    /// It would not serve, or not be right.
    Fail,
}

/// Where findings go: a line each, as they come.
struct Findings<W> {
    out: W,
    failed: bool,
}

impl<W: Write> Findings<W> {
    fn add(&mut self, verdict: Verdict, subject: &str, text: impl Display) -> io::Result<()> {
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

/// Writes what it finds to `out`; true if nothing failed.
///
/// # Errors
///
/// [`io::Error`] when `out` takes no more.
pub async fn run(config: &Config, out: impl Write) -> io::Result<bool> {
    let mut findings = Findings { out, failed: false };
    if let Some(address) = &config.redis {
        redis::look(config, address, &mut findings).await?;
    } else {
        findings.add(Verdict::Ok, "counter", "alone, in memory; --redis-url shares it with others")?;
    }
    Ok(!findings.failed)
}
