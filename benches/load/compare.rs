//! Measures two builds of the service in turn. `benches/compare` makes the other build and reads the output.
//!
//! Each round measures every row with both builds, one right after the other. The builds take turns to be first. A
//! machine's speed drifts, so a ratio compares only neighbours.
//!
//! `--redis-writes changed` sends an id only if it changes the sketch of its window. So the cost depends on how full the
//! sketch is. The services of these rows run all the time, in windows of a minute. The first window is a warm-up. Then
//! each measurement starts at the same moment of a window, with an empty sketch.

use std::collections::BTreeMap;
use std::path::Path;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::Effort;
use crate::subject::{Load, Subject};
use crate::subjects::Kind;
use crate::wrk::{self, Sample};

const OF_A_DAY: [&str; 2] = ["--window", "24h"];
pub const OF_A_MINUTE: [&str; 2] = ["--window", "60s"];
const MINUTE: Duration = Duration::from_secs(60);
/// This long after a window's start, every instance has seen it.
const INTO_A_WINDOW: Duration = Duration::from_secs(1);
/// The seed of the warm-up's ids. No round uses it.
const SEED_OF_WARM_UP: u64 = 10_000;
/// The longest measurement in a window of a minute.
pub const SECONDS: u64 = 5;

struct Row {
    name: &'static str,
    kind: Kind,
    connections: u64,
    bulk: bool,
}

const ROWS: [Row; 12] = [
    Row { name: "memory, 64 connections", kind: Kind::MEMORY, connections: 64, bulk: false },
    Row { name: "memory, 1 connection", kind: Kind::MEMORY, connections: 1, bulk: false },
    // A build without counters ignores the parameter, so the ratio to it has all that counters cost.
    Row {
        name: "memory, one of 1 000 counters, 64 connections",
        kind: Kind::COUNTERS,
        connections: 64,
        bulk: false,
    },
    Row { name: "Redis all, 64 connections", kind: Kind::HLL, connections: 64, bulk: false },
    Row { name: "Redis all, 1 connection", kind: Kind::HLL, connections: 1, bulk: false },
    Row { name: "Redis changed, 64 connections", kind: Kind::CHANGED, connections: 64, bulk: false },
    Row { name: "Redis changed, 1 connection", kind: Kind::CHANGED, connections: 1, bulk: false },
    Row { name: "Redis exact, 64 connections", kind: Kind::EXACT, connections: 64, bulk: false },
    Row { name: "Redis exact, 1 connection", kind: Kind::EXACT, connections: 1, bulk: false },
    Row { name: "memory, 1 000 ids a request", kind: Kind::MEMORY, connections: 64, bulk: true },
    Row { name: "Redis all, 1 000 ids a request", kind: Kind::HLL, connections: 64, bulk: true },
    Row { name: "Redis exact, 1 000 ids a request", kind: Kind::EXACT, connections: 64, bulk: true },
];

/// The two builds.
const SIDES: [&str; 2] = ["base", "here"];

/// Measures the rows whose names contain `only`.
pub fn measure(effort: Effort, base: &Path, only: &str) -> Result<Value, String> {
    let binaries = [base, Path::new(env!("CARGO_BIN_EXE_headcount"))];
    let rows: Vec<_> = ROWS.iter().filter(|row| row.name.contains(only)).collect();
    let of_a_minute = |row: &&&Row| row.kind == Kind::CHANGED;
    let lasting: Vec<_> = rows
        .iter()
        .filter(of_a_minute)
        .map(|row| (*row, binaries.map(|binary| row.kind.start_of(binary, &OF_A_MINUTE, row.bulk))))
        .collect();
    if !lasting.is_empty() {
        warm_up(&lasting)?;
    }
    let mut samples = BTreeMap::<_, [Vec<Sample>; 2]>::new();
    for round in 0..effort.rounds {
        let first = usize::from(round % 2 == 1);
        let sides = [first, 1 - first];
        if !lasting.is_empty() {
            wait_for_a_minute();
        }
        for (row, subjects) in &lasting {
            for side in sides {
                let duration = effort.duration.min(Duration::from_secs(SECONDS));
                let sample = row.measure(&subjects[side], duration, round)?;
                samples.entry(row.name).or_default()[side].push(sample);
            }
        }
        for row in rows.iter().filter(|row| !of_a_minute(row)) {
            for side in sides {
                let subject = row.kind.start_of(binaries[side], &OF_A_DAY, row.bulk);
                let sample = row.measure(&subject, effort.duration, round)?;
                samples.entry(row.name).or_default()[side].push(sample);
            }
        }
        eprintln!("round {} of {}", round + 1, effort.rounds);
    }
    let rows = samples.iter().map(|(name, samples)| {
        let sides = SIDES.iter().zip(samples).map(|(side, samples)| ((*side).to_owned(), json!(samples)));
        json!({ "row": name, "samples": sides.collect::<serde_json::Map<_, _>>() })
    });
    Ok(rows.collect())
}

impl Row {
    fn measure(&self, subject: &Subject, duration: Duration, seed: u64) -> Result<Sample, String> {
        let load = Load { connections: self.connections, ..Load::new(duration, seed) };
        wrk::measure(subject, load).map_err(|error| format!("{}: {error}", self.name))
    }
}

/// Warms up all services in one window.
fn warm_up(lasting: &[(&Row, [Subject; 2])]) -> Result<(), String> {
    wait_for_a_minute();
    for (row, subjects) in lasting {
        for subject in subjects {
            row.measure(subject, Duration::from_secs(SECONDS), SEED_OF_WARM_UP)?;
        }
    }
    Ok(())
}

/// Waits until a window of a minute has begun.
pub fn wait_for_a_minute() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    let into = Duration::from_nanos((now.as_nanos() % MINUTE.as_nanos()) as u64);
    thread::sleep(MINUTE.saturating_sub(into) + INTO_A_WINDOW);
}
