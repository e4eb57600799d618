//! What Redis loses of counters in a real service: counts are right, or say that they are not complete.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use headcount::model::counter::bucket_of;
use headcount::model::mode::Mode;
use headcount::redis::keys::Keys;
use redis::cmd;

use crate::support::counter_files::wait_by_window;
use crate::support::fleet::{Fleet, in_one_window, next_window, sketch_of, window};
use crate::support::http::Connection;
use crate::support::redis::Redis;
use crate::support::server::Server;
use crate::support::wait_until;

const NAMESPACE: &str = "losses";
const COUNTERS: u64 = 100;

fn name(counter: u64) -> String {
    format!("customer-{counter}")
}

/// Counts ids in all counters. Each line has an id and a counter.
async fn send(server: &Server, ids: std::ops::Range<u64>) {
    let line = |id, counter| format!("{{\"id\":{id},\"counters\":[\"{}\"]}}\n", name(counter));
    let lines = ids.flat_map(|id| (0..COUNTERS).map(move |counter| line(id, counter)));
    let lines = lines.collect::<Vec<_>>().concat();
    let mut connection = Connection::open(server.address).await.unwrap();
    let answer = connection.post("application/x-ndjson", lines.as_bytes()).await.unwrap();
    assert_eq!((answer.status, &*answer.body), (200, "ok"));
}

fn expected(mode: Mode, ids: std::ops::Range<u64>) -> u64 {
    let ids: BTreeSet<_> = ids.collect();
    match mode {
        Mode::Exact => ids.len() as u64,
        Mode::Hll => sketch_of(&ids).estimate(),
    }
}

struct Site {
    redis: Redis,
    fleet: Fleet,
    files: tempfile::TempDir,
    mode: Mode,
}

impl Site {
    /// Two instances, past their first windows.
    async fn start(mode: Mode, args: &[&str]) -> Self {
        let (redis, files) = (Redis::start(), tempfile::tempdir().unwrap());
        let common = ["--mode", mode.as_str(), "--log-dir", files.path().to_str().unwrap()];
        let fleet = Fleet::start(2, &redis, NAMESPACE, &[&common[..], args].concat()).await;
        fleet.wait_published(next_window(Duration::ZERO).await).await;
        Self { redis, fleet, files, mode }
    }

    /// The counts of a window's counters, and whether its total is complete.
    async fn published(&self, start: u64) -> (BTreeMap<String, (u64, bool)>, bool) {
        let published = self.fleet.wait_published(start).await;
        let timestamp = window(start).to_string();
        let counters = wait_by_window(self.files.path(), &timestamp).await;
        (counters[&timestamp].clone(), published[&start][0].1.complete)
    }

    /// No line of a log has the name of a counter.
    fn assert_logs_have_no_names(&self) {
        for event in self.fleet.servers.iter().flat_map(Server::log) {
            assert!(!event.to_string().contains("customer-"), "{event}");
        }
    }
}

/// Another program deletes the key of a counter in mid-window, replaces it, or lets it expire.
#[tokio::test(flavor = "multi_thread")]
async fn a_counter_whose_key_is_lost_is_incomplete_and_the_total_is_not() {
    let losses: [&[&str]; 4] = [&["DEL"], &["PEXPIRE", "1"], &["SET", "nonsense"], &["LPUSH", "x"]];
    for mode in [Mode::Hll, Mode::Exact] {
        let site = Site::start(mode, &[]).await;
        let [one, other] = &site.fleet.servers[..] else { panic!("two") };
        for loss in losses {
            let start = in_one_window(async |start| {
                send(one, 0..6).await;
                send(other, 4..10).await;
                let key = Keys::new(NAMESPACE).counter(mode, &name(7), window(start));
                let mut connection = site.redis.connect();
                let mut lose = redis::pipe();
                lose.atomic();
                if !matches!(loss[0], "DEL" | "PEXPIRE") {
                    lose.del(&key);
                }
                lose.cmd(loss[0]).arg(&key).arg(&loss[1..]).exec(&mut connection).unwrap();
                wait_until("the loss", async || {
                    let found: String = cmd("TYPE").arg(&key).query(&mut connection).unwrap();
                    loss[0] != "PEXPIRE" || found == "none"
                })
                .await;
                // The other instance makes the key anew.
                send(other, 10..12).await;
            })
            .await;

            let (counters, total_is_complete) = site.published(start).await;
            assert!(total_is_complete, "{mode:?} {loss:?}");
            assert_eq!(counters.len() as u64, COUNTERS, "{mode:?} {loss:?}");
            for (counter, (count, complete)) in counters {
                let is_lost = counter == name(7);
                let may_be_lost = match mode {
                    Mode::Hll => is_lost,
                    Mode::Exact => bucket_of(&counter) == bucket_of(&name(7)),
                };
                assert_eq!(complete, !may_be_lost, "{mode:?} {loss:?} {counter}");
                if mode == Mode::Hll || !is_lost {
                    assert_eq!(count, expected(mode, 0..12), "{mode:?} {loss:?} {counter}");
                }
            }
        }
        site.assert_logs_have_no_names();
    }
}

/// Redis loses everything in mid-window.
#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_forgets_everything_gets_the_counters_again() {
    for mode in [Mode::Hll, Mode::Exact] {
        let site = Site::start(mode, &[]).await;
        let [one, other] = &site.fleet.servers[..] else { panic!("two") };
        let start = in_one_window(async |_| {
            send(one, 0..6).await;
            send(other, 4..10).await;
            let () = cmd("FLUSHALL").query(&mut site.redis.connect()).unwrap();
            send(other, 10..12).await;
        })
        .await;
        let (counters, total_is_complete) = site.published(start).await;
        for (counter, (count, complete)) in &counters {
            match mode {
                Mode::Hll => {
                    assert_eq!((*count, *complete), (expected(mode, 0..12), total_is_complete), "{counter}");
                }
                Mode::Exact => assert!(!complete && *count <= 12, "{counter}: {count}"),
            }
        }
        if site.mode == Mode::Hll {
            assert_eq!(counters.len() as u64, COUNTERS);
        }
        // All is well again.
        let mut is_well = false;
        for _ in 0..10 {
            let start = in_one_window(async |_| send(one, 0..3).await).await;
            let (counters, is_complete) = site.published(start).await;
            assert_eq!(counters.len() as u64, COUNTERS);
            assert!(counters.values().all(|(count, complete)| (*count, *complete) == (3, is_complete)));
            is_well = is_complete;
            if is_well {
                break;
            }
        }
        assert!(is_well, "no window is complete again");
    }
}

/// An instance hangs, and does not seal a window in time. Its counters may lack ids.
#[tokio::test(flavor = "multi_thread")]
async fn counters_of_a_window_that_is_closed_by_force_are_incomplete() {
    let site = Site::start(Mode::Hll, &["--close-timeout", "1s"]).await;
    let leader = site.fleet.leader();
    let follower = &site.fleet.servers[1 - leader];
    let start = in_one_window(async |_| {
        follower.process.signal("CONT");
        send(&site.fleet.servers[leader], 0..6).await;
        send(follower, 4..10).await;
        follower.process.signal("STOP");
    })
    .await;
    let (counters, total_is_complete) = site.published(start).await;
    follower.process.signal("CONT");
    assert!(!total_is_complete);
    assert_eq!(counters.len() as u64, COUNTERS);
    for (counter, (count, complete)) in counters {
        assert_eq!((count, complete), (expected(Mode::Hll, 0..10), false), "{counter}");
    }
}

/// Names of 20 bytes, ten ids each.
#[tokio::test(flavor = "multi_thread")]
async fn a_counter_of_ten_ids_takes_at_most_370_bytes_of_redis() {
    const MANY: u64 = 20_000;
    let redis = Redis::start();
    let url = redis.url();
    let args =
        ["--window", "24h", "--redis-url", &url, "--max-counters", "30000", "--counter-memory", "64MiB"];
    let server = Server::start(&args).await;
    let used = || {
        let memory: redis::InfoDict = cmd("INFO").arg("memory").query(&mut redis.connect()).unwrap();
        memory.get::<u64>("used_memory").unwrap()
    };
    let mut connection = Connection::open(server.address).await.unwrap();
    assert_eq!(connection.get("/api/verve/accept?id=1").await.unwrap().body, "ok");
    let before = used();
    let counters: Vec<_> = (0..MANY).map(|counter| format!("counter-{counter:012}")).collect();
    assert!(counters.iter().all(|counter| counter.len() == 20));
    for id in 0..10_u64 {
        for (chunk, some) in counters.chunks(5_000).enumerate() {
            let first = chunk as u64 * 5_000;
            let line = |(number, counter): (u64, &String)| {
                format!("{{\"id\":{},\"counters\":[\"{counter}\"]}}\n", number * 10 + id)
            };
            let lines = (first..).zip(some).map(line).collect::<Vec<_>>().concat();
            let answer = connection.post("application/x-ndjson", lines.as_bytes()).await.unwrap();
            assert_eq!(answer.body, "ok");
        }
    }
    let each = (used() - before) as f64 / MANY as f64;
    println!("a counter of ten ids takes {each:.0} bytes");
    assert!((200.0..=370.0).contains(&each), "{each}");
    let keys: u64 = cmd("DBSIZE").query(&mut redis.connect()).unwrap();
    let expiring: redis::InfoDict = cmd("INFO").arg("keyspace").query(&mut redis.connect()).unwrap();
    let of_db: String = expiring.get("db0").unwrap();
    let expires = of_db.split(',').find_map(|part| part.strip_prefix("expires=")).unwrap();
    // All but the lease's token and the published position, which have no end.
    assert!(keys - expires.parse::<u64>().unwrap() <= 2, "{of_db}");
}
