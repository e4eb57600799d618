//! Counting over Sentinel: the primary is lost, hangs, or lacks writes, and another server takes over.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use headcount::model::mode::Mode;
use redis::cmd;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::support::counter_load::{Traffic, Truth};
use crate::support::fleet::{
    Fleet, assert_complete, assert_no_gap, assert_once_each, next_window, sketch_of,
};
use crate::support::load::{Burst, paced_burst};
use crate::support::sentinel::{Member, Watched};
use crate::support::server::Server;
use crate::support::{soak, wait_until};

/// What was accepted in each window.
type Windows = BTreeMap<u64, Truth>;

fn traffic(fleet: &Fleet, first: u64) -> Traffic {
    Traffic { addresses: fleet.addresses(), connections: 9, pause: Duration::from_millis(20), first }
}

/// Load in the middle of every window until it is stopped. It fails if an answer is not `ok`.
struct Load {
    stop: CancellationToken,
    task: JoinHandle<Windows>,
}

impl Load {
    fn start(fleet: &Fleet, first: u64) -> Self {
        let stop = CancellationToken::new();
        let task = tokio::spawn(traffic(fleet, first).send_until(stop.clone()));
        Self { stop, task }
    }

    async fn stop(self) -> Windows {
        self.stop.cancel();
        self.task.await.expect("all is answered ok")
    }
}

/// Waits for the last of these windows, and asserts that each has exactly these ids. All windows are there once, and complete.
async fn assert_right(fleet: &Fleet, truth: &Windows) {
    let (last, _) = truth.last_key_value().expect("windows");
    let published = fleet.wait_published(*last).await;
    assert_once_each(&published);
    assert_complete(&published);
    for (start, truth) in truth {
        let (_, closed) = &published[start][0];
        assert_eq!((closed.unique, closed.accepted), (truth.count(Mode::Hll), truth.accepted), "{start}");
    }
}

/// The primary is killed under load, and its replica takes over. The old primary comes back as the replica of the new one. And
/// again.
#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_is_killed_again_and_again_costs_nothing() {
    let mut watched = Watched::start();
    let fleet = Fleet::behind(&watched.url(), 3, "killed", &[]).await;
    let load = Load::start(&fleet, 0);
    let kills = if soak() { 10 } else { 3 };
    for kill in 0..kills {
        let old = watched.primary();
        // The replica has the last closed window by now.
        let start = next_window(Duration::from_secs(1)).await;
        watched.nodes[old].kill();
        watched.wait_promoted(1 - old).await;
        watched.nodes[old].restart();
        watched.wait_well().await;
        fleet.wait_until_replayed().await;
        fleet.wait_published(start).await;
        println!("{kill}: published again");
    }
    let truth = load.stop().await;
    assert_right(&fleet, &truth).await;
}

/// How many writes a replica has refused.
fn refused_writes(replica: &Member) -> u64 {
    let errors = replica.info("errorstats").expect("an answer");
    let count = errors.get::<String>("errorstat_READONLY");
    count.map_or(0, |count| count.strip_prefix("count=").unwrap().parse().unwrap())
}

/// The primary hangs, is replaced, and continues. It is a primary until the Sentinels make it a replica.
#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_hung_is_not_written_to_when_it_is_a_replica() {
    let mut watched = Watched::start();
    let fleet = Fleet::behind(&watched.url(), 3, "hung", &[]).await;
    let load = Load::start(&fleet, 0);
    next_window(Duration::ZERO).await;
    next_window(Duration::from_secs(1)).await;
    watched.nodes[0].stop();
    watched.wait_promoted(1).await;
    fleet.wait_until_replayed().await;
    watched.nodes[0].go_on();
    watched.wait_well().await;
    let (replica, before) = (&watched.nodes[0], refused_writes(&watched.nodes[0]));
    for _ in 0..4 {
        next_window(Duration::from_millis(1_500)).await;
        let clients: String =
            cmd("CLIENT").arg("LIST").arg("TYPE").arg("normal").query(&mut replica.connect()).unwrap();
        assert!(!clients.contains("cmd=pfadd"), "{clients}");
    }
    // Commands that come from its primary are not refused.
    assert_eq!(refused_writes(replica), before);
    cmd("PFADD").arg(&["probe", "1"]).exec(&mut replica.connect()).unwrap_err();
    assert_eq!(refused_writes(replica), before + 1, "it would have been seen");
    let truth = load.stop().await;
    assert_right(&fleet, &truth).await;
}

/// Waits until the running window has so many ids. While Redis is away, or late, there is no count.
async fn wait_unique(server: &Server, ids: u64) {
    wait_until("the count of all ids", async || {
        let answer = server.get("/api/verve/unique").await;
        answer.status == 200 && answer.json()["current"]["unique_request_count"] == ids
    })
    .await;
}

/// The first Sentinel of the URL hangs, and the second one is dead.
#[tokio::test(flavor = "multi_thread")]
async fn one_sentinel_of_three_is_enough_to_start() {
    let mut watched = Watched::start();
    watched.sentinels[0].stop();
    watched.sentinels[1].kill();
    let server = Server::start(&["--window", "24h", "--redis-url", &watched.url()]).await;
    for id in 0..3 {
        assert_eq!(server.get(&format!("/api/verve/accept?id={id}")).await.body, "ok");
    }
    server.wait_for_metric("headcount_degraded", 0.0).await;
    wait_unique(&server, 3).await;

    watched.sentinels[0].go_on();
    watched.sentinels[1].restart();
    watched.wait_well().await;
    watched.nodes[0].kill();
    watched.wait_promoted(1).await;
    assert_eq!(server.get("/api/verve/accept?id=3").await.body, "ok");
    server.wait_until_replayed().await;
    // A server streams to its replica only a second after the first synchronisation. So the new primary may lack all but the last.
    wait_unique(&server, 4).await;
}

fn at(start: u64, millis: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(start) + Duration::from_millis(millis)
}

async fn burst(fleet: &Fleet, ids: std::ops::Range<u64>, until: SystemTime) -> Burst {
    paced_burst(&fleet.addresses(), 12, ids, until, Duration::from_millis(5)).await
}

fn different(bursts: &[&Burst]) -> BTreeSet<u64> {
    bursts.iter().flat_map(|burst| burst.sent.iter().copied()).collect()
}

/// The primary acknowledges ids that its replica never gets, and dies. In mode `hll` no id is lost. In mode `exact` the count says
/// that it is not complete.
#[tokio::test(flavor = "multi_thread")]
async fn ids_that_the_replica_never_got() {
    let mut watched = Watched::start();
    let hll = Fleet::behind(&watched.url(), 3, "lacks", &[]).await;
    let exact = Fleet::behind(&watched.url(), 3, "lacks-exact", &["--mode", "exact"]).await;
    for fleet in [&hll, &exact] {
        fleet.wait_published(next_window(Duration::ZERO).await).await;
    }
    let start = next_window(Duration::from_millis(50)).await;
    watched.stop_replication();
    let until = at(start, 500);
    let lost = tokio::join!(burst(&hll, 0..300, until), burst(&exact, 0..300, until));
    // The primary acknowledges all of them.
    exact.wait_until_replayed().await;
    watched.nodes[0].kill();
    let until = at(start, 900);
    let kept = tokio::join!(burst(&hll, 300..600, until), burst(&exact, 300..600, until));
    assert!(kept.0.ended.max(kept.1.ended) < at(start, 2_000), "too slow to say what is in which window");
    watched.wait_promoted(1).await;
    for fleet in [&hll, &exact] {
        fleet.wait_until_replayed().await;
    }
    let back = next_window(Duration::ZERO).await;

    let published = hll.wait_published(back + 4).await;
    assert_no_gap(&published);
    assert_complete(&published);
    let (_, closed) = &published[&start][0];
    let ids = different(&[&lost.0, &kept.0]);
    assert_eq!((closed.unique, closed.accepted), (sketch_of(&ids).estimate(), accepted(&[&lost.0, &kept.0])));

    let published = exact.wait_published(back + 4).await;
    assert_no_gap(&published);
    let (_, closed) = &published[&start][0];
    let (all, kept_ids) = (different(&[&lost.1, &kept.1]).len() as u64, different(&[&kept.1]).len() as u64);
    assert!((kept_ids..all).contains(&closed.unique), "{closed:?}: {kept_ids} of {all}");
    assert_eq!(closed.accepted, accepted(&[&lost.1, &kept.1]));
    assert!(!closed.complete, "{closed:?}");
    let (_, later) = &published[&(back + 4)][0];
    assert!(later.complete, "later windows are complete again: {published:#?}");
}

/// The new primary gets them while the window is still open, not only when it is sealed.
#[tokio::test(flavor = "multi_thread")]
async fn the_new_primary_is_given_what_it_lacks_at_once() {
    let mut watched = Watched::start();
    let server = Server::start(&["--window", "24h", "--redis-url", &watched.url()]).await;
    watched.stop_replication();
    for id in 0..50_u64 {
        assert_eq!(server.get(&format!("/api/verve/accept?id={id}")).await.body, "ok");
    }
    server.wait_for_metric("headcount_unacknowledged_ids", 0.0).await;
    watched.nodes[0].kill();
    watched.wait_promoted(1).await;
    let expected = sketch_of(0..50_u64).estimate();
    wait_until("the new primary to have all ids", async || {
        let answer = server.get("/api/verve/unique").await;
        answer.status == 200 && answer.json()["current"]["unique_request_count"] == expected
    })
    .await;
}

fn accepted(bursts: &[&Burst]) -> u64 {
    bursts.iter().map(|burst| burst.sent.len() as u64).sum()
}

/// Without a Sentinel an instance makes no new connection to the primary. It keeps ids until one is back.
#[tokio::test(flavor = "multi_thread")]
async fn ids_are_kept_while_all_sentinels_are_away() {
    let mut watched = Watched::start();
    let server = Server::start(&["--window", "24h", "--redis-url", &watched.url()]).await;
    for sentinel in &mut watched.sentinels {
        sentinel.kill();
    }
    let mut kill = cmd("CLIENT");
    kill.arg(&["KILL", "TYPE", "normal", "SKIPME", "yes"]).exec(&mut watched.nodes[0].connect()).unwrap();
    for id in 0..20 {
        assert_eq!(server.get(&format!("/api/verve/accept?id={id}")).await.body, "ok");
    }
    server.wait_for_metric("headcount_degraded", 1.0).await;
    watched.sentinels[2].restart();
    server.wait_until_replayed().await;
    wait_unique(&server, 20).await;
}
