//! `/api/verve/unique?from=…&to=…`: how many different ids came in a range of time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use headcount::hll::Sketch;
use headcount::model::counter::{CounterLimits, CounterName, CounterNames, Subject};
use headcount::model::id::IntegerId;
use headcount::model::mode::Mode;
use headcount::model::parts::{Kept, NotKept, Part};
use headcount::model::period::{Level, Period};
use headcount::model::range::Range;
use headcount::model::shard::Shards;
use headcount::model::window::{Window, WindowLength};
use headcount::platform::workers::Workers;
use headcount::redis::keys::Keys;
use headcount::redis::{Address, Redis};
use headcount::store::memory::MemoryStore;
use headcount::store::redis::{OnRedisDown, RedisStore, RedisStoreConfig, RedisWrites};
use headcount::store::{Keep, KeepPeriods, RolledUp, Store};
use headcount::telemetry::metrics::Metrics;
use proptest::prelude::*;
use serde_json::json;

use crate::support::cluster::Cluster;
use crate::support::fleet::{Fleet, WINDOW, estimate, next_window, seconds, wait_for_room_in_the_hour};
use crate::support::http::Connection;
use crate::support::redis::Redis as RedisServer;
use crate::support::server::Server;
use crate::support::{SplitMix, lines, wait_until};

const DAY: u64 = 86_400;
const FOR_LONG: KeepPeriods =
    KeepPeriods { hours: Duration::from_secs(100 * DAY), days: Duration::from_secs(100 * DAY) };
const KEEP: Keep = Keep { total: FOR_LONG, counters: FOR_LONG };
const COUNTERS: CounterLimits = CounterLimits { most: 10, memory: 64 << 20 };
/// Windows of this length are simulated.
const TEN_MINUTES: u64 = 600;
/// Simulated days.
const DAYS: u64 = 3;
/// Windows without ids, of ten.
const IDLE: u64 = 3;

fn in_memory(shards: Shards) -> Store {
    Store::Memory(MemoryStore::with_counters(Mode::Hll, shards, COUNTERS).keeping(KEEP))
}

fn in_redis(url: &str, shards: Shards) -> Store {
    let config = RedisStoreConfig {
        mode: Mode::Hll,
        shards,
        close_timeout: Duration::from_secs(10),
        retention: Duration::from_secs(10 * DAY),
        keep: KEEP,
        writes: RedisWrites::All,
        on_redis_down: OnRedisDown::Count,
        pending_max: 1,
        counters: COUNTERS,
        timeout: Duration::from_secs(5),
        keys: Keys::new(&format!("ranges-{}", shards.count())),
        instance_id: "test".to_owned(),
    };
    let redis = Redis::new(&Address::parse(url).unwrap(), config.timeout, &Metrics::new());
    let (store, tasks) = RedisStore::new(config, &redis, 1, &Metrics::new().into());
    tokio::spawn(tasks.run(Arc::new(Workers::start(1).unwrap())));
    Store::Redis(store)
}

/// The start of the first simulated day, which is over.
fn first_day() -> u64 {
    (seconds(SystemTime::now()) / DAY - DAYS - 1) * DAY
}

fn length() -> WindowLength {
    WindowLength::new(Duration::from_secs(TEN_MINUTES)).unwrap()
}

/// Ids of a window; many of them also come in others.
fn ids_of(window: Window) -> Vec<u64> {
    let random = SplitMix(window.unix_seconds());
    let number = window.unix_seconds() / TEN_MINUTES;
    if number % 10 < IDLE {
        Vec::new()
    } else {
        random.take((number % 97) as usize).map(|id| id % 20_000).collect()
    }
}

fn windows(from: u64, to: u64) -> impl Iterator<Item = Window> {
    (from..to).step_by(TEN_MINUTES as usize).map(|start| length().starting_at(start))
}

/// The ids of a window that are counted in a counter, too: `few` or `most`.
fn ids_in(counter: &str, window: Window) -> Vec<u64> {
    let is_in = |id: &u64| id.is_multiple_of(10) == (counter == "few");
    ids_of(window).into_iter().filter(is_in).collect()
}

async fn add(store: &Store, window: Window, counter: &str) {
    let ids: Vec<_> =
        ids_in(counter, window).into_iter().map(|id| IntegerId::from(id.cast_signed())).collect();
    let mut names = CounterNames::default();
    names.add(CounterName::parse(counter.into()).unwrap()).unwrap();
    if !ids.is_empty() {
        store.add_to(window, &ids, &names).await.unwrap();
    }
}

/// Adds the ids of some days, window by window, and rolls each window up, some of them twice.
async fn simulate(store: &Store) {
    for window in windows(first_day(), first_day() + DAYS * DAY) {
        add(store, window, "few").await;
        add(store, window, "most").await;
        store.seal(window).await.unwrap();
        let periods: Vec<_> = Period::of(window).collect();
        // Counters first, as the leader does it.
        let counters =
            store.settle(window, &["test".to_owned()].into(), Duration::MAX).await.unwrap().counters;
        for _ in 0..=window.unix_seconds() % 2 {
            store.roll_up_counters(window, counters.all(), &periods).await.unwrap();
        }
        let rolled = store.roll_up(window, &periods).await.unwrap();
        if window.unix_seconds() % 7 == 0 {
            let again = store.roll_up(window, &periods).await.unwrap();
            let after =
                |rolled: &RolledUp| rolled.periods.iter().map(|grown| grown.after).collect::<Vec<_>>();
            assert_eq!((again.window, after(&again)), (rolled.window, after(&rolled)), "twice");
            assert!(again.periods.iter().all(|grown| grown.before == grown.after), "nothing is new");
        }
    }
}

/// The sketch of each shard with the ids of a range.
fn truth(shards: Shards, from: u64, to: u64) -> Vec<Sketch> {
    let sketches: Vec<_> = (0..shards.count()).map(|_| Sketch::new()).collect();
    for id in windows(from, to).flat_map(ids_of) {
        let id = id.to_string();
        sketches[shards.of(id.as_bytes())].add(id.as_bytes());
    }
    sketches
}

/// The same for a counter.
fn truth_of(counter: &str, from: u64, to: u64) -> Vec<Sketch> {
    let sketch = Sketch::new();
    for id in windows(from, to).flat_map(|window| ids_in(counter, window)) {
        sketch.add(id.to_string().as_bytes());
    }
    vec![sketch]
}

async fn assert_counters(store: &Store, parts: &[Part], from: u64, to: u64) {
    for name in ["few", "most", "none"] {
        let union = store.union(&Subject::Counter(name.into()), parts).await.unwrap();
        let truth = if name == "none" { vec![Sketch::new()] } else { truth_of(name, from, to) };
        assert_eq!(union.sketches, truth, "{name} from {from} to {to}: {parts:?}");
        let periods: Vec<_> = parts
            .iter()
            .filter_map(|part| match part {
                Part::Period { period, .. } => Some(*period),
                Part::Window(_) => None,
            })
            .collect();
        let records = store.counter_records(name, &periods).await.unwrap();
        assert!(records.iter().flatten().all(|record| record.is_whole), "{name} from {from} to {to}");
    }
}

async fn assert_random_ranges(store: &Store, shards: Shards) {
    let first = first_day();
    let mut random = SplitMix(7);
    let mut draw = |below: u64| random.next().unwrap() % below;
    for number in 0..200 {
        let unit = [TEN_MINUTES, 3_600, DAY][number % 3];
        let steps = DAYS * DAY / unit;
        let from = draw(steps);
        let to = from + 1 + draw(steps - from);
        let (from, to) = (first + from * unit, first + to * unit);
        let range = Range { from: length().starting_at(from), to: length().starting_at(to) };
        let end = first + DAYS * DAY;
        let kept = Kept { windows: first, hours: Some(first), days: Some(first), rolled_up: end };
        let parts = kept.parts(range).unwrap();
        let union = store.union(&Subject::Total, &parts).await.unwrap();
        assert_eq!(union.sketches, truth(shards, from, to), "{from} to {to}: {parts:?}");
        assert_counters(store, &parts, from, to).await;
        // The same of other parts: only windows, and without days.
        let none = Kept { rolled_up: 0, ..kept };
        let hours = Kept { days: None, ..kept };
        for other in [none, hours].into_iter().filter(|_| number % 10 == 0) {
            let union = store.union(&Subject::Total, &other.parts(range).unwrap()).await.unwrap();
            // In memory, old windows are gone.
            if matches!(store, Store::Redis(_)) || other.days.is_none() && unit >= 3_600 {
                assert_eq!(union.sketches, truth(shards, from, to), "{from} to {to}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sketch_of_a_range_has_the_registers_of_its_ids() {
    let server = RedisServer::start();
    for shards in [1, 4].map(|shards| Shards::new(shards).unwrap()) {
        let store = in_redis(&server.url(), shards);
        simulate(&store).await;
        assert_random_ranges(&store, shards).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sketch_of_a_range_in_a_cluster_has_the_registers_of_its_ids() {
    let (cluster, shards) = (Cluster::start(), Shards::new(8).unwrap());
    let store = in_redis(&cluster.url(), shards);
    simulate(&store).await;
    assert_random_ranges(&store, shards).await;
}

/// Of windows older than the newest 120 there are only hours and days.
#[tokio::test(flavor = "multi_thread")]
async fn in_memory_hours_and_days_stay_of_old_windows() {
    for shards in [1, 4].map(|shards| Shards::new(shards).unwrap()) {
        let store = in_memory(shards);
        simulate(&store).await;
        let (first, end) = (first_day(), first_day() + DAYS * DAY);
        let oldest = store.oldest_window(
            SystemTime::UNIX_EPOCH + Duration::from_secs(end),
            Duration::from_secs(10 * DAY),
            length(),
        );
        assert!(oldest.unix_seconds() > first && oldest.unix_seconds() <= end - 120 * TEN_MINUTES);
        let kept =
            Kept { windows: oldest.unix_seconds(), hours: Some(first), days: Some(first), rolled_up: end };
        let mut random = SplitMix(9);
        let mut draw = |below: u64| random.next().unwrap() % below;
        for number in 0..200 {
            let unit = [TEN_MINUTES, 3_600, DAY][number % 3];
            let from = draw(DAYS * DAY / unit);
            let to = from + 1 + draw(DAYS * DAY / unit - from);
            let (from, to) = (first + from * unit, first + to * unit);
            let range = Range { from: length().starting_at(from), to: length().starting_at(to) };
            match kept.parts(range) {
                Ok(parts) => {
                    assert_eq!(
                        store.union(&Subject::Total, &parts).await.unwrap().sketches,
                        truth(shards, from, to),
                        "{from} to {to}"
                    );
                    // Windows of counters are gone when they are rolled up.
                    if unit >= 3_600 {
                        assert_counters(&store, &parts, from, to).await;
                    }
                }
                Err(NotKept { at, level, .. }) => {
                    assert_eq!((level, unit), (Some(Level::Hour), TEN_MINUTES));
                    assert!(at < oldest.unix_seconds());
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 5_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// The parts of a range lie end to end, and each is kept.
    #[test]
    fn parts_make_up_the_range(
        from in 0_u64..400, steps in 1_u64..400, windows in 0_u64..500, hours in prop::option::of(0_u64..70), days in prop::option::of(0_u64..4), rolled_up in 0_u64..500,
    ) {
        let window = |number: u64| length().starting_at(number * TEN_MINUTES);
        let range = Range { from: window(from), to: window(from + steps) };
        let kept = Kept {
            windows: windows * TEN_MINUTES, hours: hours.map(|hour| hour * 3_600), days: days.map(|day| day * DAY), rolled_up: rolled_up * TEN_MINUTES,
        };
        let is_kept = |part: &Part| match part {
            Part::Window(window) => kept.windows <= window.unix_seconds(),
            Part::Period { period, end } => {
                let oldest = if period.level == Level::Hour { kept.hours } else { kept.days };
                // The running one only where the range goes on.
                let is_over = *end == period.end() && *end <= kept.rolled_up;
                let is_running = *end == kept.rolled_up && kept.rolled_up < range.to.unix_seconds();
                oldest.is_some_and(|oldest| oldest <= period.start) && (is_over || is_running)
            }
        };
        match kept.parts(range) {
            Ok(parts) => {
                prop_assert!(parts.iter().all(is_kept));
                prop_assert_eq!(parts[0].start(), range.from.unix_seconds());
                prop_assert_eq!(parts.last().unwrap().end(), range.to.unix_seconds());
                prop_assert!(parts.windows(2).all(|two| two[0].end() == two[1].start()));
            }
            Err(NotKept { at, .. }) => prop_assert!(at < kept.windows && range.from.unix_seconds() <= at),
        }
    }
}

async fn unique(server: &Server, from: u64, to: u64) -> serde_json::Value {
    let answer = server.get(&format!("/api/verve/unique?from={from}&to={to}")).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

/// Accepts ids in bulk.
async fn accept(server: &Server, ids: std::ops::Range<u64>) {
    let mut connection = Connection::open(server.address).await.unwrap();
    assert_eq!(connection.post("text/plain", lines(ids).as_bytes()).await.unwrap().body, "ok");
}

/// Starts shortly before midnight. Windows of two seconds are soon gone: hours and days stay.
#[tokio::test(flavor = "multi_thread")]
async fn hours_and_days_outlive_their_windows_and_midnight() {
    let now = seconds(SystemTime::now());
    // Fifteen seconds to midnight, of tomorrow or the day after.
    let offset = 2 * DAY - now % DAY - 15;
    let midnight = now + offset + 15;
    let until = async |second: u64| {
        wait_until("a time", async || seconds(SystemTime::now()) + offset >= second).await;
    };
    let args = ["--window", "2s", "--retention", "4s"];
    let server = Server::start_with_clock(&format!("+{offset}s"), &args).await;
    accept(&server, 0..100).await;
    until(midnight).await;
    accept(&server, 50..150).await;
    // Its windows are gone now, but not the hour that they were in.
    until(midnight + 8).await;
    let (hour, day) = (midnight - 3_600, midnight - DAY);
    for from in [hour, day] {
        let answer = unique(&server, from, midnight).await;
        assert_eq!(answer["unique_request_count"], json!(estimate(0..100)));
        assert_eq!(answer["complete"], json!(false), "the service was not there all the time");
    }
    let refused = server.get(&format!("/api/verve/unique?from={}&to={midnight}", midnight - 6)).await;
    assert_eq!(refused.header("failure-reason"), Some("range_not_kept"));
    let detail = refused.header("failure-detail").unwrap();
    assert!(detail.starts_with("only whole hours are kept of "), "{detail}");
    assert!(detail.contains("T23:00:00Z or "), "{detail}");
}

/// What Redis has of the hour and the day of a window.
fn rolled(redis: &RedisServer, namespace: &str, start: u64) -> BTreeMap<String, serde_json::Value> {
    let key = format!("{{{namespace}}}:rolled:{}", start / DAY * DAY);
    let fields: BTreeMap<String, String> =
        ::redis::cmd("HGETALL").arg(key).query(&mut redis.connect()).unwrap();
    fields.into_iter().map(|(field, json)| (field, serde_json::from_str(&json).unwrap())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_of_several_windows_is_one_id_of_the_range() {
    let redis = RedisServer::start();
    wait_for_room_in_the_hour().await;
    let fleet = Fleet::start(2, &redis, "range", &[]).await;
    let first = next_window(Duration::from_millis(200)).await;
    accept(&fleet.servers[0], 0..1_000).await;
    next_window(Duration::from_millis(200)).await;
    accept(&fleet.servers[1], 500..1_500).await;
    let third = next_window(Duration::from_millis(200)).await;
    fleet.wait_published(third - WINDOW.as_secs()).await;
    for server in &fleet.servers {
        let answer = unique(server, first, third).await;
        assert_eq!(answer["unique_request_count"], json!(estimate(0..1_500)));
        assert_eq!((&answer["complete"], &answer["mode"]), (&json!(true), &json!("hll")));
        let names: Vec<_> = answer.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(names, ["complete", "from", "mode", "standard_error", "to", "unique_request_count"]);
        // One closed window has the count that was published.
        assert_eq!(unique(server, first, first + 2).await["unique_request_count"], json!(estimate(0..1_000)));
        // With the running window it is never complete.
        accept(server, 1_400..1_600).await;
        let answer = unique(server, first, third + 3_600).await;
        assert_eq!(answer["unique_request_count"], json!(estimate(0..1_600)));
        assert_eq!(answer["complete"], json!(false));
    }
    // Each closed window was rolled up once.
    let last = fleet.published().into_keys().next_back().unwrap();
    wait_until("all windows to be rolled up", async || {
        let position: Option<u64> =
            ::redis::cmd("HGET").arg("{range}:rolled").arg("window").query(&mut redis.connect()).unwrap();
        position >= Some(last)
    })
    .await;
    let (mut windows, mut of_hours) = (0, 0);
    for (field, record) in rolled(&redis, "range", first) {
        if !field.contains(':') {
            continue;
        }
        let key = format!("{{range:0/1}}:{field}");
        let count: u64 = ::redis::cmd("PFCOUNT").arg(&key).query(&mut redis.connect()).unwrap();
        let expires: i64 = ::redis::cmd("TTL").arg(&key).query(&mut redis.connect()).unwrap();
        assert!(count >= estimate(0..1_500) && expires > 0, "{field}: {record}");
        assert!(record["unique_request_count"].as_u64().unwrap() <= count, "{field}: {record}");
        let number = record["seconds"].as_u64().unwrap() / WINDOW.as_secs();
        *if field.starts_with("hour:") { &mut of_hours } else { &mut windows } += number;
    }
    // The first one was closed before this test could look, perhaps.
    let published = fleet.published().len() as u64;
    assert!((published - 1..=published + 1).contains(&windows), "{windows} of {published}");
    assert_eq!(of_hours, windows);
    // Another program deletes the sketch of a window.
    let key = format!("{{range:0/1}}:hll:{first}");
    let () = ::redis::cmd("DEL").arg(key).query(&mut redis.connect()).unwrap();
    let answer = unique(&fleet.servers[0], first, third).await;
    assert_eq!(answer["unique_request_count"], json!(estimate(500..1_500)));
    assert_eq!(answer["complete"], json!(false));
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_that_are_not_counted_say_why() {
    let now = seconds(SystemTime::now()) / 60 * 60;
    let exact = Server::start(&["--mode", "exact"]).await;
    let hll = Server::start(&[]).await;
    let off = Server::start(&["--max-counters", "0"]).await;
    for (server, query, reason, detail) in [
        (&exact, format!("from={}&to={now}", now - 60), "not_available", "mode exact keeps no sketches"),
        (&hll, format!("from={}&to={now}&counter=a", now - 120), "range_not_kept", "nothing is kept of "),
        (&off, format!("from={}&to={now}&counter=a", now - 60), "invalid_counter", ""),
        (&hll, format!("from={}&to={now}&counter=%20", now - 60), "invalid_counter", ""),
        (&hll, format!("from={now}"), "invalid_range", "to is missing"),
        (&hll, format!("to={now}"), "invalid_range", "from is missing"),
        (&hll, format!("from={}&to={now}", now - 61), "invalid_range", "from is not the start of a window"),
        (&hll, format!("from={}&to={now}", now - 100 * DAY), "range_not_kept", "nothing is kept of "),
    ] {
        let answer = server.get(&format!("/api/verve/unique?{query}")).await;
        assert_eq!((answer.status, answer.body.as_str()), (400, "failed"), "{query}");
        assert_eq!(answer.header("failure-reason"), Some(reason), "{query}");
        assert!(answer.header("failure-detail").unwrap().starts_with(detail), "{query}: {answer:?}");
    }
}

/// A range that is gone must not look like one without ids.
#[tokio::test(flavor = "multi_thread")]
async fn without_hours_and_days_a_closed_window_is_not_kept_in_memory() {
    let none = ["--keep-hours", "0s", "--keep-days", "0s", "--counter-keep-hours", "0s"];
    let server = Server::start(&[&["--window", "2s"], &none[..]].concat()).await;
    let start = next_window(Duration::from_millis(50)).await;
    accept(&server, 0..1_000).await;
    wait_until("the window to be closed", async || {
        server.closed().iter().any(|closed| seconds(closed.start()) >= start)
    })
    .await;
    for path in ["unique", "sketch"] {
        let answer = server.get(&format!("/api/verve/{path}?from={start}&to={}", start + 2)).await;
        assert_eq!(answer.header("failure-reason"), Some("range_not_kept"), "{path}: {answer:?}");
    }
    wait_until("the running window to be counted", async || {
        let running = seconds(SystemTime::now()) / 2 * 2;
        server.get(&format!("/api/verve/unique?from={running}&to={}", running + 2)).await.status == 200
    })
    .await;
}

/// Each line is a window: whether it is complete, what the hour had before and after, and what is noted then.
#[test]
fn the_script_notes_a_window_once_and_sees_what_an_hour_has_lost() {
    let server = RedisServer::start();
    let mut redis = server.connect();
    let () = ::redis::cmd("SET").arg("{ns}:token").arg(7).query(&mut redis).unwrap();
    let mut note = |token: u64, window: u64, complete: bool, counts: Option<(u64, u64)>| -> String {
        let mut hour = json!({ "field": "hour:3600", "has_all_counters": true });
        if let Some((before, after)) = counts {
            hour["before"] = json!(before);
            hour["after"] = json!(after);
        }
        let ask = json!({
            "token": token, "window": window, "seconds": 60, "shards": 1, "complete": complete, "periods": [hour],
            "buckets": ["7"], "keep_for": 60_000,
        });
        let mut call = headcount::coordination::scripts::ROLL_UP.prepare_invoke();
        call.key("{ns}:token").key("{ns}:rolled").key("{ns}:rolled:0").arg(ask.to_string());
        let answer: String = call.invoke(&mut redis).unwrap();
        let record: Option<String> =
            ::redis::cmd("HGET").arg("{ns}:rolled:0").arg("hour:3600").query(&mut redis).unwrap();
        let record: serde_json::Value = record.map_or(json!({}), |text| serde_json::from_str(&text).unwrap());
        format!("{answer} {} {} {}", record["seconds"], record["unique_request_count"], record["complete"])
    };
    assert_eq!(note(6, 3_600, true, Some((0, 10))), "fenced null null null");
    assert_eq!(note(7, 3_600, true, Some((0, 10))), "noted 60 10 true");
    assert_eq!(note(7, 3_600, true, Some((10, 10))), "noted 60 10 true", "again, after a crash");
    assert_eq!(note(7, 3_660, true, None), "noted 120 10 true", "without ids");
    assert_eq!(note(7, 3_720, true, Some((15, 20))), "noted 180 20 true", "merged before a crash");
    // Another program deleted the sketch of the hour. The window alone has more ids than all before.
    assert_eq!(note(7, 3_780, true, Some((0, 500))), "noted 240 500 false");
    assert_eq!(note(7, 3_840, true, Some((500, 600))), "noted 300 600 false", "for good");
    // Or only the position. The windows before it are not noted again.
    let () = ::redis::cmd("DEL").arg("{ns}:rolled").query(&mut server.connect()).unwrap();
    assert_eq!(note(7, 3_780, true, Some((600, 600))), "noted 300 600 false");
    for key in ["{ns}:rolled", "{ns}:rolled:0"] {
        let expires: i64 = ::redis::cmd("PTTL").arg(key).query(&mut server.connect()).unwrap();
        assert!(key == "{ns}:rolled" || (1..=60_000).contains(&expires), "{key}: {expires}");
    }
}
