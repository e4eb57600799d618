//! The Kafka sink meets topics with wrong settings, and comes back after an absence.

use std::time::{Duration, Instant, SystemTime};

use rdkafka::admin::{AdminOptions, AlterConfig, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::config::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use tokio::task::spawn_blocking;

use crate::support::fleet::seconds;
use crate::support::kafka::{Kafka, Record, Tail, admin, assert_each_once, namespace, shared, wait_recorded};
use crate::support::process::{headcount, output_of};
use crate::support::redis::Redis;
use crate::support::server::Server;
use crate::support::{PATIENCE, free_port, wait_for};

const TIMEOUT: Duration = Duration::from_secs(10);

/// Begins a foreign transaction and writes a record into it.
fn foreign_transaction(producer: &BaseProducer, topic: &str) {
    producer.begin_transaction().unwrap();
    let record = BaseRecord::to(topic).partition(0).key("nobody").payload("nothing");
    producer.send(record).map_err(|(error, _)| error).unwrap();
    producer.flush(TIMEOUT).unwrap();
}

/// Aborted records use offsets, but readers skip them. An open transaction delays readers.
#[tokio::test(flavor = "multi_thread")]
async fn transactions_of_other_producers_are_skipped_or_waited_for() {
    let (brokers, namespace) = (shared(), namespace("others"));
    let args = ["--window", "1s", "--namespace", &namespace, "--kafka-brokers", &brokers];
    let topic = format!("{namespace}.unique-counts");
    let tail = Tail::start(&brokers, &topic);
    let mut first = Server::start(&args).await;
    tail.wait_for(seconds(SystemTime::now())).await;
    assert!(first.stop().await.success());

    let (config, of_others) = (brokers.clone(), topic.clone());
    let producer = spawn_blocking(move || {
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", config).set("transactional.id", format!("other-{of_others}"));
        let producer: BaseProducer = client.create().unwrap();
        producer.init_transactions(TIMEOUT).unwrap();
        // More offsets than the first search for the last record goes back.
        for _ in 0..50 {
            foreign_transaction(&producer, &of_others);
            producer.abort_transaction(TIMEOUT).unwrap();
        }
        foreign_transaction(&producer, &of_others);
        producer
    });
    let producer = producer.await.unwrap();
    let mut second = Server::start(&args).await;
    second.wait_closed(2).await;
    let waits = |event: &serde_json::Value| {
        event["fields"]["message"].as_str().unwrap().contains("another producer's open transaction")
    };
    wait_for("a warning", || second.log().iter().any(waits).then_some(())).await;
    spawn_blocking(move || producer.abort_transaction(TIMEOUT).unwrap()).await.unwrap();
    let records = tail.wait_for(seconds(SystemTime::now()) + 1).await;
    assert_each_once(&records, 1);
    assert!(second.stop().await.success());
}

/// A leader without the sink published some windows. The sink later gets exactly these counts.
#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_was_absent_gets_the_stored_counts() {
    let (brokers, namespace, redis) = (shared(), namespace("absent"), Redis::start());
    let url = redis.url();
    let without = ["--window", "1s", "--namespace", &namespace, "--redis-url", &url];
    let with = [&without[..], &["--kafka-brokers", &brokers]].concat();
    let tail = Tail::start(&brokers, &format!("{namespace}.unique-counts"));
    let mut server = Server::start(&with).await;
    tail.wait_for(0).await;
    assert!(server.stop().await.success());
    let mut server = Server::start(&without).await;
    for id in 0..9 {
        assert_eq!(server.get(&format!("/api/verve/accept?id={id}")).await.body, "ok");
    }
    let closed = wait_for("ids", || {
        Some(server.closed()).filter(|closed| closed.iter().map(|closed| closed.unique).sum::<u64>() >= 9)
    });
    let closed = closed.await;
    assert!(server.stop().await.success());
    let mut server = Server::start(&with).await;
    let records = tail.wait_for(seconds(SystemTime::now())).await;
    assert!(server.stop().await.success());
    assert_each_once(&records, 1);
    for closed in closed {
        let record =
            records.iter().find(|record| record.start() == seconds(closed.start())).expect("its record");
        assert_eq!(record.count(), closed.unique);
        assert_eq!(record.headers["accepted_ids"], closed.accepted.to_string());
    }
    assert_eq!(records.iter().map(Record::count).sum::<u64>(), 9);
}

/// A compacted topic keeps only the last record of a key, so it would lose windows.
#[tokio::test(flavor = "multi_thread")]
async fn a_compacted_topic_is_refused() {
    let (brokers, namespace) = (shared(), namespace("compacted"));
    let topic = format!("{namespace}.unique-counts");
    let compacted = NewTopic::new(&topic, 1, TopicReplication::Fixed(1)).set("cleanup.policy", "compact");
    admin(&brokers).create_topics([&compacted], &AdminOptions::new()).await.unwrap();
    let args = ["--window", "1s", "--namespace", &namespace, "--kafka-brokers", &brokers];
    let mut server = Server::start(&args).await;
    let says = |event: &serde_json::Value| {
        let error = event["fields"]["error"].as_str().unwrap_or_default();
        event["level"] == "ERROR" && error.contains("cleanup.policy=compact")
    };
    wait_for("an error", || server.log().iter().any(says).then_some(())).await;
    assert!(server.stop().await.success());
}

/// A stop with brokers away ends in time. In memory it ends with an error, because counts are lost. With Redis it ends
/// without one, because they are not.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_with_brokers_away_ends_in_time() {
    let redis = Redis::start();
    let (url, brokers) = (redis.url(), format!("127.0.0.1:{}", free_port()));
    let alone = ["--window", "1s", "--kafka-brokers", &brokers, "--shutdown-timeout", "6s"];
    let shared = [&alone[..], &["--redis-url", &url]].concat();
    for (args, code) in [(&alone[..], 1), (&shared, 0)] {
        let mut server = Server::start(args).await;
        server.wait_closed(2).await;
        let asked = Instant::now();
        assert_eq!(server.stop().await.code(), Some(code), "{:?}", server.log().last());
        assert!(asked.elapsed() < Duration::from_secs(8), "{:?}", asked.elapsed());
    }
}

/// The topic lacks windows, because no instance ran. An instance that is stopped at once publishes them before its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_publishes_the_windows_that_a_topic_lacks() {
    let (brokers, namespace) = (shared(), namespace("lacks"));
    let topic = format!("{namespace}.unique-counts");
    let args = ["--window", "1s", "--namespace", &namespace, "--kafka-brokers", &brokers];
    let mut first = Server::start(&args).await;
    first.wait_closed(1).await;
    assert!(first.stop().await.success());
    let last = first.closed().last().unwrap().start();
    wait_recorded(&brokers, &topic, seconds(last)).await;
    wait_for("windows without an instance", || (last.elapsed().unwrap().as_secs() > 3).then_some(())).await;

    let mut second = Server::start(&args).await;
    assert!(second.stop().await.success(), "{:#?}", second.log());
    let last = second.closed().last().unwrap().start();
    let records = wait_recorded(&brokers, &topic, seconds(last)).await;
    assert_each_once(&records, 1);
}

/// The topic is deleted while the service runs. The service creates it again and logs that, and windows continue.
#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_deleted_is_made_again() {
    let (brokers, namespace) = (shared(), namespace("deleted"));
    let topic = format!("{namespace}.unique-counts");
    let args = ["--window", "1s", "--namespace", &namespace, "--kafka-brokers", &brokers];
    let mut server = Server::start(&args).await;
    wait_recorded(&brokers, &topic, 0).await;
    admin(&brokers).delete_topics(&[&topic], &AdminOptions::new()).await.unwrap();
    let is_made_again = || (server.logged("made a topic in Kafka") == 2).then_some(());
    wait_for("the topic to be made again", is_made_again).await;
    let records = wait_recorded(&brokers, &topic, seconds(SystemTime::now())).await;
    assert_each_once(&records, 1);
    let named = |event: &serde_json::Value| {
        event["level"] == "WARN" && event["fields"]["error"].as_str().unwrap_or_default().contains(&topic)
    };
    assert!(server.log().iter().any(named), "{:?}", server.log());
    assert!(server.stop().await.success());
}

/// An operator makes the topic compacted while the service publishes to it. The service notices and stops publishing.
#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_becomes_compacted_is_noticed() {
    let (brokers, namespace) = (shared(), namespace("becomes"));
    let topic = format!("{namespace}.unique-counts");
    let args = ["--window", "1s", "--namespace", &namespace, "--kafka-brokers", &brokers];
    let mut server = Server::start(&args).await;
    wait_recorded(&brokers, &topic, 0).await;
    let compact = AlterConfig::new(ResourceSpecifier::Topic(&topic)).set("cleanup.policy", "compact");
    admin(&brokers).alter_configs([&compact], &AdminOptions::new()).await.unwrap();
    let says = |event: &serde_json::Value| {
        let error = event["fields"]["error"].as_str().unwrap_or_default();
        event["level"] == "ERROR" && error.contains(&topic) && error.contains("cleanup.policy=compact")
    };
    // The service checks every 30 s.
    let deadline = Instant::now() + 2 * PATIENCE;
    while !server.log().iter().any(says) {
        assert!(Instant::now() < deadline, "{:?}", server.log().last());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    server.stop().await;
}

/// The topic's limit is too small for our records. The log names the topic and the setting. Publishing starts once the
/// setting is right.
#[tokio::test(flavor = "multi_thread")]
async fn a_topic_with_too_small_records_is_named() {
    let (brokers, namespace) = (shared(), namespace("small"));
    let topic = format!("{namespace}.unique-counts");
    let small = NewTopic::new(&topic, 1, TopicReplication::Fixed(1)).set("max.message.bytes", "100");
    admin(&brokers).create_topics([&small], &AdminOptions::new()).await.unwrap();
    let args = ["--window", "1s", "--namespace", &namespace, "--kafka-brokers", &brokers];
    let mut server = Server::start(&args).await;
    let says = |event: &serde_json::Value| {
        let error = event["fields"]["error"].as_str().unwrap_or_default();
        error.contains(&topic) && error.contains("max.message.bytes=100")
    };
    wait_for("the setting to be named", || server.log().iter().any(says).then_some(())).await;
    let checked = output_of(headcount().arg("check").args(args));
    let found = String::from_utf8(checked.stdout).unwrap();
    assert!(checked.status.code() == Some(1) && found.contains("FAIL writing"), "{found}");
    let larger = AlterConfig::new(ResourceSpecifier::Topic(&topic)).set("max.message.bytes", "1048588");
    admin(&brokers).alter_configs([&larger], &AdminOptions::new()).await.unwrap();
    wait_recorded(&brokers, &topic, seconds(SystemTime::now())).await;
    assert!(server.stop().await.success());
}

fn warns_of(event: &serde_json::Value, what: &str) -> bool {
    event["level"] == "WARN" && event["fields"]["error"].as_str().unwrap_or_default().contains(what)
}

/// Waits until the log has a warning whose error contains `what`.
async fn wait_warned(server: &Server, what: &str) {
    let deadline = Instant::now() + PATIENCE;
    while !server.log().iter().any(|event| warns_of(event, what)) {
        let warnings: Vec<_> = server.log().into_iter().filter(|event| event["level"] != "INFO").collect();
        assert!(Instant::now() < deadline, "no warning of {what}: {warnings:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// An operator changes a topic so that it refuses records, while the service publishes to it. The log and check name the
/// setting and say what to do. The windows arrive once it is right.
async fn assert_named_and_got_over(name: &str, setting: &str, wrong: &str) {
    let (brokers, namespace) = (shared(), namespace(name));
    let topic = format!("{namespace}.unique-counts");
    let args = ["--window", "1s", "--namespace", &namespace, "--kafka-brokers", &brokers];
    let mut server = Server::start(&args).await;
    wait_recorded(&brokers, &topic, 0).await;
    let set_wrong = AlterConfig::new(ResourceSpecifier::Topic(&topic)).set(setting, wrong);
    admin(&brokers).alter_configs([&set_wrong], &AdminOptions::new()).await.unwrap();

    let expected = format!("{topic} has {setting}={wrong}");
    wait_warned(&server, &expected).await;
    assert!(server.log().iter().any(|event| warns_of(event, "set it to")), "what to do is said too");
    let checked = output_of(headcount().arg("check").args(args));
    let found = String::from_utf8(checked.stdout).unwrap();
    let failed = found.lines().find(|line| line.starts_with("FAIL writing"));
    assert!(failed.is_some_and(|line| line.contains(&expected)), "{found}");
    assert_eq!(checked.status.code(), Some(1));

    // Without its own settings the topic has the brokers'.
    let set_right = AlterConfig::new(ResourceSpecifier::Topic(&topic));
    admin(&brokers).alter_configs([&set_right], &AdminOptions::new()).await.unwrap();
    let records = wait_recorded(&brokers, &topic, seconds(SystemTime::now())).await;
    assert_each_once(&records, 1);
    assert!(server.stop().await.success());
}

/// Since Kafka 3.7 a broker requires no more replicas than exist. Such a topic works as any other.
#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_asks_for_more_replicas_than_it_has_is_used() {
    let (brokers, namespace) = (shared(), namespace("replicas"));
    let topic = format!("{namespace}.unique-counts");
    let args = ["--window", "1s", "--namespace", &namespace, "--kafka-brokers", &brokers];
    let mut server = Server::start(&args).await;
    wait_recorded(&brokers, &topic, 0).await;
    let more = AlterConfig::new(ResourceSpecifier::Topic(&topic)).set("min.insync.replicas", "2");
    admin(&brokers).alter_configs([&more], &AdminOptions::new()).await.unwrap();
    let records = wait_recorded(&brokers, &topic, seconds(SystemTime::now()) + 2).await;
    assert_each_once(&records, 1);
    let checked = output_of(headcount().arg("check").args(args));
    let found = String::from_utf8(checked.stdout).unwrap();
    assert!(
        found.lines().any(|line| line.starts_with("ok") && line.contains("takes transactions")),
        "{found}"
    );
    assert!(server.stop().await.success());
    assert!(!server.log().iter().any(|event| event["level"] == "WARN" || event["level"] == "ERROR"));
}

/// The topic requires two replicas in sync, and one is away. The log says so, and windows arrive when it is back.
#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_lacks_replicas_in_sync_is_named() {
    let (port, namespace) = (free_port(), namespace("in-sync"));
    let (brokers, topic) = (format!("127.0.0.1:{port}"), format!("{namespace}.unique-counts"));
    let args = ["--window", "1s", "--namespace", &namespace, "--kafka-brokers", &brokers];
    let first = Kafka::start_on(port);
    // check makes the brokers create the transaction topic. It lands on the only broker.
    output_of(headcount().arg("check").args(args));
    let mut second = first.join(free_port());
    let both =
        NewTopic::new(&topic, 1, TopicReplication::Variable(&[&[1, 2]])).set("min.insync.replicas", "2");
    for made in admin(&brokers).create_topics([&both], &AdminOptions::new()).await.unwrap() {
        made.unwrap();
    }
    let mut server = Server::start(&args).await;
    wait_recorded(&brokers, &topic, 0).await;
    second.kill();
    let expected = format!("{topic} has min.insync.replicas=2, and only 1 of its 2 replicas in sync");
    wait_warned(&server, &expected).await;
    let checked = output_of(headcount().arg("check").args(args));
    let found = String::from_utf8(checked.stdout).unwrap();
    let failed = found.lines().find(|line| line.starts_with("FAIL writing"));
    assert!(failed.is_some_and(|line| line.contains(&expected)), "{found}");
    second.restart();
    let records = wait_recorded(&brokers, &topic, seconds(SystemTime::now())).await;
    assert_each_once(&records, 1);
    assert!(server.stop().await.success());
}

/// Brokers are away, and come back with a topic that refuses records. The log has the second reason too.
#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_refuses_records_after_an_outage_is_named() {
    let (port, namespace) = (free_port(), namespace("outage"));
    let (brokers, topic) = (format!("127.0.0.1:{port}"), format!("{namespace}.unique-counts"));
    let mut kafka = Kafka::start_on(port);
    let small = NewTopic::new(&topic, 1, TopicReplication::Fixed(1)).set("max.message.bytes", "20");
    for made in admin(&brokers).create_topics([&small], &AdminOptions::new()).await.unwrap() {
        made.unwrap();
    }
    kafka.kill();
    let args = ["--window", "1s", "--namespace", &namespace, "--kafka-brokers", &brokers];
    let mut server = Server::start(&args).await;
    server.wait_for_log("a sink fails, trying again").await;
    kafka.restart();
    let expected = format!("{topic} has max.message.bytes=20");
    wait_warned(&server, &expected).await;
    let larger = AlterConfig::new(ResourceSpecifier::Topic(&topic));
    admin(&brokers).alter_configs([&larger], &AdminOptions::new()).await.unwrap();
    let records = wait_recorded(&brokers, &topic, seconds(SystemTime::now())).await;
    assert_each_once(&records, 1);
    assert!(server.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_comes_to_refuse_old_windows_is_named() {
    assert_named_and_got_over("old", "message.timestamp.before.max.ms", "1").await;
}

/// Large enough for the broker's own marker at the end of a transaction. Otherwise Kafka 4.4 never ends it.
#[tokio::test(flavor = "multi_thread")]
async fn a_topic_whose_records_become_too_small_is_named() {
    assert_named_and_got_over("shrinks", "max.message.bytes", "100").await;
}

/// A broker comes back empty. The service creates the topic again, and publishes the pending windows.
#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_comes_back_empty_gets_its_topic_again() {
    let (port, namespace) = (free_port(), namespace("empty"));
    let (brokers, topic) = (format!("127.0.0.1:{port}"), format!("{namespace}.unique-counts"));
    let mut kafka = Kafka::start_on(port);
    let args = ["--window", "1s", "--namespace", &namespace, "--kafka-brokers", &brokers];
    let mut server = Server::start(&args).await;
    wait_recorded(&brokers, &topic, 0).await;
    kafka.kill();
    server.wait_for_log("a sink fails, trying again").await;
    let last = server.metric("headcount_last_published_window_timestamp_seconds").await as u64;
    kafka.restart_empty();
    let records = wait_recorded(&brokers, &topic, seconds(SystemTime::now())).await;
    assert_each_once(&records, 1);
    assert_eq!(records[0].start(), last + 1, "no window is missing");
    assert_eq!(server.logged("made a topic in Kafka"), 2);
    assert!(server.stop().await.success());
}

/// check finds brokers that would refuse every record, before the first start and without a topic.
#[tokio::test(flavor = "multi_thread")]
async fn brokers_that_refuse_records_fail_the_check() {
    for (short_transactions, said) in [(false, "no-such-host.invalid"), (true, "ransaction")] {
        let port = free_port();
        let setting = if short_transactions {
            "transaction.max.timeout.ms=10000".to_owned()
        } else {
            let brokers_own = port ^ 2;
            format!(
                "advertised.listeners=CLIENTS://no-such-host.invalid:{port},BROKER://127.0.0.3:{brokers_own}"
            )
        };
        let _kafka = Kafka::start_with(port, &[setting]);
        let brokers = format!("127.0.0.1:{port}");
        let checked = output_of(headcount().args(["check", "--kafka-brokers", &brokers]));
        let found = String::from_utf8(checked.stdout).unwrap();
        println!("{found}");
        let topic = found.lines().find(|line| line.starts_with("FAIL"));
        assert!(checked.status.code() == Some(1) && topic.is_some_and(|line| line.contains(said)), "{found}");
    }
}
