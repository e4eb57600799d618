//! `headcount verify` and what `headcount check` says of Kafka, against a real broker.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use headcount::model::mode::Mode;
use headcount::model::shard::Shards;
use headcount::model::window::{Window, WindowLength};
use headcount::redis::keys::Keys;
use rdkafka::admin::{AdminOptions, AlterConfig, ResourceSpecifier};
use rdkafka::config::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::{Offset, TopicPartitionList};

use crate::support::fleet::{next_window, seconds};
use crate::support::http::Connection;
use crate::support::kafka::{
    Tail, admin, committed, committed_in, make, namespace, partitions, shared, wait_recorded,
};
use crate::support::process::{headcount, output_of};
use crate::support::redis::Redis;
use crate::support::server::Server;
use crate::support::{free_port, wait_for, wait_until};

/// Exit code, and the lines.
pub fn run(command: &str, args: &[&str]) -> (i32, Vec<String>) {
    let output = output_of(headcount().arg(command).args(args));
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
    let lines = String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect();
    (output.status.code().unwrap(), lines)
}

#[track_caller]
pub fn about<'a>(lines: &'a [String], subject: &str) -> &'a str {
    let mut about = lines.iter().filter(|line| line[5..].starts_with(&format!("{subject}:")));
    let line = about.next().unwrap_or_else(|| panic!("{subject}: {lines:?}"));
    assert!(about.next().is_none(), "{subject}: {lines:?}");
    line
}

/// A foreign record: its key, its value, and its headers beside that of the window's length.
type Planted<'a> = (&'a str, String, &'a [(&'a str, &'a str)]);

async fn plant_all(brokers: &str, topic: &str, records: &[Planted<'_>]) {
    let producer: FutureProducer = ClientConfig::new().set("bootstrap.servers", brokers).create().unwrap();
    for (key, value, headers) in records {
        let headers = [&[("window_seconds", "1")], *headers]
            .concat()
            .iter()
            .fold(OwnedHeaders::new(), |headers, (key, value)| {
                headers.insert(Header { key, value: Some(*value) })
            });
        let record = FutureRecord::to(topic).partition(0).key(*key).payload(value).headers(headers);
        producer.send(record, Duration::from_secs(10)).await.unwrap();
    }
}

/// Puts a foreign record of a complete window into a topic.
async fn plant(brokers: &str, namespace: &str, window: Window, unique: u64) {
    let (topic, value) = (format!("{namespace}.unique-counts"), of_window(window, unique));
    plant_all(brokers, &topic, &[(namespace, value, &[("complete", "true")])]).await;
}

fn of_window(window: Window, unique: u64) -> String {
    format!(r#"{{"timestamp":"{window}","unique_request_count":{unique}}}"#)
}

fn of_counter(window: Window, counter: &str, unique: u64) -> String {
    format!(r#"{{"timestamp":"{window}","counter":"{counter}","unique_request_count":{unique}}}"#)
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
    let error = || server.log().into_iter().find(|event| event["level"] == "ERROR");
    let stopped = wait_for("an error", error).await;
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

/// A standalone instance that publishes two windows with the counters `somebody` and `else`, and stops.
async fn publish_counters(args: &[&str]) {
    let mut server = Server::start(args).await;
    // The topic may have the first window already, of an instance that stopped in it.
    server.wait_closed(1).await;
    for id in 0..2 {
        let target = format!("/api/verve/accept?id={id}&counter=somebody&counter=else");
        assert_eq!(server.get(&target).await.body, "ok");
        server.wait_closed(server.closed().len() + 2).await;
    }
    assert!(server.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_repeated_and_foreign_counters_are_found() {
    let (brokers, namespace) = (shared(), namespace("counters"));
    let args = ["--window", "1s", "--namespace", &namespace, "--kafka-brokers", &brokers];
    let (topic, of_counters) = (format!("{namespace}.unique-counts"), format!("{namespace}.counter-counts"));
    let mut server = Server::start(&args).await;
    Tail::start(&brokers, &topic).wait_for(0).await;
    assert!(server.stop().await.success());
    let (code, lines) = run("verify", &args);
    assert_eq!((code, about(&lines, "counters")), (0, "ok   counters: none"), "{lines:?}");

    publish_counters(&args).await;
    let (code, lines) = run("verify", &args);
    assert_eq!(code, 0, "{lines:?}");
    let found = format!("ok   counters: {of_counters} has 4 counts of counters, in 2 windows");
    assert_eq!(about(&lines, "counters"), found);
    assert_eq!(about(&lines, "numbers of counters"), "ok   numbers of counters: as many as the windows say");
    for subject in
        ["repeated counters", "counters out of order", "counters without a window", "skipped counters"]
    {
        assert_eq!(about(&lines, subject), format!("ok   {subject}: none"), "{lines:?}");
    }

    let second = "1s".parse::<WindowLength>().unwrap();
    let counters = committed(&brokers, &of_counters);
    let [first, last] = [&counters[0], &counters[3]].map(|record| second.starting_at(record.start()));
    let end = second.starting_at(committed(&brokers, &topic).last().unwrap().start());
    let (gap, short, skipped) = (end.next(), end.next().next(), end.next().next().next());
    let with = |number| [("complete", "true"), ("counters", number)];
    let (three, none) = (with("3"), with("skipped"));
    let windows =
        [(&*namespace, of_window(short, 3), &three[..]), (&*namespace, of_window(skipped, 3), &none)];
    plant_all(&brokers, &topic, &windows).await;
    let repeated = [("somebody", last), ("somebody", last), ("x", gap), ("x", short), ("y", short)];
    let late = [("x", skipped), ("x", first), ("after", skipped.next())];
    let records: Vec<_> = [&repeated[..], &late]
        .concat()
        .into_iter()
        .map(|(name, window)| (name, of_counter(window, name, 1), &[][..]))
        .collect();
    plant_all(&brokers, &of_counters, &records).await;

    let (code, lines) = run("verify", &args);
    assert_eq!(code, 1, "{lines:?}");
    let numbers = format!(
        "FAIL numbers of counters: 3 windows differ: {first} has 3 of 2, {short} has 2 of 3, {skipped} has 1, but says that \
         they were skipped"
    );
    assert_eq!(about(&lines, "numbers of counters"), numbers);
    assert_eq!(about(&lines, "repeated counters"), format!("FAIL repeated counters: 1: {last}"));
    assert_eq!(about(&lines, "counters out of order"), format!("FAIL counters out of order: 1: {first}"));
    let foreign = format!("FAIL counters without a window: 1: {gap}");
    assert_eq!(about(&lines, "counters without a window"), foreign);
    assert_eq!(about(&lines, "skipped counters"), format!("warn skipped counters: 1: {skipped}"));
    assert!(!lines.iter().any(|line| line.contains("somebody")), "{lines:?}");
}

/// Brokers delete old records of each topic by itself. What is left of a window says nothing about it.
#[tokio::test(flavor = "multi_thread")]
async fn counters_that_brokers_deleted_are_not_missed() {
    let (brokers, namespace) = (shared(), namespace("deleted"));
    let args = ["--window", "1s", "--namespace", &namespace, "--kafka-brokers", &brokers];
    let of_counters = format!("{namespace}.counter-counts");
    publish_counters(&args).await;
    let mut before = TopicPartitionList::new();
    before.add_partition_offset(&of_counters, 0, Offset::Offset(1)).unwrap();
    admin(&brokers).delete_records(&before, &AdminOptions::new()).await.unwrap();
    let (code, lines) = run("verify", &args);
    assert_eq!(code, 0, "{lines:?}");
    let not_compared =
        "as many as the windows say; 1 older windows are not compared, their counters are deleted";
    assert_eq!(about(&lines, "numbers of counters"), format!("ok   numbers of counters: {not_compared}"));

    admin(&brokers).delete_topics(&[&of_counters], &AdminOptions::new()).await.unwrap();
    let (code, lines) = run("verify", &args);
    let text = "does not exist, or may not be read, but 2 windows had counters";
    assert_eq!((code, about(&lines, "counters")), (1, &*format!("FAIL counters: {of_counters} {text}")));
}

/// Counts of counters are compared with Redis only where it still has all ids.
#[tokio::test(flavor = "multi_thread")]
async fn counters_are_compared_with_redis() {
    let (redis, brokers, namespace) = (Redis::start(), shared(), namespace("compared"));
    let url = redis.url();
    let (topic, of_counters) = (format!("{namespace}.unique-counts"), format!("{namespace}.counter-counts"));
    make(&brokers, &topic, 1, &[]).await;
    make(&brokers, &of_counters, 3, &[]).await;
    let keys = Keys::new(&namespace);
    let later = "1s".parse::<WindowLength>().unwrap().window_at(SystemTime::now());
    let earlier = later.previous();
    for mode in [Mode::Hll, Mode::Exact] {
        let add = if mode == Mode::Hll { "PFADD" } else { "SADD" };
        let put = |key: String, ids: std::ops::Range<u64>| {
            let ids: Vec<_> = ids.collect();
            ::redis::cmd(add).arg(key).arg(ids).exec(&mut redis.connect()).unwrap();
        };
        // Of the earlier window Redis has all, of the later one it lost ids.
        put(keys.ids(mode, 0, Shards::ONE, earlier), 0..5);
        put(keys.ids(mode, 0, Shards::ONE, later), 0..4);
        put(keys.counter(mode, "same", earlier), 0..3);
        put(keys.counter(mode, "fewer", later), 0..2);
    }
    for window in [earlier, later] {
        let accepted = if window == earlier { 9 } else { 5 };
        // As an instance stores them.
        let stats = serde_json::json!({ "accepted": accepted, "new": 0, "lost": 0, "parts": 1 });
        let (key, field) = (keys.accepted(window), "instance");
        ::redis::cmd("HSET").arg(key).arg(field).arg(stats.to_string()).exec(&mut redis.connect()).unwrap();
    }
    let of_total = [("complete", "true"), ("accepted_ids", "9"), ("counters", "2")];
    let totals = [earlier, later].map(|window| (&*namespace, of_window(window, 5), &of_total[..]));
    plant_all(&brokers, &topic, &totals).await;
    let complete = &[("complete", "true")][..];
    let counters = [("same", earlier, 3), ("gone", earlier, 7), ("fewer", later, 3), ("other", later, 1)];
    let counters = counters.map(|(name, window, n)| (name, of_counter(window, name, n), complete));
    plant_all(&brokers, &of_counters, &counters).await;
    let verify = |mode| {
        let args =
            ["--redis-url", &url, "--namespace", &namespace, "--window", "1s", "--kafka-brokers", &brokers];
        run("verify", &[&args[..], &["--mode", mode]].concat())
    };
    for mode in ["hll", "exact"] {
        let (code, lines) = verify(mode);
        assert_eq!(code, 0, "{lines:?}");
        let same = "1 complete counts of counters are still in Redis, with the same counts";
        assert_eq!(about(&lines, "counts of counters"), format!("ok   counts of counters: {same}"));
        let lost = "counters lost by Redis since they were counted, so not compared";
        assert_eq!(about(&lines, lost), format!("warn {lost}: 1: {later}"));
    }

    // Redis has fewer ids than a record says, though it lost none, and more than another one says.
    let wrong = [("same", earlier, 4), ("fewer", later, 1)];
    let wrong = wrong.map(|(name, window, n)| (name, of_counter(window, name, n), complete));
    plant_all(&brokers, &of_counters, &wrong).await;
    for mode in ["hll", "exact"] {
        let (code, lines) = verify(mode);
        assert_eq!(code, 1, "{lines:?}");
        let differ = format!("2 of 3 differ from Redis: 1 of {earlier}, 1 of {later}");
        assert_eq!(about(&lines, "counts of counters"), format!("FAIL counts of counters: {differ}"));
    }
}

/// Killed in the middle of a transaction, instances leave no counter without its window, and no window without its counters.
#[tokio::test(flavor = "multi_thread")]
async fn killed_instances_leave_no_half_of_a_window() {
    let (brokers, namespace) = (shared(), namespace("halves"));
    let args =
        ["--window", "1s", "--namespace", &namespace, "--kafka-brokers", &brokers, "--max-counters", "5000"];
    let body = (0..2_000).fold(String::new(), |mut body, number| {
        writeln!(body, r#"{{"id":{number},"counters":["c-{number}"]}}"#).unwrap();
        body
    });
    let topic = format!("{namespace}.unique-counts");
    for kill in 0..6 {
        let mut server = Server::start(&args).await;
        let mut connection = Connection::open(server.address).await.unwrap();
        let published = committed(&brokers, &topic).len();
        // Every window has counters, and the last one is being published when the process dies.
        wait_until("windows", async || {
            let answer = connection.post("application/x-ndjson", body.as_bytes()).await.unwrap();
            assert_eq!(answer.status, 200);
            server.closed().len() > 1 && committed(&brokers, &topic).len() > published
        })
        .await;
        let closed = server.closed().len();
        server.wait_closed(closed + 1).await;
        tokio::time::sleep(Duration::from_millis(7 * kill)).await;
        server.process.signal("KILL");
        server.ended().await;
    }
    let mut last = Server::start(&args).await;
    wait_recorded(&brokers, &topic, seconds(SystemTime::now())).await;
    assert!(last.stop().await.success());
    let (code, lines) = run("verify", &args);
    assert_eq!(code, 0, "{lines:?}");
    let numbers = about(&lines, "numbers of counters");
    assert_eq!(numbers, "ok   numbers of counters: as many as the windows say");
}

#[tokio::test(flavor = "multi_thread")]
async fn check_looks_at_the_topic_of_counters() {
    let (brokers, namespace) = (shared(), namespace("check"));
    let args = ["--window", "1s", "--namespace", &namespace, "--kafka-brokers", &brokers];
    let of_counters = format!("{namespace}.counter-counts");
    let (code, lines) = run("check", &args);
    let will_be_made = format!("ok   counters topic: {of_counters} does not exist, it will be made");
    assert_eq!((code, about(&lines, "counters topic")), (0, &*will_be_made), "{lines:?}");
    assert_eq!(partitions(&brokers, &of_counters), 0);
    let (_, lines) = run("check", &[&args[..], &["--max-counters", "0"]].concat());
    assert!(!lines.iter().any(|line| line.contains("counter")), "{lines:?}");

    make(&brokers, &of_counters, 3, &[]).await;
    let (code, lines) = run("check", &args);
    let there = format!("ok   counters topic: {of_counters} has 3 partitions");
    assert_eq!((code, about(&lines, "counters topic")), (0, &*there), "{lines:?}");
    let takes = format!("ok   counters writing: {of_counters} takes transactions");
    assert_eq!(about(&lines, "counters writing"), takes);

    let compact = AlterConfig::new(ResourceSpecifier::Topic(&of_counters)).set("cleanup.policy", "compact");
    admin(&brokers).alter_configs([&compact], &AdminOptions::new()).await.unwrap();
    wait_until("the check to fail", async || {
        let (code, lines) = run("check", &args);
        let does_not = format!("FAIL counters writing: {of_counters} does not: ");
        let line = about(&lines, "counters writing");
        code == 1 && line.starts_with(&does_not) && line.contains("set it to delete")
    })
    .await;
    let committed: Vec<_> = committed_in(&brokers, &of_counters, 3);
    assert_eq!(committed, [], "checks leave nothing");
}
