//! The close of windows with many counters: how long it takes, and what other requests notice of it.
//!
//! An open-loop client sends ids without counters all the time. Every second window is quiet: it gets nothing else. The
//! others get a hundred thousand counters in bulk requests. Their close is compared with the quiet windows of the same run.

use std::fmt::Write;
use std::net::TcpStream;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::open_loop::{self, Answered, Latencies};
use crate::report::{Target, head, line, median};
use crate::subject::{Request, Subject};
use crate::subjects::{Counter, Service};
use crate::support::process::headcount;
use crate::support::{SplitMix, wait_blocking};
use crate::{client, service};

const WINDOW: Duration = Duration::from_secs(10);
pub const COUNTERS: usize = 100_000;
const IDS_A_COUNTER: usize = 10;
/// Ids of a bulk body.
const IDS_A_BODY: usize = 10_000;
const ARRIVALS_A_SECOND: f64 = 5_000.0;
/// The time after a window's end in which its close shows.
const CLOSE: Duration = Duration::from_secs(1);
/// This long after a window's end, nothing is left of its close.
const CALM: Duration = Duration::from_secs(2);
/// The last request that fills a window ends this long before the window does.
const BEFORE_THE_END: Duration = Duration::from_millis(500);

/// The end of a window.
pub struct Close {
    pub ended: Instant,
    /// From the end until the count could be read.
    pub millis: f64,
    /// Bytes of resident memory at the end.
    pub resident: u64,
    /// Bytes that Redis used at the end.
    pub of_redis: f64,
}

/// A round is a quiet window, and a filled one.
pub fn measure(rounds: u64) -> Result<Value, String> {
    let (subject, bodies, windows) = (start(), bodies(), 2 * rounds as u32);
    let resident = subject.resident();
    let first = next_start(WINDOW);
    let end = first + WINDOW * windows + CALM;
    let (closes, answered) = thread::scope(|scope| {
        let answered = scope.spawn(|| open_loop::send(&subject, ARRIVALS_A_SECOND, Instant::now()..end, 0));
        let filled = (1..windows).step_by(2).map(|window| first + WINDOW * window);
        let closes = filled.map(|begun| fill_and_close(&subject, &bodies, begun));
        (closes.collect::<Result<Vec<_>, _>>(), answered.join().expect("no panic"))
    });
    let (closes, answered) = (closes?, answered?);
    check_accepted(&subject, answered.len() + closes.len() * COUNTERS * IDS_A_COUNTER)?;
    let quiet: Vec<_> = (0..windows).step_by(2).map(|window| first + WINDOW * window).collect();
    Ok(show(&closes, &quiet, &answered, resident))
}

fn start() -> Subject {
    let window = format!("{}s", WINDOW.as_secs());
    let service = Service::start_with(Counter::in_memory(&[]), 1, || {
        let mut command = headcount();
        command.args(["--window", &window, "--max-counters", "200000", "--counter-memory", "1GiB"]);
        // It logs every window, which would be among the figures.
        command.stdout(Stdio::null());
        command
    });
    service.subject(Request::one())
}

/// The start of a window, after a warm-up.
pub fn next_start(window: Duration) -> Instant {
    const WARM_UP: Duration = Duration::from_secs(1);
    let warm = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970") + WARM_UP;
    let into = Duration::from_nanos((warm.as_nanos() % window.as_nanos()) as u64);
    Instant::now() + WARM_UP + window.saturating_sub(into)
}

/// The start of the running window, in seconds since 1970.
pub fn start_of_running(window: Duration) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    now / window.as_secs() * window.as_secs()
}

/// Bodies with all ids of a window. The counters come in turn, as they do when many clients name them.
pub fn bodies() -> Vec<String> {
    let mut ids = SplitMix(1);
    let mut body = |first: usize| {
        let mut body = String::new();
        for (place, id) in (first..first + IDS_A_BODY).zip(&mut ids) {
            let (counter, id) = (place % COUNTERS, id % 1_000_000);
            let _ = writeln!(body, r#"{{"id":{id},"counters":["counter-{counter:012}"]}}"#);
        }
        body
    };
    (0..COUNTERS * IDS_A_COUNTER).step_by(IDS_A_BODY).map(&mut body).collect()
}

/// Fills the window that began at `begun`, and waits for its close. The figure is how many seconds it took to fill.
fn fill_and_close(subject: &Subject, bodies: &[String], begun: Instant) -> Result<(f64, Close), String> {
    sleep_until(begun + CLOSE);
    let began_to_fill = Instant::now();
    fill(subject, bodies.iter())?;
    let seconds_of_filling = began_to_fill.elapsed().as_secs_f64();
    let close = close(subject, begun + WINDOW)?;
    // A list of all counters takes long.
    sleep_until(close.ended + CLOSE);
    check_counters(subject, COUNTERS)?;
    Ok((seconds_of_filling, close))
}

/// Waits for the end of a window, and until its count can be read.
pub fn close(subject: &Subject, ended: Instant) -> Result<Close, String> {
    if Instant::now() + BEFORE_THE_END > ended {
        return Err("what came before the end of the window took too long: the machine is busy".to_owned());
    }
    sleep_until(ended.checked_sub(BEFORE_THE_END).expect("after the start"));
    let (resident, of_redis, before) = (subject.resident(), subject.memory_of_redis(), last_closed(subject));
    sleep_until(ended);
    wait_blocking("the count of the window", || last_closed(subject) != before);
    let millis = ended.elapsed().as_secs_f64() * 1e3;
    Ok(Close { ended, millis, resident, of_redis })
}

pub fn sleep_until(time: Instant) {
    thread::sleep(time.saturating_duration_since(Instant::now()));
}

pub fn fill<'a>(subject: &Subject, bodies: impl Iterator<Item = &'a String>) -> Result<(), String> {
    let Request { prefix, answer, .. } = &subject.request;
    let path = prefix.split('?').next().expect("a path");
    let mut stream = TcpStream::connect(subject.address).map_err(|error| error.to_string())?;
    for body in bodies {
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-ndjson\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        client::ask(&mut stream, &[head.as_bytes(), body.as_bytes()], answer)?;
    }
    Ok(())
}

/// When the last closed window began. Its counters can be read at once: the service notes them first.
pub fn last_closed(subject: &Subject) -> Value {
    service::counts(subject.address, "")["last"]["timestamp"].take()
}

/// Checks that all counters had a place in the last closed window. An instance that did not count them learns them a moment after
/// the total.
pub fn check_counters(subject: &Subject, counters: usize) -> Result<(), String> {
    let list = || service::json(subject.address, "/api/verve/counters?limit=1");
    let closed = last_closed(subject);
    wait_blocking("the counters of the window", || list()["timestamp"] == closed);
    let list = list();
    let right = list["total_counters"] == counters && list["complete"] == true;
    if right {
        Ok(())
    } else {
        Err(format!("the closed window has not {counters} complete counters: {list}"))
    }
}

pub fn check_accepted(subject: &Subject, sent: usize) -> Result<(), String> {
    let accepted = service::accepted(subject.address);
    if accepted == sent as u64 { Ok(()) } else { Err(format!("{accepted} ids were accepted, not {sent}")) }
}

/// In milliseconds, of the requests that were due in a period.
pub fn p99(answered: &[Answered], from: Instant, to: Instant) -> f64 {
    Latencies::of(answered, &(from..to)).millis(990)
}

/// `quiet` has the starts of the quiet windows. A filled one has the seconds that it took to fill.
fn show(closes: &[(f64, Close)], quiet: &[Instant], answered: &[Answered], resident: u64) -> Value {
    let of = |figure: fn(&Close) -> f64| closes.iter().map(|(_, close)| figure(close)).collect::<Vec<_>>();
    let (to_count, megabytes) = (of(|close| close.millis), of(|close| close.resident as f64 / 1e6));
    let filling: Vec<_> = closes.iter().map(|(seconds, _)| *seconds).collect();
    let ends = closes.iter().map(|(_, close)| close.ended);
    let after_filled: Vec<_> = ends.map(|end| p99(answered, end, end + CLOSE)).collect();
    let ends = quiet.iter().map(|start| *start + WINDOW);
    let after_quiet: Vec<_> = ends.map(|end| p99(answered, end, end + CLOSE)).collect();
    let in_quiet: Vec<_> = quiet.iter().map(|start| p99(answered, *start + CALM, *start + WINDOW)).collect();

    let limit = ((2.0 * median(in_quiet.clone()) + 5.0) * 100.0).round() / 100.0;
    head(&format!("{COUNTERS} counters in {WINDOW:?}"), &["median", "worst"]);
    let row = |name, figures: &[f64], of_median: Target, of_worst: Target| {
        let worst = figures.iter().copied().fold(0.0, f64::max);
        line(name, &[of_median.judge(median(figures.to_vec())), of_worst.judge(worst)]);
    };
    row("end to count, ms", &to_count, Target::None, Target::AtMost(1_000.0));
    row("p99 in a quiet window, ms", &in_quiet, Target::None, Target::None);
    row("p99, 1 s after a quiet one, ms", &after_quiet, Target::None, Target::None);
    row("p99, 1 s after a filled one, ms", &after_filled, Target::AtMost(limit), Target::None);
    row("to fill it, s", &filling, Target::None, Target::None);
    row("resident at its end, MB", &megabytes, Target::None, Target::None);
    println!("resident before the first window: {:.2} MB", resident as f64 / 1e6);
    json!({
        "end_to_count_ms": to_count, "p99_quiet_ms": in_quiet, "p99_after_quiet_ms": after_quiet,
        "p99_after_filled_ms": after_filled, "fill_s": filling, "resident_mb": megabytes,
        "resident_before_mb": resident as f64 / 1e6,
    })
}
