//! Kafka gets every window exactly once, whichever instance dies.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime};

use headcount::coordination::scripts;
use headcount::redis::keys::Keys;

use crate::kafka_counters::assert_agree;
use crate::support::counter_load::{CounterLoad, Outcome};
use crate::support::fleet::{Fleet, LATE_IS_NOT_AWAY, seconds};
use crate::support::http::Connection;
use crate::support::kafka::{
    Kafka, Record, Tail, assert_each_once, committed, namespace, shared, wait_recorded,
};
use crate::support::load::Load;
use crate::support::process::output_of;
use crate::support::proxy::Proxy;
use crate::support::redis::Redis;
use crate::support::server::Server;
use crate::support::{SplitMix, free_port, soak, wait_for};

/// Short, so that leaders follow each other soon.
const LEASE_TTL: &str = "2s";

/// What is in the topic, read by a reader of ours and by kcat.
#[tokio::test(flavor = "multi_thread")]
async fn records_have_the_documented_form() {
    let (brokers, namespace) = (shared(), namespace("records"));
    let topic = format!("{namespace}.unique-counts");
    let args = ["--window", "1s", "--namespace", &namespace, "--kafka-brokers", &brokers];
    let mut server = Server::start(&args).await;
    // One request, so that a window cannot end in between.
    let mut connection = Connection::open(server.address).await.unwrap();
    assert_eq!(connection.post("text/plain", b"1\n2\n3\n2\n").await.unwrap().body, "ok");
    let records = wait_recorded(&brokers, &topic, seconds(SystemTime::now()) + 2).await;
    assert_each_once(&records, 1);
    assert!(server.stop().await.success());
    let records = wait_recorded(&brokers, &topic, records.last().unwrap().start() + 1).await;
    assert_each_once(&records, 1);
    let closed = server.closed();
    assert_eq!(closed.len(), records.len(), "{closed:?} {records:?}");
    let last = records.last().unwrap();
    for (closed, record) in closed.iter().zip(&records) {
        assert_eq!(record.key, namespace);
        let value =
            format!(r#"{{"timestamp":"{}","unique_request_count":{}}}"#, closed.timestamp, closed.unique);
        assert_eq!(record.value, value);
        // Its end, but of the last one, in which the service was stopped.
        let end = (record.start() + 1) * 1000;
        let at = record.timestamp.unsigned_abs();
        assert!(at == end || record == last && at < end, "{record:?}");
        let header = |key: &str| record.headers[key].as_str();
        assert_eq!(header("mode"), "hll");
        assert_eq!(header("standard_error"), "0.008125");
        assert_eq!(header("window_seconds"), "1");
        assert_eq!(header("accepted_ids"), closed.accepted.to_string());
        assert_eq!(header("complete"), closed.complete.to_string());
        assert_eq!(header("fencing_token"), "0");
        assert!(header("instance").contains('/'), "{record:?}");
        assert_eq!(record.headers.len(), 7);
    }
    assert_eq!(records.iter().map(Record::count).sum::<u64>(), 3);

    let mut kcat = std::process::Command::new("kcat");
    kcat.args(["-C", "-b", &brokers, "-t", &topic, "-o", "beginning", "-e", "-q"]);
    kcat.args(["-X", "isolation.level=read_committed", "-f", "%k %s %h\n"]);
    let read = String::from_utf8(output_of(&mut kcat).stdout).unwrap();
    let lines: Vec<_> = read.lines().collect();
    assert_eq!(lines.len(), records.len(), "{read}");
    for (line, record) in lines.iter().zip(&records) {
        let begins = format!("{} {} mode=hll,standard_error=0.008125,", record.key, record.value);
        assert!(line.starts_with(&begins), "{line}");
    }
}

/// Arguments of instances that count together and publish windows of a second.
fn args<'a>(redis_url: &'a str, namespace: &'a str, brokers: &'a str) -> [&'a str; 14] {
    [
        ["--window", "1s"],
        ["--mode", "exact"],
        ["--redis-url", redis_url],
        ["--namespace", namespace],
        ["--kafka-brokers", brokers],
        ["--lease-ttl", LEASE_TTL],
        LATE_IS_NOT_AWAY,
    ]
    .concat()
    .try_into()
    .expect("fourteen")
}

/// What `published` says.
fn marked(redis: &Redis, namespace: &str) -> u64 {
    let mut ask = ::redis::cmd("HGET");
    ask.arg(Keys::new(namespace).published()).arg("last");
    ask.query::<Option<u64>>(&mut redis.connect()).unwrap().unwrap_or_default()
}

/// Leaders are killed at any moment, with counters in the load, some right after a commit to Kafka that Redis does not learn of.
#[tokio::test(flavor = "multi_thread")]
async fn killed_leaders_leave_no_gap_and_no_repeat() {
    let (kills, after_commit) = if soak() { (30, 6) } else { (10, 2) };
    let (brokers, namespace, redis) = (shared(), namespace("kills"), Redis::start());
    let proxy = Proxy::start(redis.address()).await;
    let url = proxy.url();
    let mut fleet = Fleet::start_with(3, &args(&url, &namespace, &brokers)).await;
    let topic = format!("{namespace}.unique-counts");
    let tail = Tail::start(&brokers, &topic);
    let load = |server: usize, address| CounterLoad::start(address, 2, (server as u64) << 40);
    let mut loads: Vec<_> = fleet.addresses().into_iter().enumerate().map(|(at, to)| load(at, to)).collect();
    tail.wait_for(0).await;
    let mut random = SplitMix(1);
    for kill in 0..kills {
        if kill % after_commit == 0 {
            proxy.hold(scripts::COMMIT_PUBLISHED.get_hash());
            wait_for("a commit that Redis does not hear of", || {
                (tail.last() > Some(marked(&redis, &namespace))).then_some(())
            })
            .await;
        } else {
            tokio::time::sleep(Duration::from_millis(random.next().unwrap() % 1_000)).await;
        }
        let leader = fleet.leader();
        fleet.servers[leader].process.signal("KILL");
        fleet.servers[leader].ended().await;
        proxy.release();
        let address = fleet.add().await.address;
        loads.push(load(fleet.servers.len() - 1, address));
        wait_for("another leader", || (fleet.leader() != leader).then_some(())).await;
    }
    let mut outcome = Outcome::default();
    for load in loads {
        outcome.add(load.stop().await);
    }
    let last = seconds(SystemTime::now());
    tail.wait_for(last + 1).await;
    let records = committed(&brokers, &topic);
    assert_each_once(&records, 1);
    let read = tail.wait_for(records.last().expect("records").start()).await;
    assert_eq!(records, read[..records.len()], "a later reader reads the same");
    fleet.print_troubles();
    let (ok, unanswered) = (outcome.total(), outcome.unanswered.values().sum::<u64>());
    let counted = records.iter().map(Record::count).sum::<u64>();
    assert!((ok..=ok + unanswered).contains(&counted), "{ok} + {unanswered}, counted {counted}");
    let counters = committed(&brokers, &format!("{namespace}.counter-counts"));
    // Later windows have no counters.
    assert_agree(&records, &counters);
    let mut by_counter = BTreeMap::new();
    for counter in &counters {
        *by_counter.entry(counter.key.clone()).or_default() += counter.count();
    }
    outcome.assert_counted(&by_counter);
    let delays = tail.delays();
    println!(
        "{kills} kills, {} windows, {counted} ids; readable {:?} after the end in the median, at worst {:?}",
        records.len(),
        delays[delays.len() / 2],
        delays.last().unwrap()
    );
}

/// A leader that was paused past its lease is fenced. If two instances believe that they lead, one is fenced.
#[tokio::test(flavor = "multi_thread")]
async fn only_one_instance_publishes_though_two_believe_they_lead() {
    let (brokers, namespace, redis) = (shared(), namespace("leaders"), Redis::start());
    let url = redis.url();
    let fleet = Fleet::start_with(2, &args(&url, &namespace, &brokers)).await;
    let tail = Tail::start(&brokers, &format!("{namespace}.unique-counts"));
    tail.wait_for(0).await;
    for into in [0, 300, 600, 900] {
        tokio::time::sleep(Duration::from_millis(into)).await;
        let stopped = fleet.leader();
        fleet.servers[stopped].process.signal("STOP");
        wait_for("another leader", || (fleet.leader() != stopped).then_some(())).await;
        let next = fleet.leader();
        tail.wait_for(seconds(SystemTime::now())).await;
        fleet.servers[stopped].process.signal("CONT");
        tail.wait_for(seconds(SystemTime::now()) + 3).await;
        assert_eq!(fleet.leader(), next, "the one that was stopped follows");
    }
    let mut random = SplitMix(2);
    for _ in 0..3 {
        // The other one takes it, while this one's lease runs on as far as it knows.
        let before = fleet.leader();
        let mut steal = Instant::now();
        wait_for("two leaders", || {
            // It may be faster than the test, but not every time.
            if Instant::now() >= steal {
                ::redis::cmd("DEL").arg(Keys::new(&namespace).lease()).exec(&mut redis.connect()).unwrap();
                steal = Instant::now() + Duration::from_millis(700 + random.next().unwrap() % 900);
            }
            (fleet.leader() != before).then_some(())
        })
        .await;
        // Two times the lease.
        let settled = seconds(SystemTime::now()) + 4;
        let records = tail.wait_for(settled + 4).await;
        let tokens: BTreeSet<_> = records
            .iter()
            .filter(|record| record.start() > settled)
            .map(|record| &record.headers["fencing_token"])
            .collect();
        assert_eq!(tokens.len(), 1, "{tokens:?}");
    }
    assert_each_once(&tail.wait_for(seconds(SystemTime::now()) + 1).await, 1);
}

/// If a leader stops in order, another instance leads at once, and does not wait until the lease expires.
#[tokio::test(flavor = "multi_thread")]
async fn another_instance_leads_at_once_if_the_leader_stops() {
    let (brokers, namespace, redis) = (shared(), namespace("at-once"), Redis::start());
    let url = redis.url();
    let patient =
        ["--window", "1s", "--redis-url", &url, "--namespace", &namespace, "--kafka-brokers", &brokers];
    let mut fleet = Fleet::start_with(2, &[&patient[..], &["--lease-ttl", "1min"]].concat()).await;
    let tail = Tail::start(&brokers, &format!("{namespace}.unique-counts"));
    tail.wait_for(0).await;
    let leader = fleet.leader();
    assert!(fleet.servers[leader].stop().await.success());
    let ended = Instant::now();
    wait_for("the next leader", || (fleet.leader() != leader).then_some(())).await;
    assert!(ended.elapsed() < Duration::from_secs(30), "{:?}", ended.elapsed());
    assert_each_once(&tail.wait_for(seconds(SystemTime::now()) + 1).await, 1);
}

/// Brokers that are away at the start or later cost no request and no window.
#[tokio::test(flavor = "multi_thread")]
async fn windows_wait_for_brokers_that_are_away() {
    let namespace = namespace("away");
    let port = free_port();
    let brokers = format!("127.0.0.1:{port}");
    let args = ["--window", "1s", "--mode", "exact", "--namespace", &namespace, "--kafka-brokers", &brokers];
    let mut server = Server::start(&args).await;
    let load = Load::start(server.address, 4, 0);
    server.wait_closed(6).await;
    assert!(server.metric("headcount_unpublished_windows").await >= 5.0);

    let mut kafka = Kafka::start_on(port);
    let topic = format!("{namespace}.unique-counts");
    let tail = Tail::start(&brokers, &topic);
    tail.wait_for(seconds(SystemTime::now())).await;
    let mut unpublished = f64::INFINITY;
    for _ in 0..100 {
        unpublished = server.metric("headcount_unpublished_windows").await;
        if unpublished <= 1.0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(unpublished <= 1.0, "all that was retained has followed");
    let closed = server.closed().len();
    kafka.kill();
    server.wait_closed(closed + 10).await;
    kafka.restart();
    tail.wait_for(seconds(SystemTime::now())).await;

    let outcome = load.stop().await;
    assert!(outcome.broken.is_empty() && outcome.unanswered == 0, "{:?}", outcome.broken.first());
    assert!(server.stop().await.success());
    let records = wait_recorded(&brokers, &topic, seconds(server.closed().last().unwrap().start())).await;
    assert_each_once(&records, 1);
    assert_eq!(records.iter().map(Record::count).sum::<u64>(), outcome.ok.len() as u64);
    let (failed, back) = (server.logged("a sink fails, trying again"), server.logged("a sink is back"));
    assert!((1..=3).contains(&failed) && failed == back, "one line a change of state: {failed}, {back}");
}
