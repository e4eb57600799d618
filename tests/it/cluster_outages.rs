//! A primary of a Redis Cluster is away for a while, and comes back with its data. The others go on.

use std::time::{Duration, SystemTime};

use headcount::model::counter::bucket_of;
use headcount::model::mode::Mode;
use headcount::redis::keys::Keys;

use crate::support::cluster::{Cluster, Places};
use crate::support::fleet::{Fleet, WINDOW, next_window, seconds, window};
use crate::support::proxy::Fault;
use crate::support::sharded::{Counted, Counting, count, count_in, shards};
use crate::support::{soak, wait_until};

/// How long a primary is away.
const AWAY: Duration = Duration::from_secs(20);
/// Nodes serve their slots while others have no primary.
const PARTIAL: [&str; 2] = ["--cluster-require-full-coverage", "no"];
/// Windows do not wait for all of [`AWAY`].
const IMPATIENT: [&str; 2] = ["--close-timeout", "5s"];
/// Nor for buckets of counters, for which an instance waits four seconds less than that.
const LESS_IMPATIENT: [&str; 2] = ["--close-timeout", "8s"];
/// They wait for it, also on a busy machine.
const PATIENT: [&str; 2] = ["--close-timeout", "40s"];

/// Waits until all instances say whether a primary is away.
async fn wait_until_known(fleet: &Fleet, cluster: &Cluster, node: usize, is_away: bool) {
    let series = format!("headcount_redis_primary_away{{node=\"{}\"}}", cluster.address(node));
    for server in &fleet.servers {
        server.wait_for_metric(&series, f64::from(u8::from(is_away))).await;
    }
}

/// Asserts that shards that are not on this node get ids of the next window.
async fn assert_others_go_on(cluster: &Cluster, counting: &Counting, places: &Places, node: usize) {
    let (keys, start) = (Keys::new(&counting.namespace), next_window(Duration::ZERO).await);
    let others: Vec<_> = (0..places.shards.len()).filter(|shard| places.shards[*shard] != node).collect();
    assert!(!others.is_empty() && others.len() < places.shards.len(), "it has some of the shards");
    for shard in others {
        let key = keys.ids(counting.mode, shard, shards(), window(start));
        let there = async || cluster.ask::<bool>(places.shards[shard], &["EXISTS", &key]);
        wait_until("ids of a shard", there).await;
    }
}

/// When a primary was away, in seconds since 1970.
struct Absence {
    from: u64,
    /// By then it is back, and has all ids of the instances.
    to: u64,
}

/// Waits for the middle of a window before which all but the last one are published. Returns its start.
async fn middle_of_window(counting: &[&Counting]) -> u64 {
    loop {
        let start = next_window(Duration::from_millis(700)).await;
        let of_last =
            |counting: &&Counting| counting.fleet.published().last_key_value().map(|(last, _)| *last);
        if counting.iter().all(|counting| of_last(counting) >= Some(start - 2 * WINDOW.as_secs())) {
            return start;
        }
    }
}

/// A primary hangs, and no replica takes over. If windows do not wait for it, it is away until the first one is published.
/// Returns when it went away.
async fn be_away(cluster: &mut Cluster, node: usize, counting: &[&Counting], do_wait: bool) -> u64 {
    cluster.forbid_fail_over(node);
    let first = middle_of_window(counting).await;
    cluster.pause(node);
    let paused = SystemTime::now();
    for counting in counting {
        wait_until_known(&counting.fleet, cluster, node, true).await;
        let places = cluster.places(&counting.namespace, shards());
        if places.shards.contains(&node) {
            assert_others_go_on(cluster, counting, &places, node).await;
        }
    }
    tokio::time::sleep(AWAY.saturating_sub(paused.elapsed().unwrap())).await;
    for counting in counting.iter().filter(|_| !do_wait) {
        counting.fleet.wait_published(first).await;
    }
    cluster.bring_back(node);
    seconds(paused)
}

/// Waits until all is as before. Returns when the primary had all ids again.
async fn recover(cluster: &Cluster, node: usize, counting: &Counting) -> u64 {
    wait_until_known(&counting.fleet, cluster, node, false).await;
    counting.fleet.wait_until_replayed().await;
    let to = seconds(SystemTime::now());
    counting.catch_up().await;
    to
}

impl Absence {
    /// The window in which the primary went away.
    fn first(&self) -> u64 {
        self.from / WINDOW.as_secs() * WINDOW.as_secs()
    }

    /// Whether a window may lack what the primary has. The one before the first may not have been closed yet. The last one ended
    /// some `seconds` before the primary had all ids again.
    fn may_be_unseen_in(&self, start: u64, seconds: u64) -> bool {
        (self.first() - WINDOW.as_secs()..=self.to - seconds - WINDOW.as_secs()).contains(&start)
    }

    /// The window in which the primary went away was closed before it came back, and says that it is incomplete. Windows that
    /// began before, that ended shortly before it came back, or later, are right.
    fn assert_seen_in(&self, counted: &Counted, places: &Places, node: usize) {
        let mut incomplete = Vec::new();
        for (start, truth) in &counted.truth {
            let closed = &counted.published[start];
            if closed.complete {
                counted.assert_right(*start);
                continue;
            }
            incomplete.push(*start);
            counted.assert_honest(*start);
            let elsewhere = |shard: usize| places.shards[shard] != node;
            let others = count_in(counted.mode, &truth.ids, elsewhere);
            assert!(closed.unique >= others, "{start}: {closed:?} lacks ids of other shards than {others}");
            // No counter is complete if the total is not.
            for (name, (_, is_complete)) in &counted.counters[start] {
                assert!(!is_complete, "{start} {name}");
            }
        }
        // It may not be in `truth`: an answer that waited for the primary may have come late.
        assert!(!counted.published[&self.first()].complete, "{incomplete:?}");
        // Each window waits for a shard for the five seconds of `--close-timeout`.
        assert!(incomplete.iter().all(|start| self.may_be_unseen_in(*start, 4)), "{incomplete:?}");
    }
}

/// It is away for longer than `--close-timeout`: windows are closed without its shards, and say so.
#[tokio::test(flavor = "multi_thread")]
async fn windows_are_closed_without_a_primary_that_stays_away() {
    let mut cluster = Cluster::start_with(&PARTIAL);
    let node = cluster.primaries()[0];
    let suits = |places: &Places| {
        places.own != node
            && places.shards.contains(&node)
            && places.shards.iter().any(|other| *other != node)
    };
    let namespace = |name| cluster.namespace(name, shards(), suits);
    let hll = Counting::start(&cluster, Mode::Hll, &namespace("hll"), &IMPATIENT).await;
    let exact = Counting::start(&cluster, Mode::Exact, &namespace("exact"), &IMPATIENT).await;
    let from = be_away(&mut cluster, node, &[&hll, &exact], false).await;
    let (to_hll, to_exact) = tokio::join!(recover(&cluster, node, &hll), recover(&cluster, node, &exact));
    for (counting, to) in [(hll, to_hll), (exact, to_exact)] {
        let absence = Absence { from, to };
        let places = cluster.places(&counting.namespace, shards());
        absence.assert_seen_in(&counting.stop().await, &places, node);
    }
}

/// It is back before `--close-timeout`: the windows have waited for it.
#[tokio::test(flavor = "multi_thread")]
async fn windows_wait_for_a_primary_that_comes_back_in_time() {
    let mut cluster = Cluster::start_with(&PARTIAL);
    let node = cluster.primaries()[0];
    let suits = |places: &Places| {
        places.own != node
            && places.shards.contains(&node)
            && places.shards.iter().any(|other| *other != node)
    };
    let namespace = |name| cluster.namespace(name, shards(), suits);
    let hll = Counting::start(&cluster, Mode::Hll, &namespace("hll"), &PATIENT).await;
    let exact = Counting::start(&cluster, Mode::Exact, &namespace("exact"), &PATIENT).await;
    be_away(&mut cluster, node, &[&hll, &exact], true).await;
    for counting in [hll, exact] {
        recover(&cluster, node, &counting).await;
        counting.stop().await.assert_all_right(&cluster);
    }
}

/// It has only buckets of counters. The totals are complete, and so are the counters of other buckets.
#[tokio::test(flavor = "multi_thread")]
async fn counters_of_a_primary_that_stays_away_are_incomplete() {
    let mut cluster = Cluster::start_with(&PARTIAL);
    let node = cluster.primaries()[0];
    // The slots of shards differ in few bits. So there is no namespace of which a third of the slots has no shard.
    let namespace = cluster.namespace("buckets", shards(), |places| places.own != node);
    let (keys, other) = (Keys::new(&namespace), cluster.primaries()[1]);
    for shard in 0..shards().count().into() {
        let slot = cluster.slot_of(&keys.ids(Mode::Hll, shard, shards(), window(0)));
        if cluster.owner_of(slot) == node {
            cluster.begin_move(slot, other).finish();
        }
    }
    let places = cluster.places(&namespace, shards());
    assert!(!places.shards.contains(&node) && places.buckets.contains(&node));
    let counting = Counting::start(&cluster, Mode::Hll, &namespace, &LESS_IMPATIENT).await;
    let from = be_away(&mut cluster, node, &[&counting], false).await;
    let absence = Absence { from, to: recover(&cluster, node, &counting).await };
    let counted = counting.stop().await;
    let mut incomplete = Vec::new();
    for (start, truth) in &counted.truth {
        let closed = &counted.published[start];
        assert!(closed.complete && closed.accepted == truth.accepted, "{closed:?}");
        assert_eq!(closed.unique, count(Mode::Hll, &truth.ids), "{start}");
        for (name, all) in truth.counts(Mode::Hll) {
            match counted.counters[start].get(&name) {
                Some((found, true)) => assert_eq!(*found, all, "{start} {name}"),
                // Nobody may know all names of its buckets.
                found if places.buckets[bucket_of(&name)] == node => {
                    assert!(
                        found.is_none_or(|(found, _)| *found <= all),
                        "{start} {name}: {found:?} of {all}"
                    );
                    incomplete.push(*start);
                }
                found => panic!("{start} {name}: {found:?} of {all}, and its bucket was not away"),
            }
        }
    }
    assert!(!incomplete.is_empty(), "no window lacks the counters of its buckets");
    // Its ids may be unknown: an answer that waited for the primary may have come late.
    let is_known = counted.truth.contains_key(&absence.first());
    assert!(!is_known || incomplete.contains(&absence.first()), "{incomplete:?}");
    // Buckets are not waited for once their primary has been away for `--close-timeout`.
    assert!(incomplete.iter().all(|start| absence.may_be_unseen_in(*start, 0)), "{incomplete:?}");
}

/// It has the keys of the namespace itself: heartbeats, the lease, the counts. Nobody closes a window without them, and nobody is
/// taken for dead.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_closes_while_the_primary_of_the_namespace_is_away() {
    let mut cluster = Cluster::start_with(&PARTIAL);
    let node = cluster.primaries()[0];
    let suits = |places: &Places| places.own == node && places.shards.iter().any(|other| *other != node);
    let namespace = |name| cluster.namespace(name, shards(), suits);
    let hll = Counting::start(&cluster, Mode::Hll, &namespace("hll"), &IMPATIENT).await;
    let exact = Counting::start(&cluster, Mode::Exact, &namespace("exact"), &IMPATIENT).await;
    cluster.forbid_fail_over(node);
    let from = middle_of_window(&[&hll, &exact]).await;
    cluster.pause(node);
    tokio::time::sleep(AWAY).await;
    for counting in [&hll, &exact] {
        wait_until_known(&counting.fleet, &cluster, node, true).await;
        let published = counting.fleet.published();
        assert!(*published.last_key_value().unwrap().0 < from, "a window was closed: {published:#?}");
    }
    cluster.bring_back(node);
    for counting in [hll, exact] {
        recover(&cluster, node, &counting).await;
        counting.stop().await.assert_all_right(&cluster);
    }
}

/// Clients do not reach it, but the other nodes do. So no replica takes over.
#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_fails_between_instances_and_a_primary_costs_nothing() {
    let cluster = Cluster::behind_proxies(&[]).await;
    let node = cluster.primaries()[0];
    let with_own = |places: &Places| places.own == node;
    let with_a_shard = |places: &Places| places.own != node && places.shards.contains(&node);
    let (hll, exact) =
        (cluster.namespace("hll", shards(), with_a_shard), cluster.namespace("exact", shards(), with_own));
    let hll = Counting::start(&cluster, Mode::Hll, &hll, &PATIENT).await;
    let exact = Counting::start(&cluster, Mode::Exact, &exact, &PATIENT).await;
    for fault in [Fault::Refuse, Fault::Stall, Fault::MidReply, Fault::Swallow, Fault::Trickle] {
        next_window(Duration::from_millis(700)).await;
        cluster.cut_off(node, fault);
        for counting in [&hll, &exact] {
            wait_until_known(&counting.fleet, &cluster, node, true).await;
        }
        tokio::time::sleep(Duration::from_secs(if soak() { 9 } else { 4 })).await;
        cluster.cut_off(node, Fault::None);
        for counting in [&hll, &exact] {
            recover(&cluster, node, counting).await;
        }
        println!("{fault:?}: all is back");
    }
    for counting in [hll, exact] {
        counting.stop().await.assert_all_right(&cluster);
    }
}

/// While a primary stays away, another one restarts and is empty. The instances cannot restore all that they have. They learn all the
/// same which windows are closed.
#[tokio::test(flavor = "multi_thread")]
async fn instances_follow_the_leader_while_they_cannot_restore_all() {
    let mut cluster = Cluster::start_with(&PARTIAL);
    let [node, other, own] = cluster.primaries()[..] else { panic!("three primaries") };
    let suits = |places: &Places| {
        places.own == own && places.shards.contains(&node) && places.shards.contains(&other)
    };
    let namespace = cluster.namespace("restoring", shards(), suits);
    let counting = Counting::start(&cluster, Mode::Hll, &namespace, &IMPATIENT).await;
    cluster.forbid_fail_over(node);
    cluster.forbid_fail_over(other);
    middle_of_window(&[&counting]).await;
    cluster.pause(node);
    wait_until_known(&counting.fleet, &cluster, node, true).await;
    let restoring = "the store may have lost ids: this instance restores all that it has";
    let restored: Vec<_> = counting.fleet.servers.iter().map(|server| server.logged(restoring)).collect();
    cluster.kill(other);
    cluster.restart(other);
    for (server, before) in counting.fleet.servers.iter().zip(restored) {
        wait_until("a loss to be noticed", async || server.logged(restoring) > before).await;
    }
    let noticed = seconds(SystemTime::now());
    for server in &counting.fleet.servers {
        wait_until("a window that began later to be known as closed", async || {
            let status = server.get("/status").await.json();
            let last = status["windows"].as_array().unwrap().last().map(|last| &last["timestamp"]);
            let start = |last: &serde_json::Value| humantime::parse_rfc3339(last.as_str().unwrap()).unwrap();
            last.is_some_and(|last| seconds(start(last)) >= noticed)
        })
        .await;
    }
    assert!(cluster.members()[&node].is_away);
    cluster.bring_back(node);
    recover(&cluster, node, &counting).await;
    let counted = counting.stop().await;
    for start in counted.truth.keys() {
        counted.assert_honest(*start);
    }
}
