//! What counting costs, compared to a handler that does nothing. See `benches/load/run`.
//!
//! Each round measures all subjects of a part in turn. A machine's speed drifts, so only figures of the same round are
//! compared. The output has medians, and medians of the ratios within each round.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::expect_used,
    clippy::float_cmp,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a bench stops at the first surprise, prints its figures, and uses few of the tests' helpers"
)]

mod arrivals;
mod bulk;
mod checks;
mod client;
mod closing;
mod closing_together;
mod cluster;
mod compare;
mod footprint;
mod growth;
mod lines;
mod many_counters;
mod open_loop;
mod others;
mod profile;
mod ranges;
mod report;
mod requests;
mod roll_up;
mod service;
mod sizing;
mod slow_log;
mod subject;
mod subjects;
#[path = "../../tests/it/support/mod.rs"]
mod support;
mod tail;
mod times;
mod wrk;
mod zipf;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use serde_json::{Map, Value};

/// Measure what counting costs, compared to a handler that does nothing
#[derive(Parser)]
struct Args {
    /// The parts to measure; by default all but closing-together and sizing
    parts: Vec<Part>,

    /// Number of rounds
    #[arg(long, default_value_t = 5)]
    rounds: u64,

    /// Length of a measurement, in seconds
    #[arg(long, default_value_t = 10)]
    seconds: u64,

    /// For `compare`: the binary of the other build
    #[arg(long)]
    base: Option<PathBuf>,

    /// For `compare`: only rows whose names contain this
    #[arg(long, default_value = "")]
    only: String,

    /// The file for the figures
    #[arg(long, default_value = "target/load.json")]
    json: PathBuf,

    /// cargo passes it
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// An id a request: each way of counting, and other programs
    Requests,
    /// Where the time of a request goes: service and Redis, user and system time, system calls
    Profile,
    /// A thousand ids a request
    Bulk,
    /// Latency at a fixed rate of arrivals, half of the no-op's maximum
    Arrivals,
    /// The slowest requests over a window's end, a roll-up and lost connections to Redis
    Tail,
    /// What 1, 1 000 and 100 000 counters cost
    Counters,
    /// The close of a window with many counters
    Closing,
    /// The same of three instances, through Redis and Kafka
    ClosingTogether,
    /// What a million requests a minute need, of Redis and Kafka too
    Sizing,
    /// The roll-up of many counters into their hour, through Redis
    RollUp,
    /// The count of a range of time
    Ranges,
    /// An id a request, with a Redis Cluster, and how keys spread over it
    Cluster,
    /// With more connections, processes and shards
    Growth,
    /// Resident memory
    Footprint,
    /// The lines of a file
    Lines,
    /// Another build compared to this one
    #[value(hide = true)]
    Compare,
}

#[derive(Debug, Clone, Copy)]
struct Effort {
    rounds: u64,
    duration: Duration,
}

impl Part {
    fn measure(self, effort: Effort, args: &Args) -> Result<Value, String> {
        match self {
            Self::Requests => requests::measure(effort),
            Self::Profile => profile::measure(effort),
            Self::Bulk => bulk::measure(effort),
            Self::Arrivals => arrivals::measure(effort),
            Self::Tail => tail::measure(effort),
            Self::Counters => many_counters::measure(effort),
            Self::Closing => closing::measure(effort.rounds),
            Self::ClosingTogether => closing_together::measure(effort.rounds),
            Self::Sizing => sizing::measure(),
            Self::RollUp => roll_up::measure(),
            Self::Ranges => ranges::measure(effort.rounds),
            Self::Cluster => cluster::measure(effort),
            Self::Growth => growth::measure(effort),
            Self::Footprint => footprint::measure(),
            Self::Lines => lines::measure(),
            Self::Compare => {
                compare::measure(effort, args.base.as_deref().ok_or("--base is missing")?, &args.only)
            }
        }
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    let effort = Effort { rounds: args.rounds, duration: Duration::from_secs(args.seconds) };
    let is_usual = |part: &Part| !matches!(part, Part::Compare | Part::ClosingTogether | Part::Sizing);
    let all = Part::value_variants().iter().copied().filter(is_usual).collect();
    let parts = if args.parts.is_empty() { all } else { args.parts.clone() };
    let mut figures = Map::new();
    for part in parts {
        match part.measure(effort, &args) {
            Ok(value) => figures.insert(format!("{part:?}").to_lowercase(), value),
            Err(error) => {
                eprintln!("{part:?} has no result: {error}");
                return ExitCode::FAILURE;
            }
        };
    }
    let text = serde_json::to_string_pretty(&figures).expect("numbers and names");
    if let Err(error) = std::fs::write(&args.json, text) {
        eprintln!("cannot write {}: {error}", args.json.display());
        return ExitCode::FAILURE;
    }
    println!("\nall figures are in {}", args.json.display());
    ExitCode::SUCCESS
}
