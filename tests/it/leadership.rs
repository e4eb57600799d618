//! Leaders that die, hang and come back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use headcount::redis::keys::Keys;
use tokio::task::JoinSet;

use crate::support::disk::LinkedDir;
use crate::support::fleet::{Fleet, WINDOW, assert_no_gap, next_window};
use crate::support::redis::Redis;
use crate::support::server::Server;
use crate::support::{PATIENCE, SplitMix, soak, wait_for};

/// The default of `--lease-ttl`.
const LEASE_TTL: Duration = Duration::from_secs(5);

/// The moment at which the leader is killed.
#[derive(Clone, Copy)]
enum Moment {
    /// Anywhere in a window.
    MidWindow,
    /// Right after it stored a count, perhaps before it published the count or committed the published position.
    CountStored,
}

/// A field of a hash, or a string, as a number.
fn number(redis: &Redis, command: &[&str]) -> Option<u64> {
    let mut ask = ::redis::cmd(command[0]);
    command[1..].iter().for_each(|part| {
        ask.arg(*part);
    });
    ask.query(&mut redis.connect()).expect("an answer")
}

async fn wait_for_moment(redis: &Redis, namespace: &str, moment: Moment, random: &mut SplitMix) {
    match moment {
        Moment::MidWindow => {
            let into = Duration::from_millis(100 + random.next().expect("it never ends") % 1_800);
            next_window(into).await;
        }
        Moment::CountStored => {
            let (mut connection, counts) = (redis.connect(), Keys::new(namespace).counts());
            let mut last = ::redis::cmd("HGET");
            last.arg(counts).arg("last");
            let mut ask = || last.query::<Option<u64>>(&mut connection).expect("an answer");
            let (before, deadline) = (ask(), Instant::now() + PATIENCE);
            // Polled without a pause: the gap is at most a millisecond.
            while ask() == before {
                assert!(Instant::now() < deadline, "no count is stored");
                tokio::task::yield_now().await;
            }
        }
    }
}

/// Kills the leader again and again. Returns the time until the next count, for each kill.
async fn kill_leaders(redis: &Redis, namespace: &str, kills: u64, moment: Moment) -> Vec<Duration> {
    let mut fleet = Fleet::start(3, redis, namespace, &[]).await;
    let mut random = SplitMix(kills);
    let mut may_repeat = BTreeSet::new();
    let mut took = Vec::new();
    fleet.wait_published(0).await;
    for _ in 0..kills {
        wait_for_moment(redis, namespace, moment, &mut random).await;
        let leader = fleet.leader();
        fleet.servers[leader].process.signal("KILL");
        let killed = Instant::now();
        fleet.servers[leader].ended().await;
        // The first leader may die before it commits any position.
        let marked = number(redis, &["HGET", &Keys::new(namespace).published(), "last"]).unwrap_or(0);
        may_repeat.extend(fleet.published().into_keys().filter(|window| *window > marked));
        let by_others = |fleet: &Fleet| {
            fleet.published().values().flatten().filter(|(publisher, _)| *publisher != leader).count()
        };
        let before = by_others(&fleet);
        wait_for("the next leader to publish", || (by_others(&fleet) > before).then_some(())).await;
        took.push(killed.elapsed());
        fleet.add().await;
    }
    fleet.wait_published(next_window(Duration::ZERO).await).await;
    let published = fleet.published();
    assert_no_gap(&published);
    for (window, closed) in &published {
        assert!(closed.iter().all(|(_, other)| *other == closed[0].1), "other numbers: {closed:?}");
        assert!(closed.len() == 1 || may_repeat.contains(window), "published twice: {closed:?}");
    }
    let last = *published.last_key_value().expect("windows").0;
    wait_for("windows to be rolled up", || {
        let rolled = number(redis, &["HGET", &Keys::new(namespace).rolled(), "window"]);
        (rolled >= Some(last)).then_some(())
    })
    .await;
    assert_rolled_up_once(redis, namespace, published.keys());
    let repeats = published.values().filter(|closed| closed.len() > 1).count();
    println!("{namespace}: {} windows, {repeats} published twice, next after {took:?}", published.len());
    took
}

/// Asserts that hours and days have each window that was closed exactly once, up to the last one that was rolled up.
fn assert_rolled_up_once<'a>(redis: &Redis, namespace: &str, windows: impl Iterator<Item = &'a u64>) {
    let keys = Keys::new(namespace);
    let days: BTreeSet<_> = windows.map(|window| window / 86_400 * 86_400).collect();
    let (mut closed, mut of_hours, mut of_days) = (0, 0, 0);
    for day in days {
        let mut ask = ::redis::pipe();
        // At one moment: windows go on.
        ask.atomic();
        ask.cmd("HGET").arg(keys.rolled()).arg("window");
        ask.cmd("HKEYS").arg(keys.series(day));
        ask.cmd("HGETALL").arg(keys.rolled_periods(day));
        let (rolled, series, periods): (u64, Vec<u64>, BTreeMap<String, String>) =
            ask.query(&mut redis.connect()).expect("answers");
        closed += series.into_iter().filter(|window| *window <= rolled).count() as u64;
        for (field, text) in &periods {
            let record: serde_json::Value = serde_json::from_str(text).expect("JSON");
            let windows = record["seconds"].as_u64().unwrap_or_default() / WINDOW.as_secs();
            of_hours += if field.starts_with("hour:") { windows } else { 0 };
            of_days += if field.starts_with("day:") { windows } else { 0 };
        }
    }
    assert!(closed > 0);
    assert_eq!((of_hours, of_days), (closed, closed), "{namespace}");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_instance_replaces_a_killed_leader() {
    let redis = Arc::new(Redis::start());
    let kills = if soak() { 25 } else { 5 };
    let mut fleets = JoinSet::new();
    for (namespace, moment) in [
        ("mid-window-1", Moment::MidWindow),
        ("mid-window-2", Moment::MidWindow),
        ("stored-1", Moment::CountStored),
        ("stored-2", Moment::CountStored),
    ] {
        let redis = Arc::clone(&redis);
        fleets.spawn(async move { kill_leaders(&redis, namespace, kills, moment).await });
    }
    let took = fleets.join_all().await.concat();
    let longest = took.iter().max().expect("some");
    assert!(*longest <= LEASE_TTL + Duration::from_secs(2), "{longest:?}");
}

/// A sink is away while the leader loses and retakes the lease. Each term gives it the same windows. The list of unpublished
/// windows has room for those of the last term, and not for those of all three.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_term_skips_nothing_of_a_sink_that_is_away() {
    let redis = Redis::start();
    let dir = LinkedDir::new();
    let logs = dir.path();
    let logs_arg = logs.to_str().unwrap();
    let args = ["--redis-url", &redis.url(), "--window", "1s", "--retention", "40s", "--log-dir", logs_arg];
    let server = Server::start(&args).await;
    let lines = || -> Vec<String> {
        let files = std::fs::read_dir(dir.real()).unwrap().map(|file| file.unwrap().path());
        let mut lines: Vec<_> = files
            .flat_map(|file| {
                std::fs::read_to_string(file).unwrap().lines().map(str::to_owned).collect::<Vec<_>>()
            })
            .map(|line| serde_json::from_str::<serde_json::Value>(&line).unwrap())
            .map(|line| line["timestamp"].as_str().unwrap().to_owned())
            .collect();
        lines.sort();
        lines
    };
    wait_for("a line", || (!lines().is_empty()).then_some(())).await;
    dir.take_away();
    let token = Keys::new("headcount").token();
    for _ in 0..2 {
        let closed = server.closed().len();
        server.wait_closed(closed + 9).await;
        // As if another instance had led in between.
        ::redis::cmd("INCR").arg(&token).exec(&mut redis.connect()).unwrap();
    }
    let closed = server.closed().len();
    server.wait_closed(closed + 2).await;
    dir.bring_back();

    let last = server.closed().last().unwrap().timestamp.clone();
    wait_for("the file to catch up", || lines().contains(&last).then_some(())).await;
    let logged: Vec<_> = server.closed().into_iter().map(|closed| closed.timestamp).collect();
    let until_last = lines().into_iter().filter(|line| *line <= last).collect::<Vec<_>>();
    assert_eq!(until_last, logged.into_iter().filter(|logged| *logged <= last).collect::<Vec<_>>());
    assert_eq!(
        server.metric("headcount_published_windows_total{sink=\"file\",result=\"skipped\"}").await,
        0.0
    );
}

/// A leader is paused for longer than its lease, and continues.
#[tokio::test(flavor = "multi_thread")]
async fn a_paused_leader_publishes_nothing_more() {
    let redis = Redis::start();
    let fleet = Fleet::start(3, &redis, "stopped", &[]).await;
    fleet.wait_published(0).await;
    for into in [100, 1_000, 1_900] {
        next_window(Duration::from_millis(into)).await;
        let stopped = fleet.leader();
        fleet.servers[stopped].process.signal("STOP");
        let published = fleet.servers[stopped].closed().len();
        wait_for("another leader", || (fleet.leader() != stopped).then_some(())).await;
        let next = fleet.leader();
        let last = next_window(Duration::ZERO).await;
        fleet.wait_published(last).await;

        fleet.servers[stopped].process.signal("CONT");
        fleet.wait_published(last + 6).await;
        assert_eq!(fleet.leader(), next, "it is not the leader any more");
        assert_eq!(fleet.servers[stopped].closed().len(), published);
        assert_eq!(fleet.servers[stopped].metric("headcount_leader").await, 0.0);
    }
    let published = fleet.published();
    assert_no_gap(&published);
    // If the pause comes after a publication and before the commit of its position, that window is repeated.
    let repeated = published.values().filter(|closed| closed.len() > 1);
    assert!(repeated.clone().all(|closed| closed[0].1 == closed[1].1), "{published:#?}");
    assert!(repeated.count() <= 3, "{published:#?}");
}

/// The log's lines about values of a wrong type: the key and its content.
fn put_aside(server: &Server) -> Vec<(String, String)> {
    let log = server.log();
    let said = log.iter().map(|event| &event["fields"]).filter(|fields| fields.get("put_under").is_some());
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    said.map(|fields| (text(&fields["key"]), text(&fields["found"]))).collect()
}

/// A lease that an operator wrote by hand has no expiry. A lease or a token of another type gives only errors. An instance
/// still leads soon, with a higher token.
#[tokio::test(flavor = "multi_thread")]
async fn a_lease_written_by_hand_does_not_last() {
    for (number, (key, command, value)) in [
        ("lease", "SET", &["somebody"][..]),
        ("lease", "LPUSH", &["x"]),
        ("token", "HSET", &["f", "v"]),
        ("token", "SET", &["nonsense"]),
        ("token", "SET", &["1e300"]),
    ]
    .into_iter()
    .enumerate()
    {
        let redis = Redis::start();
        let namespace = format!("lease-{number}");
        let keys = Keys::new(&namespace);
        let key = if key == "lease" { keys.lease() } else { keys.token() };
        ::redis::cmd(command).arg(&key).arg(value).exec(&mut redis.connect()).unwrap();
        let url = redis.url();
        let args = ["--window", "1s", "--lease-ttl", "1s", "--namespace", &namespace, "--redis-url", &url];
        let mut server = Server::start(&args).await;
        server.wait_closed(2).await;
        let token: u64 = ::redis::cmd("GET").arg(keys.token()).query(&mut redis.connect()).unwrap();
        assert!(token > 1_700_000_000_000_000, "{token}");
        let expected = match command {
            "SET" => vec![],
            "LPUSH" => vec![(key, "list".to_owned())],
            _ => vec![(key, "hash".to_owned())],
        };
        assert_eq!(put_aside(&server), expected);
        assert!(server.stop().await.success());
    }
}

/// The same for all other shared keys. Instances set a key of a wrong type aside and ignore nonsense in it. Windows
/// continue.
#[tokio::test(flavor = "multi_thread")]
async fn nonsense_in_shared_keys_stops_no_instance() {
    // Words, text that a lax parser reads as a number, and bytes that are no text.
    const NONSENSE: [&[u8]; 8] =
        [b"nonsense", b"1e300", b"inf", b"nan", b"-5", b"1.5", b"99999999999", b"\xff\xfe"];
    // The same as a heartbeat, of an instance that would live for long with all windows open.
    let nested = [b"[".repeat(2_000), b"]".repeat(2_000)].concat();
    let mut heartbeats =
        vec![b"{}".to_vec(), b"[0,0,0,0,9e15]".to_vec(), b"0 0 0 0 9000000000000000".to_vec(), nested];
    for watermark in ["1e300", "inf", "nan", "-5", "1.5", "\"0\"", "null", "[]", "9007199254740993", "0\0"] {
        let others = r#""newest":0,"since":0,"pending":0,"at":9000000000000000"#;
        heartbeats.push(format!(r#"{{"watermark":{watermark},{others}}}"#).into_bytes());
    }
    let redis = Redis::start();
    let mut fleet = Fleet::start(2, &redis, "nonsense", &["--lease-ttl", "1s"]).await;
    fleet.wait_published(next_window(Duration::ZERO).await).await;
    let keys = Keys::new("nonsense");
    let mut connection = redis.connect();
    for (key, field) in [
        (keys.instances(), "nobody"),
        (keys.instances(), "~nobody"),
        (keys.config(), "joined"),
        (keys.config(), "since"),
        (keys.config(), "interrupted"),
        (keys.counts(), "last"),
        (keys.counts(), "99999999998"),
        (keys.published(), "first"),
        (keys.published(), "last"),
    ] {
        for nonsense in NONSENSE {
            ::redis::cmd("HSET").arg(&key).arg(field).arg(nonsense).exec(&mut connection).unwrap();
        }
        fleet.wait_published(next_window(Duration::ZERO).await).await;
    }
    for (number, heartbeat) in heartbeats.iter().enumerate() {
        for field in [format!("nobody-{number}"), format!("~nobody-{number}")] {
            ::redis::cmd("HSET")
                .arg(keys.instances())
                .arg(field)
                .arg(heartbeat)
                .exec(&mut connection)
                .unwrap();
        }
    }
    ::redis::cmd("HSET").arg(keys.instances()).arg(b"no\0body\xff").arg("{}").exec(&mut connection).unwrap();
    let published = fleet.wait_published(next_window(Duration::ZERO).await).await;
    assert!(published.last_key_value().unwrap().1[0].1.complete, "no instance is missed: {published:?}");
    for nonsense in NONSENSE {
        // One at a time, because each alone could stop a leader.
        ::redis::cmd("SET").arg(keys.token()).arg(nonsense).exec(&mut connection).unwrap();
        for (key, field) in [(keys.counts(), "last"), (keys.published(), "last"), (keys.config(), "joined")] {
            ::redis::cmd("HSET").arg(&key).arg(field).arg(nonsense).exec(&mut connection).unwrap();
        }
        let next = next_window(Duration::ZERO).await + 2;
        ::redis::cmd("HSET").arg(keys.counts()).arg(next).arg(nonsense).exec(&mut connection).unwrap();
        fleet.wait_published(next + 2).await;
    }
    for key in [keys.lease(), keys.token(), keys.instances(), keys.config(), keys.counts(), keys.published()]
    {
        // In one step: an instance may write the key again at once.
        ::redis::pipe().atomic().del(&key).sadd(&key, "x").exec(&mut connection).unwrap();
        fleet.wait_published(next_window(Duration::ZERO).await).await;
        let said = wait_for("the log to name the key", || {
            let all: Vec<_> = fleet.servers.iter().flat_map(put_aside).collect();
            all.into_iter().find(|(named, _)| *named == key)
        });
        assert_eq!(said.await.1, "set");
    }
    assert_no_gap(&fleet.published());
    for server in &mut fleet.servers {
        assert!(server.stop().await.success());
    }
}
