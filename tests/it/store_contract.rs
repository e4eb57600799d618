//! What every store promises, as one suite over `&Store`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use headcount::model::counter::CounterLimits;
use headcount::model::id::{Id, IdKind, IntegerId, TextId};
use headcount::model::mode::Mode;
use headcount::model::shard::Shards;
use headcount::model::window::Window;
use headcount::platform::workers::Workers;
use headcount::redis::keys::Keys;
use headcount::redis::{Address, Redis};
use headcount::store::memory::MemoryStore;
use headcount::store::redis::{OnRedisDown, RedisStore, RedisStoreConfig, RedisWrites};
use headcount::store::{AddError, CountError, Keep, Store, StoreCount, standard_error};
use headcount::telemetry::metrics::Metrics;

use crate::counter_contract::windows;
use crate::support::PATIENCE;
use crate::support::cluster::Cluster;
use crate::support::redis::{Flavour, Redis as RedisServer};
use crate::support::sentinel::Watched;

/// A kind of ids, with as many of them as there are numbers.
trait Sample: Id + Clone + 'static {
    const KIND: IdKind;

    fn numbered(number: u64) -> Self;
}

impl Sample for IntegerId {
    const KIND: IdKind = IdKind::Integer;

    fn numbered(number: u64) -> Self {
        number.into()
    }
}

impl Sample for TextId {
    const KIND: IdKind = IdKind::Text;

    /// As long as a UUID.
    fn numbered(number: u64) -> Self {
        id(&format!("{number:08x}-0000-4000-8000-000000000000"))
    }
}

fn id<I: Id>(text: &str) -> I {
    I::parse(text.as_bytes()).unwrap()
}

fn ids<I: Sample>(range: std::ops::Range<u64>) -> Vec<I> {
    range.map(I::numbered).collect()
}

async fn unique(store: &Store, window: Window) -> u64 {
    store.count(window).await.unwrap().unique_ids
}

/// Small counts are exact in both modes: with 16 384 registers, that ten ids fall on fewer than ten is
/// unlikely, and the ids are fixed. So the suite asks both for the truth, and allows larger counts
/// five standard errors.
async fn suite<I: Sample>(new: &dyn Fn() -> Arc<Store>, standard_error: f64) {
    first_and_repeated_ids::<I>(&new()).await;
    edges_of_the_range::<I>(&new()).await;
    only_integers_have_many_spellings::<I>(&new()).await;
    many_at_once::<I>(&new(), standard_error).await;
    many_tasks_at_once::<I>(new(), standard_error).await;
    windows_are_kept_apart::<I>(&new()).await;
    a_sealed_window_refuses::<I>(&new()).await;
    sealing_seals_all_before::<I>(&new()).await;
    a_seal_waits_for_additions::<I>(new(), standard_error).await;
    forgotten_windows_are_evicted::<I>(&new()).await;
}

async fn first_and_repeated_ids<I: Sample>(store: &Store) {
    let window = windows().next().unwrap();
    assert_eq!(store.count(window).await, Ok(StoreCount::default()), "a window that was never added to");
    assert_eq!(store.add(window, &[id::<I>("1")]).await.unwrap().changed, 1);
    assert_eq!(store.add(window, &[id::<I>("1")]).await.unwrap().changed, 0);
    assert_eq!(store.add(window, &[id::<I>("2"), id::<I>("2"), id::<I>("1")]).await.unwrap().changed, 1);
    assert_eq!(store.add::<I>(window, &[]).await.unwrap().changed, 0);
    assert_eq!(
        store.count(window).await,
        Ok(StoreCount {
            unique_ids: 2,
            accepted_ids: 5,
            has_imports: false,
            lost_ids: 0,
            lacks_shards: false
        })
    );
}

async fn edges_of_the_range<I: Sample>(store: &Store) {
    let window = windows().next().unwrap();
    // A text ends where it is no longer kept inside an id, and where it is too long.
    let lengths = [1, 22, 23, 256].map(|length| "é".repeat(length / 2) + &"x".repeat(length % 2));
    let edges = match I::KIND {
        IdKind::Integer => {
            vec!["0", "-1", "1", "-9223372036854775808", "9223372036854775807", "18446744073709551615"]
        }
        IdKind::Text => lengths.iter().map(String::as_str).chain([" ", "\u{1f600}", "\\", "%00"]).collect(),
    };
    for (before, edge) in edges.iter().enumerate() {
        assert_eq!(unique(store, window).await, before as u64);
        store.add(window, &[id::<I>(edge)]).await.unwrap();
    }
    assert_eq!(unique(store, window).await, edges.len() as u64);
}

async fn only_integers_have_many_spellings<I: Sample>(store: &Store) {
    let window = windows().next().unwrap();
    store.add(window, &["7", "007", "0000007", "0", "-0", "-7"].map(id::<I>)).await.unwrap();
    let different = match I::KIND {
        IdKind::Integer => 3,
        IdKind::Text => 6,
    };
    assert_eq!(unique(store, window).await, different);
}

async fn many_at_once<I: Sample>(store: &Store, standard_error: f64) {
    let window = windows().next().unwrap();
    store.add(window, &ids::<I>(0..100_000)).await.unwrap();
    store.add(window, &ids::<I>(50_000..150_000)).await.unwrap();
    let stats = store.count(window).await.unwrap();
    assert_near(stats.unique_ids, 150_000, standard_error);
    assert_eq!(stats.accepted_ids, 200_000);
}

async fn many_tasks_at_once<I: Sample>(store: Arc<Store>, standard_error: f64) {
    let window = windows().next().unwrap();
    let tasks = (0..64).map(|task| {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            for id in ids::<I>(task * 1_000..(task + 2) * 1_000) {
                store.add(window, &[id]).await.unwrap();
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    let stats = store.count(window).await.unwrap();
    assert_near(stats.unique_ids, 65_000, standard_error);
    assert_eq!(stats.accepted_ids, 128_000);
}

async fn windows_are_kept_apart<I: Sample>(store: &Store) {
    let [a, b, c]: [Window; 3] = windows().take(3).collect::<Vec<_>>().try_into().unwrap();
    store.add(a, &ids::<I>(0..3)).await.unwrap();
    store.add(c, &ids::<I>(0..5)).await.unwrap();
    assert_eq!([unique(store, a).await, unique(store, b).await, unique(store, c).await], [3, 0, 5]);
    assert_eq!(store.windows(), [a, c]);
    store.seal(a).await.unwrap();
    assert_eq!(store.windows(), [a, c], "sealed is not forgotten");
    assert_eq!([unique(store, a).await, unique(store, b).await, unique(store, c).await], [3, 0, 5]);
}

async fn a_sealed_window_refuses<I: Sample>(store: &Store) {
    let [a, b]: [Window; 2] = windows().take(2).collect::<Vec<_>>().try_into().unwrap();
    store.add(a, &ids::<I>(0..3)).await.unwrap();
    store.seal(a).await.unwrap();
    assert_eq!(store.add(a, &ids::<I>(0..9)).await, Err(AddError::Sealed { open: b }));
    assert_eq!(
        store.count(a).await,
        Ok(StoreCount {
            unique_ids: 3,
            accepted_ids: 3,
            has_imports: false,
            lost_ids: 0,
            lacks_shards: false
        }),
        "final, and nothing of it came in"
    );
    store.add(b, &ids::<I>(0..9)).await.unwrap();
    assert_eq!(unique(store, b).await, 9);

    store.seal(a).await.unwrap();
    assert_eq!(
        store.count(a).await,
        Ok(StoreCount {
            unique_ids: 3,
            accepted_ids: 3,
            has_imports: false,
            lost_ids: 0,
            lacks_shards: false
        }),
        "sealing again changes nothing"
    );
    store.add(b, &ids::<I>(9..10)).await.unwrap();
    assert_eq!(unique(store, b).await, 10, "nor does it for the window after");
}

async fn sealing_seals_all_before<I: Sample>(store: &Store) {
    let [a, b, c, d]: [Window; 4] = windows().take(4).collect::<Vec<_>>().try_into().unwrap();
    store.add(a, &ids::<I>(0..1)).await.unwrap();
    store.add(b, &ids::<I>(0..2)).await.unwrap();
    store.seal(c).await.unwrap();
    for window in [a, b, c] {
        assert_eq!(store.add(window, &ids::<I>(0..1)).await, Err(AddError::Sealed { open: d }));
    }
    assert_eq!([unique(store, a).await, unique(store, b).await, unique(store, c).await], [1, 2, 0]);
}

/// Tasks add to whatever window is open while windows are sealed: what was accepted for a window is
/// in its count, and the count never changes after the seal.
async fn a_seal_waits_for_additions<I: Sample>(store: Arc<Store>, standard_error: f64) {
    let rounds: Vec<Window> = windows().take(3).collect();
    let tasks: Vec<_> = (0..8_u64)
        .map(|task| {
            let (store, mut window, last) = (Arc::clone(&store), rounds[0], rounds[2]);
            tokio::spawn(async move {
                let mut accepted = Vec::new();
                for first in (task * 10_000_000..).step_by(100) {
                    match store.add(window, &ids::<I>(first..first + 100)).await {
                        Ok(_) => accepted.push(window),
                        Err(AddError::Sealed { open }) if open > last => break,
                        Err(AddError::Sealed { open }) => window = open,
                        Err(error) => panic!("{error}"),
                    }
                    tokio::task::yield_now().await;
                }
                accepted
            })
        })
        .collect();
    let mut stats = Vec::new();
    for window in &rounds {
        while store.count(*window).await.unwrap().accepted_ids < 20_000 {
            tokio::task::yield_now().await;
        }
        store.seal(*window).await.unwrap();
        stats.push(store.count(*window).await.unwrap());
    }
    let mut accepted = Vec::new();
    for task in tasks {
        accepted.extend(task.await.unwrap());
    }
    for (window, stats) in rounds.iter().zip(stats) {
        let of_window = 100 * accepted.iter().filter(|accepted| *accepted == window).count() as u64;
        assert_eq!(stats.accepted_ids, of_window);
        assert_near(stats.unique_ids, of_window, standard_error);
        assert_eq!(store.count(*window).await, Ok(stats));
    }
}

async fn forgotten_windows_are_evicted<I: Sample>(store: &Store) {
    let windows: Vec<Window> = windows().take(6).collect();
    for (number, window) in windows.iter().enumerate() {
        if number != 2 {
            store.add(*window, &ids::<I>(0..number as u64 + 1)).await.unwrap();
        }
        store.seal(*window).await.unwrap();
    }
    store.evict(windows[3]).await;
    store.evict(windows[1]).await;
    assert_eq!(store.windows(), windows[4..]);
    for (number, window) in windows.iter().enumerate() {
        let count = store.count(*window).await;
        if number > 3 {
            assert_eq!(count.unwrap().unique_ids, number as u64 + 1);
        } else {
            assert_eq!(count, Err(CountError::Evicted(*window)), "also one without ids");
        }
    }
}

fn assert_near(count: u64, truth: u64, standard_error: f64) {
    let error = (count as f64 - truth as f64).abs() / truth as f64;
    assert!(error <= 5.0 * standard_error, "{count} instead of {truth}");
}

async fn suite_in_memory(mode: Mode, shards: u16) {
    let shards = Shards::new(shards).unwrap();
    let new = || Arc::new(Store::Memory(MemoryStore::new(mode, shards)));
    suite::<IntegerId>(&new, standard_error(mode, shards)).await;
    suite::<TextId>(&new, standard_error(mode, shards)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_hll() {
    suite_in_memory(Mode::Hll, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_hll_in_shards() {
    suite_in_memory(Mode::Hll, 16).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_exact() {
    suite_in_memory(Mode::Exact, 1).await;
}

/// A store in a namespace of its own; its tasks end with it.
fn store_in_redis(redis: &Redis, mode: Mode, shards: Shards, writes: RedisWrites) -> RedisStore {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let namespace = format!("contract-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
    let config = RedisStoreConfig {
        mode,
        shards,
        close_timeout: Duration::from_secs(10),
        retention: Duration::from_secs(60),
        keep: Keep::default(),
        writes,
        on_redis_down: OnRedisDown::Count,
        pending_max: 1,
        counters: CounterLimits { most: 1_000, memory: 64 << 20 },
        timeout: Duration::from_secs(5),
        keys: Keys::new(&namespace),
        instance_id: "test".to_owned(),
    };
    let (store, tasks) = RedisStore::new(config, redis, 2, &Metrics::new().into());
    tokio::spawn(tasks.run(Arc::new(Workers::start(2).unwrap())));
    store
}

async fn suite_in_redis(url: &str, mode: Mode, shards: u16, writes: RedisWrites) {
    let shards = Shards::new(shards).unwrap();
    let address = Address::parse(url).unwrap();
    let redis = Redis::new(&address, Duration::from_secs(5), &Metrics::new());
    redis.wait_for(&address, PATIENCE).await.unwrap();
    let new = || Arc::new(Store::Redis(store_in_redis(&redis, mode, shards, writes)));
    suite::<IntegerId>(&new, standard_error(mode, shards)).await;
    suite::<TextId>(&new, standard_error(mode, shards)).await;
}

/// On every server that is supported and at hand.
async fn suite_in_every_redis(mode: Mode, shards: u16, writes: RedisWrites) {
    for flavour in Flavour::at_hand() {
        println!("{flavour:?}");
        suite_in_redis(&RedisServer::start_with(flavour, &[]).url(), mode, shards, writes).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_hll() {
    suite_in_every_redis(Mode::Hll, 1, RedisWrites::All).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_hll_in_shards() {
    suite_in_every_redis(Mode::Hll, 16, RedisWrites::All).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_hll_changed_only() {
    suite_in_every_redis(Mode::Hll, 3, RedisWrites::Changed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_exact() {
    suite_in_every_redis(Mode::Exact, 1, RedisWrites::All).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_exact_in_shards() {
    suite_in_every_redis(Mode::Exact, 5, RedisWrites::All).await;
}

/// With several servers behind one URL.
async fn suite_in_all_ways(url: &str) {
    suite_in_redis(url, Mode::Hll, 8, RedisWrites::All).await;
    suite_in_redis(url, Mode::Hll, 1, RedisWrites::Changed).await;
    suite_in_redis(url, Mode::Exact, 8, RedisWrites::All).await;
}

/// On a cluster of every server that is supported and at hand.
#[tokio::test(flavor = "multi_thread")]
async fn redis_cluster() {
    for flavour in Flavour::at_hand() {
        println!("{flavour:?}");
        suite_in_all_ways(&Cluster::of(flavour).url()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_over_sentinel() {
    suite_in_all_ways(&Watched::start().url()).await;
}
