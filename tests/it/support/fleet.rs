//! Several instances that count together, and the windows that they published.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use headcount::hll::Sketch;
use headcount::model::mode::Mode;
use headcount::model::shard::Shards;
use headcount::model::window::{Window, WindowLength};
use headcount::redis::keys::Keys;

use super::redis::Redis;
use super::server::{Closed, Server};
use super::wait_for;

/// Length of the windows.
pub const WINDOW: Duration = Duration::from_secs(2);

/// An instance keeps what it accepts while Redis does not answer, and loses that if it is killed. A Redis on a busy machine is late,
/// and not away.
pub const LATE_IS_NOT_AWAY: [&str; 2] = ["--redis-timeout", "10s"];

/// Instances of one namespace. Stopped ones stay in the list, because tests read their logs.
pub struct Fleet {
    pub servers: Vec<Server>,
    args: Vec<String>,
}

impl Fleet {
    /// Starts instances, one after another.
    pub async fn start(instances: usize, redis: &Redis, namespace: &str, args: &[&str]) -> Self {
        Self::behind(&redis.url(), instances, namespace, args).await
    }

    /// The same with the Redis at a URL.
    pub async fn behind(url: &str, instances: usize, namespace: &str, args: &[&str]) -> Self {
        let common = ["--window", "2s", "--redis-url", url, "--namespace", namespace];
        Self::start_with(instances, &[&common[..], args].concat()).await
    }

    /// The same with all arguments but the address.
    pub async fn start_with(instances: usize, args: &[&str]) -> Self {
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        let mut fleet = Self { servers: Vec::new(), args };
        for _ in 0..instances {
            fleet.add().await;
        }
        fleet
    }

    /// Starts one more instance.
    pub async fn add(&mut self) -> &mut Server {
        self.add_on("127.0.0.1:0".parse().expect("an address")).await
    }

    pub async fn add_on(&mut self, address: SocketAddr) -> &mut Server {
        self.servers.push(Server::start_on(address, &self.args()).await);
        self.servers.last_mut().expect("one")
    }

    pub async fn add_with_clock(&mut self, offset: &str) -> &mut Server {
        self.servers.push(Server::start_with_clock(offset, &self.args()).await);
        self.servers.last_mut().expect("one")
    }

    /// Starts an instance with another program, such as that of an earlier version.
    pub async fn add_program(&mut self, program: &Path) -> &mut Server {
        let mut command = Command::new(program);
        command.args(["--listen", "127.0.0.1:0"]).args(self.args());
        self.servers.push(Server::run(command).await);
        self.servers.last_mut().expect("one")
    }

    fn args(&self) -> Vec<&str> {
        self.args.iter().map(String::as_str).collect()
    }

    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.servers.iter().map(|server| server.address).collect()
    }

    /// The instance that was the last to log that it leads.
    pub fn leader(&self) -> usize {
        let led = |server: &Server| {
            let log = server.log();
            log.iter()
                .rev()
                .find(|event| event["fields"]["message"] == "this instance leads")
                .and_then(|event| event["fields"]["fencing_token"].as_u64())
        };
        let tokens = self.servers.iter().map(led).enumerate();
        tokens.max_by_key(|(_, token)| *token).expect("instances").0
    }

    /// Every published window, in order, with its publisher.
    pub fn published(&self) -> BTreeMap<u64, Vec<(usize, Closed)>> {
        let mut published: BTreeMap<u64, Vec<_>> = BTreeMap::new();
        for (index, server) in self.servers.iter().enumerate() {
            for closed in server.closed() {
                published.entry(seconds(closed.start())).or_default().push((index, closed));
            }
        }
        published
    }

    /// Prints the errors that instances logged, and why windows are incomplete. They are shown if the test fails.
    pub fn print_troubles(&self) {
        for line in self.servers.iter().flat_map(Server::log) {
            if line.to_string().contains("incomplete") || line["level"] == "ERROR" {
                println!("{line}");
            }
        }
    }

    /// Waits until Redis is back and has all ids, for all instances.
    pub async fn wait_until_replayed(&self) {
        for server in &self.servers {
            server.wait_until_replayed().await;
        }
    }

    /// Waits until the window with this start is published, and all before it.
    pub async fn wait_published(&self, start: u64) -> BTreeMap<u64, Vec<(usize, Closed)>> {
        wait_for("a window to be published", || {
            Some(self.published()).filter(|all| all.last_key_value().is_some_and(|(last, _)| *last >= start))
        })
        .await
    }
}

/// Asserts that every window is there exactly once.
pub fn assert_once_each(published: &BTreeMap<u64, Vec<(usize, Closed)>>) {
    assert_no_gap(published);
    for (start, closed) in published {
        assert_eq!(closed.len(), 1, "{start}: {closed:?}");
    }
}

/// Asserts that no window is missing.
pub fn assert_no_gap(published: &BTreeMap<u64, Vec<(usize, Closed)>>) {
    let starts: Vec<_> = published.keys().copied().collect();
    for pair in starts.windows(2) {
        assert_eq!(pair[1] - pair[0], WINDOW.as_secs(), "{published:#?}");
    }
}

/// Asserts that those who published the same window, such as two leaders in a row, agree about it.
pub fn assert_agreed(published: &BTreeMap<u64, Vec<(usize, Closed)>>) {
    for (start, closed) in published {
        assert!(closed.windows(2).all(|two| two[0].1 == two[1].1), "{start}: {closed:?}");
    }
}

/// All but the first window, which is incomplete because the namespace is new.
pub fn assert_complete(published: &BTreeMap<u64, Vec<(usize, Closed)>>) {
    for (start, closed) in published.iter().skip(1) {
        assert!(closed.iter().all(|(_, closed)| closed.complete), "{start}: {published:#?}");
    }
}

/// Seconds since 1970.
pub fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
}

/// The window with this start.
pub fn window(start: u64) -> Window {
    WindowLength::new(WINDOW).expect("a length").starting_at(start)
}

/// Waits until `into` the next window, and returns its start.
pub async fn next_window(into: Duration) -> u64 {
    next_window_of(WINDOW, into).await
}

/// The same for windows of another length.
pub async fn next_window_of(length: Duration, into: Duration) -> u64 {
    let start = (seconds(SystemTime::now()) / length.as_secs() + 1) * length.as_secs();
    let moment = UNIX_EPOCH + Duration::from_secs(start) + into;
    tokio::time::sleep(moment.duration_since(SystemTime::now()).unwrap_or_default()).await;
    start
}

/// Does something in one window, and returns the window. On a busy machine it may end too late: then it is done again in a later one.
pub async fn in_one_window(what: impl AsyncFn(u64)) -> u64 {
    for _ in 0..10 {
        let start = next_window(Duration::from_millis(50)).await;
        what(start).await;
        if seconds(SystemTime::now()) < start + WINDOW.as_secs() {
            return start;
        }
    }
    panic!("this machine is too slow to say what is in which window");
}

/// The sketch that Redis has of a window.
pub fn sketch_in(redis: &Redis, namespace: &str, start: u64) -> Vec<u8> {
    let key = Keys::new(namespace).ids(Mode::Hll, 0, Shards::ONE, window(start));
    ::redis::cmd("GET").arg(key).query(&mut redis.connect()).expect("an answer")
}

/// The sketch of these ids.
pub fn sketch_of(ids: impl IntoIterator<Item = impl Borrow<u64>>) -> Sketch {
    let sketch = Sketch::new();
    for id in ids {
        sketch.add(id.borrow().to_string().as_bytes());
    }
    sketch
}

/// What a sketch of these ids counts.
pub fn estimate(ids: impl IntoIterator<Item = u64>) -> u64 {
    sketch_of(ids).estimate()
}

/// Asserts that all registers of Redis's string are those of a sketch of these ids.
pub fn assert_same_registers(in_redis: &[u8], ids: impl IntoIterator<Item = impl Borrow<u64>>) {
    let stored = Sketch::from_bytes(in_redis).expect("a sketch");
    assert!(stored == sketch_of(ids), "other registers than those of the ids");
}

/// No hour ends within the next forty seconds.
pub async fn wait_for_room_in_the_hour() {
    wait_for_room(Duration::from_secs(40)).await;
}

/// No hour ends within this time.
pub async fn wait_for_room(room: Duration) {
    let left = 3_600 - seconds(SystemTime::now()) % 3_600;
    if left < room.as_secs() {
        tokio::time::sleep(Duration::from_secs(left)).await;
    }
}
