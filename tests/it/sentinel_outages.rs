//! Counting over Sentinel: the primary is lost, hangs, or lacks writes, and another server takes over.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use headcount::model::mode::Mode;
use redis::cmd;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::support::counter_files::wait_by_window;
use crate::support::counter_load::{Traffic, Truth};
use crate::support::fleet::{
    Fleet, assert_complete, assert_no_gap, assert_once_each, next_window, sketch_of, window,
};
use crate::support::load::{Burst, paced_burst};
use crate::support::process::{headcount, output_of, run};
use crate::support::server::{Closed, Server};
use crate::support::watched::{MASTER, Member, Watched};
use crate::support::{soak, wait_until};

/// What was accepted in each window.
type Windows = BTreeMap<u64, Truth>;
type Published = BTreeMap<u64, Vec<(usize, Closed)>>;

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

/// Waits until no instance is degraded and no id is pending.
async fn wait_until_well(fleet: &Fleet) {
    for server in &fleet.servers {
        server.wait_for_metric("headcount_degraded", 0.0).await;
        server.wait_for_metric("headcount_unacknowledged_ids", 0.0).await;
    }
}

/// Waits for the last of these windows, and asserts that each has exactly these ids. All windows are there once, and complete.
async fn assert_right(fleet: &Fleet, mode: Mode, truth: &Windows) -> Published {
    let (last, _) = truth.last_key_value().expect("windows");
    let published = fleet.wait_published(*last).await;
    assert_once_each(&published);
    assert_complete(&published);
    for (start, truth) in truth {
        let (_, closed) = &published[start][0];
        assert_eq!((closed.unique, closed.accepted), (truth.count(mode), truth.accepted), "{start}");
    }
    published
}

async fn three_instances(mode: Mode) {
    let (watched, files) = (Watched::start(), tempfile::tempdir().unwrap());
    let args = ["--mode", mode.as_str(), "--log-dir", files.path().to_str().unwrap()];
    let fleet = Fleet::behind(&watched.url(), 3, "three", &args).await;
    let truth = traffic(&fleet, 0).send_by_window(4).await;
    let published = assert_right(&fleet, mode, &truth).await;

    let (last, _) = truth.last_key_value().unwrap();
    let counters = wait_by_window(files.path(), &window(*last).to_string()).await;
    for (start, truth) in &truth {
        let complete = published[start][0].1.complete;
        let expected = truth.counts(mode).into_iter().map(|(name, count)| (name, (count, complete)));
        assert_eq!(counters[&window(*start).to_string()], expected.collect::<BTreeMap<_, _>>(), "{start}");
    }

    // In a window that is missing here, some ids may belong to the next one.
    let pairs = truth.iter().zip(truth.iter().skip(1)).filter(|((one, _), (next, _))| **one + 2 == **next);
    let mut ranges = 0;
    for ((from, one), (next, other)) in pairs {
        let target = format!("/api/verve/unique?from={from}&to={}", next + 2);
        let answer = fleet.servers[1].get(&target).await;
        match mode {
            Mode::Hll => {
                let ids: BTreeSet<_> = one.ids.union(&other.ids).collect();
                let expected = sketch_of(ids).estimate();
                assert_eq!(answer.json()["unique_request_count"], expected, "{answer:?}");
            }
            Mode::Exact => assert_eq!(answer.header("failure-reason"), Some("not_available"), "{answer:?}"),
        }
        ranges += 1;
    }
    assert!(ranges > 0, "this machine is too slow to say what is in two windows that follow each other");
}

#[tokio::test(flavor = "multi_thread")]
async fn three_instances_over_sentinel_publish_the_sketches_of_all() {
    three_instances(Mode::Hll).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_instances_over_sentinel_count_exactly() {
    three_instances(Mode::Exact).await;
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
        let old = watched.primary().expect("a primary");
        // The replica has the last closed window by now.
        let start = next_window(Duration::from_secs(1)).await;
        watched.nodes[old].kill();
        watched.wait_for_fail_over_from(old);
        let primary = watched.nodes[1 - old].address;
        watched.nodes[old].restart_as_replica_of(primary);
        watched.wait_until_ready();
        wait_until_well(&fleet).await;
        fleet.wait_published(start).await;
        println!("{kill}: published again");
    }
    let truth = load.stop().await;
    assert_right(&fleet, Mode::Hll, &truth).await;
}

/// How many writes a replica has refused.
fn refused_writes(replica: &Member) -> u64 {
    let errors = replica.info("errorstats");
    let count = errors.lines().find_map(|line| line.strip_prefix("errorstat_READONLY:count="));
    count.map_or(0, |count| count.parse().unwrap())
}

/// The primary hangs, is replaced, and continues. It is a primary until the Sentinels make it a replica.
#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_hung_is_not_written_to_when_it_is_a_replica() {
    let watched = Watched::start();
    let fleet = Fleet::behind(&watched.url(), 3, "hung", &[]).await;
    let load = Load::start(&fleet, 0);
    next_window(Duration::ZERO).await;
    next_window(Duration::from_secs(1)).await;
    watched.nodes[0].signal("STOP");
    watched.wait_for_fail_over_from(0);
    wait_until_well(&fleet).await;
    watched.nodes[0].signal("CONT");
    watched.wait_until_ready();
    let (replica, before) = (&watched.nodes[0], refused_writes(&watched.nodes[0]));
    assert!(replica.info("replication").contains("role:slave"));
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
    assert_right(&fleet, Mode::Hll, &truth).await;
}

async fn unique_so_far(server: &Server) -> serde_json::Value {
    server.get("/api/verve/unique").await.json()["current"]["unique_request_count"].clone()
}

/// The first Sentinel of the URL hangs, and the second one is dead.
#[tokio::test(flavor = "multi_thread")]
async fn one_sentinel_of_three_is_enough_to_start() {
    let mut watched = Watched::start();
    watched.sentinels[0].signal("STOP");
    watched.sentinels[1].kill();
    let server = Server::start(&["--window", "24h", "--redis-url", &watched.url()]).await;
    for id in 0..3 {
        assert_eq!(server.get(&format!("/api/verve/accept?id={id}")).await.body, "ok");
    }
    assert_eq!(server.metric("headcount_degraded").await, 0.0);
    assert_eq!(unique_so_far(&server).await, 3);

    watched.sentinels[0].signal("CONT");
    watched.sentinels[1].restart();
    watched.wait_until_ready();
    watched.nodes[0].kill();
    watched.wait_for_fail_over_from(0);
    assert_eq!(server.get("/api/verve/accept?id=3").await.body, "ok");
    server.wait_for_metric("headcount_unacknowledged_ids", 0.0).await;
    server.wait_for_metric("headcount_degraded", 0.0).await;
    assert_eq!(unique_so_far(&server).await, 4);
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
    let until = at(start, 800);
    let lost = tokio::join!(burst(&hll, 0..300, until), burst(&exact, 0..300, until));
    // The primary acknowledges all of them.
    wait_until_well(&exact).await;
    watched.nodes[0].kill();
    let until = at(start, 1_300);
    let kept = tokio::join!(burst(&hll, 300..600, until), burst(&exact, 300..600, until));
    assert!(kept.0.ended.max(kept.1.ended) < at(start, 2_000), "too slow to say what is in which window");
    watched.wait_for_fail_over_from(0);
    for fleet in [&hll, &exact] {
        wait_until_well(fleet).await;
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
    assert_eq!(server.metric("headcount_unacknowledged_ids").await, 0.0);
    watched.nodes[0].kill();
    watched.wait_for_fail_over_from(0);
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

/// TLS with another authority than the system's. The servers and the Sentinels need a user and a password.
#[tokio::test(flavor = "multi_thread")]
async fn sentinels_with_tls_and_passwords() {
    let mut watched = Watched::start_secured();
    let dir = tempfile::tempdir().unwrap();
    let in_file = |name: &str, text: &str| {
        std::fs::write(dir.path().join(name), format!("{text}\n")).unwrap();
        format!("file:{}", dir.path().join(name).display())
    };
    let url = in_file("url", &watched.url());
    let with_authority = |args: &[&str]| {
        let mut command = headcount();
        command.env("SSL_CERT_FILE", watched.ca_file()).args(args);
        command
    };
    let checked = output_of(&mut with_authority(&["check", "--redis-url", &url]));
    assert!(checked.status.success(), "{checked:?}");
    let args = ["--listen", "127.0.0.1:0", "--window", "24h", "--redis-url", &url];
    let mut server = Server::run(with_authority(&args)).await;
    assert_eq!(server.get("/api/verve/accept?id=1").await.body, "ok");

    // Without the authority, and with a wrong password on either.
    let (right, check) = (watched.url(), ["check", "--redis-wait", "1s", "--redis-url"]);
    let of_nodes = in_file("nodes", &right.replace("pw-of-the-nodes", "wr0ng"));
    let of_sentinels = in_file("sentinels", &right.replace("pw-of-the-sentinels", "wr0ng"));
    let mut unknown = headcount();
    unknown
        .args(check)
        .arg(&url)
        .env("SSL_CERT_DIR", dir.path())
        .env("SSL_CERT_FILE", dir.path().join("none"));
    let wrong = [of_nodes, of_sentinels].map(|url| with_authority(&[&check[..], &[&url]].concat()));
    for mut command in wrong.into_iter().chain([unknown]) {
        let output = output_of(&mut command);
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(
            said.contains("FAIL reachable") && !said.contains("wr0ng") && !said.contains("pw-of"),
            "{said}"
        );
    }

    watched.nodes[0].kill();
    watched.wait_for_fail_over_from(0);
    assert_eq!(server.get("/api/verve/accept?id=2").await.body, "ok");
    server.wait_for_metric("headcount_unacknowledged_ids", 0.0).await;
    server.wait_for_metric("headcount_degraded", 0.0).await;
    assert_eq!(unique_so_far(&server).await, 2);
    assert!(server.stop().await.success());
    let log = server.log();
    assert!(log.iter().all(|line| !line.to_string().contains("pw-of")), "{log:?}");
}

/// Each wrong address is answered by one line that says what to do, at the check and at the start.
#[tokio::test(flavor = "multi_thread")]
async fn wrong_addresses_are_answered_with_the_right_one() {
    let watched = Watched::start();
    let [primary, replica] = watched.nodes.each_ref().map(|node| node.address);
    let sentinel = watched.sentinels[2].address;
    let wrong = [
        (
            watched.url().replace(MASTER, "another"),
            format!("the Sentinels watch no master 'another', but: {MASTER}"),
        ),
        (
            format!("redis-sentinel://{primary}/0?master={MASTER}"),
            format!("{primary} is no Sentinel: use --redis-url redis://{primary}"),
        ),
        (format!("redis://{replica}"), format!("its primary, --redis-url redis://{primary}")),
        (
            format!("redis://{sentinel}"),
            format!(
                "a Sentinel, which has no keys: use --redis-url redis-sentinel://{sentinel}?master={MASTER}"
            ),
        ),
    ];
    for (url, expected) in wrong {
        let more = ["--redis-wait", "1s", "--redis-url", &url];
        let checked = run(&[&["check"], &more[..]].concat());
        let said = String::from_utf8(checked.stdout).unwrap();
        let failed: Vec<_> = said.lines().filter(|line| line.contains(&expected)).collect();
        assert!(failed.len() == 1 && failed[0].starts_with("FAIL reachable"), "{url}: {said}");
        let started = run(&[&["--listen", "127.0.0.1:0"], &more[..]].concat());
        let error = String::from_utf8(started.stderr).unwrap();
        assert!(error.lines().count() == 1 && error.contains(&expected), "{url}: {error}");
        assert_eq!((checked.status.code(), started.status.code()), (Some(1), Some(1)), "{url}");
    }
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
    server.wait_for_metric("headcount_degraded", 0.0).await;
    server.wait_for_metric("headcount_unacknowledged_ids", 0.0).await;
    assert_eq!(unique_so_far(&server).await, 20);
}
