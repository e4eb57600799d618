//! A count that says `complete` lacks no id, whatever happens to the keys, the servers and the clocks. If an id with the
//! answer `ok` is missing, its window is incomplete.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use headcount::coordination::completeness::{Attendance, Evidence};
use headcount::model::counter::CounterLimits;
use headcount::model::id::IntegerId;
use headcount::model::mode::Mode;
use headcount::model::shard::Shards;
use headcount::model::window::{Window, WindowLength};
use headcount::platform::workers::Workers;
use headcount::redis::damage::{self, Holds};
use headcount::redis::keys::Keys;
use headcount::redis::{Address, Call, Redis as RedisClient};
use headcount::store::redis::{OnRedisDown, RedisStore, RedisStoreConfig, RedisWrites};
use headcount::store::{Keep, Store};
use headcount::telemetry::metrics::Metrics;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::support::fleet::{
    Fleet, LATE_IS_NOT_AWAY, in_one_window, next_window, seconds, sketch_of, window,
};
use crate::support::http::Connection;
use crate::support::process::Clock;
use crate::support::redis::{Flavour, Redis};
use crate::support::server::{Closed, Server};
use crate::support::{another_loss, wait_for, wait_until};

const MODES: [Mode; 2] = [Mode::Hll, Mode::Exact];

async fn accept(server: &Server, ids: std::ops::Range<u64>) {
    let mut connection = Connection::open(server.address).await.unwrap();
    for id in ids {
        assert_eq!(connection.get(&format!("/api/verve/accept?id={id}")).await.unwrap().body, "ok");
    }
}

/// Sends ids from the start of a window on. A busy machine may be too slow to send all of them in one window: then another
/// window gets them once more. Returns the window's start.
async fn accept_in_one_window(server: &Server, ids: std::ops::Range<u64>) -> u64 {
    in_one_window(async |_| accept(server, ids.clone()).await).await
}

fn key(namespace: &str, mode: Mode, start: u64) -> String {
    Keys::new(namespace).ids(mode, 0, Shards::ONE, window(start))
}

fn find(closed: &[Closed], start: u64) -> Option<Closed> {
    closed.iter().find(|closed| seconds(closed.start()) == start).cloned()
}

async fn wait_closed(server: &Server, start: u64) -> Closed {
    wait_for("the window to be closed", || find(&server.closed(), start)).await
}

/// With so few ids a sketch counts exactly too, except for a collision or two.
fn is_all(mode: Mode, unique: u64, ids: u64) -> bool {
    match mode {
        Mode::Exact => unique == ids,
        Mode::Hll => unique.abs_diff(ids) <= ids / 25,
    }
}

/// Redis is stopped in the middle of a window for a little less than the retention. It comes back just before its keys
/// expire.
#[tokio::test(flavor = "multi_thread")]
async fn an_outage_shorter_than_the_retention_loses_nothing() {
    for mode in MODES {
        let redis = Redis::start();
        let name = mode.as_str();
        let fleet = Fleet::start(1, &redis, name, &["--mode", name, "--retention", "12s"]).await;
        let server = &fleet.servers[0];
        let start = accept_in_one_window(server, 0..300).await;
        redis.signal("STOP");
        let mut id = 1_000;
        while SystemTime::now() < UNIX_EPOCH + Duration::from_millis(1_000 * start + 11_600) {
            accept(server, id..id + 1).await;
            id += 1;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        redis.signal("CONT");
        let closed = wait_closed(server, start).await;
        assert!(closed.unique >= 300 - 12, "{name}: {closed:?}");
        assert!(closed.accepted >= 300 && closed.complete, "{name}: {closed:?}");
        let later = wait_closed(server, start + 4).await;
        assert!(later.unique > 0 && later.complete, "{name}: {later:?}");
    }
}

/// Keys expire by Redis's clock. An instance whose clock is an hour behind still counts. It logs that its clock is wrong,
/// and is not ready.
#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_an_hour_behind_loses_nothing() {
    for mode in MODES {
        let redis = Redis::start();
        let name = mode.as_str();
        let url = redis.url();
        let args = ["--window", "2s", "--retention", "15min", "--mode", name, "--redis-url", &url];
        let server = Server::start_with_clock("-1h", &args).await;
        accept(&server, 0..400).await;
        let total = async || server.closed().iter().map(|closed| closed.unique).sum::<u64>();
        wait_for("all windows", || {
            let accepted: u64 = server.closed().iter().map(|closed| closed.accepted).sum();
            (accepted == 400).then_some(())
        })
        .await;
        assert!(is_all(mode, total().await, 400), "{name}: {:?}", server.closed());
        assert!(server.closed().iter().all(|closed| !closed.complete), "{:?}", server.closed());
        let ready = server.get("/readyz").await;
        assert_eq!((ready.status, &*ready.body), (503, "clock"));
        let said = |event: &serde_json::Value| event["fields"]["message"].as_str().unwrap().contains("NTP");
        assert_eq!(server.log().iter().filter(|event| said(event)).count(), 1);
    }
}

/// Another program replaces the key of the running window's ids. That delays no later window, and the log names the key
/// and its content. The window is counted from the instance's memory, or is incomplete.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_of_another_type_is_set_aside_and_reported() {
    let garbage: [(&str, &[&str]); 3] = [("LPUSH", &["x"]), ("SET", &["nonsense"]), ("HSET", &["f", "v"])];
    for mode in MODES {
        for (command, value) in garbage {
            let redis = Redis::start();
            let name = mode.as_str();
            let fleet = Fleet::start(1, &redis, name, &["--mode", name]).await;
            let server = &fleet.servers[0];
            let start = next_window(Duration::from_millis(50)).await;
            accept(server, 0..200).await;
            let key = key(name, mode, start);
            let mut connection = redis.connect();
            let mut replace = ::redis::pipe();
            replace.atomic().del(&key).cmd(command).arg(&key).arg(value);
            replace.exec(&mut connection).unwrap();
            accept(server, 200..250).await;
            assert!(seconds(SystemTime::now()) < start + 2, "too slow to say what is in which window");
            let closed = wait_closed(server, start).await;
            let later = wait_closed(server, start + 2).await;
            assert!(seconds(SystemTime::now()) < start + 2 + 2 + 4, "later windows come in time");
            assert!(later.complete, "{later:?}");
            assert_eq!(closed.accepted, 250);
            match mode {
                Mode::Hll => assert!(is_all(mode, closed.unique, 250) && closed.complete, "{closed:?}"),
                Mode::Exact => assert!(closed.unique >= 50 && !closed.complete, "{closed:?}"),
            }
            let said = server.log().into_iter().map(|event| event["fields"].clone());
            let said: Vec<_> = said.filter(|fields| fields.get("found").is_some()).collect();
            assert_eq!(said.len(), 1, "{said:?}");
            let found: String = ::redis::cmd("TYPE").arg(Keys::damaged(&key)).query(&mut connection).unwrap();
            assert_eq!((said[0]["key"].as_str(), said[0]["found"].as_str()), (Some(&*key), Some(&*found)));
        }
    }
}

/// Another program replaces the key of the accepted ids. That delays no window. (The random runs below show that the lost
/// entries of other instances are missed.)
#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_key_of_accepted_ids_harms_no_window() {
    let redis = Redis::start();
    let fleet = Fleet::start(1, &redis, "accepted", &[]).await;
    let server = &fleet.servers[0];
    let start = next_window(Duration::from_millis(50)).await;
    accept(server, 0..50).await;
    let key = Keys::new("accepted").accepted(window(start));
    ::redis::cmd("SET").arg(&key).arg("nonsense").exec(&mut redis.connect()).unwrap();
    let closed = wait_closed(server, start).await;
    assert!(is_all(Mode::Hll, closed.unique, 50) && closed.complete, "{closed:?}");
    assert!(wait_closed(server, start + 2).await.complete);
}

/// The clock is set forward by more than the retention in the middle of a window. The window is still published.
#[tokio::test(flavor = "multi_thread")]
async fn a_clock_set_forward_past_the_retention_loses_no_window() {
    for mode in MODES {
        let redis = Redis::start();
        let name = mode.as_str();
        let clock = Clock::new();
        let mut command = clock.headcount();
        command.args(["--listen", "127.0.0.1:0", "--window", "2s", "--retention", "1min", "--mode", name]);
        command.args(["--redis-url", &redis.url()]);
        let server = Server::run(command).await;
        let start = accept_in_one_window(&server, 0..100).await;
        clock.set("+600s");
        let closed = wait_closed(&server, start);
        let (closed, ()) = tokio::join!(closed, accept(&server, 1_000..1_050));
        assert!(is_all(mode, closed.unique, 100), "{name}: {closed:?}");
        assert_eq!(server.metric("headcount_missed_ids_total").await, 0.0);
    }
}

/// No instance knows how many ids a killed instance had accepted. The published number is then a lower bound, and never
/// less than the count.
#[tokio::test(flavor = "multi_thread")]
async fn accepted_ids_are_never_fewer_than_different_ones() {
    let redis = Redis::start();
    for mode in MODES {
        let name = mode.as_str();
        let args = [&["--mode", name], LATE_IS_NOT_AWAY.as_slice()].concat();
        let mut fleet = Fleet::start(2, &redis, name, &args).await;
        fleet.wait_published(next_window(Duration::ZERO).await).await;
        let (survivor, other) = if fleet.leader() == 0 { (0, 1) } else { (1, 0) };
        let start = next_window(Duration::from_millis(50)).await;
        accept(&fleet.servers[other], 0..100).await;
        accept(&fleet.servers[survivor], 100..150).await;
        fleet.servers[other].process.signal("KILL");
        fleet.servers[other].process.wait();
        let closed = wait_closed(&fleet.servers[survivor], start).await;
        assert!(is_all(mode, closed.unique, 150) && !closed.complete, "{closed:?}");
        assert!(closed.accepted >= closed.unique, "{closed:?}");
    }
}

/// An event that may hit a window between its first id and its count.
#[derive(Debug, Clone)]
enum Event {
    /// An instance accepts ids: the first id, and how many.
    Accept(usize, u64, u64),
    Seal(usize),
    /// It has sealed everything and has left.
    Leave(usize),
    /// It dies, and its memory is lost.
    Vanish(usize),
    Join,
    /// The key of the ids is gone: deleted, evicted, expired.
    LoseIds,
    /// The key of the accepted ids is gone.
    LoseAccepted,
    /// The sketch that an instance stored in Redis is gone.
    LosePart(usize),
    ReplaceIds,
    ReplaceAccepted,
    /// A snapshot of the ids, which comes back later.
    Copy,
    RestoreCopy,
    /// Redis loses everything, and the living instances learn of it.
    LoseAll,
    /// An instance replays its ids.
    Replay(usize),
}

fn event() -> impl Strategy<Value = Event> {
    let instance = 0..4_usize;
    prop_oneof![
        8 => (instance.clone(), 0..2_000_u64, 0..200_u64).prop_map(|(i, from, n)| Event::Accept(i, from, n)),
        6 => instance.clone().prop_map(Event::Seal),
        1 => instance.clone().prop_map(Event::Leave),
        1 => instance.clone().prop_map(Event::Vanish),
        1 => Just(Event::Join),
        4 => Just(Event::LoseIds),
        1 => Just(Event::LoseAccepted),
        3 => instance.clone().prop_map(Event::LosePart),
        1 => Just(Event::ReplaceIds),
        1 => Just(Event::ReplaceAccepted),
        1 => Just(Event::Copy),
        1 => Just(Event::RestoreCopy),
        1 => Just(Event::LoseAll),
        1 => instance.prop_map(Event::Replay),
    ]
}

/// One window, the instances that count in it, and the truth.
struct Run {
    server: ::redis::Connection,
    url: String,
    namespace: String,
    mode: Mode,
    living: Vec<(String, Arc<Store>, bool)>,
    /// The instances that sealed it and left.
    left: Vec<String>,
    joined: usize,
    attendance: Attendance,
    accepted: BTreeSet<u64>,
    copy: Option<Vec<u8>>,
}

impl Run {
    fn new(redis: &Redis, number: u64, mode: Mode) -> Self {
        let mut run = Self {
            server: redis.connect(),
            url: redis.url(),
            namespace: format!("run-{number}"),
            mode,
            living: Vec::new(),
            left: Vec::new(),
            joined: 0,
            attendance: Attendance::FULL,
            accepted: BTreeSet::new(),
            copy: None,
        };
        run.join();
        run.join();
        run
    }

    fn window() -> Window {
        static WINDOW: LazyLock<Window> =
            LazyLock::new(|| "1h".parse::<WindowLength>().unwrap().window_at(SystemTime::now()));
        *WINDOW
    }

    fn keys(&self) -> Keys {
        Keys::new(&self.namespace)
    }

    fn ids_key(&self) -> String {
        self.keys().ids(self.mode, 0, Shards::ONE, Self::window())
    }

    fn join(&mut self) {
        let process = format!("process-{}", self.joined);
        self.joined += 1;
        let config = RedisStoreConfig {
            mode: self.mode,
            shards: Shards::ONE,
            close_timeout: Duration::from_secs(10),
            retention: Duration::from_secs(60),
            keep: Keep::default(),
            writes: RedisWrites::All,
            on_redis_down: OnRedisDown::Count,
            pending_max: 100_000,
            counters: CounterLimits::default(),
            timeout: Duration::from_secs(2),
            keys: self.keys(),
            instance_id: process.clone(),
        };
        let metrics = Arc::new(Metrics::new());
        let redis = RedisClient::new(&Address::parse(&self.url).unwrap(), config.timeout, &metrics);
        let workers = Arc::clone(&WORKERS);
        let (counter, tasks) = RedisStore::new(config, &redis, 1, &metrics);
        tokio::spawn(tasks.run(workers));
        self.living.push((process, Arc::new(Store::Redis(counter)), false));
    }

    async fn seal(&mut self, instance: usize) {
        let (_, counter, sealed) = &mut self.living[instance];
        counter.seal(Self::window()).await.unwrap();
        *sealed = true;
    }

    async fn happens(&mut self, event: Event) {
        let of = |instance: usize| instance % self.living.len();
        let (keys, ids) = (self.keys(), self.ids_key());
        let accepted = keys.accepted(Self::window());
        let mut server = |command: &str, args: &[&[u8]]| {
            ::redis::cmd(command).arg(args).exec(&mut self.server).unwrap();
        };
        match event {
            Event::Accept(instance, from, count) => {
                let (_, counter, sealed) = &self.living[of(instance)];
                if !sealed {
                    let ids: Vec<_> = (from..from + count).map(IntegerId::from).collect();
                    counter.add(Self::window(), &ids).await.unwrap();
                    self.accepted.extend(from..from + count);
                }
            }
            Event::Seal(instance) => self.seal(of(instance)).await,
            Event::Leave(instance) if self.living.len() > 1 => {
                let instance = of(instance);
                self.seal(instance).await;
                self.left.push(self.living.remove(instance).0);
            }
            Event::Vanish(instance) if self.living.len() > 1 => {
                let (process, _, sealed) = self.living.remove(of(instance));
                if sealed {
                    self.left.push(process);
                } else {
                    self.attendance.vanished = true;
                }
            }
            Event::Join if self.living.len() < 4 => self.join(),
            Event::LoseIds => server("DEL", &[ids.as_bytes()]),
            Event::LoseAccepted => server("DEL", &[accepted.as_bytes()]),
            Event::LosePart(instance) => {
                let process = self.living[of(instance)].0.clone();
                let part = keys.part(0, Shards::ONE, Self::window(), &process);
                server("DEL", &[part.as_bytes()]);
            }
            Event::ReplaceIds => {
                server("DEL", &[ids.as_bytes()]);
                server("LPUSH", &[ids.as_bytes(), b"x"]);
            }
            Event::ReplaceAccepted => server("SET", &[accepted.as_bytes(), b"x"]),
            Event::Copy => {
                self.copy = ::redis::cmd("DUMP").arg(&ids).query(&mut self.server).unwrap();
            }
            Event::RestoreCopy => {
                if let Some(copy) = &self.copy {
                    server("RESTORE", &[ids.as_bytes(), b"0", copy, b"REPLACE"]);
                }
            }
            Event::LoseAll => {
                server("FLUSHALL", &[]);
                // The living instances know which instances left. Their ids cannot be replayed.
                self.attendance.vanished |= !self.left.is_empty();
                self.left.clear();
                for (_, counter, _) in &self.living {
                    counter.restore(another_loss()).await.unwrap();
                }
            }
            Event::Replay(instance) => self.living[of(instance)].1.restore(another_loss()).await.unwrap(),
            Event::Leave(_) | Event::Vanish(_) | Event::Join => {}
        }
    }

    /// The leader counts when all living instances have sealed. Returns the count, and whether it says `complete`.
    async fn close(mut self, leader: usize) -> (u64, bool, u64) {
        for instance in 0..self.living.len() {
            self.seal(instance).await;
        }
        let parties = self.living.iter().map(|(process, ..)| process).chain(&self.left).cloned().collect();
        let (_, counter, _) = &self.living[leader % self.living.len()];
        let stats = counter.settle(Self::window(), &parties, Duration::MAX).await.unwrap().total;
        let evidence = Evidence {
            is_over: true,
            attendance: self.attendance,
            is_open: false,
            lost_ids: stats.lost_ids,
            lacks_shards: false,
        };
        let truth = match self.mode {
            Mode::Exact => self.accepted.len() as u64,
            Mode::Hll => sketch_of(&self.accepted).estimate(),
        };
        (stats.unique_ids, evidence.is_complete(), truth)
    }
}

static WORKERS: LazyLock<Arc<Workers>> = LazyLock::new(|| Arc::new(Workers::start(1).unwrap()));

/// Events hit a window in random order. A count that says `complete` is right. If nothing is lost, the count says
/// `complete`.
#[test]
fn no_wrong_count_is_called_complete() {
    let redis = Redis::start();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (number, complete) = (AtomicU64::new(0), AtomicU64::new(0));
    let mut runner = TestRunner::new(Config { cases: 1_500, max_shrink_iters: 200, ..Config::default() });
    let cases = (prop::bool::ANY, proptest::collection::vec(event(), 1..24), 0..4_usize);
    let outcome = runner.run(&cases, |(exact, events, leader)| {
        let mode = if exact { Mode::Exact } else { Mode::Hll };
        let (count, is_complete, truth) = runtime.block_on(async {
            let mut run = Run::new(&redis, number.fetch_add(1, Ordering::Relaxed), mode);
            for event in events {
                run.happens(event).await;
            }
            run.close(leader).await
        });
        complete.fetch_add(u64::from(is_complete), Ordering::Relaxed);
        prop_assert!(!is_complete || count == truth, "{count} instead of {truth}, and called complete");
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
    let (runs, complete) = (number.into_inner(), complete.into_inner());
    println!("{complete} of {runs} runs ended complete");
    assert!(complete * 10 > runs, "{complete} of {runs}: a test that calls nothing complete shows nothing");
}

/// A new sink gets counts from the ids that Redis still has. If only the hash of accepted ids is left, the count is
/// unknown. Otherwise it would be zero different ids among many accepted ones.
#[tokio::test(flavor = "multi_thread")]
async fn a_window_with_only_its_accepted_ids_left_is_unknown() {
    let redis = Redis::start();
    for (number, mode) in MODES.into_iter().enumerate() {
        let mut run = Run::new(&redis, number as u64, mode);
        let (ids, accepted) = (run.ids_key(), run.keys().accepted(Run::window()));
        run.happens(Event::Accept(0, 0, 3)).await;
        for instance in 0..2 {
            run.seal(instance).await;
        }
        let recall = async |run: &Run| run.living[0].1.recall(Run::window()).await.unwrap();
        let known = recall(&run).await.expect("it is known");
        assert_eq!((known.count.unique_ids, known.count.accepted_ids), (3, 3), "{mode:?}");
        ::redis::cmd("DEL").arg(ids).exec(&mut run.server).unwrap();
        let fields: u64 = ::redis::cmd("HLEN").arg(accepted).query(&mut run.server).unwrap();
        assert!(fields > 0, "{mode:?}: what was accepted is there");
        assert_eq!(recall(&run).await.map(|stats| stats.count.unique_ids), None, "{mode:?}");
    }
}

/// A leader's clock is set forward by more than the retention. The windows in which the other instance counts are still
/// published. While a clock is wrong, none of them says `complete`.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_clock_is_set_forward_loses_no_window_of_others() {
    for offset in ["+600s", "+20s"] {
        let redis = Redis::start();
        let clock = Clock::new();
        let args =
            [["--window", "2s"], ["--retention", "1min"], ["--mode", "exact"], ["--redis-url", &redis.url()]];
        let mut command = clock.headcount();
        command.args(["--listen", "127.0.0.1:0"]).args(args.as_flattened());
        let leader = Server::run(command).await;
        wait_closed(&leader, next_window(Duration::ZERO).await).await;
        let other = Server::start(args.as_flattened()).await;
        clock.set(offset);
        let wrong = async || leader.get("/readyz").await.body == "clock";
        wait_until("the clock to be seen to be wrong", wrong).await;
        let start = accept_in_one_window(&other, 0..100).await;
        let closed = wait_for("the window to be closed", || {
            find(&leader.closed(), start).or_else(|| find(&other.closed(), start))
        })
        .await;
        assert_eq!((closed.unique, closed.complete), (100, false), "{offset}: {closed:?}");
        assert_eq!(other.metric("headcount_missed_ids_total").await, 0.0);
    }
}

/// One sketch is damaged while Redis is full. The check of all sketches sets only that one aside: that Redis accepts no
/// writes does not mean that the others are damaged.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_redis_corrupts_no_sketch() {
    const SHARDS: u16 = 4;
    // Strings that are no sketch, a sketch with damaged registers, and a list.
    let garbage: [&[u8]; 4] = [b"", b"nonsense", b"HYLL\x01\0\0\0\0\0\0\0\0\0\0\x80\x7f", b"list"];
    for flavour in Flavour::at_hand() {
        let redis = Redis::start_with(flavour, &[]);
        let mut server = redis.connect();
        let metrics = Arc::new(Metrics::new());
        let client =
            RedisClient::new(&Address::parse(&redis.url()).unwrap(), Duration::from_secs(2), &metrics);
        for (number, garbage) in garbage.into_iter().enumerate() {
            ::redis::cmd("CONFIG").arg(&["SET", "maxmemory", "0"]).exec(&mut server).unwrap();
            let keys = Keys::new(&format!("full-{number}"));
            let shards = Shards::new(SHARDS).unwrap();
            let keys: Vec<_> =
                (0..SHARDS).map(|shard| keys.ids(Mode::Hll, shard.into(), shards, Run::window())).collect();
            for (shard, key) in keys.iter().enumerate() {
                ::redis::cmd("PFADD")
                    .arg(key)
                    .arg(&["a", "b", "c"][..shard.min(3)])
                    .exec(&mut server)
                    .unwrap();
            }
            ::redis::cmd("DEL").arg(&keys[1]).exec(&mut server).unwrap();
            let put = if garbage == b"list" { "LPUSH" } else { "SET" };
            ::redis::cmd(put).arg(&keys[1]).arg(garbage).exec(&mut server).unwrap();
            ::redis::cmd("CONFIG").arg(&["SET", "maxmemory", "1"]).exec(&mut server).unwrap();
            let full = ::redis::cmd("SET").arg("x").arg("y").exec(&mut server).unwrap_err();
            assert!(full.to_string().contains("OOM"), "{flavour:?}: {full}");
            for key in &keys {
                damage::put_aside(&client, Call::Count, Holds::Sketch, std::slice::from_ref(key))
                    .await
                    .unwrap();
            }
            let there = |server: &mut ::redis::Connection, keys: &[String]| -> Vec<bool> {
                keys.iter().map(|key| ::redis::cmd("EXISTS").arg(key).query(server).unwrap()).collect()
            };
            assert_eq!(there(&mut server, &keys), [true, false, true, true], "{flavour:?}: {garbage:?}");
            let aside: Vec<_> = keys.iter().map(|key| Keys::damaged(key)).collect();
            assert_eq!(there(&mut server, &aside), [false, true, false, false], "{flavour:?}: {garbage:?}");
        }
    }
}
