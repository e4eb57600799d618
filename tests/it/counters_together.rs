//! Several instances behind nginx count counters with names together, and publish each once a window.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use headcount::model::mode::Mode;
use headcount::redis::keys::Keys;

use crate::kafka_counters::assert_agree;
use crate::support::counter_files::{counter_lines, counts, wait_by_window};
use crate::support::counter_load::{Traffic, Truth};
use crate::support::fleet::{
    Fleet, assert_complete, assert_once_each, assert_same_registers, seconds, sketch_of, window,
};
use crate::support::kafka::{assert_each_once, committed, namespace, shared, wait_recorded};
use crate::support::nginx::Nginx;
use crate::support::redis::Redis;

const WINDOWS: usize = 20;

/// Asserts that Redis has the sketch of each counter's ids, in all registers.
fn assert_in_redis(redis: &Redis, namespace: &str, start: u64, truth: &Truth) {
    let (keys, mut connection) = (Keys::new(namespace), redis.connect());
    for (counter, ids) in &truth.counters {
        let key = keys.counter(Mode::Hll, counter, window(start));
        let sketch: Vec<u8> = ::redis::cmd("GET").arg(&key).query(&mut connection).unwrap();
        assert_same_registers(&sketch, ids);
        let count: u64 = ::redis::cmd("PFCOUNT").arg(&key).query(&mut connection).unwrap();
        assert_eq!(count, sketch_of(ids).estimate(), "{counter}");
    }
}

async fn three_behind_nginx(mode: Mode) {
    let (redis, files) = (Redis::start(), tempfile::tempdir().unwrap());
    let (brokers, namespace) = (shared(), namespace("together"));
    let dir = files.path().to_str().unwrap();
    let args = ["--mode", mode.as_str(), "--log-dir", dir, "--kafka-brokers", &brokers];
    let fleet = Fleet::start(3, &redis, &namespace, &args).await;
    let nginx = Nginx::start(&fleet.addresses());
    let traffic = Traffic { addresses: vec![nginx.address], connections: 8, pause: Duration::ZERO, first: 0 };
    let truth = traffic.send_by_window(WINDOWS).await;

    let (last, _) = truth.last_key_value().unwrap();
    if mode == Mode::Hll {
        // Keys of closed windows live for a minute.
        let oldest = seconds(SystemTime::now()) - 50;
        for (start, truth) in truth.range(oldest..) {
            assert_in_redis(&redis, &namespace, *start, truth);
        }
    }
    let published = fleet.wait_published(*last).await;
    assert_once_each(&published);
    assert_complete(&published);
    let counters = wait_by_window(files.path(), &window(*last).to_string()).await;
    // Nothing happened to the leader, so each is there once.
    counts(&counter_lines(files.path()));
    for (start, truth) in &truth {
        let total = &published[start][0].1;
        assert_eq!((total.unique, total.accepted), (truth.count(mode), truth.accepted), "{start}");
        let expected = truth.counts(mode).into_iter().map(|(name, count)| (name, (count, total.complete)));
        assert_eq!(counters[&window(*start).to_string()], expected.collect::<BTreeMap<_, _>>(), "{start}");
    }

    let windows = wait_recorded(&brokers, &format!("{namespace}.unique-counts"), *last).await;
    let of_counters = committed(&brokers, &format!("{namespace}.counter-counts"));
    assert_each_once(&windows, 2);
    assert_agree(&windows, &of_counters);
    for record in &windows {
        let (start, count) = (window(record.start()), record.count());
        let value = format!(r#"{{"timestamp":"{start}","unique_request_count":{count}}}"#);
        assert_eq!((&record.value, &record.key), (&value, &namespace), "as without counters");
    }
    let counts: BTreeMap<_, _> = truth.iter().map(|(start, truth)| (*start, truth.counts(mode))).collect();
    for record in &of_counters {
        let Some(counts) = counts.get(&record.start()) else { continue };
        let (start, expected) = (window(record.start()), counts[&record.key]);
        let (counter, complete) = (&record.key, published[&record.start()][0].1.complete);
        let value =
            format!(r#"{{"timestamp":"{start}","counter":"{counter}","unique_request_count":{expected}}}"#);
        assert_eq!((&record.value, &record.headers["complete"]), (&value, &complete.to_string()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sketches_of_counters_have_the_registers_of_all_instances() {
    three_behind_nginx(Mode::Hll).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn exact_counts_of_counters_are_the_truth() {
    three_behind_nginx(Mode::Exact).await;
}
