//! Counting in the primary that Sentinels name.

use std::ops::Range;
use std::process::Command;
use std::time::Duration;

use headcount::model::mode::Mode;
use serde_json::json;

use crate::support::counter_files::wait_by_window;
use crate::support::counter_load::Traffic;
use crate::support::fleet::{
    Fleet, assert_complete, assert_once_each, estimate, next_window, wait_for_room_in_the_hour, window,
};
use crate::support::http::Connection;
use crate::support::process::{headcount, output_of};
use crate::support::redis::{Flavour, Redis};
use crate::support::sentinel::{NODE_LOGIN, Options, SENTINEL_LOGIN, Watched};
use crate::support::server::Server;
use crate::support::sharded;
use crate::support::{lines, wait_until};

/// Sends ids with counters in some windows. Each window is published once, and right.
async fn assert_counts(watched: &Watched, mode: Mode) {
    let (name, files) = (mode.as_str(), tempfile::tempdir().unwrap());
    let args = [&["--mode", name, "--log-dir", files.path().to_str().unwrap()], &sharded::ARGS[..]].concat();
    let fleet = Fleet::behind(&watched.url(), 3, name, &args).await;
    let pause = Duration::from_millis(10);
    let traffic = Traffic { addresses: fleet.addresses(), connections: 12, pause, first: 0 };
    let truth = traffic.send_by_window(4).await;

    let (last, _) = truth.last_key_value().unwrap();
    let published = fleet.wait_published(*last).await;
    assert_once_each(&published);
    assert_complete(&published);
    let counters = wait_by_window(files.path(), &window(*last).to_string()).await;
    for (start, truth) in &truth {
        let (_, closed) = &published[start][0];
        assert_eq!(closed.unique, sharded::count(mode, &truth.ids), "{name}: {start}");
        assert_eq!(closed.accepted, truth.accepted, "{name}: {start}");
        let of_window = &counters[&window(*start).to_string()];
        assert_eq!(*of_window, sharded::counters(mode, truth, true), "{name}: {start}");
    }
    let keys: u64 = redis::cmd("DBSIZE").query(&mut watched.connect()).unwrap();
    assert!(keys > 0, "all that is in the primary");
}

#[tokio::test(flavor = "multi_thread")]
async fn three_over_sentinel_publish_one_right_number_a_window() {
    let watched = Watched::start();
    tokio::join!(assert_counts(&watched, Mode::Hll), assert_counts(&watched, Mode::Exact));
}

async fn accept(server: &Server, ids: Range<u64>) {
    let mut connection = Connection::open(server.address).await.unwrap();
    assert_eq!(connection.post("text/plain", lines(ids).as_bytes()).await.unwrap().body, "ok");
}

/// The range is counted by another primary than its windows.
#[tokio::test(flavor = "multi_thread")]
async fn a_range_is_counted_after_a_fail_over_too() {
    let watched = Watched::start();
    wait_for_room_in_the_hour().await;
    let fleet = Fleet::behind(&watched.url(), 2, "range", &[]).await;
    let first = next_window(Duration::from_millis(200)).await;
    accept(&fleet.servers[0], 0..1_000).await;
    next_window(Duration::from_millis(200)).await;
    accept(&fleet.servers[1], 500..1_500).await;
    let third = next_window(Duration::from_millis(200)).await;
    fleet.wait_published(third).await;
    let primary = watched.primary();
    for promoted in [primary, 1 - primary] {
        if promoted != primary {
            watched.fail_over();
            watched.wait_promoted(promoted).await;
            for server in &fleet.servers {
                server.wait_for_metric("headcount_degraded", 0.0).await;
            }
            watched.wait_well().await;
            fleet.wait_published(next_window(Duration::ZERO).await).await;
        }
        for server in &fleet.servers {
            let target = format!("/api/verve/unique?from={first}&to={third}");
            let mut answer = server.get(&target).await;
            wait_until("the range to be counted", async || {
                answer = server.get(&target).await;
                answer.status == 200
            })
            .await;
            let answer = answer.json();
            assert_eq!(answer["unique_request_count"], json!(estimate(0..1_500)), "{answer}");
            assert_eq!(answer["complete"], json!(true), "{answer}");
        }
    }
}

/// Each kind of server that is at hand has Sentinels of its own.
#[tokio::test(flavor = "multi_thread")]
async fn sentinels_of_every_kind_of_server() {
    for flavour in Flavour::at_hand() {
        let mut watched = Watched::start_with(Options { flavour, ..Options::default() });
        let url = watched.url();
        let server = Server::start(&["--window", "24h", "--redis-url", &url]).await;
        accept(&server, 0..100).await;
        let primary = watched.primary();
        watched.nodes[primary].kill();
        accept(&server, 100..200).await;
        watched.wait_promoted(1 - primary).await;
        server.wait_until_replayed().await;
        // It gives the new primary again what that one lacks.
        wait_until("all ids to be there", async || unique(&server).await == estimate(0..200)).await;
        println!("{flavour:?}: promoted");
    }
}

/// What the running window has so far, once the primary answers in time.
async fn unique(server: &Server) -> u64 {
    let mut answer = server.get("/api/verve/unique").await;
    wait_until("the running window to be counted", async || {
        answer = server.get("/api/verve/unique").await;
        answer.status == 200
    })
    .await;
    answer.json()["current"]["unique_request_count"].as_u64().unwrap()
}

fn with_authority(watched: &Watched) -> Command {
    let mut command = headcount();
    command.env("SSL_CERT_FILE", watched.ca_file());
    command
}

/// Nothing is plain, nobody is let in without a password, and all secrets are in files.
#[tokio::test(flavor = "multi_thread")]
async fn tls_and_logins_on_servers_and_sentinels() {
    let mut watched = Watched::start_with(Options { tls: true, logins: true, ..Options::default() });
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, format!("{text}\n")).unwrap();
        format!("file:{}", path.display())
    };
    let of_sentinels = file("password", SENTINEL_LOGIN.1);
    let url = file("url", &watched.url_with(&watched.name, &of_sentinels));

    let other = Redis::start_tls();
    let with_another_authority = || {
        let mut command = headcount();
        command.env("SSL_CERT_FILE", other.ca_file());
        command
    };
    for said in refusals(with_another_authority, &url) {
        assert!(said.contains("certificate"), "{said}");
    }
    let checked = output_of(with_authority(&watched).args(["check", "--redis-url", &url]));
    let found = String::from_utf8(checked.stdout).unwrap();
    assert!(checked.status.success(), "{found}");
    let mut command = with_authority(&watched);
    command.args(["--listen", "127.0.0.1:0", "--window", "24h", "--mode", "exact", "--redis-url", &url]);
    let mut server = Server::run(command).await;
    accept(&server, 0..1_000).await;
    assert_eq!(unique(&server).await, 1_000);

    let primary = watched.primary();
    watched.nodes[primary].kill();
    watched.wait_promoted(1 - primary).await;
    accept(&server, 1_000..1_500).await;
    server.wait_until_replayed().await;
    // What the replica had not got yet is lost in this mode.
    let found = unique(&server).await;
    assert!((500..=1_500).contains(&found), "{found}");
    assert!(server.stop().await.success());
    for line in server.log() {
        for secret in ["n0de", "w4tch"] {
            assert!(!line.to_string().contains(secret), "{line}");
        }
    }
    watched.nodes[primary].restart();
    watched.wait_well().await;
}

/// The lines that `check` and a start give about a URL. Neither may take it.
fn refusals(command: impl Fn() -> Command, url: &str) -> [String; 2] {
    let args = ["--redis-url", url, "--redis-wait", "300ms"];
    let checked = output_of(command().arg("check").args(args));
    let found = String::from_utf8(checked.stdout).unwrap();
    assert_eq!(checked.status.code(), Some(1), "{found}");
    let failed: Vec<_> = found.lines().filter(|line| line.starts_with("FAIL")).collect();
    assert!(failed.len() == 1 && failed[0].starts_with("FAIL reachable"), "{found}");
    let started = output_of(command().args(["--listen", "127.0.0.1:0"]).args(args));
    let error = String::from_utf8(started.stderr).unwrap();
    assert_eq!((started.status.code(), error.lines().count()), (Some(1), 1), "{error}");
    [failed[0].to_owned(), error]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_url_that_leads_elsewhere_says_which_one_would_do() {
    let (watched, alone) = (Watched::start(), Redis::start());
    let [primary, replica] = [&watched.nodes[0], &watched.nodes[1]];
    let sentinel = &watched.sentinels[1];
    let at = |hosts: &str| watched.url_at(hosts, &watched.name, "");
    for (url, expected) in [
        (
            watched.url_with("nobody", ""),
            vec![format!("the Sentinels watch no master 'nobody', but: {}", watched.name)],
        ),
        (
            at(&alone.address().to_string()),
            vec![format!("{0} is no Sentinel: use --redis-url redis://{0}", alone.address())],
        ),
        (at(&primary.address.to_string()), vec![format!("redis://{}", primary.address)]),
        (
            replica.url(),
            vec![
                "a replica".to_owned(),
                format!("--redis-url redis://{}", primary.address),
                "redis-sentinel://".to_owned(),
            ],
        ),
        (
            sentinel.url(),
            vec![format!("--redis-url redis-sentinel://{}?master={}", sentinel.address, watched.name)],
        ),
    ] {
        for said in refusals(headcount, &url) {
            assert!(expected.iter().all(|part| said.contains(part)), "{url}: {said}");
        }
    }
}

/// A wrong name among Sentinels of which one is no Sentinel, or is away: what a Sentinel says counts.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_sentinel_says_counts_more_than_silence() {
    let mut watched = Watched::start();
    watched.sentinels[0].kill();
    watched.sentinels[1].stop();
    for said in refusals(headcount, &watched.url_with("nobody", "")) {
        assert!(said.contains("no master 'nobody'") && said.contains(&watched.name), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_passwords_are_reported_without_them() {
    let watched = Watched::start_with(Options { logins: true, ..Options::default() });
    let wrong_at_sentinels = watched.url_with(&watched.name, "wr0ng");
    let right = watched.url();
    let encoded: String = url::form_urlencoded::byte_serialize(NODE_LOGIN.1.as_bytes()).collect();
    let wrong_at_nodes = right.replace(&encoded, "wr0ng");
    assert_ne!(wrong_at_nodes, right);
    let (without, _) = right.split_once("&sentinel_user").unwrap();
    for url in [&*wrong_at_sentinels, &wrong_at_nodes, without] {
        for said in refusals(headcount, url) {
            assert!(said.contains("uthentication"), "{url}: {said}");
            assert!(["wr0ng", "n0de", "w4tch"].iter().all(|secret| !said.contains(secret)), "{said}");
        }
    }
}

/// It says so in the scheme of the URL that it was given.
#[tokio::test(flavor = "multi_thread")]
async fn with_tls_the_url_that_would_do_has_tls_too() {
    let watched = Watched::start_with(Options { tls: true, ..Options::default() });
    let primary = &watched.nodes[0];
    let no_sentinel = watched.url_at(&primary.address.to_string(), &watched.name, "");
    let replica = watched.nodes[1].url();
    let sentinel = watched.sentinels[0].url();
    for (url, expected) in [
        (no_sentinel, format!("rediss://{}", primary.address)),
        (replica, format!("rediss://{}", primary.address)),
        (sentinel, format!("rediss-sentinel://{}?master={}", watched.sentinels[0].address, watched.name)),
    ] {
        for said in refusals(|| with_authority(&watched), &url) {
            assert!(said.contains(&expected), "{url}: {said}");
        }
    }
}
