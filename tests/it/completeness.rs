//! A count that says `complete` is whole, whatever happens to the keys, the servers and the clocks; and nothing that was
//! answered `ok` is missing without a word.

use std::fs;
use std::time::{Duration, SystemTime};

use headcount::mode::Mode;
use headcount::redis::keys::Keys;
use headcount::shard::Shards;

use crate::support::fleet::{Fleet, next_window, seconds, window};
use crate::support::process::headcount_with_clock;
use crate::support::redis::Redis;
use crate::support::server::{Closed, Server};
use crate::support::wait_for;

const MODES: [Mode; 2] = [Mode::Hll, Mode::Exact];

async fn accept(server: &Server, ids: std::ops::Range<u64>) {
    for id in ids {
        assert_eq!(server.get(&format!("/api/verve/accept?id={id}")).await.body, "ok");
    }
}

fn key(namespace: &str, mode: Mode, start: u64) -> String {
    Keys::new(namespace).ids(mode, 0, Shards::ONE, window(start))
}

fn find(closed: &[Closed], start: u64) -> Option<Closed> {
    closed.iter().find(|closed| seconds(closed.start()) == start).cloned()
}

async fn wait_closed(server: &Server, start: u64) -> Closed {
    wait_for("the window to be closed", || find(&server.closed(), start)).await
}

/// So few ids are told apart by a sketch too, but for a collision or two.
fn is_all(mode: Mode, unique: u64, ids: u64) -> bool {
    match mode {
        Mode::Exact => unique == ids,
        Mode::Hll => unique.abs_diff(ids) <= ids / 25,
    }
}

/// Redis is stopped in the middle of a window for a little less than the retention, and comes back just before its keys
/// would have run out.
#[tokio::test(flavor = "multi_thread")]
async fn an_outage_shorter_than_the_retention_loses_nothing() {
    for mode in MODES {
        let redis = Redis::start();
        let name = mode.as_str();
        let fleet = Fleet::start(1, &redis, name, &["--mode", name, "--retention", "12s"]).await;
        let server = &fleet.servers[0];
        let start = next_window(Duration::from_millis(50)).await;
        accept(server, 0..300).await;
        assert!(seconds(SystemTime::now()) < start + 2, "too slow to say what is in which window");
        redis.signal("STOP");
        let stopped = SystemTime::now();
        let mut id = 1_000;
        while stopped.elapsed().unwrap() < Duration::from_millis(11_300) {
            accept(server, id..id + 1).await;
            id += 1;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        redis.signal("CONT");
        let closed = wait_closed(server, start).await;
        assert!(closed.unique >= 300 - 12, "{name}: {closed:?}");
        assert!(closed.accepted >= 300 && closed.complete, "{name}: {closed:?}");
        let later = wait_closed(server, start + 4).await;
        assert!(later.unique > 0 && later.complete, "{name}: {later:?}");
    }
}

/// When keys die is said by Redis's clock. An instance whose own is an hour behind counts all the same; it says that its
/// clock is wrong, and that it is not ready.
#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_an_hour_behind_loses_nothing() {
    for mode in MODES {
        let redis = Redis::start();
        let name = mode.as_str();
        let url = redis.url();
        let args = ["--window", "2s", "--retention", "15min", "--mode", name, "--redis-url", &url];
        let server = Server::start_with_clock("-1h", &args).await;
        accept(&server, 0..400).await;
        let total = async || server.closed().iter().map(|closed| closed.unique).sum::<u64>();
        wait_for("all windows", || {
            let accepted: u64 = server.closed().iter().map(|closed| closed.accepted).sum();
            (accepted == 400).then_some(())
        })
        .await;
        assert!(is_all(mode, total().await, 400), "{name}: {:?}", server.closed());
        assert!(server.closed().iter().all(|closed| !closed.complete), "{:?}", server.closed());
        let ready = server.get("/readyz").await;
        assert_eq!((ready.status, &*ready.body), (503, "clock"));
        let said = |event: &serde_json::Value| event["fields"]["message"].as_str().unwrap().contains("NTP");
        assert_eq!(server.log().iter().filter(|event| said(event)).count(), 1);
    }
}

/// Something else is written where the running window's ids are. Later windows are not held up, the log says what was
/// found where, and the window is counted from what the instance has, or says that it is incomplete.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_was_replaced_is_put_aside_and_said() {
    let garbage: [(&str, &[&str]); 3] = [("LPUSH", &["x"]), ("SET", &["nonsense"]), ("HSET", &["f", "v"])];
    for mode in MODES {
        for (command, value) in garbage {
            let redis = Redis::start();
            let name = mode.as_str();
            let fleet = Fleet::start(1, &redis, name, &["--mode", name]).await;
            let server = &fleet.servers[0];
            let start = next_window(Duration::from_millis(50)).await;
            accept(server, 0..200).await;
            let key = key(name, mode, start);
            let mut connection = redis.connect();
            ::redis::cmd("DEL").arg(&key).exec(&mut connection).unwrap();
            ::redis::cmd(command).arg(&key).arg(value).exec(&mut connection).unwrap();
            accept(server, 200..250).await;
            assert!(seconds(SystemTime::now()) < start + 2, "too slow to say what is in which window");
            let closed = wait_closed(server, start).await;
            let later = wait_closed(server, start + 2).await;
            assert!(seconds(SystemTime::now()) < start + 2 + 2 + 4, "later windows come in time");
            assert!(later.complete, "{later:?}");
            assert_eq!(closed.accepted, 250);
            match mode {
                Mode::Hll => assert!(is_all(mode, closed.unique, 250) && closed.complete, "{closed:?}"),
                Mode::Exact => assert!(closed.unique >= 50 && !closed.complete, "{closed:?}"),
            }
            let said = server.log().into_iter().map(|event| event["fields"].clone());
            let said: Vec<_> = said.filter(|fields| fields.get("found").is_some()).collect();
            assert_eq!(said.len(), 1, "{said:?}");
            let found: String = ::redis::cmd("TYPE").arg(Keys::damaged(&key)).query(&mut connection).unwrap();
            assert_eq!((said[0]["key"].as_str(), said[0]["found"].as_str()), (Some(&*key), Some(&*found)));
        }
    }
}

/// What instances said that they accepted is replaced by something else: what the others said is gone with it.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_accepted_can_be_replaced_too() {
    let redis = Redis::start();
    let fleet = Fleet::start(1, &redis, "accepted", &[]).await;
    let server = &fleet.servers[0];
    let start = next_window(Duration::from_millis(50)).await;
    accept(server, 0..50).await;
    let key = Keys::new("accepted").accepted(window(start));
    ::redis::cmd("SET").arg(&key).arg("nonsense").exec(&mut redis.connect()).unwrap();
    let closed = wait_closed(server, start).await;
    assert!(is_all(Mode::Hll, closed.unique, 50) && !closed.complete, "{closed:?}");
    assert!(wait_closed(server, start + 2).await.complete);
}

/// The clock is set forward by more than the retention in the middle of a window: it is published all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_clock_set_forward_past_the_retention_loses_no_window() {
    for mode in MODES {
        let redis = Redis::start();
        let name = mode.as_str();
        let dir = tempfile::tempdir().unwrap();
        let clock = dir.path().join("clock");
        fs::write(&clock, "+0s").unwrap();
        let mut command = headcount_with_clock("+0s");
        command.env_remove("FAKETIME").env("FAKETIME_TIMESTAMP_FILE", &clock).env("FAKETIME_NO_CACHE", "1");
        command.args(["--listen", "127.0.0.1:0", "--window", "2s", "--retention", "1min", "--mode", name]);
        command.args(["--redis-url", &redis.url()]);
        let server = Server::run(command).await;
        let start = next_window(Duration::from_millis(50)).await;
        accept(&server, 0..100).await;
        assert!(seconds(SystemTime::now()) < start + 2, "too slow to say what is in which window");
        fs::write(&clock, "+600s").unwrap();
        let closed = wait_closed(&server, start);
        let (closed, ()) = tokio::join!(closed, accept(&server, 1_000..1_050));
        assert!(is_all(mode, closed.unique, 100), "{name}: {closed:?}");
        assert_eq!(server.metric("headcount_missed_ids_total").await, 0.0);
    }
}

/// What an instance that was killed had accepted is known to nobody. The number that is published is then a lower bound, and
/// never less than the count.
#[tokio::test(flavor = "multi_thread")]
async fn accepted_ids_are_never_fewer_than_different_ones() {
    let redis = Redis::start();
    for mode in MODES {
        let name = mode.as_str();
        let mut fleet = Fleet::start(2, &redis, name, &["--mode", name]).await;
        fleet.wait_published(next_window(Duration::ZERO).await).await;
        let (survivor, other) = if fleet.leader() == 0 { (0, 1) } else { (1, 0) };
        let start = next_window(Duration::from_millis(50)).await;
        accept(&fleet.servers[other], 0..100).await;
        accept(&fleet.servers[survivor], 100..150).await;
        fleet.servers[other].process.signal("KILL");
        fleet.servers[other].process.wait();
        let closed = wait_closed(&fleet.servers[survivor], start).await;
        assert!(is_all(mode, closed.unique, 150) && !closed.complete, "{closed:?}");
        assert!(closed.accepted >= closed.unique, "{closed:?}");
    }
}
