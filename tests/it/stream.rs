//! `--redis-stream`: a sink that is a Redis stream.

use std::collections::HashMap;

use crate::support::fleet::{Fleet, seconds};
use crate::support::redis::Redis;
use crate::support::server::Server;
use crate::support::wait_for;

type Entry = (String, HashMap<String, String>);

fn entries(redis: &Redis) -> Vec<Entry> {
    ::redis::cmd("XRANGE").arg("counts").arg("-").arg("+").query(&mut redis.connect()).unwrap()
}

fn start((id, _): &Entry) -> u64 {
    id.strip_suffix("000-0").expect("a whole second").parse().unwrap()
}

async fn wait_entries(redis: &Redis, more: usize) -> Vec<Entry> {
    let last = entries(redis).last().map_or(0, start);
    wait_for("entries", || {
        Some(entries(redis)).filter(|all| all.iter().filter(|e| start(e) > last).count() >= more)
    })
    .await
}

/// Leaders that are killed leave no gap and no repeat, and as much is kept as the retention holds.
#[tokio::test(flavor = "multi_thread")]
async fn every_window_once_and_not_for_ever() {
    let redis = Redis::start();
    let url = redis.url();
    let args = ["--window", "1s", "--redis-url", &url, "--redis-stream", "counts", "--lease-ttl", "1s"];
    let mut fleet = Fleet::start_with(2, &[&args[..], &["--retention", "20s"]].concat()).await;
    assert_eq!(fleet.servers[0].get("/api/verve/accept?id=7").await.body, "ok");
    for _ in 0..3 {
        wait_entries(&redis, 2).await;
        let leader = fleet.leader();
        fleet.servers[leader].process.signal("KILL");
        fleet.servers[leader].ended().await;
        fleet.add().await;
    }
    let all = wait_entries(&redis, 4).await;
    for pair in all.windows(2) {
        assert_eq!(start(&pair[1]), start(&pair[0]) + 1, "{all:?}");
    }
    assert!(all.len() <= 20, "{}", all.len());
    let (_, fields) = all.last().unwrap();
    for (field, value) in [("mode", "hll"), ("standard_error", "0.008125"), ("window_seconds", "1")] {
        assert_eq!(fields[field], value);
    }
    for field in
        ["timestamp", "unique_request_count", "accepted_ids", "complete", "instance", "fencing_token"]
    {
        assert!(fields.contains_key(field), "{fields:?}");
    }
    // The log is another sink: it may be a little later.
    let logged = fleet.wait_published(start(all.last().unwrap())).await;
    for entry in &all {
        let (_, closed) = &logged[&start(entry)][0];
        assert_eq!(seconds(closed.start()), start(entry));
        assert_eq!(entry.1["unique_request_count"], closed.unique.to_string());
    }
}

/// A key that is no stream: the sink stops and says so, the others go on.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_no_stream_is_said_so() {
    let redis = Redis::start();
    ::redis::cmd("SET").arg("counts").arg("taken").exec(&mut redis.connect()).unwrap();
    let args = ["--window", "1s", "--redis-url", &redis.url(), "--redis-stream", "counts"];
    let mut server = Server::start(&args).await;
    server.wait_closed(3).await;
    let said = |event: &serde_json::Value| {
        let error = event["fields"]["error"].as_str().unwrap_or_default();
        event["level"] == "ERROR" && error.contains("counts") && error.contains("WRONGTYPE")
    };
    wait_for("an error", || server.log().iter().any(said).then_some(())).await;
    assert_eq!(server.log().iter().filter(|event| said(event)).count(), 1, "once");
    assert!(server.metric("headcount_unpublished_windows").await >= 1.0);
    assert!(server.stop().await.success());
}

/// A stream takes nothing before the highest id that it ever had. Somebody adds an entry of next year and deletes it: windows go
/// on, also after a restart, and the log names the key and the entry.
#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_was_added_and_deleted_stops_nothing() {
    const LATER: &str = "99999999999000-0";
    let redis = Redis::start();
    let url = redis.url();
    let args = ["--window", "1s", "--redis-url", &url, "--redis-stream", "counts", "--lease-ttl", "1s"];
    let stray = || {
        let mut connection = redis.connect();
        ::redis::cmd("XADD").arg(&["counts", LATER, "f", "v"]).exec(&mut connection).unwrap();
        ::redis::cmd("XDEL").arg(&["counts", LATER]).exec(&mut connection).unwrap();
    };
    // Before there is any entry of ours, and then with some.
    stray();
    let mut server = Server::start(&args).await;
    wait_entries(&redis, 2).await;
    assert!(server.stop().await.success());
    stray();
    let mut server = Server::start(&args).await;
    wait_entries(&redis, 2).await;
    let named = |event: &serde_json::Value| {
        let error = event["fields"]["error"].as_str().unwrap_or_default();
        error.contains("the stream counts") && error.contains(LATER)
    };
    assert!(server.log().iter().any(named), "{:?}", server.log());
    let all = entries(&redis);
    for pair in all.windows(2) {
        assert_eq!(start(&pair[1]), start(&pair[0]) + 1, "{all:?}");
    }
    assert!(server.stop().await.success());
}
