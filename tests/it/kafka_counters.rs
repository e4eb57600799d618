//! The counts of counters in Kafka: in a topic of their own, in the transaction of their window.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::{Duration, Instant, SystemTime};

use rdkafka::admin::{AdminOptions, AlterConfig, ResourceSpecifier};
use rdkafka::mocking::MockCluster;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

use crate::support::fleet::{Fleet, next_window, seconds};
use crate::support::http::Connection;
use crate::support::kafka::{
    Kafka, Record, admin, assert_each_once, committed, committed_in, make, namespace, offsets, partitions,
    shared, wait_recorded,
};
use crate::support::process::{headcount, output_of};
use crate::support::redis::Redis;
use crate::support::server::Server;
use crate::support::{free_port, wait_until};

const SKIPPED: &str = r#"headcount_skipped_counters_total{sink="kafka"}"#;

/// The topics of a namespace: of windows, and of counters.
fn topics(namespace: &str) -> (String, String) {
    (format!("{namespace}.unique-counts"), format!("{namespace}.counter-counts"))
}

async fn serve(brokers: &str, namespace: &str, args: &[&str]) -> Server {
    let fixed = ["--namespace", namespace, "--kafka-brokers", brokers];
    Server::start(&[&fixed, args].concat()).await
}

/// Sends ids from a number on, one to each of these counters.
async fn send(connection: &mut Connection, from: u64, counters: &[&str]) {
    let body = counters.iter().zip(from..).fold(String::new(), |mut body, (counter, id)| {
        writeln!(body, r#"{{"id":{id},"counters":["{counter}"]}}"#).unwrap();
        body
    });
    let answer = connection.post("application/x-ndjson", body.as_bytes()).await.unwrap();
    assert_eq!((answer.status, answer.body.as_str()), (200, "ok"));
}

/// Asserts that each window has as many counters as its header says, and that no counter is there twice or without its window.
#[track_caller]
pub fn assert_agree(windows: &[Record], counters: &[Record]) {
    let mut names = BTreeMap::<u64, BTreeSet<&str>>::new();
    for counter in counters {
        assert!(names.entry(counter.start()).or_default().insert(&counter.key), "twice: {counter:?}");
    }
    for window in windows {
        let names = names.remove(&window.start()).unwrap_or_default();
        let said = window.headers.get("counters").map_or("0", String::as_str);
        assert_eq!(said, names.len().to_string(), "{window:?}");
    }
    assert!(names.is_empty(), "counters without their window: {:?}", names.keys());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_counter_has_the_documented_record_in_the_topic_of_counters() {
    let (brokers, namespace) = (shared(), namespace("counters"));
    let (topic, of_counters) = topics(&namespace);
    let args = ["--window", "1s", "--shards", "4", "--max-counters", "3"];
    let mut server = serve(&brokers, &namespace, &args).await;
    let mut connection = Connection::open(server.address).await.unwrap();
    let first = wait_recorded(&brokers, &topic, seconds(SystemTime::now()) + 1).await;
    assert_eq!(partitions(&brokers, &of_counters), 0, "a topic that nobody needs");
    assert!(first.iter().all(|record| !record.headers.contains_key("counters")), "{first:?}");

    send(&mut connection, 0, &["b", "a", "b", "de/x:1"]).await;
    wait_until("counters", async || !committed(&brokers, &of_counters).is_empty()).await;
    assert_eq!(partitions(&brokers, &of_counters), 1);
    let described = admin(&brokers)
        .describe_configs([&ResourceSpecifier::Topic(&of_counters)], &AdminOptions::new())
        .await
        .unwrap();
    let resource = described[0].as_ref().unwrap();
    assert_eq!(resource.get("cleanup.policy").unwrap().value.as_deref(), Some("delete"));
    // More names than there are places.
    send(&mut connection, 10, &["a", "d", "e", "f", "g"]).await;
    assert!(server.stop().await.success());

    let (windows, counters) = (committed(&brokers, &topic), committed(&brokers, &of_counters));
    assert_each_once(&windows, 1);
    assert_agree(&windows, &counters);
    let order: Vec<_> = counters.iter().map(|record| (record.start(), &record.key)).collect();
    assert!(order.is_sorted_by(|one, next| one < next), "by window, then by name: {order:?}");
    let mut incomplete_by_overflow = 0;
    for record in &counters {
        let window = windows.iter().find(|window| window.start() == record.start()).unwrap();
        let timestamp = window.value.split('"').nth(3).unwrap();
        let value = format!(
            r#"{{"timestamp":"{timestamp}","counter":"{}","unique_request_count":{}}}"#,
            record.key,
            record.count()
        );
        assert_eq!(record.value, value);
        assert_eq!(record.timestamp, window.timestamp);
        let overflowed =
            counters.iter().any(|other| other.start() == record.start() && other.key == "_other");
        let is_complete = window.headers["complete"] == "true";
        incomplete_by_overflow += usize::from(is_complete && overflowed);
        let expected = [
            ("complete", (is_complete && !overflowed).to_string()),
            ("mode", "hll".to_owned()),
            ("standard_error", "0.008125".to_owned()),
            ("window_seconds", "1".to_owned()),
        ];
        assert_eq!(record.headers, expected.map(|(key, value)| (key.to_owned(), value)).into());
        assert_eq!(window.headers["standard_error"], "0.0040625");
    }
    let of =
        |name: &str| -> u64 { counters.iter().filter(|record| record.key == name).map(Record::count).sum() };
    assert_eq!([of("a"), of("b"), of("de/x:1")], [2, 2, 1]);
    assert_eq!(of("d") + of("e") + of("f") + of("g") + of("_other"), 4);
    assert!(of("_other") > 0);
    println!("{} counters, {incomplete_by_overflow} incomplete by overflow", counters.len());
}

/// The hash of a key that the Java client uses, written anew.
fn murmur2(key: &str) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let key = key.as_bytes();
    let mut hash = 0x9747_b28c ^ key.len() as u32;
    let mut words = key.chunks_exact(4);
    for word in &mut words {
        let mut k = u32::from_le_bytes(word.try_into().unwrap()).wrapping_mul(M);
        k = (k ^ k >> 24).wrapping_mul(M);
        hash = hash.wrapping_mul(M) ^ k;
    }
    let rest = words.remainder();
    if !rest.is_empty() {
        for (place, byte) in rest.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * place);
        }
        hash = hash.wrapping_mul(M);
    }
    hash = (hash ^ hash >> 13).wrapping_mul(M);
    hash ^ hash >> 15
}

/// In a topic with several partitions, a counter is where the Java client would put it.
#[tokio::test(flavor = "multi_thread")]
async fn several_partitions_have_the_counters_that_java_puts_there() {
    // From the tests of Kafka's own client: murmur2("21") is -973932308, of "foobar" it is -790332482.
    assert_eq!(["21", "foobar"].map(murmur2), [973_932_308, 790_332_482].map(u32::wrapping_neg));
    let (brokers, namespace) = (shared(), namespace("partitions"));
    let (topic, of_counters) = topics(&namespace);
    make(&brokers, &of_counters, 5, &[]).await;
    let mut server = serve(&brokers, &namespace, &["--window", "1h"]).await;
    let mut connection = Connection::open(server.address).await.unwrap();
    let names: Vec<_> = (0..500).map(|number| format!("campaign-{number}")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    send(&mut connection, 0, &names).await;
    assert!(server.stop().await.success());

    let found = committed_in(&brokers, &of_counters, 5);
    let used: BTreeSet<_> = found.iter().map(|(partition, _)| *partition).collect();
    assert_eq!(used, (0..5).collect());
    for (partition, record) in &found {
        let expected = (murmur2(&record.key) & 0x7fff_ffff) % 5;
        assert_eq!(u32::try_from(*partition), Ok(expected), "{}", record.key);
    }
    for partition in used {
        let names: Vec<_> =
            found.iter().filter(|found| found.0 == partition).map(|(_, record)| &record.key).collect();
        assert!(names.is_sorted(), "by name in a partition");
    }
    let found: Vec<_> = found.into_iter().map(|(_, record)| record).collect();
    assert_agree(&committed(&brokers, &topic), &found);
    assert_eq!(found.len(), 500);
}

fn names_error(server: &Server, parts: &[&str]) -> bool {
    server.log().iter().any(|event| {
        let error = event["fields"]["error"].as_str().unwrap_or_default();
        parts.iter().all(|part| error.contains(part))
    })
}

/// A topic that keeps counters out is named, with what to do. All arrive once it is right, without a restart.
#[tokio::test(flavor = "multi_thread")]
async fn a_topic_of_counters_with_wrong_settings_is_named() {
    for (setting, wrong, remedies) in [
        ("cleanup.policy", "compact", &["all but the last window of each counter", "set it to delete"][..]),
        ("max.message.bytes", "50000", &["set it to 1000000 or more", "--kafka-option batch.size=50000"]),
    ] {
        let (brokers, namespace) = (shared(), namespace("wrong"));
        let (topic, of_counters) = topics(&namespace);
        make(&brokers, &of_counters, 1, &[(setting, wrong)]).await;
        let mut server = serve(&brokers, &namespace, &["--window", "1s"]).await;
        wait_recorded(&brokers, &topic, 0).await;
        let mut connection = Connection::open(server.address).await.unwrap();
        send(&mut connection, 0, &["a", "b"]).await;
        let expected = format!("the topic {of_counters} has {setting}={wrong}");
        let parts = [&[&*expected], remedies].concat();
        wait_until("the topic to be named", async || names_error(&server, &parts)).await;

        let right = AlterConfig::new(ResourceSpecifier::Topic(&of_counters)).set("cleanup.policy", "delete");
        admin(&brokers).alter_configs([&right], &AdminOptions::new()).await.unwrap();
        wait_until("counters", async || committed(&brokers, &of_counters).len() == 2).await;
        assert!(server.stop().await.success());
        let windows = committed(&brokers, &topic);
        assert_each_once(&windows, 1);
        assert_agree(&windows, &committed(&brokers, &of_counters));
    }
}

/// The other remedy for a topic with small batches.
#[tokio::test(flavor = "multi_thread")]
async fn a_topic_of_counters_with_small_batches_is_used_with_small_batches() {
    let (brokers, namespace) = (shared(), namespace("batches"));
    let (topic, of_counters) = topics(&namespace);
    make(&brokers, &of_counters, 1, &[("max.message.bytes", "50000")]).await;
    let args = ["--window", "1h", "--kafka-option", "batch.size=50000"];
    let mut server = serve(&brokers, &namespace, &args).await;
    let mut connection = Connection::open(server.address).await.unwrap();
    let names: Vec<_> = (0..1_000).map(|number| format!("{number:0>100}")).collect();
    send(&mut connection, 0, &names.iter().map(String::as_str).collect::<Vec<_>>()).await;
    assert!(server.stop().await.success());
    let counters = committed(&brokers, &of_counters);
    assert_eq!(counters.len(), 1_000);
    assert_agree(&committed(&brokers, &topic), &counters);
    assert!(!server.log().iter().any(|event| event["level"] == "WARN"), "{:?}", server.log());
}

/// Counters whose topic takes nothing for longer than `--counter-retention` are skipped. The windows arrive, and say so.
#[tokio::test(flavor = "multi_thread")]
async fn windows_do_not_wait_for_ever_for_their_counters() {
    let (brokers, namespace) = (shared(), namespace("skipped"));
    let (topic, of_counters) = topics(&namespace);
    make(&brokers, &of_counters, 1, &[("cleanup.policy", "compact")]).await;
    let mut server = serve(&brokers, &namespace, &["--window", "1s", "--counter-retention", "2s"]).await;
    wait_recorded(&brokers, &topic, 0).await;
    let mut connection = Connection::open(server.address).await.unwrap();
    send(&mut connection, 0, &["a", "b"]).await;
    let expected = format!("the topic {of_counters} has cleanup.policy=compact");
    wait_until("the topic to be named", async || names_error(&server, &[&expected])).await;
    let records = wait_recorded(&brokers, &topic, seconds(SystemTime::now())).await;
    assert_each_once(&records, 1);
    let skipped: Vec<_> = records
        .iter()
        .filter(|record| record.headers.get("counters").is_some_and(|n| n == "skipped"))
        .collect();
    assert!((1..=2).contains(&skipped.len()), "{records:?}");
    assert_eq!(skipped.iter().map(|record| record.count()).sum::<u64>(), 2);
    assert_eq!(server.metric(SKIPPED).await, 2.0);
    assert_eq!(committed(&brokers, &of_counters), []);
    assert!(server.stop().await.success());
}

/// The brokers refuse the topic of counters, and the log names that topic and their reason.
#[tokio::test(flavor = "multi_thread")]
async fn a_topic_of_counters_that_the_user_may_not_use_is_named() {
    let cluster = MockCluster::new(1).unwrap();
    let (topic, of_counters) = topics("refused");
    cluster.create_topic(&topic, 1, 1).unwrap();
    cluster.create_topic(&of_counters, 1, 1).unwrap();
    let brokers = cluster.bootstrap_servers();
    let mut server = serve(&brokers, "refused", &["--window", "1h"]).await;
    let mut connection = Connection::open(server.address).await.unwrap();
    send(&mut connection, 0, &["a", "b"]).await;
    let refused = RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED;
    cluster.request_errors(RDKafkaApiKey::AddPartitionsToTxn, &[refused]);
    assert!(server.stop().await.success());
    let did_not = format!("the topic {of_counters} did not take a record");
    assert!(names_error(&server, &[&did_not, "authorization failed"]), "{:#?}", server.log());
    assert_agree(&committed(&brokers, &topic), &committed(&brokers, &of_counters));
}

/// One name for both topics would mix windows and counters.
#[test]
fn the_two_topics_must_differ() {
    for args in [
        ["--kafka-topic", "counts", "--kafka-counters-topic", "counts"],
        ["--kafka-topic", "headcount.counter-counts", "--namespace", "headcount"],
    ] {
        let output = output_of(headcount().args(["serve", "--kafka-brokers", "127.0.0.1:1"]).args(args));
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("--kafka-counters-topic") && said.contains("must differ"), "{said}");
    }
}

/// The most memory that the process has had so far, in kilobytes; none after its end.
fn peak(server: &Server) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.process.0.id())).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Names of counters, in the order of their bytes.
fn many(counters: u32) -> Vec<String> {
    (0..counters).map(|number| format!("c-{number:06}")).collect()
}

/// Sends the same id to each counter, eight in a line.
async fn send_to_many(server: &Server, names: &[String]) {
    let mut connection = Connection::open(server.address).await.unwrap();
    for names in names.chunks(8_000) {
        let body = names.chunks(8).fold(String::new(), |mut body, names| {
            writeln!(body, r#"{{"id":1,"counters":["{}"]}}"#, names.join(r#"",""#)).unwrap();
            body
        });
        let answer = connection.post("application/x-ndjson", body.as_bytes()).await.unwrap();
        assert_eq!((answer.status, answer.body.as_str()), (200, "ok"));
    }
}

/// Asserts that the counters of the only window are there, each once and by name, in one transaction with it.
#[track_caller]
fn assert_one_transaction(brokers: &str, namespace: &str, names: &[String]) {
    let (topic, of_counters) = topics(namespace);
    let (windows, counters) = (committed(brokers, &topic), committed(brokers, &of_counters));
    let [window] = &windows[..] else { panic!("one window: {windows:?}") };
    assert_eq!((window.count(), &*window.headers["counters"]), (1, &*names.len().to_string()));
    assert!(counters.iter().map(|record| &record.key).eq(names), "each once, by name");
    assert!(counters.iter().all(|record| record.count() == 1 && record.timestamp == window.timestamp));
    // A transaction has one mark at its end, so its records have all offsets but the last.
    let (_, end) = offsets(brokers, &of_counters);
    assert_eq!(end.unsigned_abs(), names.len() as u64 + 1);
}

#[track_caller]
fn assert_no_complaints(server: &Server) {
    let complaints: Vec<_> = server.log().into_iter().filter(|event| event["level"] != "INFO").collect();
    assert!(complaints.is_empty(), "{complaints:?}");
}

const MANY: [&str; 6] = ["--window", "1h", "--max-counters", "200000", "--counter-memory", "512MiB"];

#[tokio::test(flavor = "multi_thread")]
async fn a_window_may_have_150_000_counters() {
    let (brokers, namespace, names) = (shared(), namespace("many"), many(150_000));
    let mut server = serve(&brokers, &namespace, &MANY).await;
    send_to_many(&server, &names).await;
    let before = peak(&server).unwrap();
    server.process.signal("TERM");
    let (mut highest, asked) = (before, Instant::now());
    wait_until("the end", async || {
        highest = peak(&server).unwrap_or(highest);
        server.process.0.try_wait().unwrap().is_some()
    })
    .await;
    let took = asked.elapsed();
    assert!(server.ended().await.success());
    println!("stopped after {took:?}, at most {before} kB before and {highest} kB in all");
    assert_no_complaints(&server);
    assert_one_transaction(&brokers, &namespace, &names);
}

/// librdkafka sends nothing by itself before its queue is full. The sink makes it send, and goes on.
#[tokio::test(flavor = "multi_thread")]
async fn counters_wait_for_room_in_the_queue() {
    let (brokers, namespace, names) = (shared(), namespace("room"), many(120_000));
    let (_, of_counters) = topics(&namespace);
    make(&brokers, &of_counters, 1, &[("max.message.bytes", "100000000")]).await;
    let lazy = "linger.ms=25000;batch.num.messages=1000000;batch.size=90000000;message.max.bytes=100000000";
    let mut server = serve(&brokers, &namespace, &[&MANY[..], &["--kafka-option", lazy]].concat()).await;
    send_to_many(&server, &names).await;
    assert!(server.stop().await.success());
    assert_no_complaints(&server);
    assert_one_transaction(&brokers, &namespace, &names);
}

/// Brokers are away for longer than `--counter-retention`, while instances count counters together in Redis. The windows of that
/// time follow without their counters, and say so.
#[tokio::test(flavor = "multi_thread")]
async fn brokers_may_be_away_for_longer_than_counters_wait() {
    let (port, redis) = (free_port(), Redis::start());
    let (brokers, mut kafka) = (format!("127.0.0.1:{port}"), Kafka::start_on(port));
    let (topic, of_counters) = topics("away");
    let args = ["--kafka-brokers", &brokers, "--counter-retention", "20s"];
    let fleet = Fleet::start(2, &redis, "away", &args).await;
    let fill = async |first: u64| {
        let start = next_window(Duration::from_millis(50)).await;
        for (server, id) in fleet.servers.iter().zip(first..) {
            let mut connection = Connection::open(server.address).await.unwrap();
            send(&mut connection, id, &["a", "b", "c"]).await;
        }
        start
    };
    let before = fill(0).await;
    wait_recorded(&brokers, &topic, before).await;
    kafka.kill();
    let away = fill(100).await;
    let skipped = async || {
        let mut sum = 0.0;
        for server in &fleet.servers {
            sum += server.metric(SKIPPED).await;
        }
        sum
    };
    wait_until("counters to wait for too long", async || skipped().await >= 3.0).await;
    kafka.restart();
    wait_recorded(&brokers, &topic, away).await;
    let after = fill(200).await;
    let windows = wait_recorded(&brokers, &topic, after).await;
    let counters = committed(&brokers, &of_counters);
    assert_each_once(&windows, 2);
    let said = |start| {
        let window = windows.iter().find(|window| window.start() == start).expect("a window");
        (window.headers.get("counters").map(String::as_str), window.headers["complete"].as_str())
    };
    assert_eq!(said(before).0, Some("3"));
    assert_eq!(said(away), (Some("skipped"), "true"));
    assert_eq!(said(after), (Some("3"), "true"));
    let of = |start| counters.iter().filter(|counter| counter.start() == start).count();
    assert_eq!((of(before), of(away), of(after)), (3, 0, 3));
    assert_eq!(counters.len(), 6, "each once");
}
