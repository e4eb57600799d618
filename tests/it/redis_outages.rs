//! Every kind of outage of Redis, and no accepted id is lost.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use headcount::model::mode::Mode;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::support::counter_files::wait_by_window;
use crate::support::counter_load::{Traffic, Truth};
use crate::support::fleet::{
    Fleet, assert_complete, assert_no_gap, assert_same_registers, next_window, sketch_in, window,
};
use crate::support::outage::{Outage, Site};
use crate::support::proxy::Fault;
use crate::support::server::Server;
use crate::support::{SplitMix, soak};

/// What was accepted in each window.
type Windows = BTreeMap<u64, Truth>;

/// Load over 64 connections until it is stopped. All ids name counters. They are sent in the middle of every window, so that
/// the test knows the window of each id.
struct Load {
    stop: CancellationToken,
    task: JoinHandle<Windows>,
}

impl Load {
    fn start(addresses: Vec<SocketAddr>, first: u64) -> Self {
        let stop = CancellationToken::new();
        let traffic = Traffic { addresses, connections: 64, pause: Duration::from_millis(60), first };
        let task = tokio::spawn(traffic.send_until(stop.clone()));
        Self { stop, task }
    }

    async fn stop(self) -> Windows {
        self.stop.cancel();
        self.task.await.expect("all is answered ok")
    }
}

async fn assert_degraded(fleet: &Fleet) {
    for server in &fleet.servers {
        server.wait_for_metric("headcount_degraded", 1.0).await;
        let ready = server.get("/readyz").await;
        assert_eq!((ready.status, &*ready.body), (200, "degraded"));
    }
}

/// Asserts that every window is published and complete, and that repeats have the same count.
async fn assert_all_published(fleet: &Fleet, truth: &Windows, in_doubt: &[u64]) -> BTreeMap<u64, (u64, u64)> {
    let (last, _) = truth.last_key_value().expect("windows");
    let published = fleet.wait_published(*last).await;
    assert_no_gap(&published);
    let mut certain = published.clone();
    certain.retain(|start, _| !in_doubt.contains(start));
    // They are shown if the next assertion fails.
    for line in fleet.servers.iter().flat_map(Server::log) {
        if line.to_string().contains("incomplete") || line["level"] == "ERROR" {
            println!("{line}");
        }
    }
    assert_complete(&certain);
    for (start, closed) in &published {
        assert!(closed.windows(2).all(|two| two[0].1 == two[1].1), "{start}: {closed:?}");
    }
    published.into_iter().map(|(start, closed)| (start, (closed[0].1.unique, closed[0].1.accepted))).collect()
}

/// Asserts that the files have all counts of counters, and that they say `complete` where the total does.
async fn assert_counters_are_right(files: &Path, mode: Mode, truth: &Windows, in_doubt: &[u64]) {
    let (last, _) = truth.last_key_value().expect("windows");
    let counters = wait_by_window(files, &window(*last).to_string()).await;
    for (start, truth) in truth.iter().skip(1) {
        let found = &counters[&window(*start).to_string()];
        let counts = found.iter().map(|(name, (count, _))| (name.clone(), *count));
        assert_eq!(counts.collect::<BTreeMap<_, _>>(), truth.counts(mode), "{start}");
        let are_complete = found.values().all(|(_, complete)| *complete);
        assert!(are_complete || in_doubt.contains(start), "{start}: {found:?}");
    }
}

async fn assert_hll_is_right(site: &Site, fleet: &Fleet, namespace: &str, truth: &Windows) {
    let published = assert_all_published(fleet, truth, &[]).await;
    for (start, truth) in truth {
        assert_same_registers(&sketch_in(&site.redis, namespace, *start), &truth.ids);
        assert_eq!(published[start], (truth.count(Mode::Hll), truth.accepted), "{start}");
    }
}

/// If Redis was killed after another outage and before a window closed, no instance knows whether that window is complete.
/// Its count is right all the same.
async fn assert_exact_is_right(site: &Site, fleet: &Fleet, truth: &Windows) {
    let published = assert_all_published(fleet, truth, &site.killed_again()).await;
    for (start, truth) in truth {
        assert_eq!(published[start], (truth.count(Mode::Exact), truth.accepted), "{start}");
    }
}

/// Both modes on one site, with load all the time, while `what_happens`.
async fn under_load(mut site: Site, what_happens: impl AsyncFnOnce(&mut Site, [&Fleet; 2])) {
    let files = [Mode::Hll, Mode::Exact].map(|mode| (mode, tempfile::tempdir().unwrap()));
    let [hll_dir, exact_dir] = files.each_ref().map(|(_, files)| files.path().to_str().unwrap());
    let hll = Fleet::behind(&site.url(), 3, "hll", &["--log-dir", hll_dir]).await;
    let exact_args = ["--mode", "exact", "--log-dir", exact_dir];
    let exact = Fleet::behind(&site.url(), 3, "exact", &exact_args).await;
    let (to_hll, to_exact) = (Load::start(hll.addresses(), 0), Load::start(exact.addresses(), 1 << 40));
    next_window(Duration::ZERO).await;
    next_window(Duration::ZERO).await;
    what_happens(&mut site, [&hll, &exact]).await;
    next_window(Duration::ZERO).await;
    let (hll_truth, exact_truth) = (to_hll.stop().await, to_exact.stop().await);
    assert_hll_is_right(&site, &hll, "hll", &hll_truth).await;
    assert_exact_is_right(&site, &exact, &exact_truth).await;
    let [(_, hll_files), (_, exact_files)] = &files;
    assert_counters_are_right(hll_files.path(), Mode::Hll, &hll_truth, &[]).await;
    assert_counters_are_right(exact_files.path(), Mode::Exact, &exact_truth, &site.killed_again()).await;
    for fleet in [&hll, &exact] {
        fleet.wait_until_replayed().await;
    }
    let ids: u64 = hll_truth.values().chain(exact_truth.values()).map(|truth| truth.accepted).sum();
    println!("{ids} ids in {} windows", hll_truth.len() + exact_truth.len());
}

/// An outage of twenty seconds of each of these kinds.
async fn away_for_long(outages: &[Outage]) {
    under_load(Site::start().await, async |site, fleets| {
        for outage in outages {
            next_window(Duration::from_millis(700)).await;
            site.begin(*outage);
            tokio::time::sleep(Duration::from_secs(10)).await;
            for fleet in fleets {
                assert_degraded(fleet).await;
            }
            tokio::time::sleep(Duration::from_secs(10)).await;
            site.end(*outage);
            let back = next_window(Duration::ZERO).await;
            for fleet in fleets {
                fleet.wait_until_replayed().await;
                fleet.wait_published(back).await;
            }
            println!("{outage:?}: published again");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_fails_costs_nothing() {
    away_for_long(&[Fault::Refuse, Fault::Stall, Fault::MidReply, Fault::Swallow].map(Outage::Network)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_is_killed_or_hangs_or_trickles_costs_nothing() {
    away_for_long(&[Outage::Killed, Outage::Stopped, Outage::Network(Fault::Trickle)]).await;
}

/// Outages of at most three seconds, one after another, with short or no pauses.
#[tokio::test(flavor = "multi_thread")]
async fn many_short_outages_cost_nothing() {
    let outages = if soak() { 200 } else { 20 };
    under_load(Site::start().await, async |site, fleets| {
        let mut random = SplitMix(20);
        let mut random = |below: u64| random.next().expect("it never ends") % below;
        for _ in 0..outages {
            let outage = Outage::ALL[random(7) as usize];
            site.begin(outage);
            tokio::time::sleep(Duration::from_millis(random(3_000))).await;
            site.end(outage);
            tokio::time::sleep(Duration::from_millis(random(1_500))).await;
        }
        for fleet in fleets {
            fleet.wait_until_replayed().await;
            fleet.wait_published(next_window(Duration::ZERO).await).await;
        }
    })
    .await;
}
