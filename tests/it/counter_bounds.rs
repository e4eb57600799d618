//! What the store in memory promises of counters: each id in the window of its total, and bounds that hold.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use headcount::model::counter::CounterLimits;
use headcount::model::id::IntegerId;
use headcount::model::mode::Mode;
use headcount::model::shard::Shards;
use headcount::model::window::Window;
use headcount::store::memory::MemoryStore;
use headcount::store::{AddError, CountError, Store};

use crate::counter_contract::{count_of, names, settle, windows};
use crate::support::wait_until;

const PLENTY: CounterLimits = CounterLimits { most: 1_000, memory: 256 << 20 };

fn store(mode: Mode, limits: CounterLimits) -> Store {
    Store::Memory(MemoryStore::with_counters(mode, Shards::ONE, limits))
}

async fn add(store: &Store, window: Window, id: u64, name: &str) {
    store.add_to(window, &[IntegerId::from(id)], &names(&[name])).await.unwrap();
}

/// How many ids counter number k gets: 5 000 for the first, one for the last (Zipf).
fn share(counter: u64) -> u64 {
    (5_000 / (counter + 1)).max(1)
}

/// 64 tasks add to 200 counters while 20 windows are sealed. A task knows in which window the total took its id: the counter has
/// it in the same one.
#[tokio::test(flavor = "multi_thread")]
async fn each_counter_has_the_ids_of_its_window() {
    const TASKS: u64 = 64;
    for mode in [Mode::Exact, Mode::Hll] {
        let store = Arc::new(store(mode, PLENTY));
        let all: Vec<Window> = windows().take(20).collect();
        let last = all[19];
        let tasks: Vec<_> = (0..TASKS)
            .map(|task| {
                let (store, mut window) = (Arc::clone(&store), all[0]);
                tokio::spawn(async move {
                    let mut taken: BTreeMap<(Window, u64), BTreeSet<u64>> = BTreeMap::new();
                    for number in 0_u64.. {
                        let counter = number % 200;
                        // Some ids are those of other tasks too.
                        let id = (number * 31 + task) % share(counter);
                        let name = format!("counter-{counter}");
                        let (id_of_it, counters) = ([IntegerId::from(id)], names(&[&name]));
                        match store.add_to(window, &id_of_it, &counters).await {
                            Ok(_) => drop(taken.entry((window, counter)).or_default().insert(id)),
                            Err(AddError::Sealed { open }) if open > last => break,
                            Err(AddError::Sealed { open }) => window = open,
                            Err(error) => panic!("{error}"),
                        }
                        if number % 64 == 0 {
                            tokio::task::yield_now().await;
                        }
                    }
                    taken
                })
            })
            .collect();
        let mut counts = BTreeMap::new();
        for window in &all {
            while store.count(*window).await.unwrap().accepted_ids < 20_000 {
                tokio::task::yield_now().await;
            }
            store.seal(*window).await.unwrap();
            counts.insert(*window, settle(&store, *window).await.unwrap());
        }
        let mut truth: BTreeMap<(Window, u64), BTreeSet<u64>> = BTreeMap::new();
        for task in tasks {
            for (key, ids) in task.await.unwrap() {
                truth.entry(key).or_default().extend(ids);
            }
        }
        for window in &all {
            let counts = &counts[window];
            assert!(!counts.has_overflowed());
            for counter in 0..200 {
                let ids = truth.remove(&(*window, counter)).unwrap_or_default();
                let expected = count_of(mode, &ids);
                assert_eq!(
                    counts.get(&format!("counter-{counter}")),
                    expected,
                    "{window}, counter {counter}"
                );
            }
        }
    }
}

/// The invented names come first in each window, and leave the known ones their places.
#[tokio::test]
async fn names_of_the_window_before_keep_their_places() {
    let store = store(Mode::Exact, CounterLimits { most: 10, ..PLENTY });
    for (number, window) in windows().take(6).enumerate() {
        if number > 0 {
            for invented in 0..100 {
                add(&store, window, 1_000 + invented, &format!("invented-{number}-{invented}")).await;
            }
        }
        for known in 0..4 {
            add(&store, window, known, &format!("known-{known}")).await;
            add(&store, window, known + 10, &format!("known-{known}")).await;
        }
        // The next window begins before this one is sealed, or after.
        if number % 2 == 0 {
            add(&store, window.next(), 0, "known-0").await;
        }
        store.seal(window).await.unwrap();
        let counts = settle(&store, window).await.unwrap();
        for known in 0..4 {
            assert_eq!(counts.get(&format!("known-{known}")), 2, "window {number}");
        }
        assert_eq!((counts.has_overflowed(), counts.names() <= 10), (number > 0, true), "window {number}");
        let in_counters: u64 = counts.all().iter().map(|count| count.unique_ids).sum();
        assert_eq!(store.count(window).await.unwrap().unique_ids, in_counters, "the total is whole");
        store.evict(window).await;
    }
}

#[tokio::test]
async fn counters_stay_within_their_memory() {
    const MEMORY: u64 = 200_000;
    for mode in [Mode::Hll, Mode::Exact] {
        let store = store(mode, CounterLimits { most: 1_000_000, memory: MEMORY });
        let mut all = windows();
        let [first, second] = [all.next().unwrap(), all.next().unwrap()];
        for number in 0..20_000 {
            // One counter grows all the time, also from a list to registers; the others are new.
            let name = if number % 2 == 0 { "large".to_owned() } else { format!("counter-{number}") };
            add(&store, first, number, &name).await;
            assert!(store.counter_memory() <= MEMORY, "{mode:?}: {}", store.counter_memory());
        }
        assert!(store.counter_memory() > MEMORY / 2, "{mode:?}: it is used");
        store.seal(first).await.unwrap();
        let counts = settle(&store, first).await.unwrap();
        assert!(counts.has_overflowed());
        let in_total = store.count(first).await.unwrap();
        assert_eq!(in_total.accepted_ids, 20_000);
        if mode == Mode::Exact {
            assert_eq!(in_total.unique_ids, 20_000);
        }
        // Names and counts take less than ids, which are freed soon.
        wait_until("ids to be freed", async || store.counter_memory() < MEMORY / 2).await;
        assert!(store.counter_memory() > 0);
        // Sinks that wait hold the counts as well.
        drop(counts);
        add(&store, second, 1, "large").await;
        store.seal(second).await.unwrap();
        store.evict(second).await;
        wait_until("all to be freed", async || store.counter_memory() < 1_000).await;
        assert!(matches!(settle(&store, second).await, Err(CountError::Evicted(_))));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_counter_of_many_exact_ids_loses_none() {
    let store = Arc::new(store(Mode::Exact, PLENTY));
    let window = windows().next().unwrap();
    let tasks: Vec<_> = (0..16)
        .map(|task| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                for id in 0..3_000 {
                    add(&store, window, task * 1_500 + id, "one").await;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(store.counts_of(window, &["one"]).await, Ok(vec![25_500]));
}
