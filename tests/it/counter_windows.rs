//! The counters of windows under load, and under a client that invents names: over HTTP, with the real binary.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::support::counter_files::{Line, counter_lines, counts};
use crate::support::fleet::sketch_of;
use crate::support::http::Connection;
use crate::support::server::Server;
use crate::support::{soak, wait_until};

const CONNECTIONS: u64 = 64;
const COUNTERS: u64 = 200;
/// Elements of a body.
const IN_A_BODY: u64 = 50;

/// An id that was answered `ok`: the seconds in which it was sent and answered.
struct Accepted {
    id: u64,
    counter: u64,
    sent: u64,
    answered: u64,
}

fn second() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// The counter of the n-th id: the first one gets most (Zipf), the last one now and then one.
fn counter_of(number: u64) -> u64 {
    // 5 000 / (k + 1) of the numbers below 5 000 · H(200) belong to counter k.
    let mut left = number.wrapping_mul(7_919) % 29_300;
    (0..COUNTERS)
        .find(|counter| left.checked_sub(5_000 / (counter + 1)).map(|rest| left = rest).is_none())
        .unwrap_or(0)
}

/// Sends nothing around three of four boundaries, so that it is known of all ids of some windows that they arrived in them.
async fn pass_most_boundaries() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let until_next = Duration::from_secs(1).saturating_sub(Duration::from_nanos(now.subsec_nanos().into()));
    if until_next < Duration::from_millis(300) && !(now.as_secs() + 1).is_multiple_of(4) {
        tokio::time::sleep(until_next).await;
    }
}

/// Sends ids that never repeat, each to one counter: by turns one in a GET, and many in a body.
async fn send(address: SocketAddr, connection_number: u64, stop: CancellationToken) -> Vec<Accepted> {
    let mut connection = Connection::open(address).await.unwrap();
    let mut all = Vec::new();
    let mut numbers = (connection_number..).step_by(CONNECTIONS as usize).map(|id| (id, counter_of(id)));
    while !stop.is_cancelled() {
        pass_most_boundaries().await;
        let sent = second();
        let is_bulk = all.len() % 7 != 0;
        let some: Vec<_> = numbers.by_ref().take(if is_bulk { IN_A_BODY as usize } else { 1 }).collect();
        let answer = if is_bulk {
            let body = some.iter().fold(String::new(), |mut body, (id, counter)| {
                writeln!(body, r#"{{"id":{id},"counters":["c{counter}"]}}"#).unwrap();
                body
            });
            connection.post("application/x-ndjson", body.as_bytes()).await.unwrap()
        } else {
            let (id, counter) = some[0];
            connection.get(&format!("/api/verve/accept?id={id}&counter=c{counter}")).await.unwrap()
        };
        assert_eq!((answer.status, answer.body.as_str()), (200, "ok"));
        let answered = second();
        all.extend(some.into_iter().map(|(id, counter)| Accepted { id, counter, sent, answered }));
        // Hundreds of thousands of ids in all are enough, and leave time for other tests.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    all
}

/// Over 20 windows of a second each counter has the ids that arrived in it. Where an id was sent in one window and answered in
/// the next, it is in the same one in its counter and in the total.
#[tokio::test(flavor = "multi_thread")]
async fn each_counter_has_the_ids_of_its_window() {
    for mode in ["exact", "hll"] {
        let dir = tempfile::tempdir().unwrap();
        let args = ["--window", "1s", "--mode", mode, "--log-dir", dir.path().to_str().unwrap()];
        let mut server = Server::start(&args).await;
        server.wait_closed(1).await;
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        for connection in 0..CONNECTIONS {
            tasks.spawn(send(server.address, connection, stop.clone()));
        }
        server.wait_closed(if soak() { 200 } else { 21 }).await;
        stop.cancel();
        let sent: Vec<_> = tasks.join_all().await.into_iter().flatten().collect();
        assert_eq!(server.stop().await.code(), Some(0));

        let lines = counter_lines(dir.path());
        let counted = counts(&lines);
        let mut certain = BTreeMap::<(u64, u64), BTreeSet<u64>>::new();
        // Over more than one window: in any of them.
        let mut uncertain = BTreeMap::<(u64, u64), u64>::new();
        for Accepted { id, counter, sent, answered } in &sent {
            if sent == answered {
                certain.entry((*sent, *counter)).or_default().insert(*id);
            } else {
                for window in *sent..=*answered {
                    *uncertain.entry((window, *counter)).or_default() += 1;
                }
            }
        }
        let start = |timestamp: &str| {
            let closed = server.closed().into_iter().find(|closed| closed.timestamp == timestamp).unwrap();
            closed.start().duration_since(UNIX_EPOCH).unwrap().as_secs()
        };
        let starts: BTreeMap<_, _> =
            server.closed().into_iter().map(|closed| (start(&closed.timestamp), closed)).collect();
        let mut compared = 0;
        for (window, closed) in &starts {
            let mut in_counters = 0;
            for counter in 0..COUNTERS {
                let key = (closed.timestamp.clone(), format!("c{counter}"));
                let count = counted.get(&key).copied().unwrap_or_default();
                in_counters += count;
                let ids = certain.remove(&(*window, counter)).unwrap_or_default();
                match (mode, uncertain.get(&(*window, counter))) {
                    ("exact", of_both) => {
                        let least = ids.len() as u64;
                        let most = least + of_both.copied().unwrap_or_default();
                        assert!((least..=most).contains(&count), "{key:?}: {count}, not {least} to {most}");
                        compared += u64::from(least == most);
                    }
                    (_, None) => {
                        assert_eq!(count, sketch_of(&ids).estimate(), "{key:?}");
                        compared += 1;
                    }
                    _ => {}
                }
            }
            if mode == "exact" {
                assert_eq!(in_counters, closed.unique, "{}: every id has one counter", closed.timestamp);
            }
        }
        assert!(certain.is_empty(), "ids of windows that were never closed");
        let total: u64 = counted.values().sum();
        if mode == "exact" {
            assert_eq!(total, sent.len() as u64);
        }
        assert!(compared > 5 * COUNTERS, "{compared} counts could be compared exactly");
        println!("{mode}: {} ids, {} counts, {compared} compared exactly", sent.len(), counted.len());
    }
}

/// A client invents 200 000 names. That costs the total nothing, nor counters that had ids in the window before. What it invents
/// is in no log line.
#[tokio::test(flavor = "multi_thread")]
async fn invented_names_count_in_other() {
    invented_names("64MiB", true).await;
}

/// The same with memory for a part of the invented ids. Those that are left out are missing in `_other` only.
#[tokio::test(flavor = "multi_thread")]
async fn invented_names_take_no_memory_from_known_counters() {
    invented_names("4MiB", false).await;
}

async fn invented_names(memory: &str, has_room_for_all: bool) {
    const NAMES: u64 = 200_000;
    let most = memory.trim_end_matches("MiB").parse::<f64>().unwrap() * 1024.0 * 1024.0;
    let dir = tempfile::tempdir().unwrap();
    let limits = ["--max-counters", "1000", "--counter-memory", memory];
    let args = ["--window", "2s", "--mode", "exact", "--log-dir", dir.path().to_str().unwrap()];
    let mut server = Server::start(&[&args[..], &limits[..]].concat()).await;
    server.wait_closed(1).await;
    let stop = CancellationToken::new();
    let known = tokio::spawn(send_to_known(server.address, stop.clone()));
    wait_until("known counters in a closed window", async || !counter_lines(dir.path()).is_empty()).await;
    let flooded = tokio::spawn(invent(server.address, NAMES));
    let mut most_memory: f64 = 0.0;
    while !flooded.is_finished() {
        most_memory = most_memory.max(server.metric("headcount_counter_memory_bytes").await);
    }
    flooded.await.unwrap();
    let closed = server.closed().len();
    server.wait_closed(closed + 2).await;
    stop.cancel();
    let sent_to_known = known.await.unwrap();
    let overflow_ids = server.metric("headcount_counter_overflow_ids_total").await;
    let in_time = server.closed().len();
    assert_eq!(server.stop().await.code(), Some(0));
    assert!(most_memory > 0.0 && most_memory <= most, "{most_memory} bytes");

    let lines = counter_lines(dir.path());
    let in_counters = |counts: &dyn Fn(&Line) -> bool| -> u64 {
        lines.iter().filter(|line| counts(line)).map(|line| line.unique).sum()
    };
    assert_eq!(in_counters(&|line| line.counter.starts_with("known-")), sent_to_known);
    assert!(overflow_ids > NAMES as f64 / 2.0, "{overflow_ids}");
    let left_out = overflow_ids - in_counters(&|line| line.counter == "_other") as f64;
    assert_eq!(left_out > 0.0, !has_room_for_all, "{left_out}");
    assert_eq!(in_counters(&|_| true) as f64, (NAMES + sent_to_known) as f64 - left_out);
    let overflowed: BTreeSet<_> =
        lines.iter().filter(|line| line.counter == "_other").map(|line| &line.timestamp).collect();
    let closed = server.closed();
    assert_eq!(closed.iter().map(|window| window.unique).sum::<u64>(), NAMES + sent_to_known);
    for (number, window) in closed.iter().enumerate().skip(1) {
        let of_window = |line: &Line| line.timestamp == window.timestamp;
        if has_room_for_all {
            assert_eq!(window.unique, in_counters(&of_window), "the total of {} is whole", window.timestamp);
        }
        // What is closed after the signal to stop is not complete.
        assert!(window.complete || number >= in_time, "{}", window.timestamp);
        let is_complete = window.complete && !overflowed.contains(&window.timestamp);
        assert!(lines.iter().filter(|line| of_window(line)).all(|line| line.complete == is_complete));
        assert!(lines.iter().filter(|line| of_window(line)).count() <= 1_001);
    }
    let warnings = server.log().into_iter().map(|line| line.to_string());
    let warnings: Vec<_> = warnings.filter(|line| line.contains("_other")).collect();
    assert_eq!(warnings.len(), overflowed.len(), "one line a window: {warnings:?}");
    assert!(!server.log().iter().any(|line| line.to_string().contains("invented-")));
    println!("{overflow_ids} ids in _other of {} windows, {most_memory} bytes", overflowed.len());
}

/// Sends ids that never repeat to ten counters, all the time. Returns how many.
async fn send_to_known(address: SocketAddr, stop: CancellationToken) -> u64 {
    let mut connection = Connection::open(address).await.unwrap();
    let mut sent = 0;
    while !stop.is_cancelled() {
        let target = format!("/api/verve/accept?id={sent}&counter=known-{}", sent % 10);
        assert_eq!(connection.get(&target).await.unwrap().body, "ok");
        sent += 1;
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    sent
}

/// Sends an id to each of so many names.
async fn invent(address: SocketAddr, names: u64) {
    const FIRST_ID: u64 = 1_000_000_000;
    let mut connection = Connection::open(address).await.unwrap();
    for first in (0..names).step_by(500) {
        let body = (first..first + 500).fold(String::new(), |mut body, name| {
            writeln!(body, r#"{{"id":{},"counters":["invented-{name}"]}}"#, FIRST_ID + name).unwrap();
            body
        });
        assert_eq!(connection.post("application/x-ndjson", body.as_bytes()).await.unwrap().body, "ok");
    }
}
