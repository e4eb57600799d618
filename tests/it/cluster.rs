//! Instances that count together in a Redis Cluster, and what `headcount check` says of one.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use headcount::model::mode::Mode;
use headcount::redis::keys::Keys;
use serde_json::json;

use crate::support::cluster::{Cluster, PASSWORD, Places};
use crate::support::counter_files::{counter_lines, counts, wait_by_window};
use crate::support::counter_load::Traffic;
use crate::support::fleet::{
    Fleet, LATE_IS_NOT_AWAY, WINDOW, assert_complete, assert_once_each, next_window,
    wait_for_room_in_the_hour, window,
};
use crate::support::nginx::Nginx;
use crate::support::process::{headcount, output_of};
use crate::support::redis::Redis;
use crate::support::server::Server;
use crate::support::sharded::{
    ARGS, assert_counters_in_cluster, assert_in_cluster, count, counters, redirects, shards,
};

/// How many windows are compared with the sent ids.
const WINDOWS: usize = 10;

/// The keys of the namespace, of shards and of buckets are on all three primaries.
fn is_spread(places: &Places) -> bool {
    let on = |nodes: &[usize]| nodes.iter().collect::<BTreeSet<_>>().len();
    on(&places.shards) == 3 && on(&places.buckets) == 3
}

async fn three_behind_nginx(mode: Mode) {
    let (cluster, files) = (Cluster::start(), tempfile::tempdir().unwrap());
    let namespace = cluster.namespace("together", shards(), is_spread);
    let dir = files.path().to_str().unwrap();
    let args = [&["--mode", mode.as_str(), "--log-dir", dir], &ARGS[..]].concat();
    let fleet = Fleet::behind(&cluster.url(), 3, &namespace, &args).await;
    let nginx = Nginx::start(&fleet.addresses());
    wait_for_room_in_the_hour().await;
    let traffic =
        Traffic { addresses: vec![nginx.address], connections: 8, pause: Duration::from_millis(2), first: 0 };
    let truth = traffic.send_by_window(WINDOWS).await;

    let (last, _) = truth.last_key_value().unwrap();
    let published = fleet.wait_published(*last).await;
    assert_once_each(&published);
    assert_complete(&published);
    let in_files = wait_by_window(files.path(), &window(*last).to_string()).await;
    // Nothing happened to the leader, so each is there once.
    counts(&counter_lines(files.path()));
    for (start, truth) in &truth {
        let total = &published[start][0].1;
        assert_eq!((total.unique, total.accepted), (count(mode, &truth.ids), truth.accepted), "{start}");
        assert_eq!(in_files[&window(*start).to_string()], counters(mode, truth, total.complete), "{start}");
        if mode == Mode::Hll {
            assert_in_cluster(&cluster, &namespace, *start, &truth.ids);
        }
    }
    assert_eq!(
        (redirects(&fleet, "moved").await, redirects(&fleet, "ask").await),
        (0.0, 0.0),
        "none is needed"
    );
    if mode == Mode::Hll {
        assert_counters_in_cluster(&cluster, &namespace, *last, &truth[last]);
        let (first, _) = truth.iter().nth(1).unwrap();
        let all: BTreeSet<_> =
            truth.range(first..).flat_map(|(_, truth)| truth.ids.iter().copied()).collect();
        for server in &fleet.servers {
            let range = format!("/api/verve/unique?from={first}&to={}", last + WINDOW.as_secs());
            let union = server.get(&range).await.json();
            assert_eq!(union["unique_request_count"], json!(count(mode, &all)), "{union}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_instances_publish_one_right_number_a_window() {
    three_behind_nginx(Mode::Hll).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_instances_count_exactly() {
    three_behind_nginx(Mode::Exact).await;
}

/// All keys of the service have braces, and so are where every client of the cluster looks for them.
#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_with_tls_and_a_password_counts() {
    let cluster = Cluster::with_tls_and_password();
    let url = cluster.url();
    let checked = output_of(check(&url).args(ARGS).env("SSL_CERT_FILE", cluster.ca_file()));
    let found = String::from_utf8(checked.stdout).unwrap();
    assert!(checked.status.success() && !found.contains(PASSWORD), "{found}");

    let mut command = headcount();
    command.env("SSL_CERT_FILE", cluster.ca_file()).env("HEADCOUNT_REDIS_URL", &url);
    command.args(["--listen", "127.0.0.1:0", "--window", "2s"]).args(ARGS).args(LATE_IS_NOT_AWAY);
    let mut server = Server::run(command).await;
    let start = next_window(Duration::from_millis(100)).await;
    for id in 0..100 {
        assert_eq!(server.get(&format!("/api/verve/accept?id={id}")).await.body, "ok");
    }
    // A slow machine may need a second window.
    let windows = server.closed().len() + 4;
    let closed = server.wait_closed(windows).await;
    assert_eq!(closed.iter().map(|closed| closed.accepted).sum::<u64>(), 100);
    let ids = |start| {
        let keys = (0..8).map(|shard| Keys::new("headcount").ids(Mode::Hll, shard, shards(), window(start)));
        keys.map(|key| cluster.at_key::<u64>("PFCOUNT", &key)).sum::<u64>()
    };
    assert!((98..=102).contains(&(ids(start) + ids(start + WINDOW.as_secs()))));
    assert!(server.stop().await.success());
    let log = server.log();
    assert!(
        log.iter().all(|event| event["level"] == "INFO" && !event.to_string().contains(PASSWORD)),
        "{log:?}"
    );

    let wrong = url.replace(PASSWORD, "wr0ng");
    let line = refusal(&wrong, |command| {
        command.env("SSL_CERT_FILE", cluster.ca_file());
    });
    assert!(line.contains("uthentication") && !line.contains("wr0ng"), "{line}");
    let other = Redis::start_tls();
    let untrusted = refusal(&url, |command| {
        command.env("SSL_CERT_FILE", other.ca_file());
    });
    assert!(untrusted.contains("certificate"), "{untrusted}");
}

fn check(url: &str) -> Command {
    let mut check = headcount();
    check.arg("check").env("HEADCOUNT_REDIS_URL", url);
    check
}

/// The one line with which both `check` and the start refuse a URL. With `more` settings.
fn refusal(url: &str, more: impl Fn(&mut Command)) -> String {
    let mut command = check(url);
    more(command.args(["--redis-wait", "300ms"]));
    let checked = output_of(&mut command);
    let found = String::from_utf8(checked.stdout).unwrap();
    assert_eq!((checked.status.code(), found.lines().count()), (Some(1), 1), "{found}");
    let reason = found.trim_end().strip_prefix("FAIL reachable: ").expect("it cannot be used").to_owned();

    let mut command = headcount();
    command.args(["--listen", "127.0.0.1:0", "--redis-wait", "300ms"]).env("HEADCOUNT_REDIS_URL", url);
    more(&mut command);
    let served = output_of(&mut command);
    let error = String::from_utf8(served.stderr).unwrap();
    assert_eq!((served.status.code(), error.lines().count()), (Some(1), 1), "{error}");
    assert!(error.contains(&reason), "{error}: not {reason}");
    reason
}

#[test]
fn a_wrong_kind_of_url_is_refused_with_the_right_one() {
    let cluster = Cluster::start();
    for node in cluster.nodes() {
        let line = refusal(&cluster.url_of(node), |_| {});
        let right = format!("--redis-url redis-cluster://{}", cluster.address(node));
        assert!(line.contains("a node of a Redis Cluster") && line.contains(&right), "{line}");
    }
    let alone = Redis::start();
    let line = refusal(&alone.url().replace("redis:", "redis-cluster:"), |_| {});
    let right = format!("--redis-url redis://{}", alone.address());
    assert!(line.contains("in no cluster") && line.contains(&right), "{line}");
}

/// One node of the URL is enough, also a replica.
#[tokio::test(flavor = "multi_thread")]
async fn any_node_leads_to_all_others() {
    let cluster = Cluster::start();
    let replica = cluster.replica_of(cluster.primaries()[0]);
    let url =
        format!("redis-cluster://127.0.0.1:{},{}", crate::support::free_port(), cluster.address(replica));
    let fleet = Fleet::behind(&url, 1, "any", &[ARGS, LATE_IS_NOT_AWAY].concat()).await;
    let server = &fleet.servers[0];
    for id in 0..200 {
        assert_eq!(server.get(&format!("/api/verve/accept?id={id}")).await.body, "ok");
    }
    assert_eq!(server.metric("headcount_unacknowledged_ids").await, 0.0);
    assert_eq!(server.metric("headcount_degraded").await, 0.0);
}

#[test]
fn check_names_each_node() {
    let cluster = Cluster::start();
    let evicting = cluster.primaries()[1];
    cluster.ask::<()>(evicting, &["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]);
    let namespace = cluster.namespace("spread", shards(), is_spread);
    let checked = output_of(check(&cluster.url()).args(["--namespace", &namespace]).args(ARGS));
    let found = String::from_utf8(checked.stdout).unwrap();
    assert!(checked.status.success(), "{found}");
    for (node, member) in cluster.members() {
        let address = member.address.to_string();
        let about: Vec<_> = found.lines().filter(|line| line.contains(&address)).collect();
        let says = |what: &str| about.iter().any(|line| line.contains(what));
        if member.primary.is_some() {
            assert!(says("replica") && !says("primary"), "{about:#?}");
        } else {
            let slots = member.slots.into_iter().flatten().count().to_string();
            assert!(says("primary") && says(&slots) && !says("replica"), "{about:#?}");
        }
        assert!(says(if node == evicting { "allkeys-lru" } else { "noeviction" }), "{found}");
        assert_eq!(about.iter().any(|line| line.starts_with("warn")), node == evicting, "{about:#?}");
    }
    let warnings = found.lines().filter(|line| line.starts_with("warn")).count();
    assert_eq!(warnings, 1, "all else is well: {found}");
}

#[test]
fn check_warns_if_all_shards_are_on_one_primary() {
    let (cluster, two) = (Cluster::start(), "2".parse().unwrap());
    for are_together in [true, false] {
        let name = cluster.namespace("two", two, |at| (at.shards[0] == at.shards[1]) == are_together);
        let checked = output_of(check(&cluster.url()).args(["--namespace", &name, "--shards", "2"]));
        let found = String::from_utf8(checked.stdout).unwrap();
        let warns = |line: &str| line.starts_with("warn") && line.contains("--shards");
        assert_eq!(found.lines().filter(|line| warns(line)).count(), usize::from(are_together), "{found}");
    }
}
