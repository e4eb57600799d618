//! Sinks that are away while instances count counters in Redis.

use std::collections::BTreeMap;
use std::time::Duration;

use headcount::redis::keys::Keys;
use redis::cmd;

use crate::support::counter_files::{by_window, wait_by_window};
use crate::support::disk::LinkedDir;
use crate::support::fleet::{Fleet, in_one_window, next_window, window};
use crate::support::http::Connection;
use crate::support::redis::Redis;
use crate::support::server::Server;
use crate::support::{wait_for, wait_until};

const NAMESPACE: &str = "sinks";
const COUNTERS: u64 = 500;
const OVERFLOW: &str = "headcount_counter_overflow_ids_total";
const SKIPPED: &str = r#"headcount_skipped_counters_total{sink="file"}"#;

/// Two instances of mode `exact` whose counters may have a megabyte each: those of two windows.
struct Site {
    redis: Redis,
    dir: LinkedDir,
    fleet: Fleet,
}

impl Site {
    async fn start(args: &[&str]) -> Self {
        let (redis, dir) = (Redis::start(), LinkedDir::new());
        let path = dir.path();
        let common = ["--mode", "exact", "--log-dir", path.to_str().unwrap(), "--counter-memory", "1MiB"];
        let fleet = Fleet::start(2, &redis, NAMESPACE, &[&common[..], args].concat()).await;
        fleet.wait_published(next_window(Duration::ZERO).await).await;
        Self { redis, dir, fleet }
    }

    /// Counts so many ids in each counter, in one window. Returns the window.
    async fn fill_window(&self, ids: u64) -> u64 {
        in_one_window(async |_| self.fill(ids).await).await
    }

    async fn fill(&self, ids: u64) {
        for (server, id) in self.fleet.servers.iter().cycle().zip(0..ids) {
            let line = |counter| format!("{{\"id\":{id},\"counters\":[\"c-{counter}\"]}}\n");
            let lines = (0..COUNTERS).map(line).collect::<Vec<_>>().concat();
            let mut connection = Connection::open(server.address).await.unwrap();
            let answer = connection.post("application/x-ndjson", lines.as_bytes()).await.unwrap();
            assert_eq!((answer.status, &*answer.body), (200, "ok"));
        }
    }

    async fn sum(&self, metric: &str) -> f64 {
        let mut sum = 0.0;
        for server in &self.fleet.servers {
            sum += server.metric(metric).await;
        }
        sum
    }

    /// The line of a total in the files.
    fn total(&self, start: u64) -> Option<serde_json::Value> {
        let files = std::fs::read_dir(self.dir.real()).unwrap().map(|file| file.unwrap().path());
        let is_of_totals =
            |path: &std::path::PathBuf| path.file_name().unwrap().to_string_lossy().starts_with("headcount.");
        let text: String =
            files.filter(is_of_totals).map(|path| std::fs::read_to_string(path).unwrap()).collect();
        let timestamp = window(start).to_string();
        let mut lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        lines.find(|line| line["timestamp"] == *timestamp)
    }

    async fn wait_for_total(&self, start: u64) -> serde_json::Value {
        wait_for("a total in the files", || self.total(start)).await
    }
}

fn all_with(ids: u64) -> BTreeMap<String, (u64, bool)> {
    (0..COUNTERS).map(|counter| (format!("c-{counter}"), (ids, true))).collect()
}

/// The files are away for ten windows. The counts wait in Redis, and open windows have the memory.
#[tokio::test(flavor = "multi_thread")]
async fn counts_of_counters_wait_in_redis_for_a_sink() {
    let site = Site::start(&[]).await;
    site.dir.take_away();
    let mut filled = Vec::new();
    for ids in 2..12 {
        filled.push((site.fill_window(ids).await, ids));
    }
    let (last, _) = *filled.last().unwrap();
    site.fleet.wait_published(last).await;
    assert_eq!(site.sum(OVERFLOW).await, 0.0, "all ids have memory");
    // Some counts may wait with another leader.
    site.dir.bring_back();
    let counters = wait_by_window(&site.dir.real(), &window(last).to_string()).await;
    for (start, ids) in filled {
        assert_eq!(counters[&window(start).to_string()], all_with(ids), "{start}");
        assert_eq!(site.wait_for_total(start).await.get("counters"), None);
    }
    assert_eq!(site.sum(SKIPPED).await, 0.0);
}

/// The files are away for longer than `--counter-retention`. The totals say that they have no counters.
#[tokio::test(flavor = "multi_thread")]
async fn counts_of_counters_in_redis_wait_only_as_long_as_counter_retention() {
    let site = Site::start(&["--counter-retention", "6s"]).await;
    site.dir.take_away();
    let old = site.fill_window(2).await;
    wait_until("counts to be too old", async || site.sum(SKIPPED).await >= COUNTERS as f64).await;
    site.dir.bring_back();
    let total = site.wait_for_total(old).await;
    assert_eq!((&total["counters"], &total["unique_request_count"]), (&"skipped".into(), &2.into()));
    let new = site.fill_window(3).await;
    let counters = wait_by_window(&site.dir.real(), &window(new).to_string()).await;
    assert_eq!(counters[&window(new).to_string()], all_with(3));
    assert!(!by_window(&site.dir.real()).contains_key(&window(old).to_string()));
    assert_eq!(site.sum(r#"headcount_skipped_counters_total{sink="log"}"#).await, 0.0);
}

/// The list with the counts is lost before a sink has them, and the leader dies. The next one publishes the total without them.
#[tokio::test(flavor = "multi_thread")]
async fn a_total_whose_counters_are_lost_says_so() {
    let site = Site::start(&["--lease-ttl", "2s"]).await;
    site.dir.take_away();
    let start = site.fill_window(2).await;
    site.fleet.wait_published(start).await;
    let mut connection = site.redis.connect();
    let lists = format!("{{{NAMESPACE}}}:counter-counts:{start}:*");
    let lists: Vec<String> = cmd("KEYS").arg(lists).query(&mut connection).unwrap();
    assert_eq!(lists.len(), 1);
    let () = cmd("DEL").arg(&lists).query(&mut connection).unwrap();
    let counts: bool =
        cmd("HEXISTS").arg(Keys::new(NAMESPACE).counts()).arg(start).query(&mut connection).unwrap();
    assert!(counts, "the total is stored");
    let leader = site.fleet.leader();
    site.fleet.servers[leader].process.signal("KILL");
    wait_for("another leader", || (site.fleet.leader() != leader).then_some(())).await;
    site.dir.bring_back();
    let total = site.wait_for_total(start).await;
    assert_eq!((&total["counters"], &total["unique_request_count"]), (&"skipped".into(), &2.into()));
    let said = |server: &Server| {
        let log = server.log();
        log.iter()
            .filter(|event| event["fields"]["message"].to_string().contains("Redis does not have"))
            .count()
    };
    assert_eq!(said(&site.fleet.servers[1 - leader]), 1);
    assert_eq!(site.fleet.servers[1 - leader].metric(SKIPPED).await, COUNTERS as f64);
}
