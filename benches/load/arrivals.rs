//! Latency at a fixed rate of arrivals.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::Effort;
use crate::open_loop;
use crate::report::{Target, head, line, median, ratio};
use crate::subjects::{Kind, Subject};
use crate::wrk::{self, Load};

/// The warm-up is not measured: connections are new, memory is cold.
const WARM_UP: Duration = Duration::from_secs(1);

pub fn measure(effort: Effort) -> Result<Value, String> {
    let full = wrk::measure(&Kind::Noop.start(false), Load::new(effort.duration, 0))?.requests_per_second;
    let rate = full / 2.0;
    let kinds = [Kind::Noop, Kind::MEMORY, Kind::CHANGED, Kind::HLL, Kind::EXACT];
    let mut p99s = vec![Vec::new(); kinds.len()];
    let mut p50s = p99s.clone();
    for round in 0..effort.rounds {
        for (place, kind) in kinds.iter().enumerate() {
            let subject = kind.start(false);
            let micros = latencies(&subject, rate, effort.duration, round)
                .map_err(|error| format!("{}: {error}", kind.name()))?;
            let at = |share: usize| f64::from(micros[micros.len() * share / 100]);
            p50s[place].push(at(50));
            p99s[place].push(at(99));
        }
    }
    head(&format!("{rate:.0} arrivals a second"), &["p50, µs", "p99, µs", "p99 / no-op"]);
    let mut figures = serde_json::Map::new();
    for (place, kind) in kinds.iter().enumerate() {
        let target = if *kind == Kind::HLL { Target::AtMost(1.5) } else { Target::None };
        line(
            kind.name(),
            &[
                format!("{:.0}", median(p50s[place].clone())),
                format!("{:.0}", median(p99s[place].clone())),
                target.judge(ratio(&p99s[place], &p99s[0])),
            ],
        );
        figures.insert(kind.name().to_owned(), json!({ "p50": p50s[place], "p99": p99s[place] }));
    }
    figures.insert("arrivals_a_second".to_owned(), json!(rate));
    Ok(figures.into())
}

/// How long requests took, in microseconds, the shortest first.
fn latencies(subject: &Subject, rate: f64, duration: Duration, seed: u64) -> Result<Vec<u32>, String> {
    let started = Instant::now();
    let counted_from = started + WARM_UP;
    let answered = open_loop::send(subject, rate, started..counted_from + duration, seed)?;
    let counted = answered.iter().filter(|answered| answered.due >= counted_from);
    let mut micros: Vec<_> = counted.map(|answered| answered.micros).collect();
    micros.sort_unstable();
    Ok(micros)
}
