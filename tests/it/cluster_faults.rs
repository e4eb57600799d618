//! Servers of a Redis Cluster end, and come back without their data. In mode `hll` nothing is lost. In mode `exact` no window
//! that lacks an id says `complete`.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use headcount::model::mode::Mode;

use crate::support::cluster::Cluster;
use crate::support::cluster::changes::Loss;
use crate::support::fleet::{WINDOW, next_window, seconds};
use crate::support::sharded::{Counted, Counting, assert_in_cluster, count_in, shards};
use crate::support::soak;

/// Ids that were acknowledged may be lost within this time.
struct Doubt {
    from: u64,
    to: u64,
    /// The window in which it began.
    open: u64,
    /// The lost nodes, and those that took over from them.
    nodes: BTreeSet<usize>,
}

impl Doubt {
    /// From now on, about all windows that are not published.
    fn begin(counting: [&Counting; 2], nodes: impl IntoIterator<Item = usize>) -> Self {
        let unpublished = |counting: &Counting| {
            let published = counting.fleet.published();
            published.last_key_value().expect("windows").0 + WINDOW.as_secs()
        };
        let from = counting.into_iter().map(unpublished).min().expect("two");
        let open = seconds(SystemTime::now()) / WINDOW.as_secs() * WINDOW.as_secs();
        Self { from, to: u64::MAX, open, nodes: nodes.into_iter().collect() }
    }

    fn end(&mut self) {
        self.to = seconds(SystemTime::now());
    }

    fn is_about(&self, start: u64) -> bool {
        (self.from..=self.to).contains(&start)
    }
}

/// Both modes on a cluster, in namespaces whose own keys have another primary than the first shard.
async fn count_on(cluster: &Cluster) -> [Counting; 2] {
    let namespace = |name| cluster.namespace(name, shards(), |places| places.own != places.shards[0]);
    [
        Counting::start(cluster, Mode::Hll, &namespace("hll"), &[]).await,
        Counting::start(cluster, Mode::Exact, &namespace("exact"), &[]).await,
    ]
}

/// Asserts that only windows in doubt lack ids, that they say so, and that they lack no id of a shard whose server was always
/// there.
fn assert_nothing_else_is_lost(cluster: &Cluster, counted: &Counted, doubts: &[Doubt]) {
    let (places, mut certain) = (cluster.places(&counted.namespace, shards()), 0);
    for (start, truth) in &counted.truth {
        counted.assert_honest(*start);
        let doubts: Vec<_> = doubts.iter().filter(|doubt| doubt.is_about(*start)).collect();
        if doubts.is_empty() {
            certain += 1;
            counted.assert_right(*start);
        }
        let was_there =
            |shard: usize| !doubts.iter().any(|doubt| doubt.nodes.contains(&places.shards[shard]));
        let (closed, others) = (&counted.published[start], count_in(counted.mode, &truth.ids, was_there));
        assert!(closed.unique >= others, "{start}: {closed:?} lacks ids of other shards than {others}");
    }
    assert!(certain > 0, "all windows are in doubt");
}

/// Asserts that all windows are right, and that a cluster that lost everything has got the sketches again that were not closed then.
fn assert_merged_again(cluster: &Cluster, counted: &Counted, lost: &Doubt) {
    for (start, truth) in &counted.truth {
        counted.assert_right(*start);
        if *start >= lost.open {
            assert_in_cluster(cluster, &counted.namespace, *start, &truth.ids);
        }
    }
}

/// A primary is lost and its replica takes over, several times, under load. In turn it is the one of a shard of either namespace,
/// and the one of its own keys.
async fn replicas_take_over(loss: Loss) {
    let mut cluster = Cluster::start();
    let [hll, exact] = count_on(&cluster).await;
    let mut doubts = Vec::new();
    for round in 0..if soak() { 10 } else { 4 } {
        let namespace = [&hll.namespace, &exact.namespace][round % 2];
        let places = cluster.places(namespace, shards());
        let victim = if round % 4 < 2 { places.own } else { places.shards[0] };
        next_window(Duration::from_millis(700)).await;
        let mut doubt = Doubt::begin([&hll, &exact], [victim, cluster.replica_of(victim)]);
        cluster.fail_over(victim, loss);
        next_window(Duration::from_millis(300)).await;
        cluster.bring_back(victim);
        hll.catch_up().await;
        exact.catch_up().await;
        doubt.end();
        doubts.push(doubt);
        // So that some windows are not in doubt.
        for _ in 0..4 {
            next_window(Duration::ZERO).await;
        }
    }
    let [hll, exact] = [hll.stop().await, exact.stop().await];
    hll.assert_all_right(&cluster);
    assert_nothing_else_is_lost(&cluster, &exact, &doubts);
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_take_over_from_killed_primaries() {
    replicas_take_over(Loss::Killed).await;
}

/// It still takes itself for a primary when it goes on, for a moment.
#[tokio::test(flavor = "multi_thread")]
async fn replicas_take_over_from_primaries_that_hang() {
    replicas_take_over(Loss::Paused).await;
}

/// Some nodes are killed at the same time, are away for a while, and come back empty.
async fn come_back_empty(
    cluster: &mut Cluster,
    counting: [&Counting; 2],
    nodes: &BTreeSet<usize>,
    away: Duration,
) -> Doubt {
    next_window(Duration::from_millis(700)).await;
    let doubt = Doubt::begin(counting, nodes.iter().copied());
    for node in nodes {
        cluster.kill(*node);
    }
    tokio::time::sleep(away).await;
    for node in nodes {
        cluster.restart(*node);
    }
    cluster.wait_until_well();
    doubt
}

/// Without persistence, nothing is left.
#[tokio::test(flavor = "multi_thread")]
async fn all_nodes_restart_at_once() {
    let mut cluster = Cluster::start();
    let [hll, exact] = count_on(&cluster).await;
    let mut doubts = Vec::new();
    for _ in 0..if soak() { 5 } else { 2 } {
        let all = cluster.nodes().collect();
        let mut doubt = come_back_empty(&mut cluster, [&hll, &exact], &all, Duration::ZERO).await;
        hll.catch_up().await;
        exact.catch_up().await;
        doubt.end();
        doubts.push(doubt);
        for _ in 0..4 {
            next_window(Duration::ZERO).await;
        }
    }
    let [hll, exact] = [hll.stop().await, exact.stop().await];
    assert_merged_again(&cluster, &hll, doubts.last().expect("one"));
    assert_nothing_else_is_lost(&cluster, &exact, &doubts);
}

/// A third of the slots has no server for a while. By default no node of such a cluster serves anybody.
#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_without_some_slots_is_down_and_comes_back() {
    let mut cluster = Cluster::start();
    let [hll, exact] = count_on(&cluster).await;
    let victim = cluster.places(&hll.namespace, shards()).shards[0];
    let both = [victim, cluster.replica_of(victim)].into();
    let mut doubt = come_back_empty(&mut cluster, [&hll, &exact], &both, Duration::from_secs(6)).await;
    hll.catch_up().await;
    exact.catch_up().await;
    doubt.end();
    for _ in 0..4 {
        next_window(Duration::ZERO).await;
    }
    let [hll, exact] = [hll.stop().await, exact.stop().await];
    assert_merged_again(&cluster, &hll, &doubt);
    assert_nothing_else_is_lost(&cluster, &exact, &[doubt]);
}
