//! Several instances behind nginx count counters with names together, and publish each once a window.

use std::collections::BTreeMap;

use headcount::model::mode::Mode;
use headcount::redis::keys::Keys;

use crate::support::counter_files::counter_lines;
use crate::support::counter_load::{Truth, send_by_window};
use crate::support::fleet::{
    Fleet, assert_complete, assert_once_each, assert_same_registers, sketch_of, window,
};
use crate::support::nginx::Nginx;
use crate::support::redis::Redis;

const WINDOWS: usize = 20;

/// The counts of counters that were published to files: by window, each once.
fn by_window(dir: &std::path::Path) -> BTreeMap<String, BTreeMap<String, (u64, bool)>> {
    let mut windows: BTreeMap<String, BTreeMap<String, (u64, bool)>> = BTreeMap::new();
    for line in counter_lines(dir) {
        let of_window = windows.entry(line.timestamp.clone()).or_default();
        let twice = of_window.insert(line.counter.clone(), (line.unique, line.complete));
        assert_eq!(twice, None, "{} is there twice", line.json);
    }
    windows
}

fn assert_in_redis(redis: &Redis, namespace: &str, start: u64, truth: &Truth) {
    let keys = Keys::new(namespace);
    for (counter, ids) in &truth.counters {
        let key = keys.counter(Mode::Hll, counter, window(start));
        let mut connection = redis.connect();
        let sketch: Vec<u8> = ::redis::cmd("GET").arg(&key).query(&mut connection).unwrap();
        assert_same_registers(&sketch, ids);
        let count: u64 = ::redis::cmd("PFCOUNT").arg(&key).query(&mut connection).unwrap();
        assert_eq!(count, sketch_of(ids).estimate(), "{counter}");
    }
}

async fn three_behind_nginx(mode: Mode) {
    let (redis, files) = (Redis::start(), tempfile::tempdir().unwrap());
    let args = ["--mode", mode.as_str(), "--log-dir", files.path().to_str().unwrap()];
    let fleet = Fleet::start(3, &redis, "together", &args).await;
    let nginx = Nginx::start(&fleet.addresses());
    let truth = send_by_window(nginx.address, WINDOWS).await;

    let (last, of_last) = truth.last_key_value().unwrap();
    if mode == Mode::Hll {
        assert_in_redis(&redis, "together", *last, of_last);
    }
    let published = fleet.wait_published(*last).await;
    assert_once_each(&published);
    assert_complete(&published);
    let counters = by_window(files.path());
    for (start, truth) in &truth {
        let total = &published[start][0].1;
        assert_eq!(total.accepted, truth.accepted, "{start}");
        let expected = |ids: &std::collections::BTreeSet<u64>| match mode {
            Mode::Exact => ids.len() as u64,
            Mode::Hll => sketch_of(ids).estimate(),
        };
        assert_eq!(total.unique, expected(&truth.ids), "{start}");
        let expected: BTreeMap<_, _> = truth
            .counters
            .iter()
            .map(|(counter, ids)| (counter.clone(), (expected(ids), total.complete)))
            .collect();
        assert_eq!(counters[&window(*start).to_string()], expected, "{start}");
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
