//! Every kind of outage of Redis, and no accepted id is lost.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, UNIX_EPOCH};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::support::fleet::{
    Fleet, WINDOW, assert_complete, assert_no_gap, assert_same_registers, next_window, sketch_in, sketch_of,
};
use crate::support::load::paced_burst;
use crate::support::outage::{Outage, Site};
use crate::support::proxy::Fault;
use crate::support::server::Server;
use crate::support::{SplitMix, soak};

/// What was accepted in each window.
type Truth = BTreeMap<u64, Vec<u64>>;

/// Sends ids over 64 connections until it is stopped. It sends in the middle of every window, so that the test knows the
/// window of each id.
struct Traffic {
    stop: CancellationToken,
    task: JoinHandle<Truth>,
}

impl Traffic {
    fn start(addresses: Vec<SocketAddr>, first: u64) -> Self {
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let mut truth = Truth::new();
            for number in 0_u64.. {
                let start = next_window(Duration::from_millis(100)).await;
                if stopped.is_cancelled() {
                    break;
                }
                let begin = UNIX_EPOCH + Duration::from_secs(start);
                let ids = first + number * 3_000..first + number * 3_000 + 5_000;
                let until = begin + Duration::from_millis(1_300);
                let burst = paced_burst(&addresses, 64, ids, until, Duration::from_millis(20)).await;
                assert!(
                    burst.ended < begin + WINDOW,
                    "this machine is too slow to say what is in which window"
                );
                truth.insert(start, burst.sent);
            }
            truth
        });
        Self { stop, task }
    }

    async fn stop(self) -> Truth {
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

async fn assert_degraded(fleet: &Fleet) {
    for server in &fleet.servers {
        server.wait_for_metric("headcount_degraded", 1.0).await;
        let ready = server.get("/readyz").await;
        assert_eq!((ready.status, &*ready.body), (200, "degraded"));
    }
}

/// Asserts that every window is published and complete, and that repeats have the same count.
async fn assert_all_published(fleet: &Fleet, truth: &Truth, in_doubt: &[u64]) -> BTreeMap<u64, (u64, u64)> {
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

async fn assert_hll_is_right(site: &Site, fleet: &Fleet, namespace: &str, truth: &Truth) {
    let published = assert_all_published(fleet, truth, &[]).await;
    for (start, sent) in truth {
        assert_same_registers(&sketch_in(&site.redis, namespace, *start), sent);
        assert_eq!(published[start], (sketch_of(sent).estimate(), sent.len() as u64), "{start}");
    }
}

/// If Redis was killed after another outage and before a window closed, no instance knows whether that window is complete.
/// Its count is right all the same.
async fn assert_exact_is_right(site: &Site, fleet: &Fleet, truth: &Truth) {
    let published = assert_all_published(fleet, truth, &site.killed_again()).await;
    for (start, sent) in truth {
        let different: BTreeSet<_> = sent.iter().collect();
        assert_eq!(published[start], (different.len() as u64, sent.len() as u64), "{start}");
    }
}

/// Both modes on one site, with load all the time, while `what_happens`.
async fn under_load(mut site: Site, what_happens: impl AsyncFnOnce(&mut Site, [&Fleet; 2])) {
    let hll = Fleet::behind(&site.url(), 3, "hll", &[]).await;
    let exact = Fleet::behind(&site.url(), 3, "exact", &["--mode", "exact"]).await;
    let (to_hll, to_exact) = (Traffic::start(hll.addresses(), 0), Traffic::start(exact.addresses(), 1 << 40));
    next_window(Duration::ZERO).await;
    next_window(Duration::ZERO).await;
    what_happens(&mut site, [&hll, &exact]).await;
    next_window(Duration::ZERO).await;
    let (hll_truth, exact_truth) = (to_hll.stop().await, to_exact.stop().await);
    assert_hll_is_right(&site, &hll, "hll", &hll_truth).await;
    assert_exact_is_right(&site, &exact, &exact_truth).await;
    for fleet in [&hll, &exact] {
        wait_until_well(fleet).await;
    }
    let ids: usize = hll_truth.values().chain(exact_truth.values()).map(Vec::len).sum();
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
                wait_until_well(fleet).await;
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
            wait_until_well(fleet).await;
            fleet.wait_published(next_window(Duration::ZERO).await).await;
        }
    })
    .await;
}
