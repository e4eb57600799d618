//! Counters in Redis while the network, the server or another program fails: no id is lost, or the count does not say that it has
//! all.

use std::sync::Arc;

use headcount::model::counter::CounterCounts;
use headcount::model::mode::Mode;
use headcount::model::window::Window;
use headcount::redis::keys::Keys;
use headcount::store::Store;
use headcount::store::redis::RedisWrites;
use redis::cmd;

use crate::counter_contract::{self, WAYS, add, connect, in_redis, settle, windows};
use crate::redis_writes::seal_in_the_end;
use crate::support::fleet::assert_same_registers;
use crate::support::proxy::{Fault, Proxy};
use crate::support::redis::Redis as RedisServer;
use crate::support::wait_until;

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
        store.restore().await.unwrap();
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
