//! Tests of the tests' Redis Cluster.

use std::process::Command;

use redis::RedisResult;

use crate::support::cluster::Cluster;
use crate::support::cluster::changes::Loss;
use crate::support::process::output_of;
use crate::support::proxy::Fault;
use crate::support::redis::Flavour;
use crate::support::sharded::shards;

/// Sets a key at a node that may be the wrong one.
fn set(cluster: &Cluster, node: usize, key: &str) -> RedisResult<()> {
    cluster.query(node, redis::cmd("SET").arg(key).arg("value"))
}

/// The word that an error begins with: `MOVED`, `ASK`, or another one.
fn refusal(done: RedisResult<()>) -> String {
    let error = done.expect_err("it is refused");
    error.code().unwrap_or_else(|| panic!("{error}")).to_owned()
}

/// Three primaries with a replica each. One fails over, in both ways, and a slot moves.
#[test]
fn clusters_of_every_flavour_fail_over_and_move_slots() {
    for flavour in Flavour::at_hand() {
        println!("{flavour:?}");
        let mut cluster = Cluster::of(flavour);
        assert_eq!(cluster.primaries().len(), 3);
        let slots = cluster.members().values().flat_map(|one| one.slots.clone()).flatten().count();
        assert_eq!(slots, 16_384);
        let home = cluster.primary_of("key");
        for loss in [Loss::Killed, Loss::Paused] {
            let old = cluster.primary_of("key");
            let new = cluster.fail_over(old, loss);
            assert_eq!(cluster.primary_of("key"), new);
            set(&cluster, new, "key").unwrap();
            cluster.bring_back(old);
            assert_eq!(cluster.replica_of(new), old, "it is a replica now");
        }
        assert_eq!(cluster.primary_of("key"), home, "the two have taken turns");

        let other = *cluster.primaries().iter().find(|node| **node != home).unwrap();
        let moving = cluster.begin_move(cluster.slot_of("key"), other);
        set(&cluster, home, "key").expect("it is still there");
        assert_eq!(refusal(set(&cluster, home, "{key}2")), "ASK");
        assert_eq!(refusal(set(&cluster, other, "key")), "MOVED");
        assert_eq!((moving.move_keys(100), moving.move_keys(100)), (1, 0));
        assert_eq!(refusal(set(&cluster, home, "key")), "ASK");
        moving.finish();
        assert_eq!(refusal(set(&cluster, home, "key")), "MOVED");
        assert_eq!(cluster.at_key::<String>("GET", "key"), "value");
    }
}

/// An added node gets a quarter of all slots, and gives them back.
#[test]
fn a_cluster_grows_and_shrinks() {
    let mut cluster = Cluster::start();
    let added = cluster.add_node();
    assert!(cluster.members()[&added].slots.is_empty());
    cluster.rebalance();
    let slots = || cluster.members()[&added].slots.iter().cloned().flatten().count();
    assert_eq!(slots(), 4_096);
    cluster.reshard(added, cluster.primaries()[0], slots());
    cluster.delete_last();
    assert_eq!((cluster.members().len(), cluster.primaries().len()), (6, 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_cut_off_from_its_clients() {
    let cluster = Cluster::behind_proxies(&[]).await;
    let node = cluster.primary_of("key");
    let ping = || {
        let port = cluster.address(node).port().to_string();
        output_of(Command::new("redis-cli").args(["-p", &port, "PING"])).stdout == b"PONG\n"
    };
    assert!(ping() && cluster.members()[&node].address == cluster.address(node));
    cluster.cut_off(node, Fault::Refuse);
    assert!(!ping());
    cluster.cut_off(node, Fault::None);
    assert!(ping());
    cluster.wait_until_well();
    assert!(cluster.members()[&node].primary.is_none(), "it is still a primary");
}

#[test]
fn a_replica_that_may_not_take_over_leaves_its_slots_alone() {
    let mut cluster = Cluster::start_with(&["--cluster-require-full-coverage", "no"]);
    let victim = cluster.primary_of("key");
    cluster.forbid_fail_over(victim);
    cluster.pause(victim);
    cluster.wait_until_away(victim);
    let places = cluster.places("any", shards());
    assert!(places.shards.contains(&victim), "eight shards spread over three primaries");
    let other = cluster.primaries().into_iter().find(|node| *node != victim).unwrap();
    let key = (0..1_000)
        .map(|number| format!("key-{number}"))
        .find(|key| cluster.primary_of(key) == other)
        .unwrap();
    set(&cluster, other, &key).expect("the others go on");
    cluster.bring_back(victim);
    assert_eq!(cluster.primary_of("key"), victim);
    set(&cluster, victim, "key").unwrap();
}

/// Nobody comes in without the certificate or without the password.
#[test]
fn a_cluster_with_tls_and_a_password() {
    let mut cluster = Cluster::with_tls_and_password();
    let node = cluster.primary_of("key");
    set(&cluster, node, "key").unwrap();
    let (port, ca_file) = (cluster.address(node).port().to_string(), cluster.ca_file());
    let get = |args: &[&str]| {
        let output = output_of(Command::new("redis-cli").args(["-p", &port]).args(args).args(["GET", "key"]));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let tls = ["--tls", "--cacert", ca_file.to_str().unwrap()];
    assert_eq!(get(&[]), "", "without TLS");
    assert!(get(&tls).starts_with("NOAUTH"), "without a password");
    assert_eq!(
        get(&[&tls[..], &["--no-auth-warning", "--user", "counter", "--pass", "s3cret"]].concat()),
        "value"
    );

    let new = cluster.fail_over(node, Loss::Killed);
    assert_eq!(cluster.at_key::<String>("GET", "key"), "value", "the replica had it");
    cluster.bring_back(node);
    let other = *cluster.primaries().iter().find(|node| **node != new).unwrap();
    let moving = cluster.begin_move(cluster.slot_of("key"), other);
    moving.finish();
    assert_eq!(cluster.at_key::<String>("GET", "key"), "value");
}
