//! Helpers of the tests: they start servers, and talk to them.

pub mod balancers;
pub mod certificates;
pub mod cluster;
pub mod counter_files;
pub mod counter_load;
pub mod disk;
pub mod doubles;
pub mod fleet;
pub mod fuzz;
pub mod http;
pub mod kafka;
pub mod load;
pub mod names;
pub mod nginx;
pub mod outage;
pub mod process;
pub mod prometheus;
pub mod proxy;
pub mod receiver;
pub mod redis;
pub mod sentinel;
pub mod server;
pub mod sharded;
pub mod tools;

use std::fmt::Write;
use std::net::TcpListener;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How long a test waits for an expected event. It is far longer than the event takes, even on a machine that has several times
/// the work that it can do.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A bulk body: an id a line.
pub fn lines(ids: Range<u64>) -> String {
    let mut lines = String::new();
    for id in ids {
        let _ = writeln!(lines, "{id}");
    }
    lines
}

/// True for the long sizes of the tests.
pub fn soak() -> bool {
    std::env::var_os("HEADCOUNT_SOAK").is_some_and(|value| value == "1")
}

/// How much of a long window must be left when a test begins. No test takes longer.
const ROOM_IN_WINDOW: Duration = Duration::from_secs(120);

/// How long a test must wait so that its window does not end before the test. The window is an hour or longer. Such tests
/// want a window that never ends, but near midnight even a day ends.
pub fn until_there_is_room(window: Duration, now: SystemTime) -> Duration {
    if window < Duration::from_secs(3600) {
        return Duration::ZERO;
    }
    let into = now.duration_since(UNIX_EPOCH).expect("after 1970").as_millis() % window.as_millis();
    let left = window.saturating_sub(Duration::from_millis(into as u64));
    if left < ROOM_IN_WINDOW { left + Duration::from_millis(100) } else { Duration::ZERO }
}

/// The number of one more loss, for `Store::restore`.
pub fn another_loss() -> u64 {
    static LOSSES: AtomicU64 = AtomicU64::new(1);
    LOSSES.fetch_add(1, Ordering::Relaxed)
}

/// Waits until `condition` returns a value, for at most [`PATIENCE`].
pub async fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until an asynchronous condition is true.
pub async fn wait_until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// [`wait_for`] for synchronous code.
pub fn wait_blocking(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A free loopback port, for a server that cannot choose one, or that must come back on the same port.
///
/// It is outside the range from which the kernel takes ports for outgoing connections. Otherwise a client could get it
/// before the server starts, or connect to itself while the server is away.
pub fn free_port() -> u16 {
    const FIRST: u32 = 10_000;
    const PORTS: u32 = 20_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        // Test programs that run at the same time start at different ports.
        let next = std::process::id().wrapping_mul(97).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = (FIRST + next % PORTS) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Steele's `SplitMix64`: the tests' source of random ids, the same in every run.
pub struct SplitMix(pub u64);

impl Iterator for SplitMix {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Some(z ^ (z >> 31))
    }
}
