//! Ids in eight shards, and what of them a cluster should have.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use headcount::hll::Sketch;
use headcount::model::mode::Mode;
use headcount::model::shard::Shards;
use headcount::redis::keys::Keys;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::cluster::Cluster;
use super::counter_files::wait_by_window;
use super::counter_load::{Traffic, Truth};
use super::fleet::{Fleet, WINDOW, assert_agreed, assert_no_gap, next_window, sketch_of, window};
use super::server::{Closed, value_of};

/// `--shards 8`.
pub const ARGS: [&str; 2] = ["--shards", "8"];

/// The number of shards of all tests on a cluster.
pub fn shards() -> Shards {
    Shards::new(8).expect("a number of shards")
}

/// The sketch of each shard.
pub fn sketches<'a>(ids: impl IntoIterator<Item = &'a u64>) -> Vec<Sketch> {
    let mut of_shards = vec![BTreeSet::new(); shards().count().into()];
    for id in ids {
        of_shards[shards().of(id.to_string().as_bytes())].insert(*id);
    }
    of_shards.into_iter().map(sketch_of).collect()
}

/// What a service counts of these ids.
pub fn count(mode: Mode, ids: &BTreeSet<u64>) -> u64 {
    match mode {
        Mode::Exact => ids.len() as u64,
        Mode::Hll => sketches(ids).iter().map(Sketch::estimate).sum(),
    }
}

/// What it counts of those that are in some shards.
pub fn count_in(mode: Mode, ids: &BTreeSet<u64>, is_in: impl Fn(usize) -> bool) -> u64 {
    let some = ids.iter().filter(|id| is_in(shards().of(id.to_string().as_bytes())));
    count(mode, &some.copied().collect())
}

/// The sketch that a cluster has under a key: an empty one if there is none.
pub fn sketch_at(cluster: &Cluster, key: &str) -> Sketch {
    let found: Option<Vec<u8>> = cluster.at_key("GET", key);
    found.map_or_else(Sketch::new, |sketch| Sketch::from_bytes(&sketch).expect("a sketch"))
}

/// Asserts that the cluster has the sketches of all ids of a window, in all registers.
pub fn assert_in_cluster(cluster: &Cluster, namespace: &str, start: u64, ids: &BTreeSet<u64>) {
    let keys = Keys::new(namespace);
    for (shard, expected) in sketches(ids).into_iter().enumerate() {
        let key = keys.ids(Mode::Hll, shard, shards(), window(start));
        assert!(sketch_at(cluster, &key) == expected, "{key} has other registers than those of the ids");
    }
}

/// The same for the counters of a window.
pub fn assert_counters_in_cluster(cluster: &Cluster, namespace: &str, start: u64, truth: &Truth) {
    let keys = Keys::new(namespace);
    for (counter, ids) in &truth.counters {
        let sketch: Vec<u8> = cluster.at_key("GET", &keys.counter(Mode::Hll, counter, window(start)));
        assert!(
            Sketch::from_bytes(&sketch) == Ok(sketch_of(ids)),
            "{counter} has other registers than those of its ids"
        );
    }
}

/// What counters of a window should have: their counts, and whether they are complete.
pub fn counters(mode: Mode, truth: &Truth, are_complete: bool) -> BTreeMap<String, (u64, bool)> {
    truth.counts(mode).into_iter().map(|(name, count)| (name, (count, are_complete))).collect()
}

/// Instances on a cluster under load. Each answer must be `ok`.
pub struct Counting {
    pub fleet: Fleet,
    pub mode: Mode,
    pub namespace: String,
    files: TempDir,
    stop: CancellationToken,
    load: JoinHandle<BTreeMap<u64, Truth>>,
}

/// What was sent, and what was published.
pub struct Counted {
    pub mode: Mode,
    pub namespace: String,
    /// By the starts of windows.
    pub truth: BTreeMap<u64, Truth>,
    pub published: BTreeMap<u64, Closed>,
    pub counters: BTreeMap<u64, BTreeMap<String, (u64, bool)>>,
}

impl Counting {
    /// Two instances. Returns when they count together.
    pub async fn start(cluster: &Cluster, mode: Mode, namespace: &str, args: &[&str]) -> Self {
        let files = tempfile::tempdir().expect("a temporary directory");
        let dir = files.path().to_str().expect("a path");
        let args = [&["--mode", mode.as_str(), "--log-dir", dir], &ARGS[..], args].concat();
        let fleet = Fleet::behind(&cluster.url(), 2, namespace, &args).await;
        fleet.wait_published(0).await;
        let first = if mode == Mode::Exact { 1 << 40 } else { 0 };
        let pause = Duration::from_millis(20);
        let traffic = Traffic { addresses: fleet.addresses(), connections: 16, pause, first };
        let stop = CancellationToken::new();
        let load = tokio::spawn(traffic.send_until(stop.clone()));
        next_window(Duration::ZERO).await;
        Self { fleet, mode, namespace: namespace.to_owned(), files, stop, load }
    }

    /// Waits until the windows that have begun are published.
    pub async fn catch_up(&self) {
        self.fleet.wait_published(next_window(Duration::ZERO).await - WINDOW.as_secs()).await;
    }

    /// Stops the load, and waits until all is published. No window is missing, and none was published with different counts.
    pub async fn stop(self) -> Counted {
        self.stop.cancel();
        let truth = self.load.await.expect("all is answered ok");
        let (last, _) = truth.last_key_value().expect("windows");
        let published = self.fleet.wait_published(*last).await;
        assert_no_gap(&published);
        self.fleet.print_troubles();
        assert_agreed(&published);
        let counters = wait_by_window(self.files.path(), &window(*last).to_string()).await;
        let mut by_start = BTreeMap::new();
        for start in truth.keys() {
            by_start.insert(*start, counters.get(&window(*start).to_string()).cloned().unwrap_or_default());
        }
        let published = published.into_iter().map(|(start, closed)| (start, closed[0].1.clone())).collect();
        let ids: u64 = truth.values().map(|truth| truth.accepted).sum();
        println!("{}: {ids} ids in {} windows", self.namespace, truth.len());
        Counted { mode: self.mode, namespace: self.namespace, truth, published, counters: by_start }
    }
}

impl Counted {
    /// Asserts that a window has all its ids, and says so.
    pub fn assert_right(&self, start: u64) {
        let (truth, closed) = (&self.truth[&start], &self.published[&start]);
        let expected = (count(self.mode, &truth.ids), truth.accepted, true);
        assert_eq!((closed.unique, closed.accepted, closed.complete), expected, "{} {start}", self.namespace);
        assert_eq!(self.counters[&start], counters(self.mode, truth, true), "{} {start}", self.namespace);
    }

    /// The same for all windows, and, in mode hll, that the cluster has all ids.
    pub fn assert_all_right(&self, cluster: &Cluster) {
        for (start, truth) in &self.truth {
            self.assert_right(*start);
            if self.mode == Mode::Hll {
                assert_in_cluster(cluster, &self.namespace, *start, &truth.ids);
            }
        }
    }

    /// Asserts that no count of a window has too many ids, and that none that says `complete` lacks one.
    pub fn assert_honest(&self, start: u64) {
        let (truth, closed) = (&self.truth[&start], &self.published[&start]);
        let all = count(self.mode, &truth.ids);
        assert!(
            closed.unique == all || closed.unique < all && !closed.complete,
            "{start}: {closed:?} of {all}"
        );
        let counters = &self.counters[&start];
        let are_complete = closed.complete && counters.values().all(|(_, is_complete)| *is_complete);
        for (name, all) in truth.counts(self.mode) {
            // One that is missing says nothing. The others do.
            let (found, is_complete) = counters.get(&name).copied().unwrap_or((0, are_complete));
            assert!(found == all || found < all && !is_complete, "{start} {name}: {found} of {all}");
        }
    }
}

/// How often commands were redirected.
pub async fn redirects(fleet: &Fleet, kind: &str) -> f64 {
    let mut sum = 0.0;
    for server in &fleet.servers {
        let text = server.get("/metrics").await.body;
        let series = format!("headcount_redis_redirects_total{{kind=\"{kind}\"}}");
        sum += value_of(&text, &series).unwrap_or_default();
    }
    sum
}
