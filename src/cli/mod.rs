//! The command line: what there is to say, and what becomes of it.
//!
//! Exit codes: 0 when all went well, 1 when it did not, 2 when the command line made no sense. In
//! the two latter cases standard error gets one line that says what to do.

pub mod backend;
pub mod check;
pub mod count;
pub mod exposed;
pub mod findings;
pub mod flags;
pub mod healthcheck;
pub mod listeners;
pub mod serve;
pub mod service;
pub mod settings;
pub mod signals;
pub mod starting;
pub mod verify;

use std::future::Future;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use crate::cli::count::CountArgs;
use crate::cli::flags::{ListenFlags, ServeFlags};
use crate::cli::listeners::Listeners;
use crate::cli::settings::Settings;
use crate::cli::signals::Signals;
use crate::telemetry::logging;

const USAGE: u8 = 2;
/// How long threads that hang in a system call are waited for at the end.
const LAST_WAIT: Duration = Duration::from_millis(500);

/// Counts how many different integer ids arrive each minute
///
/// Without a command and without flags it serves: on port 8080, in memory, with HyperLogLog.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,

    #[command(flatten)]
    serve: ServeFlags,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve requests and publish the count of every window; what happens without a command
    Serve(Box<ServeFlags>),
    /// See whether serving with the same flags would go well: a line for each finding, exit code 0 or 1
    Check(Box<ServeFlags>),
    /// Read the Kafka topic of a service with these flags: gaps, repeats, wrong counts; exit code 0 or 1
    Verify(Box<ServeFlags>),
    /// Count the different lines of a file or of standard input
    Count(CountArgs),
    /// Ask a running service whether it lives; exit code 0 or 1
    Healthcheck(ListenFlags),
}

/// Reads the command line and does what it says.
pub fn run() -> ExitCode {
    let parsed = Cli::command().try_get_matches().and_then(|matches| {
        let cli = Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut Cli::command()))?;
        Ok((matches, cli))
    });
    let (matches, cli) = match parsed {
        Ok(parsed) => parsed,
        Err(error) => return usage(&error),
    };
    match cli.command.unwrap_or_else(|| Command::Serve(Box::new(cli.serve))) {
        Command::Serve(flags) => {
            let warning = exposed::warning(matches.subcommand_matches("serve").unwrap_or(&matches));
            serve(*flags, warning)
        }
        Command::Check(flags) => {
            look(*flags, |settings| Ok(async move { check::run(&settings, io::stdout()).await }))
        }
        Command::Verify(flags) => look(*flags, |settings| {
            let kafka = settings.sinks.kafka.clone().ok_or("'verify' requires '--kafka-brokers'")?;
            Ok(async move { verify::run(&settings, &kafka, io::stdout()).await })
        }),
        Command::Count(args) => finish(count::run(&args).map(Some)),
        Command::Healthcheck(listen) => finish(in_runtime(healthcheck::run(&listen)).map(|()| None)),
    }
}

/// Help and version as they are; errors in one line.
fn usage(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            // Nobody is left to tell when standard output is closed.
            let _ = error.print();
            ExitCode::SUCCESS
        }
        _ => {
            let message = error.render().to_string();
            let lines = message.lines().map(str::trim).take_while(|line| !line.starts_with("Usage:"));
            let words: Vec<_> =
                lines.filter(|line| !line.is_empty() && !line.starts_with("For more information")).collect();
            senseless(words.join(" ").trim_start_matches("error: "))
        }
    }
}

fn senseless(message: &str) -> ExitCode {
    complain(&format!("{message}; see --help"));
    ExitCode::from(USAGE)
}

/// Runs a command that says whether all is well.
fn look<F>(flags: ServeFlags, looking: impl FnOnce(Settings) -> Result<F, &'static str>) -> ExitCode
where
    F: Future<Output = io::Result<bool>>,
{
    let looking = match flags.settings().and_then(|settings| looking(settings).map_err(str::to_owned)) {
        Ok(looking) => looking,
        Err(message) => return senseless(&message),
    };
    match in_runtime(async { looking.await.context("cannot write to standard output") }) {
        Ok(false) => ExitCode::FAILURE,
        Ok(true) => ExitCode::SUCCESS,
        Err(error) => finish(Err(error)),
    }
}

fn serve(flags: ServeFlags, warning: Option<String>) -> ExitCode {
    let settings = match flags.settings() {
        Ok(settings) => settings,
        Err(message) => return senseless(&message),
    };
    let (log, windows) = logging::start(settings.logging.clone(), settings.sinks.is_only_the_log());
    if let Some(warning) = warning {
        warn!("{warning}");
    }
    let result = in_runtime(async {
        let listeners = Listeners::bind(&settings.http)?;
        let signals = Signals::new().context("cannot listen for signals")?;
        let stop = CancellationToken::new();
        tokio::select! {
            result = serve::run(settings, listeners, windows, stop.clone()) => result,
            () = signals.hurry(stop) => bail!("stopped at once by a second signal, the last count may be lost"),
        }
    });
    if let Err(error) = &result {
        error!("{error:#}");
    }
    drop(log);
    finish(result.map(|()| None))
}

/// Runs a future on all cores. Threads that still hang in a system call when it is done are left.
fn in_runtime<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = Runtime::new().context("cannot start the runtime")?;
    let result = runtime.block_on(future);
    runtime.shutdown_timeout(LAST_WAIT);
    result
}

fn finish(result: anyhow::Result<Option<String>>) -> ExitCode {
    let written = result.and_then(|line| {
        let Some(line) = line else { return Ok(()) };
        writeln!(io::stdout(), "{line}").context("cannot write the result to standard output")
    });
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn complain(message: &str) {
    // Nobody is left to tell when standard error is closed.
    let _ = writeln!(io::stderr(), "error: {message}");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A secret that is hidden in the help is warned about on the command line.
    #[test]
    fn every_secret_is_known() {
        let command = Cli::command();
        let secrets: Vec<_> = command.get_arguments().filter(|flag| flag.is_hide_env_values_set()).collect();
        assert!(secrets.len() >= 4);
        for flag in secrets {
            assert!(exposed::knows(flag.get_id().as_str()), "{}", flag.get_id());
        }
    }
}
