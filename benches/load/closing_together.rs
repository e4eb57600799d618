//! The close of windows with many counters that three instances count together, through Redis and Kafka.
//!
//! An open-loop client sends ids without counters to one of them all the time. Every second window is quiet: it gets nothing
//! else. The others get a hundred thousand counters, a third of the ids over each instance. So each has a part of each counter.
//! The broker is that of `scripts/kafka with`.

use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::closing::{
    COUNTERS, bodies, check_counters, fill, last_closed, next_start, p99, sleep_until, start_of_running,
};
use crate::open_loop;
use crate::report::{Target, head, line, median};
use crate::slow_log;
use crate::subject::Subject;
use crate::subjects::{Counter, Service};
use crate::support::kafka::{Tail, namespace, shared};
use crate::support::process::headcount;
use crate::support::wait_blocking;

/// Long enough to fill it.
const WINDOW: Duration = Duration::from_secs(60);
const INSTANCES: usize = 3;
const ARRIVALS_A_SECOND: f64 = 1_000.0;
/// The time after a window's end in which its close shows.
const CLOSE: Duration = Duration::from_secs(5);

/// A round is a quiet window, and a filled one.
pub fn measure(rounds: u64) -> Result<Value, String> {
    let (brokers, namespace, windows) = (shared(), namespace("closing"), 2 * rounds as u32);
    let subjects = start(&brokers, &namespace);
    let mut redis = subjects[0].redis.as_ref().ok_or("no Redis")?.connect();
    slow_log::begin(&mut redis)?;
    let tail = Tail::start(&brokers, &format!("{namespace}.unique-counts"));
    let (bodies, first) = (bodies(), next_start(WINDOW));
    let end = first + WINDOW * windows + CLOSE;
    let filled: Vec<_> = (1..windows).step_by(2).map(|window| first + WINDOW * window).collect();
    let (closes, answered) = thread::scope(|scope| {
        let load = || open_loop::send(&subjects[0], ARRIVALS_A_SECOND, Instant::now()..end, 0);
        let answered = scope.spawn(load);
        let closes = filled.iter().map(|begun| fill_and_close(&subjects, &bodies, *begun, &tail));
        (closes.collect::<Result<Vec<_>, _>>(), answered.join().expect("no panic"))
    });
    let (closes, answered) = (closes?, answered?);
    let of = |figure: fn(&Close) -> f64| closes.iter().map(figure).collect::<Vec<_>>();
    let (count, kafka, filling) =
        (of(|close| close.to_count), of(|close| close.to_kafka), of(|close| close.seconds_of_filling));
    let quiet = (0..windows).step_by(2).map(|window| first + WINDOW * window);
    let in_quiet: Vec<_> = quiet.map(|start| p99(&answered, start + CLOSE, start + WINDOW)).collect();
    let after: Vec<_> =
        filled.iter().map(|start| p99(&answered, *start + WINDOW, *start + WINDOW + CLOSE)).collect();
    let limit = ((2.0 * median(in_quiet.clone()) + 5.0) * 100.0).round() / 100.0;
    head(&format!("100 000 counters, {INSTANCES} instances"), &["median", "worst"]);
    let row = |name, figures: &[f64], target: Target| {
        let worst = figures.iter().copied().fold(0.0, f64::max);
        line(name, &[target.judge(median(figures.to_vec())), target.judge(worst)]);
    };
    row("end to count, s", &count, Target::None);
    row("end to Kafka, s", &kafka, Target::AtMost(5.0));
    row("p99 in a quiet window, ms", &in_quiet, Target::None);
    row("p99, 5 s after a filled one, ms", &after, Target::AtMost(limit));
    row("to fill it, s", &filling, Target::None);
    let slow = slow_log::print(&mut redis)?;
    Ok(json!({
        "end_to_count_s": count, "end_to_kafka_s": kafka, "p99_quiet_ms": in_quiet, "p99_after_filled_ms": after,
        "fill_s": filling, "slow_commands": slow,
    }))
}

/// The first one owns Redis.
fn start(brokers: &str, namespace: &str) -> Vec<Subject> {
    let window = format!("{}s", WINDOW.as_secs());
    let service = Service::start_with(Counter::in_redis(&[]), INSTANCES, || {
        let mut command = headcount();
        command.args(["--window", &window, "--max-counters", "200000", "--counter-memory", "1GiB"]);
        command.args(["--kafka-brokers", brokers, "--namespace", namespace, "--redis-timeout", "2s"]);
        command.stdout(Stdio::null());
        command
    });
    service.subjects()
}

/// The end of a filled window, in seconds.
struct Close {
    seconds_of_filling: f64,
    /// From the end until the count could be read from an instance.
    to_count: f64,
    /// From the end until a consumer could read the window, and with it all its counters.
    to_kafka: f64,
}

fn fill_and_close(
    subjects: &[Subject],
    bodies: &[String],
    begun: Instant,
    tail: &Tail,
) -> Result<Close, String> {
    sleep_until(begun + CLOSE);
    let began_to_fill = Instant::now();
    thread::scope(|scope| {
        let of = |number| bodies.iter().skip(number).step_by(INSTANCES);
        let filling: Vec<_> = subjects
            .iter()
            .enumerate()
            .map(|(number, subject)| scope.spawn(move || fill(subject, of(number))))
            .collect();
        filling.into_iter().try_for_each(|filling| filling.join().expect("no panic"))
    })?;
    let ended = begun + WINDOW;
    if Instant::now() > ended {
        return Err("it took too long to fill the window: the machine is busy".to_owned());
    }
    let seconds_of_filling = began_to_fill.elapsed().as_secs_f64();
    sleep_until(ended.checked_sub(Duration::from_secs(1)).expect("after the start"));
    let (before, start) = (last_closed(&subjects[0]), start_of_running(WINDOW));
    sleep_until(ended);
    wait_blocking("the count of the window", || last_closed(&subjects[0]) != before);
    let to_count = ended.elapsed().as_secs_f64();
    wait_blocking("the window in Kafka", || tail.last() >= Some(start));
    let to_kafka = ended.elapsed().as_secs_f64();
    check_counters(&subjects[0], COUNTERS)?;
    Ok(Close { seconds_of_filling, to_count, to_kafka })
}
