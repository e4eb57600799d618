//! An id a request.
//!
//! The service of the row `changed` runs all the time, in windows of a minute, as in `compare`: each measurement starts at the
//! same moment of a window, with an empty sketch. All others are new in each round, and get a warm-up of a second.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::Effort;
use crate::compare::{OF_A_MINUTE, SECONDS, wait_for_a_minute};
use crate::report::{Target, head, line, median, ratio};
use crate::subject::Load;
use crate::subjects::Kind;
use crate::wrk::{self, Sample};

struct Row {
    kind: Kind,
    cpu: Target,
    rate: Target,
    samples: Vec<Sample>,
}

/// How long the windows of some rows are filled first, with ids of other seeds than those of the rounds.
const FILL: Duration = Duration::from_secs(8);
const SEEDS: u64 = 10_000;
/// Every way of counting must reach this many requests a second.
const AT_LEAST_A_SECOND: f64 = 10_000.0;

impl Row {
    fn new(kind: Kind, cpu: Target, rate: Target) -> Self {
        Self { kind, cpu, rate, samples: Vec::new() }
    }

    fn of(&self, figure: impl Fn(&Sample) -> f64) -> Vec<f64> {
        self.samples.iter().map(figure).collect()
    }
}

pub fn measure(effort: Effort) -> Result<Value, String> {
    use Target::{AtLeast, AtMost};
    let mut rows = vec![
        Row::new(Kind::Noop, Target::None, Target::None),
        Row::new(Kind::Plain, Target::None, Target::None),
        Row::new(Kind::MEMORY, AtMost(1.03), AtLeast(0.97)),
        Row::new(Kind::COUNTERS, Target::None, Target::None),
        Row::new(Kind::SHORT_TEXTS, Target::None, Target::None),
        Row::new(Kind::UUIDS, Target::None, Target::None),
        Row::new(Kind::CHANGED, AtMost(1.10), AtLeast(0.95)),
        Row::new(Kind::HLL, AtMost(1.40), AtLeast(0.88)),
        Row::new(Kind::HLL_COUNTERS, Target::None, Target::None),
        Row::new(Kind::WARM, Target::None, Target::None),
        Row::new(Kind::WARM_COUNTERS, Target::None, Target::None),
        Row::new(Kind::FOUR_SHARDS, Target::None, Target::None),
        Row::new(Kind::EXACT, AtMost(1.60), AtLeast(0.80)),
    ];
    for peer in [Kind::Webdis, Kind::NginxLua] {
        if peer.is_there() {
            rows.push(Row::new(peer, Target::None, Target::None));
        } else {
            println!("left out: {}, which is not installed", peer.name());
        }
    }
    let failed = |kind: Kind| move |error| format!("{}: {error}", kind.name());
    let changed = Kind::CHANGED.start_of(Path::new(env!("CARGO_BIN_EXE_headcount")), &OF_A_MINUTE, false);
    wait_for_a_minute();
    wrk::measure(&changed, Load::new(FILL, SEEDS)).map_err(failed(Kind::CHANGED))?;
    for round in 0..effort.rounds {
        for row in &mut rows {
            if row.kind == Kind::CHANGED {
                wait_for_a_minute();
                let duration = effort.duration.min(Duration::from_secs(SECONDS));
                let sample = wrk::measure(&changed, Load::new(duration, round));
                row.samples.push(sample.map_err(failed(Kind::CHANGED))?);
                continue;
            }
            let (subject, mut load) = (row.kind.start(false), Load::new(effort.duration, round));
            if matches!(row.kind, Kind::WARM | Kind::WARM_COUNTERS) {
                load = load.after(&wrk::measure(&subject, Load::new(FILL, round + SEEDS))?);
            }
            let sample = wrk::warm_up(&subject, load).and_then(|load| wrk::measure(&subject, load));
            row.samples.push(sample.map_err(failed(row.kind))?);
        }
    }
    Ok(show(&rows))
}

fn show(rows: &[Row]) -> Value {
    let columns = [
        "CPU / no-op",
        "requests a second / no-op",
        "p50 / no-op",
        "p99 / no-op",
        "CPU, µs",
        "requests a second",
        "ids that changed it",
    ];
    head("an id a request", &columns);
    let noop = &rows[0];
    let mut figures = Vec::new();
    for row in rows {
        let median = |figure: fn(&Sample) -> f64| median(row.of(figure));
        let ratio = |figure: fn(&Sample) -> f64| ratio(&row.of(figure), &noop.of(figure));
        let rate = median(|sample| sample.requests_per_second);
        line(
            row.kind.name(),
            &[
                row.cpu.judge(ratio(|sample| sample.cpu_micros)),
                row.rate.judge(ratio(|sample| sample.requests_per_second)),
                format!("{:.2}", ratio(|sample| sample.p50_micros)),
                format!("{:.2}", ratio(|sample| sample.p99_micros)),
                format!("{:.2}", median(|sample| sample.cpu_micros)),
                format!("{rate:.0}{}", if rate < AT_LEAST_A_SECOND { " MISSED" } else { "" }),
                format!("{:.0} %", 100.0 * median(|sample| sample.share_changed)),
            ],
        );
        figures.push(json!({ "row": row.kind.name(), "samples": row.samples }));
    }
    compare(rows);
    json!(figures)
}

/// Prints ratios of CPU between other rows than the no-op.
fn compare(rows: &[Row]) {
    use Target::AtMost;
    let compared = [
        (Kind::Noop, Kind::Plain, AtMost(1.05)),
        (Kind::COUNTERS, Kind::MEMORY, AtMost(1.15)),
        (Kind::HLL_COUNTERS, Kind::HLL, AtMost(1.35)),
        (Kind::WARM_COUNTERS, Kind::WARM, AtMost(1.15)),
        // A part of this is the longer URL. The next one has only what it costs that an id is a text.
        (Kind::UUIDS, Kind::MEMORY, AtMost(1.05)),
        (Kind::SHORT_TEXTS, Kind::MEMORY, Target::None),
        (Kind::HLL, Kind::Webdis, AtMost(0.55)),
        (Kind::HLL, Kind::NginxLua, AtMost(0.40)),
    ];
    let cpu = |kind| {
        let row = rows.iter().find(|row| row.kind == kind)?;
        Some(row.of(|sample| sample.cpu_micros))
    };
    for (one, other, target) in compared {
        if let Some((one_cpu, other_cpu)) = cpu(one).zip(cpu(other)) {
            let judged = target.judge(ratio(&one_cpu, &other_cpu));
            println!("CPU of {} / {}: {judged}", one.name(), other.name());
        }
    }
}
