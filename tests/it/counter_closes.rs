//! The close of a window with many counters, while leaders die and instances join; and what other instances learn of it.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use headcount::model::window::{Window, WindowLength};
use headcount::redis::keys::Keys;
use redis::cmd;

use crate::support::counter_files::by_window;
use crate::support::fleet::{Fleet, LATE_IS_NOT_AWAY, next_window_of, seconds};
use crate::support::http::Connection;
use crate::support::proxy::Proxy;
use crate::support::redis::Redis;
use crate::support::server::Server;
use crate::support::{soak, wait_for, wait_until};

const NAMESPACE: &str = "closes";
/// Six chunks of a close: more than are read at once.
const MANY: u64 = 2_600;
/// Seconds. Long enough for one id in each of many counters, also on a machine whose cores are all busy.
const WINDOW: u64 = 6;

fn window(start: u64) -> Window {
    WindowLength::new(Duration::from_secs(WINDOW)).unwrap().starting_at(start)
}

async fn next_window() -> u64 {
    next_window_of(Duration::from_secs(WINDOW), Duration::ZERO).await
}

async fn start_fleet(proxy: &Proxy, instances: usize, args: &[&str]) -> Fleet {
    let (window, url) = (format!("{WINDOW}s"), proxy.url());
    let common =
        ["--window", &window, "--redis-url", &url, "--namespace", NAMESPACE, "--max-counters", "4000"];
    let fleet = Fleet::start_with(instances, &[&common[..], args].concat()).await;
    fleet.wait_published(next_window().await).await;
    fleet
}

fn name(counter: u64) -> String {
    format!("c-{counter:04}")
}

/// Counts an id in each of these counters.
async fn send(server: &Server, counters: impl Iterator<Item = String>, id: u64) {
    let line = |counter| format!("{{\"id\":{id},\"counters\":[\"{counter}\"]}}\n");
    let lines = counters.map(line).collect::<Vec<_>>().concat();
    let request = format!(
        "POST /api/verve/accept HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-ndjson\r\n\
         content-length: {}\r\n\r\n{lines}",
        lines.len()
    );
    let mut connection = Connection::open(server.address).await.unwrap();
    let answer = connection.request(request.as_bytes()).await.unwrap();
    assert_eq!((answer.status, &*answer.body), (200, "ok"));
}

/// Counts one id in each of many counters on each of these servers. All are in one window, whose start is returned.
async fn send_in_one_window(fleet: &Fleet, alive: &[usize], proxy: &Proxy, is_held: bool) -> u64 {
    for _ in 0..5 {
        let start = next_window().await;
        if is_held {
            // As in a chunk, and nowhere else.
            proxy.hold(&format!("[\"{}\",", name(777)));
        }
        let send_to = |server: &usize| send(&fleet.servers[*server], (0..MANY).map(name), *server as u64);
        join_all(alive.iter().map(send_to)).await;
        if seconds(SystemTime::now()) < start + WINDOW {
            return start;
        }
        // The next window may have some of them.
        proxy.release();
        fleet.wait_published(start + WINDOW).await;
    }
    panic!("this machine is too slow: no window has all ids");
}

/// The lists with counts of a window, and how many chunks each has.
fn lists(redis: &Redis, start: u64) -> BTreeMap<String, u64> {
    let mut connection = redis.connect();
    let pattern = format!("{{{NAMESPACE}}}:counter-counts:{start}:*");
    let keys: Vec<String> = cmd("KEYS").arg(pattern).query(&mut connection).unwrap();
    let mut length = |key: &String| cmd("LLEN").arg(key).query(&mut connection).unwrap();
    keys.iter().map(|key| (key.clone(), length(key))).collect()
}

/// The list that the stored count of a window names.
fn stored_list(redis: &Redis, start: u64) -> Option<String> {
    let mut ask = cmd("HGET");
    ask.arg(Keys::new(NAMESPACE).counts()).arg(start);
    let stored: Option<String> = ask.query(&mut redis.connect()).unwrap();
    let stored: serde_json::Value = serde_json::from_str(&stored?).unwrap();
    stored["counters"]["key"].as_str().map(str::to_owned)
}

fn assert_all_expire(redis: &Redis) {
    let mut connection = redis.connect();
    let keys: Vec<String> = cmd("KEYS").arg("*").query(&mut connection).unwrap();
    for key in keys.iter().filter(|key| key.contains("counter-counts") || key.contains(":c")) {
        let lives: i64 = cmd("PTTL").arg(key).query(&mut connection).unwrap();
        // It may have expired meanwhile.
        assert!(lives != -1, "{key} never expires");
    }
}

async fn assert_published(files: &Path, start: u64, expected: u64) {
    let timestamp = window(start).to_string();
    // The leader may be writing the window's lines, or it was killed meanwhile: then the next one writes all of them.
    let whole = || {
        let mut counters = by_window(files);
        counters.remove(&timestamp).filter(|found| found.len() >= MANY as usize)
    };
    let found = wait_for("all counters of a window in a file", whole).await;
    let right = (0..MANY).map(name).filter(|name| found.get(name) == Some(&(expected, true))).count();
    assert_eq!((found.len(), right), (MANY as usize, MANY as usize), "{start}");
}

/// The leader is killed after it wrote the first chunk of counts, or after it stored them. The next leader publishes the
/// window with all counters.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_dies_in_a_close_leaves_nothing_out() {
    let (redis, files) = (Redis::start(), tempfile::tempdir().unwrap());
    let proxy = Proxy::start(redis.address()).await;
    let dir = files.path().to_str().unwrap();
    let args =
        [&["--mode", "exact", "--lease-ttl", "2s", "--log-dir", dir], LATE_IS_NOT_AWAY.as_slice()].concat();
    let mut fleet = start_fleet(&proxy, 3, &args).await;
    let mut alive = vec![0, 1, 2];
    for kill in 0..if soak() { 40 } else { 10 } {
        let is_between_chunks = kill % 2 == 0;
        let start = send_in_one_window(&fleet, &alive, &proxy, is_between_chunks).await;
        wait_for("a close that has begun", || {
            let has_begun = if is_between_chunks {
                lists(&redis, start).values().any(|chunks| *chunks > 0)
            } else {
                stored_list(&redis, start).is_some()
            };
            has_begun.then_some(())
        })
        .await;
        assert!(!is_between_chunks || stored_list(&redis, start).is_none(), "it is not stored");
        let leader = fleet.leader();
        fleet.servers[leader].process.signal("KILL");
        fleet.servers[leader].ended().await;
        proxy.release();
        alive.retain(|server| *server != leader);
        fleet.add().await;
        alive.push(fleet.servers.len() - 1);
        wait_for("another leader", || (fleet.leader() != leader).then_some(())).await;
        assert_published(files.path(), start, 3).await;
    }
    assert_all_expire(&redis);
}

/// An instance joins while the leader writes counts. They are thrown away, and counted again.
#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_joins_in_a_close_makes_the_leader_count_again() {
    let (redis, files) = (Redis::start(), tempfile::tempdir().unwrap());
    let proxy = Proxy::start(redis.address()).await;
    let dir = files.path().to_str().unwrap();
    let mut fleet = start_fleet(&proxy, 2, &["--redis-timeout", "20s", "--log-dir", dir]).await;
    let start = send_in_one_window(&fleet, &[0, 1], &proxy, true).await;
    let first = wait_for("the first chunk", || {
        lists(&redis, start).into_iter().find(|(_, chunks)| *chunks > 0).map(|(key, _)| key)
    })
    .await;
    fleet.add().await;
    assert_eq!(stored_list(&redis, start), None, "the close waits for a chunk");
    proxy.release();
    assert_published(files.path(), start, 2).await;
    let stored = stored_list(&redis, start).expect("a list");
    assert_ne!(stored, first, "the counts before the join");
    let lists = lists(&redis, start);
    assert_eq!(lists.into_keys().collect::<Vec<_>>(), [stored], "the first list is deleted");
    assert_all_expire(&redis);
}

/// Every instance answers with the counters of the last window, whichever counted them. One of the two takes three names.
#[tokio::test(flavor = "multi_thread")]
async fn all_instances_know_the_counters_of_the_last_window() {
    const LENGTH: u64 = 10;
    let redis = Redis::start();
    let url = redis.url();
    let args = ["--window", "10s", "--redis-url", &url, "--namespace", NAMESPACE, "--metrics-counter", "a,d"];
    let bounded = Server::start(&[&args[..], &["--max-counters", "3"]].concat()).await;
    let other = Server::start(&args).await;
    let begin = async || {
        let start = wait_until_seconds_are_left(LENGTH, 7).await;
        "10s".parse::<WindowLength>().unwrap().starting_at(start).to_string()
    };
    // The first window is incomplete, because the namespace is new.
    let first = begin().await;
    wait_until("the first window to be over", async || begin().await != first).await;
    let timestamp = begin().await;
    for id in 0..10 {
        send(&bounded, ["a", "b", "c", "d"].map(str::to_owned).into_iter(), id).await;
    }
    for id in 5..20 {
        send(&other, ["c", "d", "e"].map(str::to_owned).into_iter(), id).await;
    }
    // The bounded one had no place for d.
    let expected = [("_other", 10), ("a", 10), ("b", 10), ("c", 20), ("d", 15), ("e", 15)];
    for server in [&bounded, &other] {
        let list = wait_for_list(server, &timestamp).await;
        let counters: Vec<_> = list["counters"].as_array().unwrap().iter().map(of_list).collect();
        assert_eq!(counters, expected.map(|(name, count)| (name.to_owned(), count)));
        assert_eq!((&list["complete"], &list["total_counters"]), (&false.into(), &6.into()));
        let other = &server.get("/api/verve/unique?counter=_other").await.json()["last"];
        assert_eq!((&other["unique_request_count"], &other["complete"]), (&10.into(), &false.into()));
        let exported = [("a", 10.0), ("d", 15.0)];
        for (counter, count) in exported {
            let metric = format!("headcount_counter_unique_ids{{counter=\"{counter}\"}}");
            assert_eq!(server.metric(&metric).await, count);
        }
        let total = &server.get("/api/verve/unique").await.json()["last"];
        assert_eq!((&total["unique_request_count"], &total["complete"]), (&20.into(), &true.into()));
    }
    assert_eq!(bounded.metric("headcount_counter_overflow_ids_total").await, 10.0);
    assert_eq!(other.metric("headcount_counter_overflow_ids_total").await, 0.0);

    // Names keep their places in the next window, and no id overflows.
    let timestamp = begin().await;
    for server in [&bounded, &other] {
        send(server, ["b", "a", "c"].map(str::to_owned).into_iter(), 1).await;
    }
    for server in [&bounded, &other] {
        let list = wait_for_list(server, &timestamp).await;
        assert_eq!((&list["complete"], &list["total_counters"]), (&true.into(), &3.into()), "{list}");
    }
}

/// Waits until a window of this length has so many seconds left. Returns its start.
async fn wait_until_seconds_are_left(length: u64, left: u64) -> u64 {
    let now = || seconds(SystemTime::now());
    wait_until("room in a window", async || now() % length <= length - left).await;
    now() / length * length
}

fn of_list(counter: &serde_json::Value) -> (String, u64) {
    let count = counter["unique_request_count"].as_u64().unwrap();
    (counter["counter"].as_str().unwrap().to_owned(), count)
}

/// The counters of the window with this timestamp, by name. They are asked for until the next window is closed.
async fn wait_for_list(server: &Server, timestamp: &str) -> serde_json::Value {
    let mut list = serde_json::Value::Null;
    wait_until("the counters of a window", async || {
        list = server.get("/api/verve/counters?order=name").await.json();
        list["timestamp"] == timestamp
    })
    .await;
    list
}
