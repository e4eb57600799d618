//! `headcount verify` and what `headcount check` says of Kafka, against a real broker.

use std::time::{Duration, SystemTime};

use headcount::model::mode::Mode;
use headcount::model::shard::Shards;
use headcount::model::window::{Window, WindowLength};
use headcount::redis::keys::Keys;
use rdkafka::config::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};

use crate::support::fleet::next_window;
use crate::support::free_port;
use crate::support::kafka::{Tail, namespace, shared};
use crate::support::process::{headcount, output_of};
use crate::support::redis::Redis;
use crate::support::server::Server;

/// Exit code, and the lines.
fn run(command: &str, args: &[&str]) -> (i32, Vec<String>) {
    let output = output_of(headcount().arg(command).args(args));
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
    let lines = String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect();
    (output.status.code().unwrap(), lines)
}

#[track_caller]
fn about<'a>(lines: &'a [String], subject: &str) -> &'a str {
    let mut about = lines.iter().filter(|line| line[5..].starts_with(&format!("{subject}:")));
    let line = about.next().unwrap_or_else(|| panic!("{subject}: {lines:?}"));
    assert!(about.next().is_none(), "{subject}: {lines:?}");
    line
}

/// Puts a foreign record into a topic.
async fn plant(brokers: &str, namespace: &str, window: Window, unique: u64) {
    let producer: FutureProducer = ClientConfig::new().set("bootstrap.servers", brokers).create().unwrap();
    let value = format!(r#"{{"timestamp":"{window}","unique_request_count":{unique}}}"#);
    let headers = [("window_seconds", "1"), ("complete", "true")]
        .iter()
        .fold(OwnedHeaders::new(), |headers, (key, value)| {
            headers.insert(Header { key, value: Some(*value) })
        });
    let topic = format!("{namespace}.unique-counts");
    let record = FutureRecord::to(&topic).partition(0).key(namespace).payload(&value).headers(headers);
    producer.send(record, Duration::from_secs(10)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gap_a_repeat_and_a_wrong_number_are_found() {
    let (redis, brokers, namespace) = (Redis::start(), shared(), namespace("verify"));
    let url = redis.url();
    let args =
        ["--redis-url", &url, "--namespace", &namespace, "--window", "1s", "--kafka-brokers", &brokers];
    let mut server = Server::start(&args).await;
    let tail = Tail::start(&brokers, &format!("{namespace}.unique-counts"));
    for id in 0..20 {
        assert_eq!(server.get(&format!("/api/verve/accept?id={id}")).await.body, "ok");
    }
    let second = "1s".parse::<WindowLength>().unwrap();
    tail.wait_for(second.window_at(SystemTime::now()).unix_seconds() + 1).await;
    assert!(server.stop().await.success());

    let (code, lines) = run("verify", &args);
    assert_eq!(code, 0, "{lines:?}");
    for subject in ["gaps", "repeats", "out of order"] {
        assert_eq!(about(&lines, subject), format!("ok   {subject}: none"));
    }
    assert!(about(&lines, "counts").starts_with("ok "), "{lines:?}");
    assert!(about(&lines, "incomplete").starts_with("warn incomplete: 1: "), "the first: {lines:?}");
    let (code, lines) = run("check", &args);
    assert_eq!(code, 0, "{lines:?}");
    assert!(about(&lines, "topic").contains("one partition"));
    assert!(about(&lines, "writing").starts_with("ok ") && about(&lines, "record").contains("goes on after"));

    let last = second.starting_at(tail.last().unwrap());
    plant(&brokers, &namespace, last.previous(), 1).await;
    let wrong = last.next().next();
    let key = Keys::new(&namespace).ids(Mode::Hll, 0, Shards::ONE, wrong);
    ::redis::cmd("PFADD").arg(key).arg(1).arg(2).exec(&mut redis.connect()).unwrap();
    plant(&brokers, &namespace, wrong, 5).await;
    let (code, lines) = run("verify", &args);
    assert_eq!(code, 1, "{lines:?}");
    assert_eq!(about(&lines, "gaps"), format!("FAIL gaps: 1: {}", last.next()));
    assert_eq!(about(&lines, "missing"), "FAIL missing: 1 windows");
    assert_eq!(about(&lines, "repeats"), format!("FAIL repeats: 1: {}", last.previous()));
    let counts = about(&lines, "counts");
    assert!(
        counts.starts_with("FAIL") && counts.contains(&format!("{wrong} is 5 in Kafka and 2 in Redis")),
        "{counts}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn check_reports_faults_of_a_topic() {
    let (brokers, namespace) = (shared(), namespace("foreign"));
    let args = ["--window", "1s", "--namespace", &namespace, "--kafka-brokers", &brokers];
    let (code, lines) = run("check", &args);
    assert_eq!(code, 0, "{lines:?}");
    assert!(about(&lines, "topic").contains("does not exist"), "{lines:?}");

    let mut server = Server::start(&args).await;
    let topic = format!("{namespace}.unique-counts");
    Tail::start(&brokers, &topic).wait_for(0).await;
    assert!(server.stop().await.success());
    // An instance of another namespace may not publish to it. It still logs its windows.
    let other =
        ["--window", "1s", "--namespace", "other", "--kafka-brokers", &brokers, "--kafka-topic", &topic];
    let (code, lines) = run("check", &other);
    assert_eq!(code, 1, "{lines:?}");
    let key = format!("a record with the key '{namespace}'");
    assert!(about(&lines, "record").contains(&key), "{lines:?}");
    let (code, lines) = run("verify", &other);
    assert!(code == 1 && about(&lines, "topic").contains(&key), "{lines:?}");
    let mut server = Server::start(&other).await;
    server.wait_closed(3).await;
    let log = server.log();
    let stopped = log.iter().find(|event| event["level"] == "ERROR").expect("an error");
    assert!(stopped["fields"]["error"].as_str().unwrap().contains(&key), "{stopped}");
    assert!(server.stop().await.success());

    let nobody = format!("127.0.0.1:{}", free_port());
    let (code, lines) = run("check", &["--kafka-brokers", &nobody]);
    let line = about(&lines, "kafka");
    assert!(code == 1 && line.contains("--kafka-brokers") && line.contains("refused"), "{lines:?}");
}

/// Redis comes back with an old state. Its counts then do not show that right records are wrong. But verify still finds a
/// wrong record where Redis has all ids.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_lost_ids_differs_from_a_wrong_record() {
    let (mut redis, brokers, namespace) = (Redis::start(), shared(), namespace("snapshot"));
    let url = redis.url();
    let args =
        ["--redis-url", &url, "--namespace", &namespace, "--window", "2s", "--kafka-brokers", &brokers];
    let mut server = Server::start(&args).await;
    let tail = Tail::start(&brokers, &format!("{namespace}.unique-counts"));
    let first = next_window(Duration::from_millis(50)).await;
    tail.wait_for(first - 2).await;
    let start = next_window(Duration::from_millis(50)).await;
    let accept = async |ids: std::ops::Range<u64>| {
        for id in ids {
            assert_eq!(server.get(&format!("/api/verve/accept?id={id}")).await.body, "ok");
        }
    };
    accept(0..20).await;
    ::redis::cmd("SAVE").exec(&mut redis.connect()).unwrap();
    accept(20..40).await;
    let later = next_window(Duration::from_millis(50)).await;
    accept(0..10).await;
    tail.wait_for(later).await;
    assert!(server.stop().await.success());
    let window = "2s".parse::<WindowLength>().unwrap().starting_at(start);
    let (code, lines) = run("verify", &args);
    assert_eq!((code, about(&lines, "counts").starts_with("ok ")), (0, true), "{lines:?}");

    // Only the key of ids lost some: the stored count of the window equals the published one.
    let key = Keys::new(&namespace).ids(Mode::Hll, 0, Shards::ONE, window);
    ::redis::cmd("DEL").arg(&key).exec(&mut redis.connect()).unwrap();
    ::redis::cmd("PFADD").arg(&key).arg(1).exec(&mut redis.connect()).unwrap();
    let lost = "warn lost by Redis since they were counted, so not compared";
    let (code, lines) = run("verify", &args);
    assert_eq!(code, 0, "{lines:?}");
    assert!(lines.contains(&format!("{lost}: 1: {window}")), "{lines:?}");

    // A later version stored a count that this one cannot read: verify says so, and compares nothing.
    let config = Keys::new(&namespace).config();
    ::redis::cmd("HSET").arg(&config).arg(&[("layout", "3")]).exec(&mut redis.connect()).unwrap();
    let (code, lines) = run("verify", &args);
    let said = "have layout 3, but this version of headcount needs layout 2";
    assert!(code == 1 && about(&lines, "settings").contains(said), "{lines:?}");
    assert!(lines.iter().all(|line| !line.contains(" counts:") && !line.contains(lost)), "{lines:?}");

    // All keys are in the state before the window closed.
    redis.restart();
    let (code, lines) = run("verify", &args);
    assert_eq!(code, 0, "{lines:?}");
    assert!(lines.contains(&format!("{lost}: 1: {window}")), "{lines:?}");
}
