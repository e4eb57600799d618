//! Several instances behind nginx count counters with names together, and publish each once a window.

use std::collections::BTreeMap;
use std::time::Duration;

use headcount::model::mode::Mode;
use headcount::redis::keys::Keys;

use crate::support::counter_files::{counter_lines, counts, wait_by_window};
use crate::support::counter_load::{Traffic, Truth};
use crate::support::fleet::{
    Fleet, assert_complete, assert_once_each, assert_same_registers, sketch_of, window,
};
use crate::support::nginx::Nginx;
use crate::support::redis::Redis;

const NAMESPACE: &str = "together";
const WINDOWS: usize = 20;

/// Asserts that Redis has the sketch of each counter's ids, in all registers.
fn assert_in_redis(redis: &Redis, start: u64, truth: &Truth) {
    let (keys, mut connection) = (Keys::new(NAMESPACE), redis.connect());
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
    let args = ["--mode", mode.as_str(), "--log-dir", files.path().to_str().unwrap()];
    let fleet = Fleet::start(3, &redis, NAMESPACE, &args).await;
    let nginx = Nginx::start(&fleet.addresses());
    let traffic = Traffic { addresses: vec![nginx.address], connections: 8, pause: Duration::ZERO, first: 0 };
    let truth = traffic.send_by_window(WINDOWS).await;

    let (last, _) = truth.last_key_value().unwrap();
    if mode == Mode::Hll {
        for (start, truth) in &truth {
            assert_in_redis(&redis, *start, truth);
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
}

#[tokio::test(flavor = "multi_thread")]
async fn sketches_of_counters_have_the_registers_of_all_instances() {
    three_behind_nginx(Mode::Hll).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn exact_counts_of_counters_are_the_truth() {
    three_behind_nginx(Mode::Exact).await;
}
