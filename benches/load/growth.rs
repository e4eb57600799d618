//! What a request costs with more connections, more processes on one Redis, and more shards.

use std::thread;

use serde_json::{Value, json};

use crate::Effort;
use crate::report::{head, line, median};
use crate::subject::{Load, Subject};
use crate::subjects::{Counter, Kind, Service};
use crate::wrk::{self, Sample};

const CONNECTIONS: [u64; 5] = [1, 8, 64, 512, 4096];
const PROCESSES: [usize; 3] = [1, 2, 3];
const KINDS: [Kind; 4] = [Kind::Noop, Kind::MEMORY, Kind::CHANGED, Kind::HLL];

pub fn measure(effort: Effort) -> Result<Value, String> {
    Ok(json!({
        "connections": connections(effort)?,
        "processes": processes(effort)?,
        "shards": shards(effort)?,
    }))
}

fn connections(effort: Effort) -> Result<Value, String> {
    let mut cpu = vec![vec![Vec::new(); CONNECTIONS.len()]; KINDS.len()];
    for round in 0..effort.rounds {
        for (kind, cpu) in KINDS.iter().zip(&mut cpu) {
            for (connections, cpu) in CONNECTIONS.iter().zip(cpu) {
                let load = Load { connections: *connections, ..Load::new(effort.duration, round) };
                cpu.push(in_turn(*kind, load)?.cpu_micros);
            }
        }
    }
    let names = CONNECTIONS.map(|connections| format!("{connections} connections"));
    head("CPU a request, µs", &names.each_ref().map(String::as_str));
    let mut figures = serde_json::Map::new();
    for (kind, cpu) in KINDS.iter().zip(cpu) {
        let medians: Vec<_> = cpu.into_iter().map(median).collect();
        line(kind.name(), &medians.iter().map(|median| format!("{median:.2}")).collect::<Vec<_>>());
        figures.insert(kind.name().to_owned(), json!(medians));
    }
    Ok(figures.into())
}

fn in_turn(kind: Kind, load: Load) -> Result<Sample, String> {
    wrk::measure(&kind.start(false), load).map_err(|error| format!("{}: {error}", kind.name()))
}

/// Each process has its own connections, 64 in all.
fn processes(effort: Effort) -> Result<Value, String> {
    let Kind::Service(counter) = Kind::HLL else { return Ok(Value::Null) };
    let mut cpu = PROCESSES.map(|_| Vec::new());
    for round in 0..effort.rounds {
        for (processes, cpu) in PROCESSES.into_iter().zip(&mut cpu) {
            cpu.push(together(counter, processes, Load::new(effort.duration, round))?);
        }
    }
    let names = PROCESSES.map(|processes| format!("{processes} processes"));
    head("CPU a request, µs", &names.each_ref().map(String::as_str));
    let medians = cpu.map(median);
    line("Redis hll", &medians.map(|median| format!("{median:.2}")));
    Ok(json!(medians))
}

/// The CPU time of all processes and Redis, for each request to any process.
fn together(counter: Counter, processes: usize, load: Load) -> Result<f64, String> {
    let subjects = Service::start(counter, processes).subjects();
    let load = Load { connections: load.connections / processes as u64, ..load };
    let before: f64 = subjects.iter().map(|subject| subject.cpu().as_secs_f64()).sum();
    let requests = thread::scope(|scope| {
        let measure = |subject| scope.spawn(move || requests_of(subject, load));
        let measuring: Vec<_> = subjects.iter().map(measure).collect();
        measuring.into_iter().map(|one| one.join().expect("no panic")).sum::<Result<f64, String>>()
    })?;
    let after: f64 = subjects.iter().map(|subject| subject.cpu().as_secs_f64()).sum();
    // In reverse: the first subject owns Redis, which the others need to stop.
    subjects.into_iter().rev().for_each(drop);
    Ok((after - before) * 1e6 / requests)
}

fn requests_of(subject: &Subject, load: Load) -> Result<f64, String> {
    Ok(wrk::measure(subject, load)?.requests as f64)
}

fn shards(effort: Effort) -> Result<Value, String> {
    const KINDS: [Kind; 2] = [Kind::HLL, Kind::EIGHT_SHARDS];
    let mut cpu = KINDS.map(|_| Vec::new());
    for round in 0..effort.rounds {
        for (kind, cpu) in KINDS.into_iter().zip(&mut cpu) {
            cpu.push(in_turn(kind, Load::new(effort.duration, round))?.cpu_micros);
        }
    }
    let medians = cpu.map(median);
    head("CPU a request, µs", &["1 shard", "8 shards"]);
    line("Redis hll", &medians.map(|median| format!("{median:.2}")));
    Ok(json!(medians))
}
