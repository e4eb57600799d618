//! What clients notice of three events, with each id sent to Redis: a window's end, the roll-up of counters into their hour, and
//! lost connections to Redis.
//!
//! An open-loop client sends ids without counters all the time, half as many as the no-op can answer. A round has three windows,
//! with an event in each. The requests during an event are compared with those in the quiet time before it.

use std::ops::Range;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use headcount::redis::keys::Keys;
use serde_json::{Value, json};

use crate::Effort;
use crate::arrivals::half_of_noop;
use crate::checks::check_between;
use crate::closing::{
    check_accepted, check_counters, close, fill, next_start, sleep_until, start_of_running,
};
use crate::open_loop::{self, Answered, Latencies};
use crate::report::{head, line, median};
use crate::service;
use crate::subject::{Request, Subject};
use crate::subjects::{Counter, Service};
use crate::support::process::headcount;
use crate::support::wait_blocking;
use crate::zipf::Zipf;

const EVENTS: [&str; 3] = ["a roll-up of 10 000 counters", "a window's end", "connections lost every second"];
const WINDOW: Duration = Duration::from_secs(10);
/// The time after a window's end in which its close shows.
const CLOSE: Duration = Duration::from_secs(1);
/// How much of the time before an event is compared with it.
const QUIET: Duration = Duration::from_secs(3);
/// This long after a window is filled, and after a roll-up, nothing is left of that.
const CALM: Duration = Duration::from_secs(1);
const LAW: Zipf = Zipf { counters: 10_000, skew: 1.0 };
/// The ids of these counters. The open-loop client sends none of them.
const IDS: u64 = 100_000;
/// How often the connections are lost in a window, and how long after one another.
const LOSSES: u32 = 3;
const BETWEEN_LOSSES: Duration = Duration::from_secs(1);

/// An event, and what its window counted.
struct Event {
    during: Range<Instant>,
    window: Range<Instant>,
    /// Different ids of the window.
    unique: f64,
    /// Those of them that did not come from the open-loop client.
    in_bulk: u64,
}

pub fn measure(effort: Effort) -> Result<Value, String> {
    let rate = half_of_noop(effort.duration)?;
    let (subject, bodies, rounds) = (start(), LAW.bodies(open_loop::IDS, IDS), effort.rounds as u32);
    let first = next_start(WINDOW);
    let end = first + WINDOW * rounds * 3 + CLOSE;
    let (rounds, answered) = thread::scope(|scope| {
        let answered = scope.spawn(|| open_loop::send(&subject, rate, Instant::now()..end, 0));
        let rounds = (0..rounds).map(|round| events(&subject, &bodies, first + WINDOW * round * 3));
        (rounds.collect::<Result<Vec<_>, _>>(), answered.join().expect("no panic"))
    });
    let (answered, rounds) = (answered?, rounds?);
    check_accepted(&subject, answered.len() + rounds.len() * IDS as usize)?;
    for (event, name) in rounds.iter().flat_map(|events| events.iter().zip(EVENTS)) {
        let unique = event.in_bulk as f64 + open_loop::unique(&answered, &event.window);
        check_between(event.unique, [unique; 2]).map_err(|error| format!("{name}: {error}"))?;
    }
    Ok(show(&rounds, &answered, rate))
}

fn start() -> Subject {
    let window = format!("{}s", WINDOW.as_secs());
    let service = Service::start_with(Counter::in_redis(&["--redis-writes", "all"]), 1, || {
        let mut command = headcount();
        command.args(["--window", &window, "--max-counters", "20000", "--counter-keep-hours", "24h"]);
        // It logs every window, which would be among the figures.
        command.stdout(Stdio::null());
        command
    });
    service.subject(Request::one())
}

/// Those of a round, in the order of [`EVENTS`].
fn events(subject: &Subject, bodies: &[String], begun: Instant) -> Result<[Event; 3], String> {
    let window = |number: u32| begun + WINDOW * number..begun + WINDOW * (number + 1);
    // Under load a roll-up takes seconds. So the window after it is quiet for the longest time.
    Ok([roll_up(subject, bodies, window(0))?, end_of(subject, window(1))?, losses(subject, window(2))?])
}

/// A window without counters ends.
fn end_of(subject: &Subject, window: Range<Instant>) -> Result<Event, String> {
    check_quiet_before(window.end)?;
    close(subject, window.end)?;
    let unique = service::last(subject.address, "")?;
    Ok(Event { during: window.end..window.end + CLOSE, window, unique, in_bulk: 0 })
}

/// A window with counters ends. The leader closes it, and then merges its counters into their hour. The event is both.
fn roll_up(subject: &Subject, bodies: &[String], window: Range<Instant>) -> Result<Event, String> {
    sleep_until(window.start + CLOSE);
    let start = start_of_running(WINDOW);
    fill(subject, bodies.iter())?;
    check_quiet_before(window.end)?;
    close(subject, window.end)?;
    wait_blocking("the roll-up", || last_rolled_up(subject) == Some(start));
    let during = window.end..Instant::now();
    let unique = service::last(subject.address, "")?;
    check_counters(subject, LAW.counters as usize)?;
    let first = service::last(subject.address, "?counter=campaign-1")?;
    check_between(first, [LAW.ids_of_each(IDS)[0] as f64; 2])
        .map_err(|error| format!("the first counter: {error}"))?;
    Ok(Event { during, window, unique, in_bulk: IDS })
}

/// The service loses its connections to Redis some times, in the middle of a window.
fn losses(subject: &Subject, window: Range<Instant>) -> Result<Event, String> {
    let first = window.start + WINDOW / 2;
    check_quiet_before(first)?;
    for number in 0..LOSSES {
        sleep_until(first + BETWEEN_LOSSES * number);
        kill_connections(subject)?;
    }
    close(subject, window.end)?;
    let unique = service::last(subject.address, "")?;
    Ok(Event { during: first..first + BETWEEN_LOSSES * LOSSES, window, unique, in_bulk: 0 })
}

/// Checks that nothing is left to do in the quiet time before an event.
fn check_quiet_before(event: Instant) -> Result<(), String> {
    if Instant::now() + CALM + QUIET > event {
        return Err("what came before the event took too long: the machine is busy".to_owned());
    }
    Ok(())
}

fn kill_connections(subject: &Subject) -> Result<(), String> {
    let mut kill = redis::cmd("CLIENT");
    kill.arg("KILL").arg("TYPE").arg("normal");
    let mut connection = subject.redis.as_ref().ok_or("no Redis")?.connect();
    match kill.query::<u64>(&mut connection).map_err(|error| error.to_string())? {
        0 => Err("the service had no connection to Redis".to_owned()),
        _ => Ok(()),
    }
}

/// The start of the last window that was rolled up, in seconds since 1970.
fn last_rolled_up(subject: &Subject) -> Option<u64> {
    let mut get = redis::cmd("HGET");
    get.arg(Keys::new("headcount").rolled()).arg("window");
    get.query(&mut subject.redis.as_ref()?.connect()).ok()?
}

fn show(rounds: &[[Event; 3]], answered: &[Answered], rate: f64) -> Value {
    let columns = ["p99 before", "p99", "p99.9 before", "p99.9", "it took, s"];
    head(&format!("{rate:.0} arrivals a second, ms"), &columns);
    let mut figures = serde_json::Map::new();
    for (place, name) in EVENTS.into_iter().enumerate() {
        let runs: Vec<_> = rounds.iter().map(|events| figures_of(&events[place], answered)).collect();
        let of_column = |column: usize| median(runs.iter().map(|run| run[column]).collect());
        line(name, &[0, 1, 2, 3, 4].map(|column| format!("{:.2}", of_column(column))));
        figures.insert(name.to_owned(), json!(runs));
    }
    figures.insert("arrivals_a_second".to_owned(), json!(rate));
    figures.insert("columns".to_owned(), json!(columns));
    figures.into()
}

/// In the order of the columns.
fn figures_of(event: &Event, answered: &[Answered]) -> [f64; 5] {
    let start = event.during.start;
    let quiet = Latencies::of(answered, &(start.checked_sub(QUIET).expect("after the start")..start));
    let during = Latencies::of(answered, &event.during);
    let took = (event.during.end - event.during.start).as_secs_f64();
    [quiet.millis(990), during.millis(990), quiet.millis(999), during.millis(999), took]
}
