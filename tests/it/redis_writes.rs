//! The store sends all ids to Redis, or only those that can change the sketch. The resulting sketch is the same.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant, SystemTime};

use headcount::model::counter::CounterLimits;
use headcount::model::id::IntegerId;
use headcount::model::mode::Mode;
use headcount::model::shard::Shards;
use headcount::model::window::{Window, WindowLength};
use headcount::platform::workers::Workers;
use headcount::redis::keys::Keys;
use headcount::redis::{Address, Redis};
use headcount::store::redis::{OnRedisDown, RedisStore, RedisStoreConfig, RedisWrites};
use headcount::store::{AddError, Keep, Store};
use headcount::telemetry::metrics::Metrics;

use crate::support::fleet::assert_same_registers;
use crate::support::proxy::{Fault, Proxy};
use crate::support::redis::Redis as RedisServer;
use crate::support::server::value_of;
use crate::support::{PATIENCE, another_loss, free_port, wait_for};

/// The same one for all tests of a run.
fn window() -> Window {
    static WINDOW: LazyLock<Window> =
        LazyLock::new(|| "1h".parse::<WindowLength>().unwrap().window_at(SystemTime::now()));
    *WINDOW
}

const WORKERS: usize = 2;

/// The same ones for all tests of a run.
fn workers() -> Arc<Workers> {
    static ALL: LazyLock<Arc<Workers>> = LazyLock::new(|| Arc::new(Workers::start(WORKERS).unwrap()));
    Arc::clone(&ALL)
}

const TIMEOUT: Duration = Duration::from_secs(2);

fn config(namespace: &str, mode: Mode, writes: RedisWrites) -> RedisStoreConfig {
    RedisStoreConfig {
        mode,
        shards: Shards::ONE,
        close_timeout: Duration::from_secs(10),
        retention: Duration::from_secs(60),
        keep: Keep::default(),
        writes,
        on_redis_down: OnRedisDown::Count,
        pending_max: 1_000,
        counters: CounterLimits::default(),
        timeout: TIMEOUT,
        keys: Keys::new(namespace),
        instance_id: "test".to_owned(),
    }
}

fn counter(url: &str, namespace: &str, mode: Mode, writes: RedisWrites) -> Arc<Store> {
    counter_with(url, config(namespace, mode, writes))
}

fn counter_with(url: &str, config: RedisStoreConfig) -> Arc<Store> {
    let metrics = Arc::new(Metrics::new());
    let redis = Redis::new(&Address::parse(url).unwrap(), config.timeout, &metrics);
    let (counter, tasks) = RedisStore::new(config, &redis, WORKERS, &metrics);
    tokio::spawn(tasks.run(workers()));
    Arc::new(Store::Redis(counter))
}

/// The string of a namespace's window.
fn sketch(server: &RedisServer, namespace: &str) -> Vec<u8> {
    let key = Keys::new(namespace).ids(Mode::Hll, 0, Shards::ONE, window());
    ::redis::cmd("GET").arg(key).query(&mut server.connect()).unwrap()
}

/// How many of n different ids raise a register, on average. The i-th has rank k with probability 2^−k. It raises its
/// register if no earlier id had this register and a rank of at least k. Each earlier id had that with probability
/// 2^−(k−1)/16 384. The result sums over i and k.
fn expected_changes(ids: u64) -> f64 {
    (1..=51_i32)
        .map(|rank| {
            let before = 2_f64.powi(1 - rank) / 16_384.0;
            2_f64.powi(-rank) * (1.0 - (1.0 - before).powf(ids as f64)) / before
        })
        .sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_sends_as_many_ids_as_theory_says() {
    let server = RedisServer::start();
    for (round, ids) in [20_000_u64, 300_000].into_iter().enumerate() {
        let namespace = format!("theory-{round}");
        let counter = counter(&server.url(), &namespace, Mode::Hll, RedisWrites::Changed);
        let before = server.calls("pfadd");
        for id in 0..ids {
            counter.add(window(), &[IntegerId::from(id)]).await.unwrap();
        }
        let sent = (server.calls("pfadd") - before) as f64;
        let theory = expected_changes(ids);
        println!("{ids} ids: {sent} PFADDs, in theory {theory:.0}");
        assert!((0.98..1.02).contains(&(sent / theory)), "{sent} instead of {theory}");
        // The same ids again: none can change the sketch.
        for id in 0..ids {
            counter.add(window(), &[IntegerId::from(id)]).await.unwrap();
        }
        assert_eq!(server.calls("pfadd") - before, sent as u64);
        assert_same_registers(&sketch(&server, &namespace), 0..ids);
        let stats = counter.count(window()).await.unwrap();
        assert_eq!(stats.accepted_ids, 2 * ids);
    }
}

/// Both settings end with the same string, though the test cuts the connection all the time. No request fails, because
/// the store sends writes again or keeps them.
#[tokio::test(flavor = "multi_thread")]
async fn changed_and_all_end_with_the_same_sketch_over_reconnects() {
    const IDS: u64 = 300_000;
    let server = RedisServer::start();
    let proxy = Proxy::start(server.address()).await;
    let url = proxy.url();
    let done = AtomicBool::new(false);
    let send = async |namespace: &'static str, writes| {
        let counter = counter(&url, namespace, Mode::Hll, writes);
        let tasks: Vec<_> = (0..8)
            .map(|task| {
                let counter = Arc::clone(&counter);
                // Cut in the middle of any pipeline.
                workers().spawn_on(task as usize % WORKERS, async move {
                    for id in (task..IDS).step_by(8) {
                        counter.add(window(), &[IntegerId::from(id)]).await.unwrap();
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        counter
    };
    let cut = async {
        let mut cuts = 0;
        while !done.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(40)).await;
            proxy.set(Fault::Cut);
            cuts += 1;
        }
        cuts
    };
    let send_both = async {
        let both = tokio::join!(send("all", RedisWrites::All), send("changed", RedisWrites::Changed));
        done.store(true, Ordering::Relaxed);
        both
    };
    let ((all, changed), cuts) = tokio::join!(send_both, cut);
    assert!(cuts >= 3, "{cuts}");
    for (counter, namespace) in [(all, "all"), (changed, "changed")] {
        seal_in_the_end(&counter, window()).await;
        assert_same_registers(&sketch(&server, namespace), 0..IDS);
        assert_eq!(counter.count(window()).await.unwrap().accepted_ids, IDS);
    }
}

/// The server loses a sketch without the store noticing. The seal restores it.
#[tokio::test(flavor = "multi_thread")]
async fn the_seal_restores_a_sketch_that_the_server_lost() {
    let mut server = RedisServer::start();
    for writes in [RedisWrites::All, RedisWrites::Changed] {
        let counter = counter(&server.url(), "lost", Mode::Hll, writes);
        let ids = |range: std::ops::Range<u64>| range.map(IntegerId::from).collect::<Vec<_>>();
        counter.add(window(), &ids(0..30_000)).await.unwrap();
        server.restart();
        counter.add(window(), &ids(20_000..50_000)).await.unwrap();
        counter.seal(window()).await.unwrap();
        assert_same_registers(&sketch(&server, "lost"), 0..50_000);
        server.restart();
    }
}

/// Redis is full at first, so that the key does not exist when its expiry is sent.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_expires_though_its_first_write_was_refused() {
    let server = RedisServer::start();
    let refusing = RedisStoreConfig {
        on_redis_down: OnRedisDown::Fail,
        ..config("refused", Mode::Exact, RedisWrites::All)
    };
    let store = counter_with(&server.url(), refusing);
    server.set_max_memory(1);
    assert!(store.add(window(), &[IntegerId::from(1_u64)]).await.is_err());
    server.set_max_memory(0);
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = store.add(window(), &[IntegerId::from(2_u64)]).await {
        assert!(Instant::now() < deadline, "{error}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let key = Keys::new("refused").ids(Mode::Exact, 0, Shards::ONE, window());
    let lives: i64 = ::redis::cmd("PTTL").arg(key).query(&mut server.connect()).unwrap();
    assert!(lives > 0, "{lives}");
}

pub async fn seal_in_the_end(counter: &Store, window: Window) {
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = counter.seal(window).await {
        assert!(Instant::now() < deadline, "{error}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Redis hangs: the first request waits until its time-out, later ones do not wait. All are counted in the end, and the
/// window is not sealed before that.
#[tokio::test(flavor = "multi_thread")]
async fn a_hanging_server_delays_only_the_seal() {
    let server = RedisServer::start();
    for mode in [Mode::Hll, Mode::Exact] {
        let counter = counter(&server.url(), "hangs", mode, RedisWrites::All);
        counter.add(window(), &[IntegerId::from(1_u64)]).await.unwrap();
        assert!(!counter.is_degraded());
        server.signal("STOP");
        // Some in the pipeline, some in the queue behind it.
        let waiting: Vec<_> = (2..5_u64)
            .map(|id| {
                let counter = Arc::clone(&counter);
                tokio::spawn(async move { counter.add(window(), &[IntegerId::from(id)]).await })
            })
            .collect();
        for added in waiting {
            added.await.unwrap().unwrap();
        }
        assert!(counter.is_degraded());
        let begun = Instant::now();
        for id in 5..100_u64 {
            counter.add(window(), &[IntegerId::from(id)]).await.unwrap();
        }
        assert!(begun.elapsed() < TIMEOUT, "none of them has waited for Redis");
        assert!(counter.seal(window()).await.is_err());
        server.signal("CONT");
        seal_in_the_end(&counter, window()).await;
        let stats = counter.count(window()).await.unwrap();
        assert_eq!((stats.accepted_ids, stats.unique_ids), (99, 99));
        ::redis::cmd("FLUSHALL").exec(&mut server.connect()).unwrap();
    }
}

/// With `--on-redis-down fail` requests fail at once, and their ids are not counted.
#[tokio::test(flavor = "multi_thread")]
async fn requests_fail_while_redis_is_away_where_that_is_configured() {
    let server = RedisServer::start();
    for mode in [Mode::Hll, Mode::Exact] {
        let config =
            RedisStoreConfig { on_redis_down: OnRedisDown::Fail, ..config("fail", mode, RedisWrites::All) };
        let counter = counter_with(&server.url(), config);
        counter.add(window(), &[IntegerId::from(1_u64)]).await.unwrap();
        server.signal("STOP");
        let late = counter.add(window(), &[IntegerId::from(2_u64)]).await;
        assert!(matches!(late, Err(AddError::Unavailable(_))), "{late:?}");
        let begun = Instant::now();
        for id in 3..100_u64 {
            let refused = counter.add(window(), &[IntegerId::from(id)]).await;
            assert!(matches!(refused, Err(AddError::Unavailable(_))), "{refused:?}");
        }
        assert!(begun.elapsed() < TIMEOUT, "none of them has waited for Redis");
        server.signal("CONT");
        wait_for("Redis to be back", || (!counter.is_degraded()).then_some(())).await;
        counter.add(window(), &[IntegerId::from(200_u64)]).await.unwrap();
        seal_in_the_end(&counter, window()).await;
        let stats = counter.count(window()).await.unwrap();
        assert_eq!(stats.accepted_ids, 2, "what was not answered ok is not accepted");
        assert!((2..=3).contains(&stats.unique_ids), "the late one may be counted: {stats:?}");
        ::redis::cmd("FLUSHALL").exec(&mut server.connect()).unwrap();
    }
}

/// A lost connection is no outage as long as the next one works. No request notices it.
#[tokio::test(flavor = "multi_thread")]
async fn a_closed_connection_to_redis_is_replaced() {
    let server = RedisServer::start();
    let proxy = Proxy::start(server.address()).await;
    for mode in [Mode::Hll, Mode::Exact] {
        let config =
            RedisStoreConfig { on_redis_down: OnRedisDown::Fail, ..config("closed", mode, RedisWrites::All) };
        let counter = counter_with(&proxy.url(), config);
        for id in 0..20_u64 {
            counter.add(window(), &[IntegerId::from(id)]).await.unwrap();
            assert!(!counter.is_degraded());
            proxy.set(Fault::Cut);
        }
        seal_in_the_end(&counter, window()).await;
        assert_eq!(counter.count(window()).await.unwrap().unique_ids, 20);
    }
}

/// A refused write counts as an outage, so ids become pending.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_redis_loses_no_id() {
    let server = RedisServer::start();
    for mode in [Mode::Hll, Mode::Exact] {
        let counter = counter(&server.url(), "full", mode, RedisWrites::All);
        counter.add(window(), &[IntegerId::from(1_u64)]).await.unwrap();
        server.set_max_memory(1);
        for id in 2..100_u64 {
            counter.add(window(), &[IntegerId::from(id)]).await.unwrap();
        }
        assert!(counter.is_degraded());
        assert!(counter.seal(window()).await.is_err());
        server.set_max_memory(0);
        seal_in_the_end(&counter, window()).await;
        assert_eq!(counter.count(window()).await.unwrap().unique_ids, 99);
        ::redis::cmd("FLUSHALL").exec(&mut server.connect()).unwrap();
    }
}

/// Redis refuses writes, and no id is pending that could be replayed. A probe still writes to find out whether Redis is
/// back, so that no request has to.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_redis_does_not_count_as_back() {
    let server = RedisServer::start();
    let metrics = Arc::new(Metrics::new());
    let redis = Redis::new(&Address::parse(&server.url()).unwrap(), TIMEOUT, &metrics);
    let config = RedisStoreConfig {
        on_redis_down: OnRedisDown::Fail,
        ..config("full", Mode::Exact, RedisWrites::All)
    };
    let (store, tasks) = RedisStore::new(config, &redis, WORKERS, &metrics);
    let counter = Store::Redis(store);
    tokio::spawn(tasks.run(workers()));
    server.set_max_memory(1);
    counter.add(window(), &[IntegerId::from(1_u64)]).await.unwrap_err();
    wait_for("three tries", || {
        assert!(counter.is_degraded());
        let tries = value_of(&metrics.render(), r#"headcount_redis_errors_total{command="ask"}"#);
        tries.is_some_and(|tries| tries >= 3.0).then_some(())
    })
    .await;
}

/// Instances keep the sketches of sealed windows only for a time. If Redis loses one after that, its window is incomplete.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_sketch_that_cannot_be_restored_is_reported() {
    let server = RedisServer::start();
    let shards = Shards::new(512).unwrap();
    let counter = counter_with(
        &server.url(),
        RedisStoreConfig { shards, ..config("dropped", Mode::Hll, RedisWrites::All) },
    );
    // Short, so that no window is past the retention.
    let mut windows = vec!["1s".parse::<WindowLength>().unwrap().window_at(SystemTime::now())];
    for _ in 0..11 {
        windows.push(windows.last().unwrap().next());
    }
    for window in &windows {
        counter.add(*window, &[IntegerId::from(1_u64), IntegerId::from(2_u64)]).await.unwrap();
        counter.seal(*window).await.unwrap();
    }
    counter.restore(another_loss()).await.unwrap();
    assert_eq!(counter.count(windows[0]).await.unwrap().lost_ids, 0, "nothing is lost yet");
    ::redis::cmd("FLUSHALL").exec(&mut server.connect()).unwrap();
    counter.restore(another_loss()).await.unwrap();
    let mut counts = Vec::new();
    for window in &windows {
        let stats = counter.count(*window).await.unwrap();
        assert_eq!(stats.accepted_ids, 2);
        counts.push((stats.unique_ids, stats.lost_ids));
    }
    assert_eq!(counts[..4], [(0, 2); 4]);
    assert_eq!(counts[4..], [(2, 0); 8]);
}

/// On a slow network connecting takes longer than the time-out of a write, or so long that no write is done by then. The first
/// write is late, later ones are not.
#[tokio::test(flavor = "multi_thread")]
async fn the_store_connects_over_a_slow_network() {
    let server = RedisServer::start();
    let proxy = Proxy::start(server.address()).await;
    // Connecting takes two answers at least, and an answer twice as long.
    for slow in [120, 80] {
        proxy.set(Fault::Slow(Duration::from_millis(slow)));
        let timeout = Duration::from_millis(400);
        let namespace = format!("slow-{slow}");
        let config = RedisStoreConfig { timeout, ..config(&namespace, Mode::Exact, RedisWrites::All) };
        let counter = counter_with(&proxy.url(), config);
        counter.add(window(), &[IntegerId::from(1_u64)]).await.unwrap();
        assert!(counter.is_degraded(), "the first write is late");
        wait_for("a connection", || (!counter.is_degraded()).then_some(())).await;
        for id in 2..10_u64 {
            counter.add(window(), &[IntegerId::from(id)]).await.unwrap();
            assert!(!counter.is_degraded(), "it is connected");
        }
    }
}

/// In an endless outage an instance keeps only the ids of the retention in memory.
#[tokio::test(flavor = "multi_thread")]
async fn windows_that_cannot_be_sealed_are_dropped_after_the_retention() {
    let timeout = Duration::from_millis(5);
    let url = format!("redis://127.0.0.1:{}", free_port());
    let retention = Duration::from_secs(10 * 3600);
    for mode in [Mode::Hll, Mode::Exact] {
        // In mode exact the limit is the ids of ten windows. The ids of dropped windows do not count.
        let config = RedisStoreConfig {
            timeout,
            retention,
            pending_max: 12,
            ..config("away", mode, RedisWrites::All)
        };
        let counter = counter_with(&url, config);
        let mut window = window();
        for _ in 0..30 {
            counter.add(window, &[IntegerId::from(1_u64)]).await.unwrap();
            assert!(counter.seal(window).await.is_err());
            window = window.next();
        }
        let kept = counter.windows();
        assert!((10..=12).contains(&kept.len()), "{kept:?}");
        assert_eq!(kept.last(), Some(&window.previous()));
    }
}

/// After an outage all windows of it are sealed at once. If the stats of an instance that had no ids were missing, its ids would be
/// taken for lost.
#[tokio::test(flavor = "multi_thread")]
async fn an_instance_without_ids_stores_its_stats_of_all_windows_of_an_outage() {
    let server = RedisServer::start();
    let config = RedisStoreConfig {
        retention: Duration::from_secs(3_600),
        ..config("idle", Mode::Hll, RedisWrites::All)
    };
    let store = counter_with(&server.url(), config);
    let first = "1s".parse::<WindowLength>().unwrap().window_at(SystemTime::now());
    let windows: Vec<_> =
        std::iter::successors(Some(first), |window| Some(window.next())).take(501).collect();
    store.seal(first).await.unwrap();
    store.seal(windows[500]).await.unwrap();
    let ours = BTreeSet::from(["test".to_owned()]);
    for window in windows {
        let settled = store.settle(window, &ours, Duration::MAX).await.unwrap();
        assert_eq!(settled.total.lost_ids, 0, "{window}");
    }
}
