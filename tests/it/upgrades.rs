//! Two versions together on one Redis and one Kafka: rolling forward, and rolling back. `scripts/upgrade-test` builds the other
//! versions and runs these tests.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use headcount::coordination::LAYOUT;
use headcount::model::mode::Mode;

use crate::support::counter_files::wait_by_window;
use crate::support::counter_load::Traffic;
use crate::support::fleet::{
    Fleet, WINDOW, assert_agreed, assert_complete, assert_no_gap, next_window, window,
};
use crate::support::kafka::{assert_each_once, namespace, shared, wait_recorded};
use crate::support::process::{headcount, output_of};
use crate::support::redis::Redis;

/// The program of this version.
fn ours() -> PathBuf {
    headcount().get_program().into()
}

/// The program that a variable names.
fn program(variable: &str) -> PathBuf {
    std::env::var_os(variable)
        .unwrap_or_else(|| panic!("{variable} is not set: run scripts/upgrade-test"))
        .into()
}

/// Load on these instances, with ids from `first` on.
fn traffic(fleet: &Fleet, instances: &[usize], first: u64) -> Traffic {
    let addresses = instances.iter().map(|index| fleet.servers[*index].address).collect();
    Traffic { addresses, connections: 8, pause: Duration::from_millis(20), first }
}

/// Three instances of one version are replaced by three of another, one after the other.
async fn roll(name: &str, mode: Mode, from: &Path, to: &Path) {
    let (redis, brokers, namespace) = (Redis::start(), shared(), namespace(name));
    let (url, files) = (redis.url(), tempfile::tempdir().unwrap());
    let args = [
        "--window",
        "2s",
        "--redis-url",
        &url,
        "--namespace",
        &namespace,
        "--kafka-brokers",
        &brokers,
        "--mode",
        mode.as_str(),
        "--log-dir",
        files.path().to_str().unwrap(),
    ];
    let mut fleet = Fleet::start_with(0, &args).await;
    for _ in 0..3 {
        fleet.add_program(from).await;
    }
    fleet.wait_published(next_window(Duration::ZERO).await).await;
    let (mut truth, mut alive) = (BTreeMap::new(), vec![0, 1, 2]);
    for replaced in 0..3 {
        // As a load balancer does that knows which one is about to stop.
        alive.retain(|index| *index != replaced);
        let load = traffic(&fleet, &alive, 1_000_000 * replaced as u64);
        let stopping = &mut fleet.servers[replaced];
        let (sent, status) = tokio::join!(load.send_by_window(3), async {
            next_window(Duration::from_millis(700)).await;
            stopping.stop().await
        });
        assert!(status.success(), "instance {replaced}");
        truth.extend(sent);
        fleet.add_program(to).await;
        alive.push(fleet.servers.len() - 1);
    }
    truth.extend(traffic(&fleet, &alive, 9_000_000).send_by_window(3).await);

    let (last, _) = truth.last_key_value().unwrap();
    let published = fleet.wait_published(*last).await;
    assert_no_gap(&published);
    assert_complete(&published);
    assert_agreed(&published);
    let records = wait_recorded(&brokers, &format!("{namespace}.unique-counts"), *last).await;
    assert_each_once(&records, WINDOW.as_secs());
    let recorded: BTreeMap<_, _> = records.iter().map(|record| (record.start(), record.count())).collect();
    let counters = wait_by_window(files.path(), &window(*last).to_string()).await;
    for (start, truth) in &truth {
        let (_, closed) = &published[start][0];
        let expected = truth.count(mode);
        assert_eq!(
            (closed.unique, closed.accepted, recorded[start]),
            (expected, truth.accepted, expected),
            "{start}"
        );
        let expected = truth.counts(mode).into_iter().map(|(name, count)| (name, (count, true)));
        assert_eq!(counters[&window(*start).to_string()], expected.collect(), "{start}");
    }
    println!("{} windows, of which the ids of {} are known", published.len(), truth.len());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the program of another version: scripts/upgrade-test"]
async fn rolling_forward_leaves_each_window_once_and_right() {
    for mode in [Mode::Hll, Mode::Exact] {
        roll("forward", mode, &program("EARLIER_HEADCOUNT"), &ours()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the program of another version: scripts/upgrade-test"]
async fn rolling_back_leaves_each_window_once_and_right() {
    for mode in [Mode::Hll, Mode::Exact] {
        roll("back", mode, &ours(), &program("EARLIER_HEADCOUNT")).await;
    }
}

/// Version one and this version refuse each other, whichever is there first. The one that is there goes on.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the program of another version: scripts/upgrade-test"]
async fn version_one_and_this_version_refuse_each_other() {
    let (redis, one) = (Redis::start(), program("VERSION_ONE_HEADCOUNT"));
    for (first, second, layouts) in [(&one, &ours(), ["1", LAYOUT]), (&ours(), &one, [LAYOUT, LAYOUT])] {
        let url = redis.url();
        let mut fleet = Fleet::behind(&url, 0, &format!("of-{}", layouts[0]), &[]).await;
        fleet.add_program(first).await;
        fleet.wait_published(0).await;
        let mut refused = Command::new(second);
        refused.args(["--listen", "127.0.0.1:0", "--window", "2s", "--redis-url", &url, "--namespace"]);
        let refused = output_of(refused.arg(format!("of-{}", layouts[0])).stdin(Stdio::null()));
        let said = String::from_utf8(refused.stderr).unwrap();
        assert_eq!((refused.status.code(), said.lines().count()), (Some(1), 1), "{said}");
        assert!(layouts.iter().all(|layout| said.contains(layout)), "{said}");
        let next = next_window(Duration::ZERO).await;
        fleet.wait_published(next).await;
        assert!(fleet.servers[0].stop().await.success());
    }
}
