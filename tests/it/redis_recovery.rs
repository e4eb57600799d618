//! Redis comes back: heartbeats arrive late, a replay is large, or a second loss follows.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::support::fleet::{
    Fleet, assert_complete, assert_no_gap, assert_same_registers, next_window, seconds, sketch_in, sketch_of,
};
use crate::support::http::Connection;
use crate::support::lines;
use crate::support::load::paced_burst;
use crate::support::outage::{Outage, Site};
use crate::support::proxy::{Fault, Proxy};
use crate::support::redis::Redis;
use crate::support::server::{Closed, Server};

/// The ids sent in each window.
type Truth = BTreeMap<u64, Vec<u64>>;

/// Sends ids in the middle of this many windows. On a busy machine the last ids may come late, and be in the next window: up to one of
/// ten windows is left out for that.
async fn send_in(windows: u64, fleet: &Fleet, first: u64) -> Truth {
    let mut truth = Truth::new();
    for number in 0..windows {
        let start = next_window(Duration::from_millis(100)).await;
        let at = |millis| UNIX_EPOCH + Duration::from_secs(start) + Duration::from_millis(millis);
        let ids = first + number * 300..first + number * 300 + 500;
        let burst = paced_burst(&fleet.addresses(), 6, ids, at(1_200), Duration::from_millis(20)).await;
        if burst.ended < at(2_000) {
            truth.insert(start, burst.sent);
        }
    }
    let late = windows - truth.len() as u64;
    assert!(
        late <= 1 + windows / 10,
        "this machine is too slow to say what is in {late} windows of {windows}"
    );
    truth
}

fn assert_right(published: &BTreeMap<u64, Vec<(usize, Closed)>>, truth: &Truth) {
    assert_no_gap(published);
    assert_complete(published);
    for (start, sent) in truth {
        let (_, closed) = &published[start][0];
        assert_eq!(
            (closed.unique, closed.accepted),
            (sketch_of(sent).estimate(), sent.len() as u64),
            "{start}"
        );
    }
}

/// The instance polls Redis and is back before the others. It must not take them for dead.
#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_starts_in_an_outage_waits_for_the_others() {
    let mut site = Site::start().await;
    let mut fleet = Fleet::behind(&site.url(), 2, "starts", &[]).await;
    fleet.wait_published(next_window(Duration::ZERO).await).await;
    next_window(Duration::from_millis(1_500)).await;
    site.begin(Outage::Killed);
    let url = site.url();
    let args = ["--redis-wait", "60s", "--window", "2s", "--redis-url", &url, "--namespace", "starts"];
    let (newcomer, truth) = tokio::join!(Server::start(&args), async {
        let truth = send_in(4, &fleet, 0).await;
        site.end(Outage::Killed);
        truth
    });
    fleet.servers.push(newcomer);
    let published = fleet.wait_published(next_window(Duration::ZERO).await).await;
    assert_right(&published, &truth);
}

/// The lease may come back before the heartbeats. The leader closes no window before these.
#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_returns_before_the_heartbeats_closes_no_window() {
    let mut site = Site::start().await;
    let fleet = Fleet::behind(&site.url(), 3, "lease", &["--lease-ttl", "1s"]).await;
    fleet.wait_published(next_window(Duration::ZERO).await).await;
    let mut truth = Truth::new();
    for number in 0..3 {
        let outage = Outage::Network(Fault::Refuse);
        next_window(Duration::from_millis(1_500)).await;
        site.begin(outage);
        truth.append(&mut send_in(4, &fleet, number * 10_000).await);
        site.end(outage);
        fleet.wait_published(next_window(Duration::ZERO).await).await;
    }
    assert_right(&fleet.published(), &truth);
}

/// The replay of some instances takes longer than an instance may be silent, and longer than `--close-timeout`. They make
/// progress, so the leader waits for them.
#[tokio::test(flavor = "multi_thread")]
async fn the_leader_waits_for_a_large_replay() {
    const IDS: u64 = 1_000_000;
    const A_BODY: u64 = 100_000;
    let redis = Redis::start();
    let proxy = Proxy::start(redis.address()).await;
    // Instances report their progress once a second.
    let args = ["--mode", "exact", "--close-timeout", "6s"];
    let fleet = Fleet::behind(&proxy.url(), 3, "backlog", &args).await;
    fleet.wait_published(next_window(Duration::ZERO).await).await;
    let leader = fleet.leader();
    proxy.set(Fault::Stall);
    let mut first = 0;
    for (index, server) in fleet.servers.iter().enumerate().filter(|(index, _)| *index != leader) {
        let mut connection = Connection::open(server.address).await.unwrap();
        for _ in 0..IDS / 2 / A_BODY {
            let body = lines(first..first + A_BODY);
            let answer = connection.post("text/plain", body.as_bytes()).await.unwrap();
            assert_eq!(answer.body, "ok", "{index}");
            first += A_BODY;
        }
    }
    let last = seconds(SystemTime::now());
    proxy.set(Fault::Slow(Duration::from_millis(60)));
    let back = Instant::now();
    for server in &fleet.servers {
        server.wait_for_metric("headcount_unacknowledged_ids", 0.0).await;
    }
    println!("handed over within {:?}", back.elapsed());
    assert!(back.elapsed() > Duration::from_secs(9), "too quick to show anything: send more");
    let published = fleet.wait_published(last).await;
    assert_no_gap(&published);
    assert_complete(&published);
    let total: u64 = published.values().map(|closed| closed[0].1.unique).sum();
    assert_eq!(total, first);
}

/// An instance cannot seal, and the leader is cut off for longer than `--close-timeout`. It does not close the window at once when
/// it is back: what it did not see is no reason to.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_was_cut_off_gives_others_the_whole_close_timeout() {
    let redis = Redis::start();
    let (proxy, of_other) = (Proxy::start(redis.address()).await, Proxy::start(redis.address()).await);
    let args = ["--close-timeout", "10s", "--lease-ttl", "60s"];
    let mut fleet = Fleet::behind(&proxy.url(), 1, "cut", &args).await;
    let url = of_other.url();
    let others = ["--window", "2s", "--redis-url", &url, "--namespace", "cut"];
    fleet.servers.push(Server::start(&[&args[..], &others].concat()).await);
    fleet.wait_published(next_window(Duration::ZERO).await).await;
    assert_eq!(fleet.leader(), 0);
    let truth = send_in(1, &fleet, 0).await;
    of_other.hold(":accepted:");
    let other = &fleet.servers[1];
    other.wait_for_log("cannot seal or send heartbeats, trying again").await;
    // The leader has seen that the window is open.
    proxy.set(Fault::Refuse);
    tokio::time::sleep(Duration::from_secs(12)).await;
    proxy.set(Fault::None);
    // For seven seconds it does not trust the heartbeats.
    tokio::time::sleep(Duration::from_secs(9)).await;
    of_other.release();
    let published = fleet.wait_published(next_window(Duration::ZERO).await).await;
    assert_right(&published, &truth);
}

/// Redis is back, gets the whole replay, and is lost again before a window closes.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_loss_before_anything_is_closed() {
    let mut redis = Redis::start();
    let proxy = Proxy::start(redis.address()).await;
    let hll = Fleet::behind(&proxy.url(), 2, "again", &[]).await;
    let exact = Fleet::behind(&proxy.url(), 2, "again-exact", &["--mode", "exact"]).await;
    for fleet in [&hll, &exact] {
        fleet.wait_published(next_window(Duration::ZERO).await).await;
    }
    next_window(Duration::from_millis(1_500)).await;
    proxy.set(Fault::Refuse);
    let (truth, exact_truth) = tokio::join!(send_in(11, &hll, 0), send_in(11, &exact, 0));
    proxy.set(Fault::None);
    for server in hll.servers.iter().chain(&exact.servers) {
        server.wait_for_metric("headcount_unacknowledged_ids", 0.0).await;
        // It seals its windows, and then its heartbeat says so.
        server.wait_for_log("sealing and sending heartbeats again").await;
    }
    redis.restart();

    let last = next_window(Duration::ZERO).await;
    let published = hll.wait_published(last).await;
    assert_right(&published, &truth);
    for (start, sent) in &truth {
        assert_same_registers(&sketch_in(&redis, "again", *start), sent);
    }
    let published = exact.wait_published(last).await;
    assert_no_gap(&published);
    for (start, sent) in &exact_truth {
        let different = sent.iter().collect::<BTreeSet<_>>().len() as u64;
        let (_, closed) = &published[start][0];
        assert!(closed.unique < different && !closed.complete, "{start}: {closed:?} of {different}");
        assert_eq!(closed.accepted, sent.len() as u64, "{start}");
    }
}

/// An instance releases the memory of pending ids once Redis has them.
#[tokio::test(flavor = "multi_thread")]
async fn memory_is_released_after_an_outage() {
    const IDS: u64 = 100_000;
    let redis = Redis::start();
    let proxy = Proxy::start(redis.address()).await;
    let url = proxy.url();
    let server = Server::start(&["--mode", "exact", "--window", "2s", "--redis-url", &url]).await;
    let mut connection = Connection::open(server.address).await.unwrap();
    let mut resident = Vec::new();
    for outage in 0..20 {
        proxy.set(Fault::Refuse);
        let body = lines(outage * IDS..(outage + 1) * IDS);
        assert_eq!(connection.post("text/plain", body.as_bytes()).await.unwrap().body, "ok");
        let kept = server.metric("headcount_unacknowledged_ids").await;
        assert!(kept > IDS as f64 * 0.9, "{kept}");
        proxy.set(Fault::None);
        server.wait_for_metric("headcount_unacknowledged_ids", 0.0).await;
        resident.push(server.process.resident() >> 20);
    }
    println!("resident after each outage, in MB: {resident:?}");
    // A leak of one outage's ids would be at least 2.5 MB, so 37 MB for the last fifteen.
    let (early, late) = (resident[4], resident[19]);
    assert!(late < early + 20, "memory grows: {resident:?}");
}

/// Each thread has its own connection to Redis. An idle thread does not notice that its connection is dead. All dead
/// connections must be replaced at once, not one after another.
#[tokio::test(flavor = "multi_thread")]
async fn all_threads_reconnect_at_once() {
    const THREADS: u64 = 64;
    let mut redis = Redis::start();
    let url = redis.url();
    let server =
        Server::start(&["--window", "24h", "--redis-url", &url, "--threads", &THREADS.to_string()]).await;
    let mut connections = Vec::new();
    for id in 0..THREADS {
        let mut connection = Connection::open(server.address).await.unwrap();
        assert_eq!(connection.get(&format!("/api/verve/accept?id={id}")).await.unwrap().body, "ok");
        connections.push(connection);
    }
    redis.kill();
    let lone = connections[0].get("/api/verve/accept?id=1000").await.unwrap();
    assert_eq!(lone.body, "ok");
    server.wait_for_metric("headcount_degraded", 1.0).await;
    redis.restart();
    server.wait_for_metric("headcount_degraded", 0.0).await;
    for (id, connection) in (2_000..).zip(&mut connections) {
        assert_eq!(connection.get(&format!("/api/verve/accept?id={id}")).await.unwrap().body, "ok");
    }
    assert_eq!(server.metric("headcount_degraded").await, 0.0);
    let unique = server.get("/api/verve/unique").await.json()["current"]["unique_request_count"].as_u64();
    assert!(unique.unwrap().abs_diff(2 * THREADS + 1) <= 2, "{unique:?}");
}
