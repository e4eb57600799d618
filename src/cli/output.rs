//! How results are printed.

use std::io::{self, Write};

use anyhow::Context;

/// Prints JSON as it is, and the end of a line.
pub(super) fn print_json(json: &[u8]) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(json).and_then(|()| out.write_all(b"\n")).context(UNWRITABLE)
}

/// Prints lines for people.
pub(super) fn print_lines(lines: &[String]) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    lines.iter().try_for_each(|line| writeln!(out, "{line}")).context(UNWRITABLE)
}

const UNWRITABLE: &str = "cannot write the result to standard output";
