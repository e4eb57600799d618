//! The command line: the flags, and the plain settings that they become.
//!
//! The parser of a flag checks its value. [`ServeFlags::settings`] checks what two flags must agree on.

mod callbacks;
mod count;
mod counting;
mod exposed;
mod http;
mod logging;
mod overlap;
mod process_one;
mod publishing;
mod redis;
mod retention;
mod serve;
mod service;
mod unique;
mod values;

use std::ffi::OsString;
use std::net::SocketAddr;

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};
use clap_complete::Shell;
use clap_mangen::Man;

use self::count::CountFlags;
pub use self::http::HttpFlags;
use self::http::ListenFlags;
use self::overlap::OverlapFlags;
use self::retention::RetentionFlags;
pub use self::serve::ServeFlags;
use self::unique::UniqueFlags;
use crate::cli::count::Task as CountTask;
use crate::cli::overlap::Task as OverlapTask;
use crate::cli::retention::Question as RetentionQuestion;
use crate::cli::settings::Settings;
use crate::cli::unique::Question as UniqueQuestion;
use crate::publish::sinks::kafka::KafkaSettings;

/// Counts how many different integer ids arrive each minute
///
/// Without a command and without flags it serves: on port 8080, in memory, with HyperLogLog.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true, max_term_width = 100)]
struct Flags {
    #[command(subcommand)]
    command: Option<CommandFlags>,

    #[command(flatten)]
    serve: ServeFlags,
}

#[derive(Debug, Subcommand)]
enum CommandFlags {
    /// Serve requests and publish the count of every window; what happens without a command
    Serve(Box<ServeFlags>),
    /// Check whether serving with the same flags would go well: a line for each finding, exit code 0 or 1
    Check(Box<ServeFlags>),
    /// Look for gaps, repeats and wrong counts in the Kafka topic of a service; exit code 0 or 1
    Verify(Box<ServeFlags>),
    /// Count the different lines of a file or of standard input, or the union of sketches
    Count(CountFlags),
    /// Ask a running service how many different ids came: now, or in a range of time
    Unique(UniqueFlags),
    /// Tell how much two sketches have in common, or two to eight counters of a running service
    Overlap(OverlapFlags),
    /// Ask a running service how many ids of an hour or a day came again in the later ones
    Retention(RetentionFlags),
    /// Ask a running service whether it lives; exit code 0 or 1. In a container, without flags, it asks where
    /// the flags of process 1 say
    Healthcheck(ListenFlags),
    /// Write a script with the completions for a shell to standard output
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Write a manual page to standard output, as roff
    Man {
        /// The page of this command; without it, that of headcount
        command: Option<String>,
    },
}

/// A line for the user about secrets on the command line, if there are any.
type Warning = Option<String>;

/// A command, with its settings.
pub(super) enum Command {
    /// Help or the version, which has been printed.
    Help,
    Serve(Box<Settings>, Warning),
    Check(Box<Settings>),
    Verify(Box<Settings>, KafkaSettings),
    Count(CountTask),
    Unique(UniqueQuestion, Warning),
    Overlap(OverlapTask, Warning),
    Retention(RetentionQuestion, Warning),
    Healthcheck(SocketAddr),
    /// Writes this to standard output.
    Print(Vec<u8>),
}

/// Reads the command line of this process. An error is a line for the user.
pub(super) fn read() -> Result<Command, String> {
    let mut command = Flags::command();
    let read = command.try_get_matches_from_mut(std::env::args_os()).and_then(|matches| {
        let flags = Flags::from_arg_matches(&matches).map_err(|error| error.format(&mut command))?;
        Ok((matches, flags))
    });
    let (matches, flags) = match read {
        Ok(read) => read,
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            // When standard output is closed, there is no other place for the help.
            let _ = error.print();
            return Ok(Command::Help);
        }
        Err(error) => return Err(in_one_line(&error)),
    };
    let warning = |command: &str| matches.subcommand_matches(command).and_then(exposed::warning);
    let settings = |flags: ServeFlags| flags.settings().map(Box::new);
    Ok(match flags.command.unwrap_or_else(|| CommandFlags::Serve(Box::new(flags.serve))) {
        CommandFlags::Serve(flags) => Command::Serve(
            settings(*flags)?,
            exposed::warning(matches.subcommand_matches("serve").unwrap_or(&matches)),
        ),
        CommandFlags::Check(flags) => Command::Check(settings(*flags)?),
        CommandFlags::Verify(flags) => {
            let settings = settings(*flags)?;
            let kafka = settings.sinks.kafka.clone().ok_or("'verify' requires '--kafka-brokers'")?;
            Command::Verify(settings, kafka)
        }
        CommandFlags::Count(flags) => Command::Count(flags.task()?),
        CommandFlags::Unique(flags) => Command::Unique(flags.question()?, warning("unique")),
        CommandFlags::Overlap(flags) => {
            Command::Overlap(flags.task(matches.subcommand_matches("overlap"))?, warning("overlap"))
        }
        CommandFlags::Retention(flags) => Command::Retention(flags.question()?, warning("retention")),
        CommandFlags::Healthcheck(own) => {
            let typed = matches.subcommand_matches("healthcheck").is_some_and(names_address);
            let service = if typed { None } else { process_one::command_line() };
            let ListenFlags { listen, admin_listen } = service.and_then(listen_flags).unwrap_or(own);
            Command::Healthcheck(admin_listen.unwrap_or(listen))
        }
        CommandFlags::Completions { shell } => Command::Print(completions(shell)),
        CommandFlags::Man { command } => Command::Print(manual(command.as_deref())?),
    })
}

/// Whether the user typed an address, which then counts.
fn names_address(healthcheck: &ArgMatches) -> bool {
    let typed = |flag| healthcheck.value_source(flag) == Some(ValueSource::CommandLine);
    typed("listen") || typed("admin_listen")
}

/// Where a service with this command line listens; none if it is another command.
fn listen_flags(words: Vec<OsString>) -> Option<ListenFlags> {
    let flags = Flags::try_parse_from(words).ok()?;
    match flags.command {
        None => Some(flags.serve.listen()),
        Some(CommandFlags::Serve(serve)) => Some(serve.listen()),
        Some(_) => None,
    }
}

fn completions(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Flags::command(), env!("CARGO_PKG_NAME"), &mut script);
    script
}

/// The manual page of headcount, or of one of its commands.
fn manual(of: Option<&str>) -> Result<Vec<u8>, String> {
    let mut command = Flags::command().disable_help_subcommand(true);
    // Commands learn the names of their pages: headcount-check.
    command.build();
    let command = match of {
        None => &command,
        Some(name) => command.find_subcommand(name).ok_or_else(|| format!("there is no command '{name}'"))?,
    };
    let mut page = Vec::new();
    Man::new(command.clone()).render(&mut page).map_err(|error| error.to_string())?;
    Ok(page)
}

fn in_one_line(error: &clap::Error) -> String {
    let message = error.render().to_string();
    let lines = message.lines().map(str::trim).take_while(|line| !line.starts_with("Usage:"));
    let words: Vec<_> =
        lines.filter(|line| !line.is_empty() && !line.starts_with("For more information")).collect();
    words.join(" ").trim_start_matches("error: ").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where process 1 listens, if this is its command line.
    fn listens(line: &str) -> Option<String> {
        let bytes = line.replace(' ', "\0") + "\0";
        let ListenFlags { listen, admin_listen } = listen_flags(process_one::words(bytes.as_bytes())?)?;
        Some(admin_listen.unwrap_or(listen).to_string())
    }

    #[test]
    fn healthcheck_understands_the_command_line_of_process_one() {
        for line in [
            "headcount --listen 0.0.0.0:9000",
            "/usr/local/bin/headcount --window 2s --listen=0.0.0.0:9000",
            "headcount serve --listen 0.0.0.0:9000",
            "headcount --listen 0.0.0.0:8000 --admin-listen 0.0.0.0:9000",
            "/sbin/docker-init -- headcount --listen 0.0.0.0:9000",
        ] {
            assert_eq!(listens(line).as_deref(), Some("0.0.0.0:9000"), "{line}");
        }
        for line in [
            "/sbin/init --listen 0.0.0.0:9000",
            "headcount healthcheck",
            "headcount check --listen 0.0.0.0:9000",
            "headcount --listen nonsense",
            "",
        ] {
            assert_eq!(listens(line), None, "{line}");
        }
    }

    /// headcount warns about every secret on the command line that the help hides.
    #[test]
    fn every_secret_is_known() {
        let command = Flags::command();
        let secrets: Vec<_> = command.get_arguments().filter(|flag| flag.is_hide_env_values_set()).collect();
        assert!(secrets.len() >= 4);
        for flag in secrets {
            assert!(exposed::knows(flag.get_id().as_str()), "{}", flag.get_id());
        }
    }
}
