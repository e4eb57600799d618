//! `headcount`: see [`headcount::cli`] for what it can do.

use std::process::ExitCode;

fn main() -> ExitCode {
    headcount::cli::run()
}
