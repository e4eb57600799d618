//! The binary `headcount`. Its commands are in [`headcount::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    headcount::cli::run()
}
