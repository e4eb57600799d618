//! What every store promises of counters, as one suite over `&Store`.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use headcount::model::counter::{CounterCounts, CounterLimits, CounterName, CounterNames};
use headcount::model::id::IntegerId;
use headcount::model::mode::Mode;
use headcount::model::shard::Shards;
use headcount::model::window::{Window, WindowLength};
use headcount::platform::workers::Workers;
use headcount::redis::keys::Keys;
use headcount::redis::{Address, Redis};
use headcount::store::memory::MemoryStore;
use headcount::store::redis::{OnRedisDown, RedisStore, RedisStoreConfig, RedisWrites};
use headcount::store::{AddError, CountError, Keep, Store};
use headcount::telemetry::metrics::Metrics;

use crate::support::PATIENCE;
use crate::support::cluster::Cluster;
use crate::support::fleet::sketch_of;
use crate::support::redis::{Flavour, Redis as RedisServer};
use crate::support::sentinel::Watched;

const LIMITS: CounterLimits = CounterLimits { most: 200, memory: 64 << 20 };

/// Windows of 10 s, from now on: what is kept in Redis expires by its clock.
pub fn windows() -> impl Iterator<Item = Window> {
    let first = "10s".parse::<WindowLength>().unwrap().window_at(SystemTime::now());
    std::iter::successors(Some(first), |window| Some(window.next()))
}

pub fn names(names: &[&str]) -> CounterNames<'static> {
    let mut all = CounterNames::default();
    for name in names {
        all.add(CounterName::parse((*name).to_owned().into()).unwrap()).unwrap();
    }
    all
}

pub async fn add(
    store: &Store,
    window: Window,
    ids: impl IntoIterator<Item = u64>,
    counters: &[&str],
) -> u64 {
    let ids: Vec<_> = ids.into_iter().map(IntegerId::from).collect();
    store.add_to(window, &ids, &names(counters)).await.unwrap().overflow
}

/// The counts of the counters of a window that every instance has sealed.
pub async fn settle(store: &Store, window: Window) -> Result<Arc<CounterCounts>, CountError> {
    store.settle(window, &BTreeSet::new(), Duration::MAX).await.map(|settled| settled.counters)
}

async fn settled(store: &Store, window: Window) -> Vec<(String, u64)> {
    let counts = settle(store, window).await.unwrap();
    assert!(counts.all_are_whole());
    counts.all().iter().map(|count| (count.name.to_string(), count.unique_ids)).collect()
}

/// What a store counts when it was given these ids.
pub fn count_of(mode: Mode, ids: &BTreeSet<u64>) -> u64 {
    match mode {
        Mode::Exact => ids.len() as u64,
        Mode::Hll => sketch_of(ids).estimate(),
    }
}

fn named(counts: &[(&str, u64)]) -> Vec<(String, u64)> {
    counts.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
}

async fn suite(new: impl Fn() -> Arc<Store>, mode: Mode) {
    ids_count_in_the_total_and_in_each_counter(&new()).await;
    windows_are_kept_apart(&new()).await;
    an_id_without_a_place_counts_in_other(&new()).await;
    many_tasks_at_once(new(), mode).await;
}

async fn ids_count_in_the_total_and_in_each_counter(store: &Store) {
    let window = windows().next().unwrap();
    assert_eq!(store.counts_of(window, &["a", "b"]).await, Ok(vec![0, 0]), "nobody named them");
    assert_eq!(add(store, window, [1, 2], &["a"]).await, 0);
    add(store, window, [2, 3], &["a", "b"]).await;
    add(store, window, [3], &["b"]).await;
    add(store, window, [4], &[]).await;
    add(store, window, [1, 2, 3, 4, 5], &["c:/@-_.9"]).await;
    let of = ["a", "b", "c:/@-_.9", "d", "_other"];
    assert_eq!(store.counts_of(window, &of).await, Ok(vec![3, 2, 5, 0, 0]));
    assert_eq!(store.count(window).await.unwrap().unique_ids, 5);
    store.seal(window).await.unwrap();
    assert_eq!(store.counts_of(window, &of).await, Ok(vec![3, 2, 5, 0, 0]));
    assert_eq!(settled(store, window).await, named(&[("a", 3), ("b", 2), ("c:/@-_.9", 5)]));
    let counts = settle(store, window).await.unwrap();
    assert_eq!((counts.has_overflowed(), counts.get("a"), counts.get("d"), counts.names()), (false, 3, 0, 3));
}

async fn windows_are_kept_apart(store: &Store) {
    let [a, b, c]: [Window; 3] = windows().take(3).collect::<Vec<_>>().try_into().unwrap();
    add(store, a, 0..3, &["one"]).await;
    add(store, b, 0..5, &["one", "two"]).await;
    store.seal(a).await.unwrap();
    let refused = store.add_to(a, &[IntegerId::from(9_u64)], &names(&["one"])).await;
    assert!(matches!(refused, Err(AddError::Sealed { .. })));
    add(store, b, 0..6, &["two"]).await;
    store.seal(b).await.unwrap();
    store.seal(c).await.unwrap();
    assert_eq!(settled(store, a).await, named(&[("one", 3)]));
    assert_eq!(settled(store, b).await, named(&[("one", 5), ("two", 6)]));
    assert_eq!(settled(store, c).await, []);
    store.evict(c).await;
    assert!(settle(store, b).await.is_err());
}

async fn an_id_without_a_place_counts_in_other(store: &Store) {
    let [first, second]: [Window; 2] = windows().take(2).collect::<Vec<_>>().try_into().unwrap();
    for name in 0..LIMITS.most {
        assert_eq!(add(store, first, [name as u64], &[&format!("name-{name}")]).await, 0);
    }
    assert_eq!(add(store, first, [7_000, 7_001], &["name-0", "late"]).await, 2);
    assert_eq!(add(store, first, [7_001], &["late", "later"]).await, 1);
    store.seal(first).await.unwrap();
    let counts = settle(store, first).await.unwrap();
    assert_eq!((counts.has_overflowed(), counts.get("_other"), counts.get("late")), (true, 2, 0));
    assert_eq!((counts.get("name-0"), counts.names()), (3, LIMITS.most));
    // They keep their places, also after the window before was evicted.
    store.evict(first).await;
    assert_eq!(add(store, second, [1], &["late"]).await, 1);
    assert_eq!(add(store, second, [1], &["name-5"]).await, 0);
    assert!(store.counter_memory() > 0);
    store.seal(second).await.unwrap();
    let counts = settle(store, second).await.unwrap();
    assert_eq!((counts.get("_other"), counts.get("name-5"), counts.names()), (1, 1, 1));
}

async fn many_tasks_at_once(store: Arc<Store>, mode: Mode) {
    let window = windows().next().unwrap();
    let tasks = (0..16_u64).map(|task| {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            for counter in 0..100_u64 {
                // Half of the ids are those of the next task too.
                let ids = task * 10..task * 10 + 20;
                add(&store, window, ids, &[&format!("counter-{counter}"), "all"]).await;
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    store.seal(window).await.unwrap();
    let ids: BTreeSet<u64> = (0..170).collect();
    let expected = count_of(mode, &ids);
    let counts = settled(&store, window).await;
    assert_eq!(counts.len(), 101);
    for (name, count) in counts {
        assert_eq!(count, expected, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn counters_in_memory() {
    for mode in [Mode::Hll, Mode::Exact] {
        suite(|| Arc::new(Store::Memory(MemoryStore::with_counters(mode, Shards::ONE, LIMITS))), mode).await;
    }
}

/// A store in Redis that takes up to 200 counters.
pub fn in_redis(
    redis: &Redis,
    mode: Mode,
    writes: RedisWrites,
    namespace: &str,
    instance: &str,
) -> Arc<Store> {
    store_in_redis(redis, mode, writes, OnRedisDown::Count, namespace, instance)
}

/// The same, with what it does with ids while Redis is away.
pub fn store_in_redis(
    redis: &Redis,
    mode: Mode,
    writes: RedisWrites,
    on_redis_down: OnRedisDown,
    namespace: &str,
    instance: &str,
) -> Arc<Store> {
    start_store(redis, RedisStoreConfig { on_redis_down, ..config(mode, writes, namespace, instance) })
}

/// The settings of such a store.
pub fn config(mode: Mode, writes: RedisWrites, namespace: &str, instance: &str) -> RedisStoreConfig {
    RedisStoreConfig {
        mode,
        shards: Shards::ONE,
        close_timeout: Duration::from_secs(10),
        retention: Duration::from_secs(60),
        keep: Keep::default(),
        writes,
        on_redis_down: OnRedisDown::Count,
        pending_max: 100_000,
        counters: LIMITS,
        timeout: Duration::from_secs(5),
        keys: Keys::new(namespace),
        instance_id: instance.to_owned(),
    }
}

/// Starts a store. Its tasks end with it.
pub fn start_store(redis: &Redis, config: RedisStoreConfig) -> Arc<Store> {
    let (store, tasks) = RedisStore::new(config, redis, 2, &Metrics::new().into());
    tokio::spawn(tasks.run(Arc::new(Workers::start(2).unwrap())));
    Arc::new(Store::Redis(store))
}

pub async fn connect(url: &str) -> Redis {
    let address = Address::parse(url).unwrap();
    let redis = Redis::new(&address, Duration::from_secs(5), &Metrics::new());
    redis.wait_for(&address, PATIENCE).await.unwrap();
    redis
}

/// The ways in which ids go to Redis.
pub const WAYS: [(Mode, RedisWrites); 3] =
    [(Mode::Hll, RedisWrites::All), (Mode::Hll, RedisWrites::Changed), (Mode::Exact, RedisWrites::All)];

async fn suite_in_redis(url: &str) {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let redis = connect(url).await;
    for (mode, writes) in WAYS {
        let namespace = || format!("counters-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        suite(|| in_redis(&redis, mode, writes, &namespace(), "test"), mode).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn counters_in_redis() {
    for flavour in Flavour::at_hand() {
        println!("{flavour:?}");
        suite_in_redis(&RedisServer::start_with(flavour, &[]).url()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn counters_in_a_cluster() {
    for flavour in Flavour::at_hand() {
        println!("{flavour:?}");
        suite_in_redis(&Cluster::of(flavour).url()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn counters_over_sentinel() {
    suite_in_redis(&Watched::start().url()).await;
}

/// Two instances of a namespace see different names, and some of the same ids.
#[tokio::test(flavor = "multi_thread")]
async fn instances_count_the_same_counters() {
    let server = RedisServer::start();
    let redis = connect(&server.url()).await;
    for (number, (mode, writes)) in WAYS.into_iter().enumerate() {
        let namespace = format!("instances-{number}");
        let [one, other] =
            ["one", "other"].map(|instance| in_redis(&redis, mode, writes, &namespace, instance));
        let window = windows().next().unwrap();
        add(&one, window, 0..10, &["both", "only-one"]).await;
        add(&other, window, 5..20, &["both", "only-other"]).await;
        assert_eq!(one.counts_of(window, &["both"]).await, Ok(vec![20]));
        one.seal(window).await.unwrap();
        add(&other, window, [20], &["both"]).await;
        other.seal(window).await.unwrap();
        for store in [&one, &other] {
            assert_eq!(
                settled(store, window).await,
                named(&[("both", 21), ("only-one", 10), ("only-other", 15)])
            );
        }
        // All keys expire.
        let mut connection = server.connect();
        let keys: Vec<String> = redis::cmd("KEYS").arg("*").query(&mut connection).unwrap();
        assert!(keys.iter().filter(|key| key.contains(":c")).count() >= 6, "{keys:?}");
        for key in keys {
            let lives: i64 = redis::cmd("PTTL").arg(&key).query(&mut connection).unwrap();
            assert!((1..=70_000).contains(&lives), "{key} lives for {lives} ms");
        }
    }
}
