//! Slots of a Redis Cluster move from one primary to another, under load. Every count is right and complete.

use std::time::Duration;

use headcount::model::counter::bucket_of;
use headcount::model::mode::Mode;
use headcount::redis::keys::Keys;

use crate::support::cluster::Cluster;
use crate::support::counter_load::name;
use crate::support::fleet::{Fleet, next_window, window};
use crate::support::sharded::{Counting, redirects, shards};
use crate::support::{soak, wait_until};

/// Waits until commands of slots that are half-way were redirected so often.
async fn wait_until_asked(fleet: &Fleet, more_than: f64) {
    let what = format!("more than {more_than} redirections by ASK");
    wait_until(&what, async || redirects(fleet, "ask").await > more_than).await;
}

/// How often each instance has noticed that a slot has another primary.
fn noticed(fleet: &Fleet) -> Vec<usize> {
    let moved = "slots of the Redis Cluster have moved to another primary";
    fleet.servers.iter().map(|server| server.logged(moved)).collect()
}

/// Moves a slot to another primary. It is half-way there until the service was redirected, before and after the first key moves.
/// Returns when all instances know where it is: by `MOVED`, or because they read the map of the cluster again.
async fn move_slot(cluster: &Cluster, counting: &Counting, slot: u16, to: usize) {
    let fleet = &counting.fleet;
    let (asked, before) = (redirects(fleet, "ask").await, noticed(fleet));
    let moving = cluster.begin_move(slot, to);
    // Keys of the next window.
    wait_until_asked(fleet, asked).await;
    moving.move_keys(1);
    let asked = redirects(fleet, "ask").await;
    wait_until_asked(fleet, asked).await;
    let asked = redirects(fleet, "ask").await;
    while moving.move_keys(1) > 0 {
        // Others of the same slot are still at the old primary.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    wait_until_asked(fleet, asked).await;
    moving.finish();
    wait_until("all instances to know of the move", async || {
        noticed(fleet).iter().zip(&before).all(|(now, before)| now > before)
    })
    .await;
}

async fn slots_move(mode: Mode) {
    let cluster = Cluster::start();
    let namespace = cluster.namespace("moving", shards(), |places| places.own != places.shards[0]);
    let counting = Counting::start(&cluster, mode, &namespace, &[]).await;
    let (keys, any) = (Keys::new(&namespace), window(0));
    let moved = [
        keys.ids(mode, 0, shards(), any),
        // The bucket of the counter that is named most.
        keys.names(bucket_of(&name(0)), any),
        keys.lease(),
    ];
    for _ in 0..if soak() { 10 } else { 2 } {
        for key in &moved {
            let slot = cluster.slot_of(key);
            let home = cluster.owner_of(slot);
            let other = cluster.primaries().into_iter().find(|node| *node != home).expect("another primary");
            for to in [other, home] {
                next_window(Duration::from_millis(300)).await;
                move_slot(&cluster, &counting, slot, to).await;
            }
        }
    }
    assert!(redirects(&counting.fleet, "moved").await > 0.0);
    counting.catch_up().await;
    counting.stop().await.assert_all_right(&cluster);
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_that_move_back_and_forth_lose_no_sketch() {
    slots_move(Mode::Hll).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_that_move_back_and_forth_lose_no_id() {
    slots_move(Mode::Exact).await;
}

/// A node is added, gets a quarter of all slots, gives them back, and leaves.
#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_grows_and_shrinks_loses_nothing() {
    let mut cluster = Cluster::start();
    let hll = Counting::start(&cluster, Mode::Hll, "grows", &[]).await;
    let exact = Counting::start(&cluster, Mode::Exact, "grows-exact", &[]).await;
    let added = cluster.add_node();
    cluster.rebalance();
    let slots = cluster.members()[&added].slots.iter().cloned().flatten().count();
    assert_eq!(slots, 4_096);
    for counting in [&hll, &exact] {
        let places = cluster.places(&counting.namespace, shards());
        let is_used =
            places.own == added || places.shards.contains(&added) || places.buckets.contains(&added);
        assert!(is_used, "64 buckets, and none is there");
        counting.catch_up().await;
    }
    let first = cluster.primaries()[0];
    cluster.reshard(added, first, slots);
    cluster.delete_last();
    for counting in [hll, exact] {
        assert!(redirects(&counting.fleet, "moved").await > 0.0);
        counting.catch_up().await;
        counting.stop().await.assert_all_right(&cluster);
    }
}
