//! The command line: a file for each command, and the flags.
//!
//! Exit codes: 0 when all went well, 1 when something failed, 2 when the command line is wrong. An error is one line on
//! standard error that says what to do. `check` and `verify` write what they found to standard output instead.

mod backend;
mod check;
mod client;
mod count;
mod figures;
mod findings;
pub mod flags;
mod healthcheck;
pub mod listeners;
mod output;
mod overlap;
mod retention;
pub mod serve;
mod service;
pub mod settings;
mod signals;
mod sketch_file;
mod unique;
mod verify;

use std::future::Future;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use crate::cli::flags::Command;
use crate::cli::listeners::Listeners;
use crate::cli::settings::Settings;
use crate::cli::signals::Signals;
use crate::telemetry::logging;

const USAGE: u8 = 2;
/// How long a command waits at its end for threads that hang in a system call.
const LAST_WAIT: Duration = Duration::from_millis(500);

/// Reads the command line and runs its command.
pub fn run() -> ExitCode {
    let command = match flags::read() {
        Ok(command) => command,
        Err(message) => {
            complain(&format!("{message}; see --help"));
            return ExitCode::from(USAGE);
        }
    };
    let looked = |result: io::Result<bool>| result.context("cannot write to standard output");
    let all_is_well = match command {
        Command::Help => Ok(true),
        Command::Serve(settings, warning) => serve(*settings, warning).map(|()| true),
        Command::Check(settings) => in_runtime(async { looked(check::run(&settings, io::stdout()).await) }),
        Command::Verify(settings, kafka) => {
            in_runtime(async { looked(verify::run(&settings, &kafka, io::stdout()).await) })
        }
        Command::Count(task) => count::run(task).map(|()| true),
        Command::Unique(question, warning) => ask(warning, unique::run(question)),
        Command::Overlap(task, warning) => ask(warning, overlap::run(task)),
        Command::Retention(question, warning) => ask(warning, retention::run(question)),
        Command::Healthcheck(address) => in_runtime(healthcheck::run(address)).map(|()| true),
        Command::Print(text) => looked(io::stdout().write_all(&text).map(|()| true)),
    };
    match all_is_well {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            complain(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn serve(settings: Settings, warning: Option<String>) -> anyhow::Result<()> {
    // The log is written to its end when the guard is dropped.
    let (_guard, windows) = logging::start(settings.logging.clone(), settings.sinks.is_only_the_log());
    if let Some(warning) = warning {
        warn!("{warning}");
    }
    let served = in_runtime(async {
        let listeners = Listeners::bind(&settings.http)?;
        let signals = Signals::new().context("cannot listen for signals")?;
        let stop = CancellationToken::new();
        tokio::select! {
            result = serve::run(settings, listeners, windows, stop.clone()) => result,
            () = signals.hurry(stop) => bail!("stopped at once by a second signal, the last count may be lost"),
        }
    });
    served.inspect_err(|error| error!("{error:#}"))
}

/// Asks a service, after a warning about secrets on the command line.
fn ask(warning: Option<String>, asking: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<bool> {
    if let Some(warning) = warning {
        tell("warning", &warning);
    }
    in_runtime(asking).map(|()| true)
}

/// Runs a future on all cores. Threads that still hang in a system call afterwards are abandoned.
fn in_runtime<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = Runtime::new().context("cannot start the runtime")?;
    let result = runtime.block_on(future);
    runtime.shutdown_timeout(LAST_WAIT);
    result
}

fn complain(message: &str) {
    tell("error", message);
}

fn tell(what: &str, message: &str) {
    // When standard error is closed, there is no other place for the message.
    let _ = writeln!(io::stderr(), "{what}: {message}");
}
