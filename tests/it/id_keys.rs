//! `--id-key`: which instances may count together, and what they count.

use std::collections::BTreeSet;
use std::process::Command;

use headcount::hll::Sketch;
use headcount::model::id::IntegerId;
use headcount::model::id_key::IdKey;

use crate::support::http::Connection;
use crate::support::process::{headcount, output_of};
use crate::support::redis::Redis;
use crate::support::server::Server;

const KEY: &str = "00112233445566778899aabbccddeeff";
const OTHER: &str = "f0112233445566778899aabbccddeeff";
const IDS: std::ops::Range<u64> = 0..5_000;

fn key() -> IdKey {
    IdKey::parse(KEY).unwrap()
}

/// As it stands among the settings.
fn setting(key: Option<&str>) -> String {
    key.map_or("none".to_owned(), |key| IdKey::parse(key).unwrap().fingerprint())
}

/// A command with the key in its environment, not in a flag, because it is secret.
fn command(redis: &Redis, namespace: &str, key: Option<&str>) -> Command {
    let mut command = headcount();
    command.args(["--listen", "127.0.0.1:0", "--redis-url", &redis.url(), "--namespace", namespace]);
    command.args(["--window", "24h"]).envs(key.map(|key| ("HEADCOUNT_ID_KEY", key)));
    command
}

/// Asserts that an instance with the key is refused where the others have `theirs`, and that `check` finds that first.
#[track_caller]
fn assert_refused(redis: &Redis, namespace: &str, ours: Option<&str>, theirs: Option<&str>) {
    let remedy = theirs.map_or("leave it out", |_| "give it the key that has this fingerprint");
    let said = format!(
        "--id-key is {} here, but {} for the other instances of --namespace {namespace}: {remedy}, or give",
        setting(ours),
        setting(theirs)
    );
    let output = output_of(&mut command(redis, namespace, ours));
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), error.lines().count()), (Some(1), 1), "{error}");
    let mut check = headcount();
    check.args(["check", "--redis-url", &redis.url(), "--namespace", namespace, "--window", "24h"]);
    let checked = output_of(check.envs(ours.map(|key| ("HEADCOUNT_ID_KEY", key))));
    assert_eq!(checked.status.code(), Some(1));
    let found = String::from_utf8(checked.stdout).unwrap();
    for text in [error, found] {
        assert!(text.contains(&said), "{said}: {text}");
        assert!(!text.contains(KEY) && !text.contains(OTHER), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_with_another_id_key_is_refused() {
    let redis = Redis::start();
    for (namespace, theirs, ours) in
        [("first", None, Some(KEY)), ("second", Some(KEY), None), ("third", Some(KEY), Some(OTHER))]
    {
        let _theirs = Server::run(command(&redis, namespace, theirs)).await;
        assert_refused(&redis, namespace, ours, theirs);
    }
    // Digits have no case.
    let _theirs = Server::run(command(&redis, "same", Some(KEY))).await;
    let mut ours = Server::run(command(&redis, "same", Some(&KEY.to_uppercase()))).await;
    assert!(ours.stop().await.success());
}

async fn unique(server: &Server) -> u64 {
    server.get("/api/verve/unique").await.json()["current"]["unique_request_count"].as_u64().unwrap()
}

/// Sends ids one by one, in a text and in an array, in several spellings.
async fn send_all_ways(server: &Server) {
    let mut connection = Connection::open(server.address).await.unwrap();
    for id in IDS.step_by(2) {
        let answer = connection.get(&format!("/api/verve/accept?id={id}")).await.unwrap();
        assert_eq!(answer.body, "ok");
    }
    let lines: Vec<_> = IDS.map(|id| format!("0{id}")).collect();
    let array: Vec<_> = IDS.collect();
    for (content_type, body) in [("text/plain", lines.join("\n")), ("application/json", format!("{array:?}"))]
    {
        assert_eq!(connection.post(content_type, body.as_bytes()).await.unwrap().body, "ok");
    }
}

fn keyed() -> impl Iterator<Item = IntegerId> {
    let key = key();
    IDS.map(move |id| key.apply(IntegerId::from(id)))
}

fn sketch_of_keyed() -> Sketch {
    let sketch = Sketch::new();
    for id in keyed() {
        sketch.add(id.as_bytes());
    }
    sketch
}

#[tokio::test(flavor = "multi_thread")]
async fn all_ways_to_send_an_id_agree() {
    for (mode, count) in [("hll", sketch_of_keyed().estimate()), ("exact", IDS.end)] {
        let mut command = headcount();
        command
            .args(["--listen", "127.0.0.1:0", "--window", "24h", "--mode", mode])
            .env("HEADCOUNT_ID_KEY", KEY);
        let server = Server::run(command).await;
        send_all_ways(&server).await;
        assert_eq!(unique(&server).await, count, "{mode}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_with_one_key_count_together() {
    let redis = Redis::start();
    let stored = |mode: &str| -> String {
        let pattern = format!("*:{mode}:*");
        let keys: Vec<String> = ::redis::cmd("KEYS").arg(pattern).query(&mut redis.connect()).unwrap();
        assert_eq!(keys.len(), 1, "{keys:?}");
        keys[0].clone()
    };
    for (mode, count) in [("hll", sketch_of_keyed().estimate()), ("exact", IDS.end)] {
        let start = async || {
            let mut command = command(&redis, mode, Some(KEY));
            command.args(["--mode", mode]);
            Server::run(command).await
        };
        let servers = [start().await, start().await];
        for server in &servers {
            send_all_ways(server).await;
        }
        for server in &servers {
            assert_eq!(unique(server).await, count, "{mode}");
        }
    }
    let sketch: Vec<u8> = ::redis::cmd("GET").arg(stored("hll")).query(&mut redis.connect()).unwrap();
    assert_eq!(Sketch::from_bytes(&sketch).unwrap(), sketch_of_keyed());
    let set: BTreeSet<String> =
        ::redis::cmd("SMEMBERS").arg(stored("exact")).query(&mut redis.connect()).unwrap();
    assert_eq!(set, keyed().map(|id| id.to_string()).collect(), "hashes, not ids");
}
