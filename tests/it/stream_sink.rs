//! `--redis-stream`: a Redis stream as a sink.

use std::collections::HashMap;
use std::time::Duration;

use headcount::redis::keys::Keys;
use tokio::task::JoinSet;

use crate::support::fleet::{Fleet, seconds};
use crate::support::proxy::Proxy;
use crate::support::redis::{Flavour, Redis};
use crate::support::server::Server;
use crate::support::{wait_for, wait_until};

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

/// Killed leaders leave no gap and no repeat, and the stream keeps the windows of the retention.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_holds_every_window_once_up_to_its_length() {
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
    // The log is a separate sink, and may be a little later.
    let logged = fleet.wait_published(start(all.last().unwrap())).await;
    for entry in &all {
        let (_, closed) = &logged[&start(entry)][0];
        assert_eq!(seconds(closed.start()), start(entry));
        assert_eq!(entry.1["unique_request_count"], closed.unique.to_string());
    }
}

/// If the key is no stream, the sink stops and logs that. The other sinks continue.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_no_stream_is_reported() {
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

/// An id of the year 5138.
const LATER: &str = "99999999999000-0";

/// A user adds an entry with a later id, and deletes it.
fn add_and_delete(redis: &Redis) {
    let mut connection = redis.connect();
    ::redis::cmd("XADD").arg(&["counts", LATER, "f", "v"]).exec(&mut connection).unwrap();
    ::redis::cmd("XDEL").arg(&["counts", LATER]).exec(&mut connection).unwrap();
}

/// Whether the log names the stream, the entry and `remedy`.
fn names(server: &Server, remedy: &str) -> bool {
    server.log().iter().any(|event| {
        let error = event["fields"]["error"].as_str().unwrap_or_default();
        error.contains("the stream counts") && error.contains(LATER) && error.contains(remedy)
    })
}

/// A stream accepts no entry before its highest id ever. A user adds an entry of a far year and deletes it. Windows
/// continue, also after a restart, and the log names the key and the entry. Redis 8 and Valkey do not allow to set a
/// stream back. There the log says what to do. After that, the waiting windows arrive.
#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_was_added_and_deleted_stops_nothing() {
    for flavour in Flavour::at_hand() {
        let redis = Redis::start_with(flavour, &[]);
        let url = redis.url();
        let args = ["--window", "1s", "--redis-url", &url, "--redis-stream", "counts", "--lease-ttl", "1s"];
        let mut last = None;
        // Before there is any entry of ours, and then with some.
        for _ in 0..2 {
            add_and_delete(&redis);
            let mut server = Server::start(&args).await;
            if matches!(flavour, Flavour::Redis8 | Flavour::Valkey9) {
                let remedy = ["RENAME", "counts", "counts.old"];
                wait_until("the remedy to be named", async || names(&server, &remedy.join(" "))).await;
                ::redis::cmd(remedy[0]).arg(&remedy[1..]).exec(&mut redis.connect()).unwrap();
            }
            let all = wait_entries(&redis, 2).await;
            assert!(names(&server, ""), "{flavour:?}: {:?}", server.log());
            assert!(server.stop().await.success());
            let all = [all, entries(&redis)].concat();
            let mut starts: Vec<_> = last.into_iter().chain(all.iter().map(start)).collect();
            starts.sort_unstable();
            starts.dedup();
            for pair in starts.windows(2) {
                assert_eq!(pair[1], pair[0] + 1, "{flavour:?}: {starts:?}");
            }
            last = starts.last().copied();
        }
    }
}

/// Every available kind of server, at the same time.
async fn of_all_flavours<F: Future<Output = ()> + Send + 'static>(test: impl Fn(Flavour) -> F) {
    let tests: JoinSet<()> = Flavour::at_hand().into_iter().map(test).collect();
    tests.join_all().await;
}

/// A consumer that deletes what it reads. It keeps the starts of the windows that it got, in order.
struct Consumer<'a> {
    redis: &'a Redis,
    got: Vec<u64>,
}

impl<'a> Consumer<'a> {
    fn of(redis: &'a Redis) -> Self {
        Self { redis, got: Vec::new() }
    }

    fn consume(&mut self) {
        let entries = entries(self.redis);
        for entry in &entries {
            ::redis::cmd("XDEL").arg("counts").arg(&entry.0).exec(&mut self.redis.connect()).unwrap();
        }
        self.got.extend(entries.iter().map(start));
    }

    fn last(&self) -> u64 {
        self.got.iter().copied().max().unwrap_or_default()
    }

    /// Consumes until it has this many windows later than all before.
    async fn wait_for(&mut self, more: u64) {
        let before = self.last();
        let mut later = 0;
        wait_for("windows to consume", || {
            let had = self.got.len();
            self.consume();
            later += self.got[had..].iter().filter(|start| **start > before).count() as u64;
            (later >= more).then_some(())
        })
        .await;
    }

    fn assert_once_each(&self, of: Flavour) {
        for pair in self.got.windows(2) {
            assert_eq!(pair[1], pair[0] + 1, "{of:?}: {:?}", self.got);
        }
    }
}

/// The consumer deletes entries. Another sink fails, so that the leader commits no published position, and the leader is
/// killed. The next leader continues after the last id that the stream remembers.
#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_deletes_gets_every_window_once() {
    of_all_flavours(|flavour| async move {
        let redis = Redis::start_with(flavour, &[]);
        let dir = tempfile::tempdir().unwrap();
        let (files, in_the_way) = (dir.path().join("files"), dir.path().join("in-the-way"));
        std::fs::write(&in_the_way, "").unwrap();
        std::os::unix::fs::symlink(dir.path(), &files).unwrap();
        let (url, log_dir) = (redis.url(), files.display().to_string());
        let args = ["--window", "1s", "--redis-url", &url, "--redis-stream", "counts", "--lease-ttl", "1s"];
        let mut fleet = Fleet::start_with(2, &[&args[..], &["--log-dir", &log_dir]].concat()).await;
        let mut consumer = Consumer::of(&redis);
        consumer.wait_for(1).await;
        std::fs::rename(in_the_way, files).unwrap();
        consumer.wait_for(4).await;
        let leader = fleet.leader();
        fleet.servers[leader].process.signal("KILL");
        fleet.servers[leader].ended().await;
        consumer.wait_for(4).await;
        consumer.assert_once_each(flavour);
    })
    .await;
}

/// The answer to XADD is late, and the entry is consumed before the next try.
#[tokio::test(flavor = "multi_thread")]
async fn an_entry_consumed_before_its_answer_comes_once() {
    of_all_flavours(|flavour| async move {
        let redis = Redis::start_with(flavour, &[]);
        let proxy = Proxy::start(redis.address()).await;
        let args = ["--window", "1s", "--redis-url", &proxy.url(), "--redis-stream", "counts"];
        let server = Server::start(&args).await;
        let mut consumer = Consumer::of(&redis);
        consumer.wait_for(2).await;
        proxy.hold("XADD");
        tokio::time::sleep(Duration::from_millis(1500)).await;
        consumer.consume();
        // The test adds it in place of the sink's first attempt. The sink's own attempt now collides.
        let id = format!("{}000-0", consumer.last() + 1);
        ::redis::cmd("XADD").arg(&["counts", &id, "f", "v"]).exec(&mut redis.connect()).unwrap();
        consumer.consume();
        proxy.release();
        consumer.wait_for(3).await;
        consumer.assert_once_each(flavour);
        assert_eq!(server.metric("headcount_leader").await, 1.0);
    })
    .await;
}

/// An emptied stream remembers a far year, but no deleted entry has that year. It can be set back to just before the next
/// count, but not before the last deleted entry.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_set_back_no_further_than_to_the_count() {
    of_all_flavours(|flavour| async move {
        let redis = Redis::start_with(flavour, &[]);
        let args = ["--window", "1s", "--redis-url", &redis.url(), "--redis-stream", "counts"];
        let server = Server::start(&args).await;
        let mut consumer = Consumer::of(&redis);
        consumer.wait_for(2).await;
        ::redis::cmd("XSETID").arg("counts").arg(LATER).exec(&mut redis.connect()).unwrap();
        wait_for("it to be set back", || names(&server, "set back to ").then_some(())).await;
        consumer.wait_for(3).await;
        consumer.assert_once_each(flavour);
    })
    .await;
}

/// The window length grows after the consumer has deleted all shorter windows. The first window in the stream then begins
/// after them.
#[tokio::test(flavor = "multi_thread")]
async fn windows_of_another_length_begin_after_those_that_were_consumed() {
    of_all_flavours(|flavour| async move {
        let redis = Redis::start_with(flavour, &[]);
        let start_with = async |window| {
            Server::start(&["--window", window, "--redis-url", &redis.url(), "--redis-stream", "counts"])
                .await
        };
        let mut server = start_with("1s").await;
        let mut consumer = Consumer::of(&redis);
        wait_for("a few shorter windows of a longer one", || {
            consumer.consume();
            (consumer.got.len() > 1 && consumer.last() % 5 == 2).then_some(())
        })
        .await;
        assert!(server.stop().await.success());
        consumer.consume();
        consumer.assert_once_each(flavour);
        let last = consumer.last();
        // As if that happened some time ago.
        let keys = Keys::new("headcount");
        let settings = [keys.config(), keys.instances()];
        ::redis::cmd("DEL").arg(&settings).exec(&mut redis.connect()).unwrap();
        let _server = start_with("5s").await;
        consumer.wait_for(2).await;
        let longer: Vec<_> = consumer.got.iter().filter(|start| **start > last).collect();
        assert!(longer.iter().all(|start| **start % 5 == 0), "{flavour:?}: {:?}", consumer.got);
        assert!(consumer.got.is_sorted_by(|one, next| one < next), "{flavour:?}: {:?}", consumer.got);
    })
    .await;
}
