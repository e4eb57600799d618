//! Fail-overs: Sentinels promote the replica, under load and again and again.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use headcount::model::mode::Mode;
use headcount::model::shard::Shards;
use headcount::redis::keys::Keys;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::support::counter_files::wait_by_window;
use crate::support::counter_load::{Traffic, Truth};
use crate::support::fleet::{
    Fleet, WINDOW, assert_complete, assert_no_gap, assert_once_each, assert_same_registers, next_window,
    seconds, window,
};
use crate::support::load::{Burst, paced_burst};
use crate::support::sentinel::Watched;
use crate::support::server::Closed;
use crate::support::{PATIENCE, SplitMix, soak, wait_until};

/// What was accepted in each window.
type Windows = BTreeMap<u64, Truth>;

/// The instances of both modes, and load on all of them.
struct Site {
    watched: Watched,
    hll: Fleet,
    exact: Fleet,
    /// Windows of which a primary may have acknowledged ids that no replica had got when it was lost.
    in_doubt: BTreeSet<u64>,
}

impl Site {
    /// Waits until no instance is degraded and no id is pending.
    async fn wait_until_well(&self) {
        for server in self.hll.servers.iter().chain(&self.exact.servers) {
            server.wait_for_metric("headcount_degraded", 0.0).await;
            server.wait_for_metric("headcount_unacknowledged_ids", 0.0).await;
        }
    }

    /// Waits until both publish windows that end after now.
    async fn wait_published(&self) {
        let start = next_window(Duration::ZERO).await;
        for fleet in [&self.hll, &self.exact] {
            fleet.wait_published(start).await;
        }
    }

    /// The primary is about to be lost: the running window is in doubt, and the one before it, if it is not counted yet.
    fn doubt(&mut self) {
        let running = seconds(SystemTime::now()) / WINDOW.as_secs() * WINDOW.as_secs();
        self.in_doubt.extend([running - WINDOW.as_secs(), running]);
    }
}

/// Load over 24 connections until it is stopped, in the middle of every window.
fn load(fleet: &Fleet, first: u64, stop: &CancellationToken) -> JoinHandle<Windows> {
    let pause = Duration::from_millis(20);
    let traffic = Traffic { addresses: fleet.addresses(), connections: 24, pause, first };
    tokio::spawn(traffic.send_until(stop.clone()))
}

/// Both modes over Sentinel, with load all the time, while `what_happens`. Every answer is `ok`: the load stops at another one.
async fn under_load(what_happens: impl AsyncFnOnce(&mut Site)) {
    let watched = Watched::start();
    let files = [Mode::Hll, Mode::Exact].map(|mode| (mode, tempfile::tempdir().unwrap()));
    let [hll_dir, exact_dir] = files.each_ref().map(|(_, files)| files.path().to_str().unwrap());
    let hll = Fleet::behind(&watched.url(), 3, "hll", &["--log-dir", hll_dir]).await;
    let exact_args = ["--mode", "exact", "--log-dir", exact_dir];
    let exact = Fleet::behind(&watched.url(), 3, "exact", &exact_args).await;
    let stop = CancellationToken::new();
    let (to_hll, to_exact) = (load(&hll, 0, &stop), load(&exact, 1 << 40, &stop));
    let mut site = Site { watched, hll, exact, in_doubt: BTreeSet::new() };
    site.wait_published().await;
    what_happens(&mut site).await;
    site.wait_until_well().await;
    stop.cancel();
    let hll_truth = to_hll.await.expect("all is answered ok");
    let exact_truth = to_exact.await.expect("all is answered ok");

    assert_hll_is_right(&site, &hll_truth).await;
    assert_exact_is_right(&site, &exact_truth).await;
    let [(_, hll_files), (_, exact_files)] = &files;
    assert_counters_are_right(hll_files.path(), Mode::Hll, &hll_truth, &BTreeSet::new()).await;
    assert_counters_are_right(exact_files.path(), Mode::Exact, &exact_truth, &site.in_doubt).await;
    let ids: u64 = hll_truth.values().chain(exact_truth.values()).map(|truth| truth.accepted).sum();
    println!("{ids} ids in {} windows", hll_truth.len() + exact_truth.len());
}

/// The windows of these instances, each published once.
async fn published_once(fleet: &Fleet, truth: &Windows) -> BTreeMap<u64, Closed> {
    let (last, _) = truth.last_key_value().expect("windows");
    let published = fleet.wait_published(*last).await;
    // They are shown if a later assertion fails.
    for (index, server) in fleet.servers.iter().enumerate() {
        for line in server.log().iter().filter(|line| line["level"] != "DEBUG") {
            println!("{index}: {line}");
        }
    }
    assert_once_each(&published);
    published.into_iter().map(|(start, mut closed)| (start, closed.remove(0).1)).collect()
}

/// Nothing is lost: each window has all registers of its ids.
async fn assert_hll_is_right(site: &Site, truth: &Windows) {
    let published = published_once(&site.hll, truth).await;
    for (start, truth) in truth {
        let closed = &published[start];
        assert_eq!((closed.unique, closed.accepted), (truth.count(Mode::Hll), truth.accepted), "{start}");
        assert_same_registers(&sketch_in(&site.watched, "hll", *start), &truth.ids);
    }
    // The first one began before the instances.
    let incomplete: Vec<_> = published.values().skip(1).filter(|closed| !closed.complete).collect();
    assert!(incomplete.is_empty(), "{incomplete:?}");
}

/// A window that says `complete` has all ids. Others are in doubt, and have no id too many.
async fn assert_exact_is_right(site: &Site, truth: &Windows) {
    let published = published_once(&site.exact, truth).await;
    for (start, truth) in truth {
        let (closed, count) = (&published[start], truth.count(Mode::Exact));
        assert_eq!(closed.accepted, truth.accepted, "{start}");
        assert!(
            closed.unique <= count && (closed.unique == count || !closed.complete),
            "{closed:?} of {count}"
        );
    }
    let is_certain = |start: &u64| !site.in_doubt.contains(start);
    let certain = published.iter().skip(1).filter(|(start, _)| is_certain(start));
    let incomplete: Vec<_> = certain.filter(|(_, closed)| !closed.complete).collect();
    assert!(incomplete.is_empty(), "{incomplete:?}, and {:?} in doubt", site.in_doubt);
}

/// The files of counters have each window.
async fn assert_counters_are_right(files: &Path, mode: Mode, truth: &Windows, in_doubt: &BTreeSet<u64>) {
    let (last, _) = truth.last_key_value().expect("windows");
    let counters = wait_by_window(files, &window(*last).to_string()).await;
    for (start, truth) in truth.iter().skip(1) {
        let found = &counters[&window(*start).to_string()];
        for (name, count) in truth.counts(mode) {
            let (unique, complete) = found.get(&name).copied().unwrap_or((0, in_doubt.contains(start)));
            let may_lack = in_doubt.contains(start) && unique < count && (!complete || unique == 0);
            assert!(unique == count || may_lack, "{start}: {name}: {unique} ({complete}) of {count}");
            assert!(complete || in_doubt.contains(start), "{start}: {name}");
        }
        assert!(found.len() <= truth.counters.len(), "{start}: other counters than those that were sent");
    }
}

/// The sketch that the primary has of a window.
fn sketch_in(watched: &Watched, namespace: &str, start: u64) -> Vec<u8> {
    let key = Keys::new(namespace).ids(Mode::Hll, 0, Shards::ONE, window(start));
    redis::cmd("GET").arg(key).query(&mut watched.connect()).expect("an answer")
}

/// How often a primary is lost: ten times with `HEADCOUNT_SOAK=1`, otherwise three times, because each takes ten seconds.
fn rounds() -> u64 {
    if soak() { 10 } else { 3 }
}

/// The primary is killed, its replica promoted, and the killed one comes back as a replica. Each at another moment of a window.
#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_is_killed_again_and_again_costs_nothing() {
    under_load(async |site| {
        let mut random = SplitMix(23);
        for round in 0..rounds() {
            let into = random.next().expect("it never ends") % 2_000;
            next_window(Duration::from_millis(into)).await;
            let primary = site.watched.primary();
            site.doubt();
            site.watched.nodes[primary].kill();
            site.watched.wait_promoted(1 - primary).await;
            site.wait_until_well().await;
            site.watched.nodes[primary].restart();
            site.watched.wait_well().await;
            site.wait_published().await;
            println!("round {round}: killed {into} ms into a window, published again");
        }
    })
    .await;
}

/// Sentinels promote the replica though the primary is well. The old one takes writes until they have told it.
#[tokio::test(flavor = "multi_thread")]
async fn a_fail_over_on_request_costs_nothing() {
    under_load(async |site| {
        for round in 0..rounds() {
            next_window(Duration::from_millis(300 * (round % 6))).await;
            let primary = site.watched.primary();
            site.doubt();
            site.watched.fail_over();
            site.watched.wait_promoted(1 - primary).await;
            site.doubt();
            site.watched.wait_well().await;
            site.wait_until_well().await;
            site.wait_published().await;
            println!("round {round}: published again");
        }
    })
    .await;
}

/// What a server was told to do, as `MONITOR` shows it.
struct Monitor(BufReader<TcpStream>);

impl Monitor {
    fn start(watched: &Watched, node: usize) -> Self {
        let mut stream = TcpStream::connect(watched.nodes[node].address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(b"MONITOR\r\n").unwrap();
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        assert_eq!(line, "+OK\r\n");
        Self(reader)
    }

    /// The commands from one with this word on, until the server becomes a replica.
    fn commands_after(self, word: &str) -> Vec<String> {
        let lines: Vec<_> = self.0.lines().map_while(Result::ok).collect();
        let from = lines.iter().position(|line| line.contains(word)).expect("the word");
        lines[from..].to_vec()
    }
}

/// The primary hangs for longer than Sentinels wait, and goes on when its replica was promoted. It believes to be the primary
/// until Sentinels tell it otherwise. Nobody writes to it any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_hangs_and_comes_back_is_never_written_to() {
    under_load(async |site| {
        for round in 0..rounds() {
            next_window(Duration::from_millis(500 + 300 * (round % 3))).await;
            let primary = site.watched.primary();
            let monitor = Monitor::start(&site.watched, primary);
            site.doubt();
            site.watched.nodes[primary].stop();
            site.watched.wait_promoted(1 - primary).await;
            site.wait_until_well().await;
            // It now executes what it got before it was stopped, then this, then what it gets from here on.
            let mut marker = TcpStream::connect(site.watched.nodes[primary].address).unwrap();
            marker.write_all(b"ECHO from-here-on\r\n").unwrap();
            site.watched.nodes[primary].go_on();
            site.watched.wait_well().await;
            let commands = monitor.commands_after("from-here-on");
            let told =
                commands.iter().any(|line| line.contains("\"REPLICAOF\"") || line.contains("\"SLAVEOF\""));
            assert!(told, "{commands:#?}");
            let writes = ["PFADD", "SADD", "EVAL", "HSET", "HINCRBY", "PFMERGE", "PEXPIRE", "\"SET\""];
            let is_write = |line: &&String| {
                let line = line.to_ascii_uppercase();
                writes.iter().any(|write| line.contains(write))
            };
            let writes: Vec<_> = commands.iter().filter(is_write).collect();
            assert!(writes.is_empty(), "{writes:#?}");

            let replica = &site.watched.nodes[primary];
            wait_until("all instances to leave the replica", async || replica.clients().is_empty()).await;
            let errors = replica.errors();
            site.wait_published().await;
            assert_eq!((replica.clients(), replica.errors()), (Vec::new(), errors), "nobody talks to it");
            println!("round {round}: published again");
        }
    })
    .await;
}

/// No fail-over is possible then, but the primary is well. The first Sentinel of the URL hangs, and the second one is dead.
#[tokio::test(flavor = "multi_thread")]
async fn one_sentinel_of_three_is_enough_to_count() {
    let mut watched = Watched::start();
    watched.sentinels[0].stop();
    watched.sentinels[1].kill();
    let fleet = Fleet::behind(&watched.url(), 2, "lonely", &["--mode", "exact"]).await;
    let stop = CancellationToken::new();
    let sending = load(&fleet, 0, &stop);
    fleet.wait_published(next_window(Duration::ZERO).await).await;
    // Connections that are made again find the primary, too.
    let kill = ["KILL", "TYPE", "normal", "SKIPME", "yes"];
    redis::cmd("CLIENT").arg(&kill).exec(&mut watched.connect()).unwrap();
    for server in &fleet.servers {
        wait_until("another connection", async || server.metric("headcount_degraded").await == 0.0).await;
    }
    fleet.wait_published(next_window(Duration::ZERO).await).await;
    stop.cancel();
    let truth = sending.await.expect("all is answered ok");
    let published = published_once(&fleet, &truth).await;
    for (start, truth) in &truth {
        let closed = &published[start];
        assert_eq!((closed.unique, closed.accepted), (truth.count(Mode::Exact), truth.accepted), "{start}");
    }
    assert!(published.values().skip(1).all(|closed| closed.complete), "{published:?}");

    watched.sentinels[0].go_on();
    watched.sentinels[1].restart();
    watched.wait_well().await;
    watched.fail_over();
    watched.wait_promoted(1).await;
    for server in &fleet.servers {
        server.wait_for_metric("headcount_degraded", 0.0).await;
    }
    fleet.wait_published(next_window(Duration::ZERO).await).await;
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

/// The replica that is promoted lacks ids that the primary had acknowledged. Mode `hll` adds them again. Mode `exact` has lost
/// them, and says so.
#[tokio::test(flavor = "multi_thread")]
async fn ids_that_were_never_replicated_are_lost_in_mode_exact_only() {
    let mut watched = Watched::start();
    let hll = Fleet::behind(&watched.url(), 2, "hll", &[]).await;
    let exact = Fleet::behind(&watched.url(), 2, "exact", &["--mode", "exact"]).await;
    for fleet in [&hll, &exact] {
        fleet.wait_published(next_window(Duration::ZERO).await).await;
    }
    let start = next_window(Duration::from_millis(50)).await;
    let shared = tokio::join!(burst(&hll, 0..300, at(start, 400)), burst(&exact, 0..300, at(start, 400)));
    let offset = |node: usize, name: &str| watched.nodes[node].info("replication").unwrap().get::<u64>(name);
    let written = offset(0, "master_repl_offset");
    wait_until("the replica to have that", async || offset(1, "slave_repl_offset") >= written).await;
    watched.detach(1);
    let until = SystemTime::now() + Duration::from_millis(400);
    let lost = tokio::join!(burst(&hll, 300..600, until), burst(&exact, 300..600, until));
    for server in hll.servers.iter().chain(&exact.servers) {
        assert_eq!(server.metric("headcount_unacknowledged_ids").await, 0.0, "the primary has all");
    }
    watched.nodes[0].kill();
    assert!(SystemTime::now() < at(start, 2_000), "this machine is too slow to say what is in which window");
    watched.wait_promoted(1).await;

    let published = hll.wait_published(start + 6).await;
    assert_once_each(&published);
    assert_complete(&published);
    assert_same_registers(&sketch_in(&watched, "hll", start), different(&[&shared.0, &lost.0]));

    let published = exact.wait_published(start + 6).await;
    assert_no_gap(&published);
    assert_once_each(&published);
    let (_, closed) = &published[&start][0];
    let expected = (different(&[&shared.1]).len(), shared.1.sent.len() + lost.1.sent.len(), false);
    assert_eq!(
        (closed.unique as usize, closed.accepted as usize, closed.complete),
        expected,
        "{published:#?}"
    );
    assert!(published[&(start + 6)][0].1.complete, "later windows are complete again: {published:#?}");
}
