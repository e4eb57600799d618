//! Ids are lost when Redis loses data or an instance dies; the record and the log report it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use headcount::redis::keys::Keys;

use crate::support::fleet::{
    Fleet, assert_complete, assert_no_gap, assert_same_registers, next_window, seconds, sketch_in,
};
use crate::support::http::Connection;
use crate::support::load::{Burst, paced_burst};
use crate::support::proxy::{Fault, Proxy};
use crate::support::redis::{Flavour, Redis};
use crate::support::server::{Closed, Server};
use crate::support::{wait_blocking, wait_for};

fn at(start: u64, millis: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(start) + Duration::from_millis(millis)
}

async fn burst(fleet: &Fleet, ids: std::ops::Range<u64>, until: SystemTime) -> Burst {
    paced_burst(&fleet.addresses(), 12, ids, until, Duration::from_millis(5)).await
}

fn different(bursts: &[&Burst]) -> BTreeSet<u64> {
    bursts.iter().flat_map(|burst| burst.sent.iter().copied()).collect()
}

/// A published window: different ids, accepted ids, whether it is complete.
fn told(published: &BTreeMap<u64, Vec<(usize, Closed)>>, start: u64) -> (u64, u64, bool) {
    let (_, closed) = &published[&start][0];
    (closed.unique, closed.accepted, closed.complete)
}

/// Redis is killed in the middle of a window and comes back empty. In mode `hll` no id is lost. In mode `exact` the ids
/// that it had acknowledged are lost, and the window is incomplete.
#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_comes_back_empty() {
    let mut redis = Redis::start();
    let hll = Fleet::start(3, &redis, "empty", &[]).await;
    let exact = Fleet::start(3, &redis, "empty-exact", &["--mode", "exact"]).await;
    for fleet in [&hll, &exact] {
        fleet.wait_published(next_window(Duration::ZERO).await).await;
    }
    let start = next_window(Duration::from_millis(50)).await;
    let before = tokio::join!(burst(&hll, 0..500, at(start, 300)), burst(&exact, 0..500, at(start, 300)));
    // It acknowledges all of them.
    exact.wait_until_replayed().await;
    redis.kill();
    let during = tokio::join!(burst(&hll, 500..900, at(start, 600)), burst(&exact, 500..900, at(start, 600)));
    redis.restart();
    let after =
        tokio::join!(burst(&hll, 900..1_200, at(start, 1_100)), burst(&exact, 900..1_200, at(start, 1_100)));
    assert!(after.0.ended.max(after.1.ended) < at(start, 2_000), "too slow to say what is in which window");

    let published = hll.wait_published(start + 6).await;
    assert_no_gap(&published);
    assert_complete(&published);
    let accepted = (before.0.sent.len() + during.0.sent.len() + after.0.sent.len()) as u64;
    assert_same_registers(&sketch_in(&redis, "empty", start), different(&[&before.0, &during.0, &after.0]));
    assert_eq!(told(&published, start).1, accepted);

    let published = exact.wait_published(start + 6).await;
    assert_no_gap(&published);
    let accepted = (before.1.sent.len() + during.1.sent.len() + after.1.sent.len()) as u64;
    assert_eq!(told(&published, start), (different(&[&during.1, &after.1]).len() as u64, accepted, false));
    assert!(told(&published, start + 6).2, "later windows are complete again: {published:#?}");
}

/// A replica takes over that never got the last writes.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_lacks_the_last_writes() {
    let mut master = Redis::start_with(Flavour::Debian, &["--repl-diskless-sync-delay", "0"]);
    let to_master = Proxy::start(master.address()).await;
    let port = to_master.address().port().to_string();
    let replica = Redis::start_with(Flavour::Debian, &["--replicaof", "127.0.0.1", &port]);
    wait_blocking("the replica to be in step", || {
        let info: String = redis::cmd("INFO").arg("replication").query(&mut replica.connect()).unwrap();
        info.contains("master_link_status:up")
    });
    let proxy = Proxy::start(master.address()).await;
    let hll = Fleet::behind(&proxy.url(), 3, "promoted", &[]).await;
    let exact = Fleet::behind(&proxy.url(), 3, "promoted-exact", &["--mode", "exact"]).await;
    for fleet in [&hll, &exact] {
        fleet.wait_published(next_window(Duration::ZERO).await).await;
    }

    let start = next_window(Duration::from_millis(50)).await;
    let shared = tokio::join!(burst(&hll, 0..300, at(start, 300)), burst(&exact, 0..300, at(start, 300)));
    let wait: u64 = redis::cmd("WAIT").arg(1).arg(60_000).query(&mut master.connect()).unwrap();
    assert_eq!(wait, 1, "the replica has got that");
    to_master.set(Fault::Stall);
    let lost = tokio::join!(burst(&hll, 300..600, at(start, 600)), burst(&exact, 300..600, at(start, 600)));
    // It acknowledges all of them.
    exact.wait_until_replayed().await;
    master.kill();
    let kept = tokio::join!(burst(&hll, 600..900, at(start, 900)), burst(&exact, 600..900, at(start, 900)));
    assert!(kept.0.ended.max(kept.1.ended) < at(start, 2_000), "too slow to say what is in which window");
    redis::cmd("REPLICAOF").arg("NO").arg("ONE").exec(&mut replica.connect()).unwrap();
    proxy.lead_to(replica.address());

    let published = hll.wait_published(start + 6).await;
    assert_no_gap(&published);
    assert_complete(&published);
    assert_same_registers(&sketch_in(&replica, "promoted", start), different(&[&shared.0, &lost.0, &kept.0]));

    let published = exact.wait_published(start + 6).await;
    assert_no_gap(&published);
    // WAIT covers only the writes of its own connection, so a few of the first ids may be lost too.
    let (unique_ids, accepted, complete) = told(&published, start);
    let known = different(&[&shared.1, &kept.1]).len() as u64;
    assert!(unique_ids <= known, "{unique_ids} of {known}");
    assert!(different(&[&kept.1]).len() as u64 <= unique_ids, "what was not acknowledged is there");
    assert_eq!(accepted, (shared.1.sent.len() + lost.1.sent.len() + kept.1.sent.len()) as u64);
    assert!(!complete, "and it is said");
    assert!(told(&published, start + 6).2, "later windows are complete again: {published:#?}");
}

/// One of three instances dies in an outage of more than five windows. Redis may or may not still know it afterwards.
/// In both cases its windows are incomplete, and have the ids that the others accepted.
#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_dies_while_redis_is_away() {
    let mut redis = Redis::start();
    let proxy = Proxy::start(redis.address()).await;
    for forgets in [false, true] {
        let namespace = format!("dies-{forgets}");
        let mut fleet = Fleet::behind(&proxy.url(), 3, &namespace, &[]).await;
        fleet.wait_published(next_window(Duration::ZERO).await).await;
        let survivors = fleet.addresses()[..2].to_vec();
        let begun = next_window(Duration::from_millis(500)).await;
        proxy.set(Fault::Refuse);
        let mut truth = Vec::new();
        let mut died = 0;
        for number in 0..7 {
            let start = next_window(Duration::from_millis(50)).await;
            let ids = number * 500..number * 500 + 800;
            let until = at(start, 1_000);
            let burst = paced_burst(&survivors, 8, ids, until, Duration::from_millis(10)).await;
            assert!(burst.ended < at(start, 2_000), "too slow to say what is in which window");
            truth.push((start, burst));
            if number == 2 {
                let answer = fleet.servers[2].get("/api/verve/accept?id=123456789").await;
                assert_eq!(answer.body, "ok");
                fleet.servers[2].process.signal("KILL");
                died = start;
            }
        }
        if forgets {
            redis.restart();
        }
        proxy.set(Fault::None);
        let back = next_window(Duration::ZERO).await;
        let published = fleet.wait_published(back + 6).await;
        assert_no_gap(&published);
        for (start, burst) in &truth {
            assert_same_registers(&sketch_in(&redis, &namespace, *start), different(&[burst]));
        }
        for (start, closed) in published.range(begun..=died) {
            assert!(closed.iter().all(|(_, closed)| !closed.complete), "{start}: {published:#?}");
        }
        assert!(told(&published, back + 6).2, "{published:#?}");
        for server in &mut fleet.servers[..2] {
            assert!(server.stop().await.success());
        }
    }
}

/// One instance is cut off from Redis, and the others continue. Its ids for windows that they close are missed, and the
/// metric and the log say so.
#[tokio::test(flavor = "multi_thread")]
async fn one_instance_cut_off_from_redis_reports_its_loss() {
    let redis = Redis::start();
    let proxy = Proxy::start(redis.address()).await;
    let fleet = Fleet::start(2, &redis, "cut-off", &[]).await;
    let alone = Fleet::behind(&proxy.url(), 1, "cut-off", &[]).await;
    let alone = &alone.servers[0];
    fleet.wait_published(next_window(Duration::ZERO).await).await;
    let start = next_window(Duration::from_millis(300)).await;
    proxy.set(Fault::Swallow);
    for id in 0..50 {
        assert_eq!(alone.get(&format!("/api/verve/accept?id={id}")).await.body, "ok");
    }
    let published = fleet.wait_published(start + 4).await;
    assert!(!told(&published, start).2, "it had this one open when it was last heard of: {published:#?}");
    proxy.set(Fault::None);
    wait_for("the loss to be said", || {
        alone.log().iter().find_map(|event| event["fields"]["missed_ids"].as_u64())
    })
    .await;
    assert_eq!(alone.metric("headcount_missed_ids_total").await, 50.0);
    let start = next_window(Duration::from_millis(300)).await;
    assert_eq!(alone.get("/api/verve/accept?id=1").await.body, "ok");
    let published = fleet.wait_published(start).await;
    assert_eq!(told(&published, start), (1, 1, true), "it takes part again");
}

/// In mode `exact` an instance keeps at most `--pending-max` ids. It counts all to which it answered `ok`.
#[tokio::test(flavor = "multi_thread")]
async fn ids_beyond_pending_max_are_refused() {
    let redis = Redis::start();
    let args = ["--mode", "exact", "--window", "1h", "--pending-max", "500"];
    let url = redis.url();
    let server = Server::start(&[&["--redis-url", &url], &args[..]].concat()).await;
    let mut connection = Connection::open(server.address).await.unwrap();
    let mut send = async |id: u64| connection.get(&format!("/api/verve/accept?id={id}")).await.unwrap();
    assert_eq!(send(0).await.body, "ok");
    redis.signal("STOP");
    for id in 1..=500 {
        assert_eq!(send(id).await.body, "ok", "{id}");
    }
    for id in 501..=600 {
        let refused = send(id).await;
        assert_eq!(
            (refused.status, refused.header("failure-reason")),
            (503, Some("store_unavailable")),
            "{id}"
        );
    }
    assert_eq!(send(250).await.body, "ok", "it is kept already");
    assert_eq!(server.metric("headcount_unacknowledged_ids").await, 500.0);
    let unread = server.get("/api/verve/unique").await;
    assert_eq!(unread.header("failure-reason"), Some("store_unavailable"), "nobody waits to read either");
    redis.signal("CONT");
    wait_for("Redis to have it all", || {
        let log = server.log();
        log.iter().find(|event| event["fields"]["pending_ids"] == 501).map(|_| ())
    })
    .await;
    assert_eq!(server.metric("headcount_unacknowledged_ids").await, 0.0);
    // Redis may have acknowledged the first late id after the instance stopped waiting.
    let new = server.metric("headcount_changed_ids_total").await;
    assert!((500.0..=501.0).contains(&new), "{new}");
    let read = server.get("/api/verve/unique").await.json();
    assert_eq!(read["current"]["unique_request_count"], 501);
    for id in 501..=600 {
        assert_eq!(send(id).await.body, "ok", "{id}");
    }
    let full = server.log().iter().filter(|event| event["fields"]["pending_max"] == 500).count();
    assert_eq!(full, 1, "one line says that it was full");
}

/// An instance that stops while Redis is away cannot replay its pending ids, and says so.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_while_redis_is_away_fails() {
    let mut redis = Redis::start();
    let args = ["--window", "24h", "--shutdown-timeout", "3s", "--redis-url"];
    let mut server = Server::start(&[&args[..], &[&redis.url()]].concat()).await;
    redis.kill();
    assert_eq!(server.get("/api/verve/accept?id=1").await.body, "ok");
    assert_eq!(server.stop().await.code(), Some(1));

    redis.restart();
    let mut server = Server::start(&[&args[..], &[&redis.url()]].concat()).await;
    redis.kill();
    assert_eq!(server.get("/api/verve/accept?id=1").await.body, "ok");
    redis.restart();
    assert_eq!(server.stop().await.code(), Some(0), "it comes back in time");
    let unique: u64 = redis::cmd("PFCOUNT")
        .arg(format!("{{headcount:0/1}}:hll:{}", seconds(SystemTime::now()) / 86_400 * 86_400))
        .query(&mut redis.connect())
        .unwrap();
    assert_eq!(unique, 1);
}

/// An instance accepts ids, seals them and leaves. Then Redis loses everything, in the same window. No instance can
/// replay these ids, and the others know that: the window is incomplete.
#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_left_before_a_loss_is_missed() {
    const WINDOW: u64 = 10;
    let mut redis = Redis::start();
    let url = redis.url();
    let args = ["--window", "10s", "--redis-url", &url, "--namespace", "left"];
    let mut fleet = Fleet::start_with(3, &args).await;
    let start = (seconds(SystemTime::now()) / WINDOW + 1) * WINDOW;
    tokio::time::sleep(at(start, 50).duration_since(SystemTime::now()).unwrap_or_default()).await;
    for (server, ids) in [(2, 0..100), (0, 100..150)] {
        for id in ids {
            assert_eq!(fleet.servers[server].get(&format!("/api/verve/accept?id={id}")).await.body, "ok");
        }
    }
    assert_eq!(fleet.servers[2].stop().await.code(), Some(0));
    let left = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros();
    // By now the others have sent a heartbeat, and so know which instance left.
    let reports = Keys::new("left").instances();
    wait_for("the others to report", || {
        let reports: BTreeMap<String, String> =
            redis::cmd("HGETALL").arg(&reports).query(&mut redis.connect()).unwrap();
        let at = |heartbeat: &String| {
            let heartbeat: serde_json::Value = serde_json::from_str(heartbeat).unwrap();
            u128::from(heartbeat["at"].as_u64().unwrap())
        };
        let since = reports.iter().filter(|(name, report)| !name.starts_with('~') && left < at(report));
        (since.count() == 2).then_some(())
    })
    .await;
    redis.restart();
    assert!(SystemTime::now() < at(start, 9_000), "too slow: all of it has to be in one window");
    let closed = wait_for("the window to be closed", || {
        fleet.published().get(&start).map(|closed| closed[0].1.clone())
    })
    .await;
    assert!(closed.unique < 100 && !closed.complete, "{closed:?}");
    let later = start + 2 * WINDOW;
    let published = wait_for("a later window", || {
        Some(fleet.published()).filter(|published| published.contains_key(&later))
    });
    assert!(published.await[&later][0].1.complete, "later windows are complete again");
}

/// Redis comes back with a snapshot of the window before. In the same window an instance is killed or leaves. The
/// snapshot has its old heartbeat, without its last ids: the window is incomplete.
#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_is_gone_when_an_old_snapshot_comes_back_is_missed() {
    const WINDOW: u64 = 10;
    for (signal, namespace) in [("KILL", "killed"), ("TERM", "left")] {
        let mut redis = Redis::start();
        let url = redis.url();
        let args = ["--window", "10s", "--redis-url", &url, "--namespace", namespace];
        let mut fleet = Fleet::start_with(2, &args).await;
        let start = (seconds(SystemTime::now()) / WINDOW + 1) * WINDOW;
        let until = async |millis: u64| {
            let wait = at(start, millis).duration_since(SystemTime::now()).unwrap_or_default();
            tokio::time::sleep(wait).await;
        };
        if SystemTime::now() > at(start, 0) - Duration::from_secs(7) {
            until(1_000).await;
        }
        let start = (seconds(SystemTime::now()) / WINDOW + 1) * WINDOW;
        let reports = Keys::new(namespace).instances();
        wait_for("both to be known", || {
            let known: u64 = redis::cmd("HLEN").arg(&reports).query(&mut redis.connect()).unwrap();
            (known == 2).then_some(())
        })
        .await;
        redis::cmd("SAVE").exec(&mut redis.connect()).unwrap();
        let until = async |millis: u64| {
            let wait = at(start, millis).duration_since(SystemTime::now()).unwrap_or_default();
            tokio::time::sleep(wait).await;
        };
        until(100).await;
        for (server, ids) in [(1, 0..100), (0, 100..150)] {
            for id in ids {
                assert_eq!(fleet.servers[server].get(&format!("/api/verve/accept?id={id}")).await.body, "ok");
            }
        }
        fleet.servers[1].process.signal(signal);
        fleet.servers[1].ended().await;
        // The other instance gets the membership view every second.
        until(4_000).await;
        redis.restart();
        assert!(SystemTime::now() < at(start, 9_000), "too slow: all of it has to be in one window");
        let closed = wait_for("the window to be closed", || {
            fleet.published().get(&start).map(|closed| closed[0].1.clone())
        })
        .await;
        assert!(closed.unique < 140 && !closed.complete, "{signal}: {closed:?}");
    }
}

/// Redis is away for longer than the retention. One instance has so many windows that it gives up the first. The other
/// instance still has it. The published window lacks ids, and is incomplete.
#[tokio::test(flavor = "multi_thread")]
async fn a_window_that_one_instance_dropped_is_incomplete() {
    let redis = Redis::start();
    let args = ["--retention", "10s"];
    let fleet = Fleet::start(2, &redis, "given-up", &args).await;
    fleet.wait_published(next_window(Duration::ZERO).await).await;
    let leader = fleet.leader();
    let (keeper, other) = (&fleet.servers[leader], &fleet.servers[1 - leader]);
    let start = next_window(Duration::from_millis(50)).await;
    redis.signal("STOP");
    assert_eq!(keeper.get("/api/verve/accept?id=1").await.body, "ok");
    let mut id = 100;
    // The first window, and then every one.
    while SystemTime::now() < at(start, 22_000) {
        assert_eq!(other.get(&format!("/api/verve/accept?id={id}")).await.body, "ok");
        id += 1;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    redis.signal("CONT");
    fleet.wait_published(start + 24).await;
    let published = fleet.published();
    // It may remain unpublished, but must not be published as complete.
    if let Some(closed) = published.get(&start) {
        assert!(!closed[0].1.complete, "{closed:?}");
    }
    let missed = other.metric("headcount_missed_ids_total").await;
    assert!(missed > 0.0, "the first window was given up: {missed}");
}

/// Redis may have added ids whose answers were lost. The instance does not know whether they were new. This must not
/// hide as many ids of a later loss.
#[tokio::test(flavor = "multi_thread")]
async fn writes_without_an_answer_hide_no_loss() {
    const WINDOW: u64 = 20;
    let mut redis = Redis::start();
    let url = redis.url();
    let args = ["--window", "20s", "--mode", "exact", "--redis-url", &url, "--namespace", "unanswered"];
    let fleet = Fleet::start_with(1, &args).await;
    let start = (seconds(SystemTime::now()) / WINDOW + 1) * WINDOW;
    tokio::time::sleep(at(start, 100).duration_since(SystemTime::now()).unwrap_or_default()).await;
    let mut connection = Connection::open(fleet.servers[0].address).await.unwrap();
    let mut accept = async |ids: std::ops::Range<u64>| {
        let lines = crate::support::lines(ids);
        assert_eq!(connection.post("text/plain", lines.as_bytes()).await.unwrap().body, "ok");
    };
    accept(0..3).await;
    redis.signal("STOP");
    accept(1_000..2_000).await;
    redis.signal("CONT");
    let server = &fleet.servers[0];
    server.wait_for_metric("headcount_unacknowledged_ids", 0.0).await;
    let key = Keys::new("unanswered").ids(
        headcount::model::mode::Mode::Exact,
        0,
        headcount::model::shard::Shards::ONE,
        "20s".parse::<headcount::model::window::WindowLength>().unwrap().starting_at(start),
    );
    wait_for("all of them to be in Redis", || {
        let ids: u64 = redis::cmd("SCARD").arg(&key).query(&mut redis.connect()).unwrap();
        (ids == 1_003).then_some(())
    })
    .await;
    redis::cmd("SAVE").exec(&mut redis.connect()).unwrap();
    accept(2_000..2_800).await;
    redis.restart();
    assert!(SystemTime::now() < at(start, 18_000), "too slow: all of it has to be in one window");
    let closed = wait_for("the window to be closed", || {
        fleet.published().get(&start).map(|closed| closed[0].1.clone())
    })
    .await;
    assert!(closed.unique < 1_803 && !closed.complete, "{closed:?}");
}
