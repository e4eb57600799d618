//! Latency at a fixed rate of arrivals: what counting adds to the slowest of a hundred and of a thousand requests.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::Effort;
use crate::closing::check_accepted;
use crate::open_loop::{self, Latencies};
use crate::report::{Target, difference, head, line, median};
use crate::service;
use crate::subject::Load;
use crate::subjects::Kind;
use crate::wrk;

/// The warm-up is not measured: connections are new, memory is cold.
const WARM_UP: Duration = Duration::from_secs(1);
/// By how many milliseconds each way of counting may exceed the no-op.
const MORE_P99: f64 = 0.5;
const MORE_P999: f64 = 2.0;

/// The figures of a subject in milliseconds, one of each round.
#[derive(Default)]
struct Row {
    p50: Vec<f64>,
    p99: Vec<f64>,
    p999: Vec<f64>,
}

pub fn measure(effort: Effort) -> Result<Value, String> {
    let rate = half_of_noop(effort.duration)?;
    let kinds = [Kind::Noop, Kind::MEMORY, Kind::CHANGED, Kind::HLL, Kind::EXACT];
    let mut rows = kinds.map(|_| Row::default());
    for round in 0..effort.rounds {
        for (kind, row) in kinds.iter().zip(&mut rows) {
            let took = latencies(*kind, rate, effort.duration, round)
                .map_err(|error| format!("{}: {error}", kind.name()))?;
            row.p50.push(took.millis(500));
            row.p99.push(took.millis(990));
            row.p999.push(took.millis(999));
        }
    }
    let title = format!("{rate:.0} arrivals a second, ms");
    head(&title, &["p50", "p99", "more than the no-op", "p99.9", "more than the no-op"]);
    let mut figures = serde_json::Map::new();
    for (kind, row) in kinds.iter().zip(&rows) {
        show(kind.name(), row, &rows[0], *kind == Kind::Noop);
        let figure = json!({ "p50_ms": row.p50, "p99_ms": row.p99, "p999_ms": row.p999 });
        figures.insert(kind.name().to_owned(), figure);
    }
    figures.insert("arrivals_a_second".to_owned(), json!(rate));
    Ok(figures.into())
}

fn show(name: &str, row: &Row, noop: &Row, is_noop: bool) {
    let target = |limit| if is_noop { Target::None } else { Target::AtMost(limit) };
    let figure = |millis: &[f64]| format!("{:.2}", median(millis.to_vec()));
    line(
        name,
        &[
            figure(&row.p50),
            figure(&row.p99),
            target(MORE_P99).judge(difference(&row.p99, &noop.p99)),
            figure(&row.p999),
            target(MORE_P999).judge(difference(&row.p999, &noop.p999)),
        ],
    );
}

/// Half as many requests a second as the no-op can answer.
pub fn half_of_noop(duration: Duration) -> Result<f64, String> {
    let noop = wrk::measure(&Kind::Noop.start(false), Load::new(duration, 0))?;
    Ok(noop.requests_per_second / 2.0)
}

fn latencies(kind: Kind, rate: f64, duration: Duration, seed: u64) -> Result<Latencies, String> {
    let subject = kind.start(false);
    let started = Instant::now();
    let counted = started + WARM_UP..started + WARM_UP + duration;
    let answered = open_loop::send(&subject, rate, started..counted.end, seed)?;
    if let Kind::Service(_) = kind {
        check_accepted(&subject, answered.len())?;
        subject.check_unique(service::unique(subject.address), [answered.len() as f64; 2])?;
    }
    Ok(Latencies::of(&answered, &counted))
}
