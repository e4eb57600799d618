//! Layouts of the keys: versions with different layouts do not share a namespace, in whichever order they start.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use headcount::coordination::LAYOUT;
use headcount::redis::keys::Keys;

use crate::support::fleet::Fleet;
use crate::support::process::{headcount, output_of};
use crate::support::redis::Redis;
use crate::support::server::Server;

/// How version one took a report: its src/redis/report.lua of commit 8689432, as it was.
const REPORT_OF_VERSION_ONE: &str = include_str!("version_one/report.lua");

/// Reports as an instance of version one does, in windows of a second; says what it was answered.
fn report_as_version_one(redis: &Redis, namespace: &str, mode: &str) -> Vec<String> {
    let keys = Keys::new(namespace);
    let script = ::redis::Script::new(REPORT_OF_VERSION_ONE);
    let mut call = script.prepare_invoke();
    call.key(keys.config()).key(keys.instances()).key(keys.counts()).key(keys.published());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let (window, since) = (now.as_secs(), now.as_micros() as u64);
    call.arg("one/1").arg("").arg(window).arg(window).arg(since).arg(0);
    // It knows nothing of the stream or the others; then 60 windows of a second, 5 s, 7 s and a minute.
    call.arg("").arg("").arg("").arg("{}").arg("").arg(60).arg(1).arg(5_000).arg(7_000).arg(60_000);
    for (setting, value) in [("mode", mode), ("window", "1s"), ("shards", "1"), ("id-key", "none")] {
        call.arg(setting).arg(value);
    }
    call.invoke(&mut redis.connect()).unwrap()
}

fn config(redis: &Redis, namespace: &str) -> BTreeMap<String, String> {
    ::redis::cmd("HGETALL").arg(Keys::new(namespace).config()).query(&mut redis.connect()).unwrap()
}

/// `headcount serve` and `headcount check` refuse it, in the same words, with both numbers and what to do.
#[track_caller]
fn assert_refused(redis: &Redis, namespace: &str, layout: &str) {
    let before = config(redis, namespace);
    let url = redis.url();
    let args = ["--redis-url", &url, "--namespace", namespace, "--window", "1s"];
    let said = format!(
        "the keys of --namespace {namespace} have layout {layout}, but this version of headcount needs layout {LAYOUT}: \
         give it another --namespace (docs/instances.md, \"Move to another layout\")"
    );
    let served = output_of(headcount().args(["--listen", "127.0.0.1:0"]).args(args));
    let error = String::from_utf8(served.stderr).unwrap();
    assert_eq!((served.status.code(), error.lines().count()), (Some(1), 1), "{error}");
    assert!(error.contains(&said), "{error}");
    let checked = output_of(headcount().arg("check").args(args));
    let found = String::from_utf8(checked.stdout).unwrap();
    let failed: Vec<_> = found.lines().filter(|line| line.starts_with("FAIL")).collect();
    assert_eq!((checked.status.code(), failed), (Some(1), vec![&*format!("FAIL settings: {said}")]));
    assert_eq!(config(redis, namespace), before, "and it left everything as it was");
}

#[test]
fn a_namespace_of_version_one_is_refused() {
    let redis = Redis::start();
    assert_eq!(report_as_version_one(&redis, "one", "hll")[0], "ok");
    assert_eq!(config(&redis, "one")["mode"], "hll");
    assert_refused(&redis, "one", "1");
    // The message then ignores other differing settings.
    assert_eq!(report_as_version_one(&redis, "exact", "exact")[0], "ok");
    assert_refused(&redis, "exact", "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn version_one_refuses_a_namespace_of_this_version() {
    let redis = Redis::start();
    let mut fleet = Fleet::start(1, &redis, "two", &[]).await;
    let stored = config(&redis, "two");
    assert_eq!((&*stored["layout"], &*stored["mode"]), (LAYOUT, "hll;layout=2"));
    for mode in ["hll", "exact"] {
        assert_eq!(report_as_version_one(&redis, "two", mode), ["differs", "mode", "hll;layout=2"]);
    }
    fleet.wait_published(0).await;
    assert!(fleet.servers[0].stop().await.success(), "and this version did not notice");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_of_a_later_layout_is_refused() {
    let redis = Redis::start();
    let url = redis.url();
    let args = ["--redis-url", &url, "--namespace", "later", "--window", "1s"];
    let mut running = Server::start(&args).await;
    let later = [("layout", "3"), ("mode", "hll;layout=3"), ("shards", "many")];
    let set = |fields: &[(&str, &str)]| {
        let key = Keys::new("later").config();
        ::redis::cmd("HSET").arg(key).arg(fields).exec(&mut redis.connect()).unwrap();
    };
    set(&later);
    assert_refused(&redis, "later", "3");
    // One that runs, and was cut off while others took over, ends as well.
    assert_eq!(running.ended().await.code(), Some(1));
    let log = running.log();
    let said = log.last().unwrap()["fields"]["message"].as_str().unwrap();
    assert!(said.contains("have layout 3, but this version of headcount needs layout 2"), "{said}");
    // Where only the mode says so, too.
    set(&[("layout", LAYOUT)]);
    assert_refused(&redis, "later", "3");
}
