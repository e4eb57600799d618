//! Sketches that clients send instead of ids, while Redis, the network or instances fail: none is lost, and none counts twice.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use headcount::hll::Sketch;
use headcount::model::mode::Mode;
use headcount::model::shard::Shards;
use headcount::model::window::Window;
use headcount::redis::keys::Keys;
use headcount::store::redis::{OnRedisDown, RedisStoreConfig, RedisWrites};
use headcount::store::{Import, Store};
use redis::cmd;

use crate::counter_contract::{
    add, config, connect, in_redis, names, settle, start_store, store_in_redis, windows,
};
use crate::redis_writes::seal_in_the_end;
use crate::support::cluster::{Cluster, Places};
use crate::support::fleet::{
    Fleet, LATE_IS_NOT_AWAY, assert_no_gap, assert_same_registers, next_window, seconds, sketch_of,
    wait_for_room_in_the_hour,
};
use crate::support::http::Connection;
use crate::support::outage::{Outage, Site};
use crate::support::proxy::{Fault, Proxy};
use crate::support::redis::Redis as RedisServer;
use crate::support::server::Server;
use crate::support::sharded::{shards, sketch_at, sketches};
use crate::support::wait_until;

const NAMESPACE: &str = "imports";
const TOKEN: &str = "a-token-of-this-test";
/// Ids of a sketch.
const IDS: u64 = 20;

async fn import(store: &Store, window: Window, ids: Range<u64>, counters: &[&str]) -> bool {
    let import = Import::new(vec![sketch_of(ids)], Shards::ONE).unwrap();
    store.import(window, &import, &names(counters)).await.is_ok()
}

fn stored(server: &RedisServer, key: &str) -> Vec<u8> {
    cmd("GET").arg(key).query::<Option<Vec<u8>>>(&mut server.connect()).unwrap().unwrap_or_default()
}

/// Redis is away in the middle of a window. What was imported meanwhile is there before the window ends, and all of it in the end.
#[tokio::test(flavor = "multi_thread")]
async fn an_outage_costs_no_imported_sketch() {
    for fault in [Fault::Refuse, Fault::Cut, Fault::MidReply, Fault::Stall] {
        for writes in [RedisWrites::All, RedisWrites::Changed] {
            let server = RedisServer::start();
            let proxy = Proxy::start(server.address()).await;
            let store = in_redis(&connect(&proxy.url()).await, Mode::Hll, writes, NAMESPACE, "one");
            let window = windows().next().unwrap();
            add(&store, window, 0..20, &["a"]).await;
            assert!(import(&store, window, 10..3_000, &["a", "b"]).await);
            let keys = Keys::new(NAMESPACE);
            let total = keys.ids(Mode::Hll, 0, Shards::ONE, window);
            let [a, b, new] = ["a", "b", "new"].map(|name| keys.counter(Mode::Hll, name, window));
            // When it is answered, Redis has it.
            assert_same_registers(&stored(&server, &total), 0..3_000_u64);
            assert_same_registers(&stored(&server, &b), 10..3_000_u64);

            proxy.set(fault);
            assert!(import(&store, window, 2_500..4_000, &["a", "new"]).await, "{fault:?}");
            assert!(import(&store, window, 4_000..4_100, &[]).await, "{fault:?}");
            proxy.set(Fault::None);
            wait_until("Redis to be back", async || !store.is_degraded()).await;
            wait_until("Redis to have the import", async || {
                Sketch::from_bytes(&stored(&server, &total)).is_ok_and(|found| found == sketch_of(0..4_100))
            })
            .await;
            seal_in_the_end(&store, window).await;
            assert_same_registers(&stored(&server, &a), 0..4_000_u64);
            assert_same_registers(&stored(&server, &new), 2_500..4_000_u64);
            let counts = settle(&store, window).await.unwrap();
            assert!(counts.all_are_whole(), "{fault:?} {writes:?}");
        }
    }
}

/// A primary of a cluster is cut off. The other nodes get what is imported at once, and it gets its part when it is back.
#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_a_primary_costs_no_imported_sketch() {
    let cluster = Cluster::behind_proxies(&[]).await;
    let node = cluster.primaries()[0];
    let has_some =
        |places: &Places| places.shards.contains(&node) && places.shards.iter().any(|other| *other != node);
    let namespace = cluster.namespace(NAMESPACE, shards(), has_some);
    let places = cluster.places(&namespace, shards());
    let redis = connect(&cluster.url()).await;
    let (window, keys) = (windows().next().unwrap(), Keys::new(&namespace));
    let is_there = |ids: &BTreeSet<u64>, on: &dyn Fn(usize) -> bool| {
        let mut of_shards = (0..).zip(sketches(ids)).filter(|(shard, _)| on(places.shards[*shard]));
        of_shards.all(|(shard, expected)| {
            sketch_at(&cluster, &keys.ids(Mode::Hll, shard, shards(), window)) == expected
        })
    };
    let config = config(Mode::Hll, RedisWrites::All, &namespace, "one");
    let store = start_store(&redis, RedisStoreConfig { shards: shards(), ..config });
    let mut all = BTreeSet::new();
    for (number, fault) in (0..).zip([Fault::Refuse, Fault::Stall]) {
        for (number, fault) in [(2 * number, Fault::None), (2 * number + 1, fault)] {
            cluster.cut_off(node, fault);
            let ids: BTreeSet<_> = (number * 1_000..(number + 1) * 1_000).collect();
            all.extend(&ids);
            let import = Import::new(sketches(&ids), shards()).unwrap();
            let counters = ["a".to_owned(), format!("counter-{number}")];
            store.import(window, &import, &names(&[&*counters[0], &*counters[1]])).await.unwrap();
            assert!(is_there(&all, &|at| at != node || fault == Fault::None), "{fault:?} {number}");
        }
        cluster.cut_off(node, Fault::None);
        wait_until("the primary to be back", async || !store.is_degraded()).await;
        wait_until("the primary to have the import", async || is_there(&all, &|_| true)).await;
    }
    seal_in_the_end(&store, window).await;
    let counts = settle(&store, window).await.unwrap();
    assert!(counts.all_are_whole());
    assert_eq!(counts.get("a"), sketch_of(all).estimate());
    for number in 0..4 {
        let expected = sketch_of(number * 1_000..(number + 1) * 1_000_u64).estimate();
        assert_eq!(counts.get(&format!("counter-{number}")), expected);
    }
}

/// Clients send sketches and ids all the time, while Redis goes away and comes back.
#[tokio::test(flavor = "multi_thread")]
async fn sketches_that_come_while_redis_comes_back_are_counted() {
    const CLIENTS: u64 = 6;
    let server = RedisServer::start();
    let proxy = Proxy::start(server.address()).await;
    let redis = connect(&proxy.url()).await;
    for writes in [RedisWrites::All, RedisWrites::Changed] {
        let namespace = format!("{NAMESPACE}-{writes:?}");
        let store = in_redis(&redis, Mode::Hll, writes, &namespace, "one");
        let (window, is_over) = (windows().next().unwrap(), AtomicBool::new(false));
        let client = async |client: u64| {
            let mut ids = (client * 1_000_000..).step_by(20);
            for first in &mut ids {
                if is_over.load(Ordering::Relaxed) {
                    return first;
                }
                // While Redis is away, nothing else lets the others go on.
                tokio::task::yield_now().await;
                if client == 0 {
                    add(&store, window, first..first + 20, &["a"]).await;
                } else {
                    assert!(import(&store, window, first..first + 20, &["a"]).await);
                }
            }
            unreachable!("there are more ids")
        };
        let outages = async {
            for fault in [Fault::Refuse, Fault::Cut, Fault::MidReply] {
                proxy.set(fault);
                wait_until("Redis to be away", async || store.is_degraded()).await;
                proxy.set(Fault::None);
                wait_until("Redis to be back", async || !store.is_degraded()).await;
            }
            is_over.store(true, Ordering::Relaxed);
        };
        let (ends, ()) = tokio::join!(join_all((0..CLIENTS).map(client)), outages);
        seal_in_the_end(&store, window).await;
        let all = (0..CLIENTS).zip(ends).flat_map(|(client, end)| client * 1_000_000..end);
        let all = sketch_of(all.collect::<Vec<_>>());
        let keys = Keys::new(&namespace);
        for key in [keys.ids(Mode::Hll, 0, Shards::ONE, window), keys.counter(Mode::Hll, "a", window)] {
            assert!(Sketch::from_bytes(&stored(&server, &key)) == Ok(all.clone()), "{writes:?} {key}");
        }
        assert!(settle(&store, window).await.unwrap().all_are_whole());
    }
}

/// With `--on-redis-down fail` a client learns that its sketch may not be counted.
#[tokio::test(flavor = "multi_thread")]
async fn without_redis_an_import_fails_if_ids_do() {
    let mut server = RedisServer::start();
    let redis = connect(&server.url()).await;
    let store = store_in_redis(&redis, Mode::Hll, RedisWrites::All, OnRedisDown::Fail, NAMESPACE, "one");
    let window = windows().next().unwrap();
    assert!(import(&store, window, 0..10, &[]).await);
    server.kill();
    assert!(!import(&store, window, 10..20, &[]).await);
    server.restart();
    wait_until("Redis to be back", async || import(&store, window, 20..30, &[]).await).await;
}

/// Redis loses everything: the instance gives it back, with what was imported.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_lost_everything_gets_the_imports_again() {
    let server = RedisServer::start();
    let store = in_redis(&connect(&server.url()).await, Mode::Hll, RedisWrites::All, NAMESPACE, "one");
    let window = windows().next().unwrap();
    assert!(import(&store, window, 0..5_000, &["a"]).await);
    let () = cmd("FLUSHALL").query(&mut server.connect()).unwrap();
    store.restore(crate::support::another_loss()).await.unwrap();
    store.seal(window).await.unwrap();
    let counts = settle(&store, window).await.unwrap();
    assert_eq!((counts.get("a"), counts.is_whole("a")), (sketch_of(0..5_000_u64).estimate(), true));
    assert_same_registers(
        &stored(&server, &Keys::new(NAMESPACE).ids(Mode::Hll, 0, Shards::ONE, window)),
        0..5_000_u64,
    );
}

/// A counter that finds no place: all ids of the sketch are in `_other`.
#[tokio::test(flavor = "multi_thread")]
async fn an_import_without_a_place_counts_in_other() {
    let server = RedisServer::start();
    let in_redis = in_redis(&connect(&server.url()).await, Mode::Hll, RedisWrites::All, NAMESPACE, "one");
    let in_memory = Store::Memory(headcount::store::memory::MemoryStore::with_counters(
        Mode::Hll,
        Shards::ONE,
        headcount::model::counter::CounterLimits { most: 200, memory: 64 << 20 },
    ));
    for store in [&*in_redis, &in_memory] {
        let window = windows().next().unwrap();
        for counter in 0..200 {
            add(store, window, [counter], &[&format!("c{counter}")]).await;
        }
        let import = Import::new(vec![sketch_of(0..900)], Shards::ONE).unwrap();
        let added = store.import(window, &import, &names(&["c1", "new"])).await.unwrap();
        assert_eq!(added.overflow, sketch_of(0..900_u64).estimate());
        store.seal(window).await.unwrap();
        let counts = settle(store, window).await.unwrap();
        let expected = sketch_of(0..900_u64).estimate();
        assert_eq!((counts.get("c1"), counts.get("_other"), counts.get("new")), (expected, expected, 0));
        assert!(counts.has_overflowed());
    }
}

/// Sends sketches of ids that no other sketch has, each to the total and a counter.
struct Sender {
    sent: u64,
}

impl Sender {
    async fn send(&mut self, server: &Server) {
        let ids = self.sent * IDS..(self.sent + 1) * IDS;
        let body = sketch_of(ids).to_bytes();
        let head = format!(
            "POST /api/verve/sketch?counter=a HTTP/1.1\r\nhost: test\r\nauthorization: Bearer {TOKEN}\r\n\
             content-type: application/octet-stream\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let mut connection = Connection::open(server.address).await.unwrap();
        let answer = connection.request(&[head.as_bytes(), &body].concat()).await.unwrap();
        assert_eq!((answer.status, &*answer.body), (200, "ok"), "{answer:?}");
        self.sent += 1;
    }

    /// All that was sent is in the windows from `first` to `last`, once, and in the hour of the counter.
    async fn assert_all_once(&self, fleet: &Fleet, first: u64, last: u64, server: &Server) {
        let published = fleet.wait_published(last).await;
        assert_no_gap(&published);
        let of_windows = published.range(first..=last).map(|(_, closed)| closed[0].1.unique).sum::<u64>();
        // Two ids of a window may share a register. A sketch that counted twice would be off by more.
        let off = of_windows.abs_diff(self.sent * IDS);
        assert!(off < IDS / 2, "{of_windows} of {} sketches: {published:#?}", self.sent);
        let sketch = async |query: String| {
            let get = format!(
                "GET /api/verve/sketch?{query} HTTP/1.1\r\nhost: test\r\nauthorization: Bearer {TOKEN}\r\n\r\n"
            );
            let answer =
                Connection::open(server.address).await.unwrap().request(get.as_bytes()).await.unwrap();
            // Before the first window is in the hour, nothing is kept of the counter.
            (answer.status == 200).then(|| Sketch::from_bytes(&answer.bytes).unwrap())
        };
        let all = Some(sketch_of(0..self.sent * IDS));
        assert!(sketch(format!("from={first}&to={}", last + 2)).await == all);
        let hour = first / 3_600 * 3_600;
        wait_until("the counter to be rolled up", async || {
            sketch(format!("counter=a&from={hour}&to={}", hour + 3_600)).await == all
        })
        .await;
    }
}

fn flags() -> [&'static str; 3] {
    ["--allow-sketches", "--api-token", TOKEN]
}

/// Redis is away for ten windows, which is 20 s.
#[tokio::test(flavor = "multi_thread")]
async fn sketches_that_come_while_redis_is_away_are_counted_once() {
    wait_for_room_in_the_hour().await;
    let mut site = Site::start().await;
    let fleet = Fleet::behind(&site.url(), 2, NAMESPACE, &flags()).await;
    let mut sender = Sender { sent: 0 };
    let first = next_window(Duration::from_millis(200)).await;
    sender.send(&fleet.servers[0]).await;
    site.begin(Outage::Killed);
    for _ in 0..10 {
        next_window(Duration::from_millis(200)).await;
        for server in &fleet.servers {
            sender.send(server).await;
        }
    }
    site.end(Outage::Killed);
    fleet.wait_until_replayed().await;
    let last = next_window(Duration::from_millis(200)).await;
    sender.send(&fleet.servers[1]).await;
    sender.assert_all_once(&fleet, first, last, &fleet.servers[0]).await;
}

/// The leader is killed, and then each instance is replaced by another one.
#[tokio::test(flavor = "multi_thread")]
async fn sketches_outlive_the_instances_that_took_them() {
    wait_for_room_in_the_hour().await;
    let redis = RedisServer::start();
    let mut fleet = Fleet::start(3, &redis, NAMESPACE, &[&flags()[..], &LATE_IS_NOT_AWAY].concat()).await;
    let mut sender = Sender { sent: 0 };
    let first = next_window(Duration::from_millis(200)).await;
    for server in &fleet.servers {
        sender.send(server).await;
    }
    let leader = fleet.leader();
    sender.send(&fleet.servers[leader]).await;
    fleet.servers[leader].process.signal("KILL");
    let others: Vec<_> = (0..3).filter(|server| *server != leader).collect();
    for server in &others {
        next_window(Duration::from_millis(200)).await;
        sender.send(&fleet.servers[*server]).await;
    }
    for server in others {
        fleet.add().await;
        sender.send(&fleet.servers[server]).await;
        assert!(fleet.servers[server].stop().await.success());
        sender.send(fleet.servers.last().unwrap()).await;
    }
    let last = next_window(Duration::from_millis(200)).await;
    sender.send(fleet.servers.last().unwrap()).await;
    assert!(seconds(SystemTime::now()) < last + 2);
    sender.assert_all_once(&fleet, first, last, fleet.servers.last().unwrap()).await;
}
