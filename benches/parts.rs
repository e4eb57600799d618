//! The cost of each part that an id passes through, measured alone: `cargo bench --bench parts`.

#![allow(clippy::panic, clippy::unwrap_used, reason = "a bench stops at the first surprise")]
#![allow(clippy::print_stdout, reason = "a bench prints its figures")]

use std::future::Future;
use std::hint::black_box;
use std::iter;
use std::pin::pin;
use std::sync::Barrier;
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput};
use headcount::hll::{Overlap, Sketch};
use headcount::model::counter::{CounterLimits, CounterName, CounterNames};
use headcount::model::element::ListCounters;
use headcount::model::id::{Id, IntegerId};
use headcount::model::id_list::{ListFormat, ListOf, Piece};
use headcount::model::mode::Mode;
use headcount::model::shard::Shards;
use headcount::model::window::{Window, WindowLength};
use headcount::store::Store;
use headcount::store::memory::MemoryStore;

#[path = "parts/memory_figures.rs"]
mod memory_figures;

/// Random ids below a million, as benches/load sends them.
///
/// Each iteration gets different ids. With the same thousand ids, the processor's branch predictor would learn their
/// lengths.
fn ids(count: u64) -> Vec<IntegerId> {
    let mut state = 1_u64;
    let next = |_| {
        // Knuth's linear congruential generator for MMIX.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        IntegerId::from((state >> 33) % 1_000_000)
    };
    (0..count).map(next).collect()
}

fn sketch_of(ids: &[IntegerId]) -> Sketch {
    let sketch = Sketch::new();
    for id in ids {
        sketch.add(id.as_bytes());
    }
    sketch
}

fn sketches(criterion: &mut Criterion) {
    let ids = ids(100_000);
    let (one, other) = (sketch_of(&ids[..50_000]), sketch_of(&ids[50_000..]));
    let bytes = one.to_bytes();
    let mut group = criterion.benchmark_group("sketch");
    group.throughput(Throughput::Elements(1_000));
    let (filled, mut pieces) = (one.clone(), ids.chunks(1_000).cycle());
    group.bench_function("add 1 000 ids", |bencher| {
        bencher.iter(|| pieces.next().unwrap().iter().filter(|id| filled.add(id.as_bytes())).count());
    });
    group.throughput(Throughput::Elements(1));
    group.bench_function("merge", |bencher| {
        bencher.iter_batched_ref(|| one.clone(), |sketch| sketch.merge(&other), BatchSize::SmallInput);
    });
    group.bench_function("merge, unshared", |bencher| {
        bencher.iter_batched_ref(|| one.clone(), |sketch| sketch.absorb(&other), BatchSize::SmallInput);
    });
    group.bench_function("count", |bencher| bencher.iter(|| black_box(&one).estimate()));
    group.bench_function("write", |bencher| bencher.iter(|| black_box(&one).to_bytes()));
    group.bench_function("read", |bencher| bencher.iter(|| Sketch::from_bytes(black_box(&bytes)).unwrap()));
    group.bench_function("overlap", |bencher| bencher.iter(|| Overlap::of(black_box(&one), &other)));
    // A fifth of the ids of each is also in the next.
    let eight: Vec<_> =
        (0..8).map(|place| sketch_of(&ids[10_000 * place..10_000 * place + 12_000])).collect();
    group.bench_function("overlap of eight, each with each", |bencher| {
        bencher.iter(|| {
            let pairs =
                (1..eight.len()).flat_map(|place| eight[..place].iter().zip(iter::repeat(&eight[place])));
            pairs.map(|(one, other)| Overlap::of(one, other).intersection).sum::<u64>()
        });
    });
    group.finish();
}

/// Writes ids as a list.
type Write = fn(&[IntegerId]) -> Bytes;

const LISTS: [(&str, ListFormat, Write); 5] = [
    ("lines", ListFormat::Lines, |ids| joined(ids, "\n", IntegerId::to_string).into()),
    ("NDJSON", ListFormat::JsonLines, |ids| joined(ids, "\n", IntegerId::to_string).into()),
    ("JSON", ListFormat::JsonArray, |ids| format!("[{}]", joined(ids, ",", IntegerId::to_string)).into()),
    ("NDJSON objects", ListFormat::JsonLines, |ids| joined(ids, "\n", object).into()),
    ("JSON objects with spaces", ListFormat::JsonArray, |ids| {
        let spaced = |id: &IntegerId| object(id).replace(':', ": ").replace(',', ", ");
        format!("[{}]", joined(ids, ", ", spaced)).into()
    }),
];

/// Names one of a thousand counters.
fn object(id: &IntegerId) -> String {
    let counter = &id.to_string()[id.to_string().len().saturating_sub(3)..];
    format!(r#"{{"id":{id},"counters":["campaign-{counter}"]}}"#)
}

fn joined(ids: &[IntegerId], between: &str, write: impl Fn(&IntegerId) -> String) -> String {
    ids.iter().map(write).collect::<Vec<_>>().join(between)
}

fn parsing(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("parse");
    group.throughput(Throughput::Elements(1));
    for (name, text) in [("id, canonical", "123456"), ("id, not canonical", "-0123456")] {
        group.bench_function(name, |bencher| {
            bencher.iter(|| IntegerId::parse(black_box(text.as_bytes())).unwrap());
        });
    }
    // A list of more than 1 024 ids is read twice.
    for (length, title) in [(1_000, "1 000"), (10_000, "10 000")] {
        group.throughput(Throughput::Elements(length as u64));
        for (name, format, write) in LISTS {
            let texts: Vec<_> = ids(100_000).chunks(length).map(|ids| (ids.to_vec(), write(ids))).collect();
            // Outside of the measurement, because it takes as long.
            for (ids, text) in &texts {
                let mut read: Vec<IntegerId> = Vec::new();
                take_all(format, text, |piece| read.extend_from_slice(piece));
                assert!(read.iter().map(IntegerId::to_string).eq(ids.iter().map(IntegerId::to_string)));
            }
            let mut texts = texts.iter().map(|(_, text)| text).cycle();
            group.bench_function(format!("{title} ids, {name}"), |bencher| {
                bencher.iter(|| take_all(format, texts.next().unwrap(), |piece| _ = black_box(piece)));
            });
        }
    }
    group.finish();
}

/// Reads a list, and takes its ids in pieces.
fn take_all(format: ListFormat, text: &Bytes, mut each: impl FnMut(&[IntegerId])) {
    let counters = ListCounters { of_all: CounterNames::default(), available: Ok(()) };
    let mut list = ListOf::<IntegerId>::parse(format, counters, text).unwrap();
    let mut piece = Piece::default();
    loop {
        list.take(&mut piece);
        if piece.ids().is_empty() {
            return;
        }
        each(piece.ids());
    }
}

/// Polls once, because a store in memory never waits.
fn add(counter: &Store, window: Window, ids: &[IntegerId]) {
    let mut adding = pin!(counter.add(window, ids));
    let Poll::Ready(Ok(_)) = adding.as_mut().poll(&mut Context::from_waker(Waker::noop())) else {
        panic!("it waits, or fails");
    };
}

/// The time that an id costs each thread while `threads` threads add ids.
fn memory(criterion: &mut Criterion) {
    let window = "24h".parse::<WindowLength>().unwrap().window_at(SystemTime::now());
    let ids = ids(100_000);
    let mut group = criterion.benchmark_group("memory counter");
    for mode in [Mode::Hll, Mode::Exact] {
        for threads in [1, 2] {
            let counter = Store::Memory(MemoryStore::new(mode, Shards::ONE));
            for piece in ids.chunks(1_000) {
                add(&counter, window, piece);
            }
            group.throughput(Throughput::Elements(threads));
            group.bench_function(
                format!("{}, an id from each of {threads} threads", mode.as_str()),
                |bencher| {
                    bencher.iter_custom(|adds| {
                        together(threads as usize, || {
                            for id in ids.iter().cycle().take(adds as usize) {
                                add(&counter, window, std::slice::from_ref(id));
                            }
                        })
                    });
                },
            );
        }
    }
    group.finish();
}

fn together(threads: usize, work: impl Fn() + Sync) -> Duration {
    let start = Barrier::new(threads);
    let times = thread::scope(|scope| {
        let run = |_| {
            scope.spawn(|| {
                start.wait();
                let started = Instant::now();
                work();
                started.elapsed()
            })
        };
        let running: Vec<_> = (0..threads).map(run).collect();
        running.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    times.into_iter().max().unwrap_or_default()
}

/// Ids of a counter, and the counters that a close is measured with.
const IDS_A_COUNTER: usize = 10;
const MANY_COUNTERS: usize = 100_000;

fn counting_store() -> Store {
    let limits = CounterLimits { most: 10_000_000, memory: u64::MAX };
    Store::Memory(MemoryStore::with_counters(Mode::Hll, Shards::ONE, limits))
}

fn add_to(store: &Store, window: Window, ids: &[IntegerId], name: &str) {
    let mut names = CounterNames::default();
    names.add(CounterName::parse(name.into()).unwrap()).unwrap();
    let mut adding = pin!(store.add_to(window, ids, &names));
    let Poll::Ready(Ok(_)) = adding.as_mut().poll(&mut Context::from_waker(Waker::noop())) else {
        panic!("it waits, or fails");
    };
}

/// Fills a window with counters that have names of 20 bytes and ten ids each.
fn fill(store: &Store, window: Window, counters: usize) {
    let ids = ids((IDS_A_COUNTER * counters) as u64);
    for (number, ids) in ids.chunks(IDS_A_COUNTER).enumerate() {
        add_to(store, window, ids, &format!("counter-{number:012}"));
    }
}

/// What counters cost: an addition to one of a thousand, the close of many, and memory.
fn counters(criterion: &mut Criterion) {
    let window = "24h".parse::<WindowLength>().unwrap().window_at(SystemTime::now());
    let mut group = criterion.benchmark_group("counters");
    let (store, ids) = (counting_store(), ids(100_000));
    let names: Vec<_> = (0..1_000).map(|number| format!("campaign-{number}")).collect();
    let mut next = ids.iter().zip(names.iter().cycle()).cycle();
    group.throughput(Throughput::Elements(1));
    group.bench_function("an id to one of 1 000", |bencher| {
        bencher.iter(|| {
            let (id, name) = next.next().unwrap();
            add_to(&store, window, std::slice::from_ref(id), name);
        });
    });
    group.sample_size(10).throughput(Throughput::Elements(MANY_COUNTERS as u64));
    group.bench_function("the seal of 100 000 with ten ids each", |bencher| {
        bencher.iter_custom(|rounds| {
            let one = |_| {
                let store = counting_store();
                fill(&store, window, MANY_COUNTERS);
                let began = Instant::now();
                memory_figures::now(store.seal(window)).unwrap();
                began.elapsed()
            };
            (0..rounds).map(one).sum()
        });
    });
    group.finish();
}

fn main() {
    let mut figures = std::env::args().filter_map(|arg| memory_figures::of(&arg));
    if let Some(print) = figures.next() {
        return print();
    }
    let mut criterion = Criterion::default().configure_from_args();
    sketches(&mut criterion);
    parsing(&mut criterion);
    memory(&mut criterion);
    counters(&mut criterion);
    criterion.final_summary();
}
