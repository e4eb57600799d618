//! Counters in Redis while the network, the server or another program fails: no id is lost, or the count does not say that it has
//! all.

use std::sync::Arc;
use std::time::Duration;

use headcount::model::counter::{CounterCounts, bucket_of};
use headcount::model::id::IntegerId;
use headcount::model::mode::Mode;
use headcount::model::window::Window;
use headcount::redis::keys::Keys;
use headcount::store::Store;
use headcount::store::redis::{OnRedisDown, RedisWrites};
use redis::cmd;

use crate::counter_contract::{self, WAYS, add, connect, in_redis, names, settle, store_in_redis, windows};
use crate::redis_writes::seal_in_the_end;
use crate::support::fleet::assert_same_registers;
use crate::support::proxy::{Fault, Proxy};
use crate::support::redis::Redis as RedisServer;
use crate::support::{another_loss, wait_until};

const NAMESPACE: &str = "faults";
const COUNTERS: u64 = 40;

fn name(counter: u64) -> String {
    format!("counter-{counter}")
}

/// Adds ids to the total and to all counters.
async fn add_to_all(store: &Store, window: Window, ids: std::ops::Range<u64>) {
    for counter in 0..COUNTERS {
        assert_eq!(add(store, window, ids.clone(), &[&name(counter)]).await, 0);
    }
}

async fn settled(store: &Store, window: Window) -> Arc<CounterCounts> {
    settle(store, window).await.unwrap()
}

fn count_of(mode: Mode, ids: std::ops::Range<u64>) -> u64 {
    counter_contract::count_of(mode, &ids.collect())
}

/// Redis is away in the middle of a window: all ids are in the counters in the end.
#[tokio::test(flavor = "multi_thread")]
async fn an_outage_costs_no_id_of_a_counter() {
    for fault in [Fault::Refuse, Fault::Cut, Fault::MidReply] {
        for (mode, writes) in WAYS {
            let server = RedisServer::start();
            let proxy = Proxy::start(server.address()).await;
            let store = in_redis(&connect(&proxy.url()).await, mode, writes, NAMESPACE, "one");
            let window = windows().next().unwrap();
            add_to_all(&store, window, 0..20).await;
            proxy.set(fault);
            add_to_all(&store, window, 10..40).await;
            // Names that Redis has never heard of.
            add(&store, window, 0..5, &["new"]).await;
            proxy.set(Fault::None);
            wait_until("Redis to be back", async || !store.is_degraded()).await;
            add_to_all(&store, window, 35..50).await;
            seal_in_the_end(&store, window).await;

            let counts = settled(&store, window).await;
            assert_eq!(counts.names() as u64, COUNTERS + 1, "{fault:?} {mode:?}");
            for counter in 0..COUNTERS {
                assert_eq!(counts.get(&name(counter)), count_of(mode, 0..50), "{fault:?} {mode:?} {counter}");
            }
            assert_eq!(counts.get("new"), 5);
            if mode == Mode::Hll {
                assert!(counts.all_are_whole(), "{fault:?}");
                let key = Keys::new(NAMESPACE).counter(mode, &name(7), window);
                let sketch: Vec<u8> = cmd("GET").arg(key).query(&mut server.connect()).unwrap();
                assert_same_registers(&sketch, 0..50_u64);
            }
        }
    }
}

/// The server loses everything in the middle of a window. In mode `hll` the instance gives it back. In mode `exact` the counts
/// do not say that they have all ids.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_lost_everything_gets_the_counters_again() {
    for (mode, writes) in WAYS {
        let server = RedisServer::start();
        let store = in_redis(&connect(&server.url()).await, mode, writes, NAMESPACE, "one");
        let window = windows().next().unwrap();
        add_to_all(&store, window, 0..30).await;
        let () = cmd("FLUSHALL").query(&mut server.connect()).unwrap();
        // As the heartbeat has it done.
        store.restore(another_loss()).await.unwrap();
        add(&store, window, 30..40, &[&name(0)]).await;
        store.seal(window).await.unwrap();

        let counts = settled(&store, window).await;
        for counter in 0..COUNTERS {
            let ids = if counter == 0 { 0..40 } else { 0..30 };
            let name = name(counter);
            match mode {
                Mode::Hll => {
                    assert_eq!((counts.get(&name), counts.is_whole(&name)), (count_of(mode, ids), true));
                }
                Mode::Exact => assert!(!counts.is_whole(&name), "{name}"),
            }
        }
    }
}

/// Keys vanish before they are counted.
#[tokio::test(flavor = "multi_thread")]
async fn a_counter_whose_key_is_gone_is_not_whole() {
    for (mode, writes) in WAYS {
        let server = RedisServer::start();
        let store = in_redis(&connect(&server.url()).await, mode, writes, NAMESPACE, "one");
        let window = windows().next().unwrap();
        add_to_all(&store, window, 0..30).await;
        store.seal(window).await.unwrap();
        let keys = Keys::new(NAMESPACE);
        let () = cmd("DEL").arg(keys.counter(mode, &name(3), window)).query(&mut server.connect()).unwrap();
        let counts = settled(&store, window).await;
        assert!(!counts.is_whole(&name(3)) && !counts.all_are_whole());
        assert!((0..COUNTERS).any(|counter| counts.is_whole(&name(counter))), "others are");

        // Another program writes a list where a counter was.
        let key = keys.counter(mode, &name(4), window);
        let () = cmd("DEL").arg(&key).query(&mut server.connect()).unwrap();
        let () = cmd("RPUSH").arg(&key).arg("x").query(&mut server.connect()).unwrap();
        let counts = settled(&store, window).await;
        assert!(!counts.is_whole(&name(4)));

        // Another program adds what is no name.
        for bucket in 0..64 {
            let mut add = cmd("SADD");
            add.arg(keys.names(bucket, window)).arg(b"\xff\x00").arg("_mine");
            let () = add.query(&mut server.connect()).unwrap();
        }
        assert_eq!(settled(&store, window).await.names() as u64, COUNTERS);

        // The names of all buckets.
        for bucket in 0..64 {
            let () = cmd("DEL").arg(keys.names(bucket, window)).query(&mut server.connect()).unwrap();
        }
        let counts = settled(&store, window).await;
        assert!(!counts.all_are_whole() && !counts.is_whole(&name(5)), "it is not known which there were");
    }
}

/// What another program does to a counter's key.
const DAMAGES: [&[&str]; 3] = [&[], &["RPUSH", "x"], &["SET", "no sketch"]];

fn damage(server: &RedisServer, key: &str, damage: &[&str]) {
    let mut connection = server.connect();
    let () = cmd("DEL").arg(key).query(&mut connection).unwrap();
    if let [command, value] = damage {
        let () = cmd(command).arg(key).arg(value).query(&mut connection).unwrap();
    }
}

/// Every key of a bucket expires.
fn assert_all_expire(server: &RedisServer) {
    let mut connection = server.connect();
    let keys: Vec<String> = cmd("KEYS").arg("*").query(&mut connection).unwrap();
    for key in keys {
        let lives: i64 = cmd("PTTL").arg(&key).query(&mut connection).unwrap();
        assert!(lives > 0, "{key} lives for {lives} ms");
    }
}

/// A key is gone or replaced in the middle of a window, and an instance that does not notice makes it anew. That counter is not
/// whole, and the total and the other counters are.
#[tokio::test(flavor = "multi_thread")]
async fn a_counter_whose_key_was_made_anew_is_not_whole() {
    for (mode, writes) in WAYS {
        for what in DAMAGES {
            let server = RedisServer::start();
            let redis = connect(&server.url()).await;
            let [one, other] =
                ["one", "other"].map(|instance| in_redis(&redis, mode, writes, NAMESPACE, instance));
            let window = windows().next().unwrap();
            add_to_all(&one, window, 0..30).await;
            add_to_all(&other, window, 20..40).await;
            let key = Keys::new(NAMESPACE).counter(mode, &name(3), window);
            damage(&server, &key, what);
            add(&other, window, 40..45, &[&name(3)]).await;
            seal_in_the_end(&one, window).await;
            seal_in_the_end(&other, window).await;

            let parties = ["one", "other"].map(str::to_owned).into();
            let settled = one.settle(window, &parties, Duration::MAX).await.unwrap();
            assert_eq!(settled.total.lost_ids, 0, "{mode:?} {what:?}");
            let counts = settled.counters;
            assert!(!counts.is_whole(&name(3)), "{mode:?} {writes:?} {what:?}");
            for counter in (0..COUNTERS).filter(|counter| *counter != 3) {
                let name = name(counter);
                assert_eq!(counts.get(&name), count_of(mode, 0..40), "{name}");
                let is_known = mode == Mode::Hll || bucket_of(&name) != bucket_of(&self::name(3));
                assert!(!is_known || counts.is_whole(&name), "{mode:?} {what:?} {name}");
            }
            if mode == Mode::Hll {
                assert_eq!(counts.get(&name(3)), count_of(mode, 0..45), "both gave it back: {what:?}");
            }
            assert_all_expire(&server);
        }
    }
}

/// A key is gone after one instance has sealed the window, and another one merges its counters: because ids of theirs are
/// pending, or because Redis was away for a moment.
#[tokio::test(flavor = "multi_thread")]
async fn a_merge_notices_that_the_key_of_its_counter_is_gone() {
    for (mode, writes) in WAYS {
        for fault in [Fault::Cut, Fault::Refuse] {
            let server = RedisServer::start();
            let proxy = Proxy::start(server.address()).await;
            let one = in_redis(&connect(&server.url()).await, mode, writes, NAMESPACE, "one");
            let other = in_redis(&connect(&proxy.url()).await, mode, writes, NAMESPACE, "other");
            let window = windows().next().unwrap();
            add_to_all(&one, window, 0..30).await;
            add_to_all(&other, window, 20..40).await;
            one.seal(window).await.unwrap();
            let key = Keys::new(NAMESPACE).counter(mode, &name(3), window);
            damage(&server, &key, DAMAGES[0]);
            proxy.set(fault);
            // With `Refuse`, these ids wait in the instance.
            add_to_all(&other, window, 40..45).await;
            proxy.set(Fault::None);
            wait_until("Redis to be back", async || !other.is_degraded()).await;
            seal_in_the_end(&other, window).await;
            let parties = ["one", "other"].map(str::to_owned).into();
            let settled = one.settle(window, &parties, Duration::MAX).await.unwrap();
            assert_eq!(settled.total.lost_ids, 0, "{mode:?} {fault:?}");
            assert!(!settled.counters.is_whole(&name(3)), "{mode:?} {writes:?} {fault:?}");
            if mode == Mode::Hll {
                for counter in (0..COUNTERS).filter(|counter| *counter != 3) {
                    assert!(settled.counters.is_whole(&name(counter)), "{writes:?} {fault:?} {counter}");
                }
            }
        }
    }
}

/// The names of a bucket are lost in the middle of a window.
#[tokio::test(flavor = "multi_thread")]
async fn names_that_are_lost_are_added_again_at_the_seal() {
    for (mode, writes) in WAYS {
        for what in DAMAGES {
            let server = RedisServer::start();
            let store = in_redis(&connect(&server.url()).await, mode, writes, NAMESPACE, "one");
            let window = windows().next().unwrap();
            add_to_all(&store, window, 0..30).await;
            let bucket = bucket_of(&name(3));
            damage(&server, &Keys::new(NAMESPACE).names(bucket, window), what);
            seal_in_the_end(&store, window).await;
            let counts = settled(&store, window).await;
            assert_eq!(counts.names() as u64, COUNTERS, "{mode:?} {what:?}");
            for counter in 0..COUNTERS {
                assert_eq!(counts.get(&name(counter)), count_of(mode, 0..30), "{mode:?} {what:?}");
                // Other instances may have had names in the bucket.
                let is_known = bucket_of(&name(counter)) != bucket;
                assert_eq!(counts.is_whole(&name(counter)), is_known, "{mode:?} {what:?} {counter}");
            }
            assert!(!counts.all_are_whole());
            assert_all_expire(&server);
        }
    }
}

/// Redis refuses writes for a while, because its memory is full.
#[tokio::test(flavor = "multi_thread")]
async fn a_redis_without_memory_costs_no_id_of_a_counter() {
    for (mode, writes) in WAYS {
        let server = RedisServer::start();
        let store = in_redis(&connect(&server.url()).await, mode, writes, NAMESPACE, "one");
        let window = windows().next().unwrap();
        add_to_all(&store, window, 0..30).await;
        server.set_max_memory(1);
        add_to_all(&store, window, 20..50).await;
        add(&store, window, 0..5, &["new"]).await;
        server.set_max_memory(0);
        seal_in_the_end(&store, window).await;
        let counts = settled(&store, window).await;
        for counter in 0..COUNTERS {
            assert_eq!(counts.get(&name(counter)), count_of(mode, 0..50), "{mode:?} {counter}");
        }
        assert_eq!((counts.get("new"), counts.all_are_whole()), (5, true), "{mode:?}");
        assert_all_expire(&server);
    }
}

/// With `--on-redis-down fail`, ids are refused while Redis is away. A client that sends them again finds them counted.
#[tokio::test(flavor = "multi_thread")]
async fn an_id_that_was_refused_counts_when_it_comes_again() {
    for (mode, writes) in WAYS {
        let server = RedisServer::start();
        let proxy = Proxy::start(server.address()).await;
        let redis = connect(&proxy.url()).await;
        let store = store_in_redis(&redis, mode, writes, OnRedisDown::Fail, NAMESPACE, "one");
        let window = windows().next().unwrap();
        add_to_all(&store, window, 0..20).await;
        proxy.set(Fault::Refuse);
        let ids: Vec<_> = (20..30_u64).map(IntegerId::from).collect();
        wait_until("a refusal", async || store.add_to(window, &ids, &names(&[&name(1)])).await.is_err())
            .await;
        proxy.set(Fault::None);
        wait_until("Redis to be back", async || !store.is_degraded()).await;
        add(&store, window, 20..30, &[&name(1)]).await;
        seal_in_the_end(&store, window).await;
        let counts = settled(&store, window).await;
        assert_eq!(counts.get(&name(1)), count_of(mode, 0..30), "{mode:?} {writes:?}");
        assert_eq!(counts.get(&name(2)), count_of(mode, 0..20), "{mode:?} {writes:?}");
    }
}

/// With `changed`, an id that a counter has is not sent again, and the seal of a quiet window merges nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_counter_in_redis_is_neither_sent_nor_merged_again() {
    let server = RedisServer::start();
    let redis = connect(&server.url()).await;
    let store = in_redis(&redis, Mode::Hll, RedisWrites::Changed, NAMESPACE, "one");
    let window = windows().next().unwrap();
    let calls = |command: &str| server.calls(command);
    add_to_all(&store, window, 0..30).await;
    let (added, named) = (calls("pfadd"), calls("sadd"));
    assert_eq!(named, COUNTERS, "each name once");
    add_to_all(&store, window, 0..30).await;
    assert_eq!((calls("pfadd"), calls("sadd")), (added, named), "nothing is new");
    store.seal(window).await.unwrap();
    assert_eq!(calls("pfmerge"), 1, "that of the total");
    assert!(settled(&store, window).await.all_are_whole());
}
