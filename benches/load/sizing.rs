//! What a million requests a minute need: cores and memory of the service, of Redis and of Kafka.
//!
//! An open-loop client sends them at equal distances, each with one id. The windows last 60 s, so exactly one of them ends in
//! the measured minute.

use std::fs;
use std::ops::Range;
use std::path::PathBuf;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::closing::sleep_until;
use crate::open_loop;
use crate::report::{head, line};
use crate::service;
use crate::subject::Subject;
use crate::subjects::{Counter, Service};
use crate::support::free_port;
use crate::support::kafka::{Kafka, namespace};
use crate::support::process::headcount;
use crate::times::cpu_of;

const REQUESTS_A_SECOND: f64 = 1e6 / 60.0;
/// Not measured: connections are new, memory is cold.
const WARM_UP: Duration = Duration::from_secs(10);
const MINUTE: Duration = Duration::from_secs(60);

/// A way of counting, and how many counters there are. Each request names one of them.
const ROWS: [(&str, Counter, u64); 6] = [
    ("memory", Counter::in_memory(&[]), 0),
    ("Redis, hll", Counter::in_redis(&[]), 0),
    ("Redis, hll, changed", Counter::in_redis(&["--redis-writes", "changed"]), 0),
    ("Redis, exact", Counter::in_redis(&["--mode", "exact"]), 0),
    ("Redis, hll, 1 000 counters", Counter::in_redis(&[]), 1_000),
    ("Redis, hll, 10 000 counters", Counter::in_redis(&["--max-counters", "10000"]), 10_000),
];

pub fn measure() -> Result<Value, String> {
    let port = free_port();
    let kafka = Kafka::start_on(port);
    let brokers = format!("127.0.0.1:{port}");
    let columns = ["service, cores", "Redis, cores", "Kafka, cores", "service, MB", "Redis, MB", "Kafka, KB"];
    head("a million requests a minute", &columns);
    let mut figures = serde_json::Map::new();
    for (name, counter, counters) in ROWS {
        let namespace = namespace("sizing");
        let mut subject = start(counter, &brokers, &namespace);
        subject.request.counters = counters;
        let needs = needs_of(&subject, &kafka, &namespace).map_err(|error| format!("{name}: {error}"))?;
        line(name, &needs.map(|figure| format!("{figure:.3}")));
        let named = columns.into_iter().zip(needs).map(|(column, figure)| (column.to_owned(), json!(figure)));
        figures.insert(name.to_owned(), Value::Object(named.collect()));
    }
    Ok(figures.into())
}

fn start(counter: Counter, brokers: &str, namespace: &str) -> Subject {
    let service = Service::start_with(counter, 1, || {
        let mut command = headcount();
        command.args(["--kafka-brokers", brokers, "--namespace", namespace]).stdout(Stdio::null());
        command
    });
    service.subjects().remove(0)
}

/// The figures of a row, in the order of the columns.
fn needs_of(subject: &Subject, kafka: &Kafka, namespace: &str) -> Result<[f64; 6], String> {
    let started = Instant::now();
    let measured = started + WARM_UP..started + WARM_UP + MINUTE;
    thread::scope(|scope| {
        let load = scope.spawn(|| open_loop::send(subject, REQUESTS_A_SECOND, started..measured.end, 0));
        let needs = needs_while(measured.clone(), subject, kafka, namespace);
        let answered = load.join().expect("no panic")?.len() as u64;
        let accepted = service::accepted(subject.address);
        if accepted == answered {
            Ok(needs)
        } else {
            Err(format!("{accepted} of {answered} ids were accepted"))
        }
    })
}

fn needs_while(time: Range<Instant>, subject: &Subject, kafka: &Kafka, namespace: &str) -> [f64; 6] {
    let cpu = || {
        let of_redis = subject.cpu_of_redis().as_secs_f64();
        [subject.cpu().as_secs_f64() - of_redis, of_redis, cpu_of(kafka.process.0.id()).as_secs_f64()]
    };
    let written = || bytes_of(kafka, &format!("{namespace}.")) as f64;
    sleep_until(time.start);
    let (cpu_before, written_before) = (cpu(), written());
    sleep_until(time.end);
    let cpu = cpu();
    let cores = |part: usize| (cpu[part] - cpu_before[part]) / MINUTE.as_secs_f64();
    [
        cores(0),
        cores(1),
        cores(2),
        subject.resident() as f64 / 1e6,
        subject.memory_of_redis() / 1e6,
        (written() - written_before) / 1e3,
    ]
}

/// How many bytes of records Kafka has written to topics whose names begin so.
fn bytes_of(kafka: &Kafka, prefix: &str) -> u64 {
    let entries =
        |dir: PathBuf| fs::read_dir(dir).expect("a directory").map(|entry| entry.expect("an entry").path());
    let is_ours =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix));
    let files = entries(kafka.dir.path().join("data")).filter(is_ours).flat_map(entries);
    let logs = files.filter(|path| path.extension().is_some_and(|extension| extension == "log"));
    logs.map(|path| path.metadata().expect("a file").len()).sum()
}
