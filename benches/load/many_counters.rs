//! What many counters cost: the same load names 1, 1 000 or 100 000 of them, by Zipf's law, in memory and through Redis.
//!
//! Two services are measured for each number. The first gets an id a request, each with one counter, for the CPU of a request.
//! The second gets a million ids in bulk, in one window, so that each counter has one at least. That shows memory, and the
//! close of the window. Meanwhile an open-loop client sends ids without counters, as other clients of the service would.

use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::Effort;
use crate::checks::check_between;
use crate::closing::{check_accepted, check_counters, close, fill, next_start, p99, sleep_until};
use crate::open_loop::{self, Answered};
use crate::report::{difference, head, line, median, ratio};
use crate::service;
use crate::subject::{Load, Request, Subject};
use crate::subjects::{Counter, Service};
use crate::support::process::headcount;
use crate::wrk;
use crate::zipf::Zipf;

const COUNTERS: [u64; 3] = [1, 1_000, 100_000];
const SKEW: f64 = 1.0;
const WAYS: [(&str, Counter); 2] = [
    ("memory", Counter::in_memory(&["--max-counters", "200000", "--counter-memory", "1GiB"])),
    (
        "Redis",
        Counter::in_redis(&["--max-counters", "200000", "--counter-memory", "1GiB", "--redis-writes", "all"]),
    ),
];
/// The ids that fill a window. The open-loop client sends none of them.
const IDS: u64 = 1_000_000;
const ARRIVALS_A_SECOND: f64 = 5_000.0;
const WINDOW: Duration = Duration::from_secs(20);
/// The time after a window's end in which its close shows.
const CLOSE: Duration = Duration::from_secs(2);
/// The last part of a window, to which the time after its end is compared.
const BEFORE: Duration = Duration::from_secs(3);
/// This long after the window is filled, nothing is left of that.
const CALM: Duration = Duration::from_secs(1);

/// The figures of one run, with their names.
type Costs = Vec<(&'static str, f64)>;

/// A round measures each number once.
pub fn measure(effort: Effort) -> Result<Value, String> {
    let mut all = Vec::new();
    for (way, counter) in WAYS {
        let mut costs = COUNTERS.map(|_| Vec::new());
        for round in 0..effort.rounds {
            for (counters, costs) in COUNTERS.into_iter().zip(&mut costs) {
                let law = Zipf { counters, skew: SKEW };
                let cost = costs_of(counter, law, Load::new(effort.duration, round));
                costs.push(cost.map_err(|error| format!("{way}, {counters} counters: {error}"))?);
            }
        }
        all.push((way, costs));
    }
    let shown = all.iter().map(|(way, costs)| ((*way).to_owned(), show(way, costs)));
    Ok(Value::Object(shown.collect()))
}

/// Those of Redis are left out in memory.
fn costs_of(counter: Counter, law: Zipf, load: Load) -> Result<Costs, String> {
    let [of_service, of_redis] = cpu(counter, law, load)?;
    let closed = fill_and_close(counter, law)?;
    let mut costs = vec![("CPU a request, µs", of_service)];
    if of_redis > 0.0 {
        costs.push(("CPU of Redis a request, µs", of_redis));
        costs.push(("memory of Redis, MB", closed.of_redis / 1e6));
    }
    costs.push(("resident, MB", closed.resident / 1e6));
    costs.push(("end to count, ms", closed.millis));
    costs.push(("p99 before the end, ms", closed.p99_before));
    costs.push(("p99, 2 s after the end, ms", closed.p99_after));
    Ok(costs)
}

/// Of the service, and of Redis.
fn cpu(counter: Counter, law: Zipf, load: Load) -> Result<[f64; 2], String> {
    let request = Request { counters: law.counters, skew: law.skew, ..Request::one() };
    let subject = Service::start(counter, 1).subject(request);
    let sample = wrk::measure(&subject, load)?;
    // wrk::measure leaves this check out if a build has no counters.
    service::unique_of(subject.address, "campaign-1").ok_or("campaign-1 has no count")?;
    Ok([sample.cpu_micros - sample.redis_cpu_micros, sample.redis_cpu_micros])
}

/// A window that was filled, and its close.
struct Closed {
    /// Bytes of resident memory at the end.
    resident: f64,
    /// Bytes that Redis used at the end, without those that it used before the first id.
    of_redis: f64,
    /// From the end until the count could be read.
    millis: f64,
    p99_before: f64,
    p99_after: f64,
}

fn fill_and_close(counter: Counter, law: Zipf) -> Result<Closed, String> {
    let (subject, bodies) = (start(counter), law.bodies(open_loop::IDS, IDS));
    let empty = subject.memory_of_redis();
    let begun = next_start(WINDOW);
    let ended = begun + WINDOW;
    let (close, answered) = thread::scope(|scope| {
        let load = || open_loop::send(&subject, ARRIVALS_A_SECOND, Instant::now()..ended + CLOSE, 0);
        let answered = scope.spawn(load);
        sleep_until(begun + CLOSE);
        let close = fill(&subject, bodies.iter()).and_then(|()| {
            if Instant::now() + CALM + BEFORE > ended {
                return Err("it took too long to fill the window: the machine is busy".to_owned());
            }
            close(&subject, ended)
        });
        (close, answered.join().expect("no panic"))
    });
    let (answered, close) = (answered?, close?);
    check(&subject, law, &answered, begun)?;
    Ok(Closed {
        resident: close.resident as f64,
        of_redis: close.of_redis - empty,
        millis: close.millis,
        p99_before: p99(&answered, ended.checked_sub(BEFORE).expect("after the start"), ended),
        p99_after: p99(&answered, ended, ended + CLOSE),
    })
}

fn start(counter: Counter) -> Subject {
    let window = format!("{}s", WINDOW.as_secs());
    let service = Service::start_with(counter, 1, || {
        let mut command = headcount();
        // It logs every window, which would be among the figures.
        command.args(["--window", &window]).stdout(Stdio::null());
        command
    });
    service.subject(Request::one())
}

/// Checks that all ids were accepted, and that the window has them, in the total and in its counters.
fn check(subject: &Subject, law: Zipf, answered: &[Answered], begun: Instant) -> Result<(), String> {
    check_accepted(subject, answered.len() + IDS as usize)?;
    check_counters(subject, law.counters as usize)?;
    let total = IDS as f64 + open_loop::unique(answered, &(begun..begun + WINDOW));
    check_between(service::last(subject.address, "")?, [total; 2])?;
    let first = service::last(subject.address, "?counter=campaign-1")?;
    check_between(first, [law.ids_of_each(IDS)[0] as f64; 2])
        .map_err(|error| format!("the first counter: {error}"))
}

/// `costs` has a list for each number of counters, with an element a round.
fn show(way: &str, costs: &[Vec<Costs>; 3]) -> Value {
    let columns = ["1 counter", "1 000", "100 000", "100 000 / 1", "100 000 - 1"];
    head(&format!("many counters, {way}"), &columns);
    let mut figures = serde_json::Map::new();
    for (place, (name, _)) in costs[0][0].iter().enumerate() {
        let of_each = costs.each_ref().map(|runs| runs.iter().map(|run| run[place].1).collect::<Vec<_>>());
        let [one, _, most] = &of_each;
        let growth = [ratio(most, one), difference(most, one)];
        let medians = of_each.iter().map(|runs| median(runs.clone()));
        let figure = |figure: f64| format!("{figure:.2}");
        line(name, &medians.chain(growth).map(figure).collect::<Vec<_>>());
        figures.insert((*name).to_owned(), json!(of_each));
    }
    figures.into()
}
