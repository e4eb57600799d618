//! What counters take in memory. These are no benchmarks of time: `cargo bench --bench parts -- NAME` prints only the figure
//! of that name. Each needs a process of its own, because the allocator keeps memory that an earlier one has freed.

use std::future::Future;
use std::time::{Duration, SystemTime};

use headcount::model::window::{Window, WindowLength};
use headcount::store::Store;

use super::{add_to, counting_store, fill, ids};

const MANY: usize = 1_000_000;
const DENSE: usize = 10_000;
/// So many ids raise some 2 700 registers. From 2 049 on, a counter has all registers.
const IDS_OF_A_DENSE_ONE: usize = 3_000;
/// Windows with little that come after a peak.
const WINDOWS_AFTER: usize = 3;
/// Counters are freed slowly, so that requests do not wait.
const FREED_WITHIN: Duration = Duration::from_secs(5);
/// What Redis takes for a dense HyperLogLog: six bits a register.
const REDIS_DENSE: f64 = 12.0 * 1024.0;
const MOST_OF_REDIS: f64 = 1.3;

/// What prints the figure of this name.
pub(crate) fn of(name: &str) -> Option<fn()> {
    match name {
        "memory-of-counters" => Some(print_of_counters),
        "memory-of-dense-counters" => Some(print_of_dense_counters),
        "memory-after-a-peak" => Some(print_after_a_peak),
        _ => None,
    }
}

fn first_window() -> Window {
    "60s".parse::<WindowLength>().unwrap().window_at(SystemTime::now())
}

/// Resident memory, in bytes.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    1024 * line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap()
}

/// Resident memory since `before`, and what the store accounts for.
fn memory(store: &Store, before: usize) -> String {
    let resident = resident().saturating_sub(before) as f64 / 1e6;
    format!("{resident:.0} MB resident, {:.0} MB accounted", store.counter_memory() as f64 / 1e6)
}

/// A million counters, in one window and in two.
fn print_of_counters() {
    let window = first_window();
    let (store, before) = (counting_store(), resident());
    for (windows, window) in [window, window.next()].into_iter().enumerate() {
        fill(&store, window, MANY);
        println!("{} open windows of 1 000 000 counters: {}", windows + 1, memory(&store, before));
    }
}

/// Counters with all their registers. They grow at the same time, as they do under load: each lists its registers before
/// it has all, and the lists leave gaps.
fn print_of_dense_counters() {
    let (window, ids) = (first_window(), ids(IDS_OF_A_DENSE_ONE as u64));
    let (store, before) = (counting_store(), resident());
    for ids in ids.chunks(10) {
        for counter in 0..DENSE {
            add_to(&store, window, ids, &format!("counter-{counter:012}"));
        }
    }
    let each = (resident() - before) as f64 / DENSE as f64;
    let of_redis = each / REDIS_DENSE;
    let verdict = if of_redis > MOST_OF_REDIS { ", MISSED" } else { "" };
    println!("10 000 dense counters, of 16 384 registers with a byte each: {}", memory(&store, before));
    println!("a counter: {each:.0} bytes resident, {of_redis:.2} times 12 KiB (≤ {MOST_OF_REDIS}{verdict})");
}

/// Two open windows of a million counters, and what is left some windows after they are sealed and evicted. Then the same
/// once more: what the allocator keeps, it can use again.
fn print_after_a_peak() {
    let mut window = first_window();
    let (store, before) = (counting_store(), resident());
    for peak in ["a peak", "another peak"] {
        for _ in 0..2 {
            fill(&store, window, MANY);
            window = window.next();
        }
        println!("{peak}: {}", memory(&store, before));
        for _ in 0..WINDOWS_AFTER {
            // The store keeps the names of the last window that had ids.
            add_to(&store, window, &ids(1), "one");
            now(store.seal(window)).unwrap();
            now(store.evict(window));
            window = window.next();
        }
        std::thread::sleep(FREED_WITHIN);
        println!("{WINDOWS_AFTER} windows after it: {}", memory(&store, before));
    }
}

/// Runs work of a store, which counts on a thread that may block.
pub(crate) fn now<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(work)
}
