//! Counters in ranges of time, in hours and in days.

use std::time::{Duration, SystemTime};

use headcount::model::counter::bucket_of;
use serde_json::{Value, json};

use crate::support::fleet::{
    Fleet, LATE_IS_NOT_AWAY, estimate, next_window, next_window_of, seconds, wait_for_room_in_the_hour,
};
use crate::support::http::Connection;
use crate::support::redis::Redis;
use crate::support::server::Server;
use crate::support::wait_until;

const DAY: u64 = 86_400;

async fn accept(server: &Server, counter: &str, ids: std::ops::Range<u64>) {
    let mut connection = Connection::open(server.address).await.unwrap();
    let ids: Vec<_> = ids.map(|id| json!({ "id": id, "counters": [counter] })).collect();
    let answer = connection.post("application/json", json!(ids).to_string().as_bytes()).await.unwrap();
    assert_eq!(answer.body, "ok", "{answer:?}");
}

async fn get(server: &Server, path: &str) -> Value {
    let answer = server.get(path).await;
    assert_eq!(answer.status, 200, "{path}: {answer:?}");
    answer.json()
}

async fn unique(server: &Server, counter: &str, from: u64, to: u64) -> Value {
    get(server, &format!("/api/verve/unique?from={from}&to={to}&counter={counter}")).await
}

async fn steps(server: &Server, query: &str) -> Vec<(u64, u64, bool)> {
    let answer = get(server, &format!("/api/verve/series?{query}")).await;
    let step = |count: &Value| {
        let start = humantime::parse_rfc3339(count["timestamp"].as_str().unwrap()).unwrap();
        (
            seconds(start),
            count["unique_request_count"].as_u64().unwrap(),
            count["complete"].as_bool().unwrap(),
        )
    };
    answer["counts"].as_array().unwrap().iter().map(step).collect()
}

fn rolled_up(redis: &Redis, namespace: &str) -> Option<u64> {
    let key = format!("{{{namespace}}}:rolled");
    ::redis::cmd("HGET").arg(key).arg("window").query(&mut redis.connect()).unwrap()
}

/// Two instances count the same counters in two windows. Each id is one, whichever instance took it.
#[tokio::test(flavor = "multi_thread")]
async fn an_id_of_several_windows_is_one_id_of_the_counter() {
    let redis = Redis::start();
    wait_for_room_in_the_hour().await;
    let fleet = Fleet::start(2, &redis, "named", &[]).await;
    let first = next_window(Duration::from_millis(100)).await;
    accept(&fleet.servers[0], "small", 0..30).await;
    accept(&fleet.servers[0], "big", 0..3_000).await;
    let second = next_window(Duration::from_millis(100)).await;
    accept(&fleet.servers[1], "small", 20..50).await;
    accept(&fleet.servers[1], "big", 2_000..5_000).await;
    next_window(Duration::from_millis(100)).await;
    wait_until("both windows to be rolled up", async || rolled_up(&redis, "named") >= Some(second)).await;
    accept(&fleet.servers[0], "small", 49..60).await;
    let hour = first / 3_600 * 3_600;
    let last = first + 3_600;
    for server in &fleet.servers {
        for (counter, ids) in [("small", 0..60), ("big", 0..5_000), ("none", 0..0)] {
            // The service was not there when the hour began.
            let answer = unique(server, counter, hour, last).await;
            assert_eq!(answer["unique_request_count"], json!(estimate(ids)), "{counter}");
            assert_eq!((&answer["counter"], &answer["complete"]), (&json!(counter), &json!(false)));
            let of_hour = steps(server, &format!("from={hour}&to={last}&step=hour&counter={counter}")).await;
            assert_eq!(of_hour, [(hour, answer["unique_request_count"].as_u64().unwrap(), false)]);
        }
        // Windows of counters that are rolled up are gone. Only the running window is there.
        wait_until("the running window to be counted", async || {
            let running = seconds(SystemTime::now()) / 2 * 2;
            let range = format!("from={running}&to={last}&counter=small");
            server.get(&format!("/api/verve/unique?{range}")).await.status == 200
        })
        .await;
        let answer = server.get(&format!("/api/verve/unique?from={first}&to={last}&counter=small")).await;
        assert_eq!(answer.header("failure-reason"), Some("range_not_kept"), "{answer:?}");
        assert!(answer.header("failure-detail").unwrap().starts_with("only whole hours are kept of "));
        let total = steps(server, &format!("from={hour}&to={last}&step=hour")).await;
        assert_eq!(total, [(hour, estimate(0..5_000), false)]);
        let day = first / DAY * DAY;
        let total = steps(server, &format!("from={day}&to={last}&step=day")).await;
        assert_eq!(total, [(day, estimate(0..5_000), false)]);
    }
    let mut connection = redis.connect();
    for counter in ["small", "big"] {
        let key = format!("{{named:c{}}}:hour:{hour}:{counter}", bucket_of(counter));
        let expires: u64 = ::redis::cmd("EXPIRETIME").arg(&key).query(&mut connection).unwrap();
        assert_eq!(expires, hour + 3_600 + DAY, "an hour of a counter is kept for a day");
    }
}

/// Fakes an hour of counters that is over, as a leader would have stored it, but for one field each.
#[tokio::test(flavor = "multi_thread")]
async fn an_hour_of_a_counter_is_complete_only_if_nothing_is_lost() {
    let redis = Redis::start();
    wait_for_room_in_the_hour().await;
    let fleet = Fleet::start(1, &redis, "lost", &[]).await;
    let server = &fleet.servers[0];
    wait_until("a window to be rolled up", async || rolled_up(&redis, "lost").is_some()).await;
    let hour = seconds(SystemTime::now()) / 3_600 * 3_600 - 3_600;
    let (bucket, mut connection) = (bucket_of("a"), redis.connect());
    let record = |complete: bool, has_all: bool, has_bucket: bool| {
        let buckets = if has_bucket { json!({ bucket.to_string(): hour }) } else { json!({}) };
        json!({
            "seconds": 3_600, "shards": 1, "unique_request_count": 7, "complete": complete,
            "has_all_counters": has_all, "buckets": buckets,
        })
    };
    let sketch: Vec<String> = (0..7).map(|id| id.to_string()).collect();
    let of_day = format!("{{lost}}:rolled:{}", hour / DAY * DAY);
    let field = format!("hour:{hour}");
    let records = format!("{{lost:c{bucket}}}:rolled:hour:{hour}");
    let key = format!("{{lost:c{bucket}}}:hour:{hour}:a");
    let set = |field: &str, value: &str, connection: &mut ::redis::Connection| {
        ::redis::cmd("HSET").arg(&records).arg(field).arg(value).exec(connection).unwrap();
    };
    for (of_hour, of_counter, has_sketch, expected) in [
        (record(true, true, true), Some("7"), true, (7, true)),
        (record(false, true, true), Some("7"), true, (7, false)),
        (record(true, false, true), Some("7"), true, (7, false)),
        (record(true, true, true), Some("7?"), true, (7, false)),
        (record(true, true, true), Some("8"), true, (7, false)),
        (record(true, true, true), Some("x"), true, (7, false)),
        (record(true, true, true), Some("7"), false, (0, false)),
        (record(true, true, true), None, false, (0, false)),
        (record(true, true, false), None, false, (0, true)),
    ] {
        ::redis::cmd("DEL").arg(&records).arg(&key).exec(&mut connection).unwrap();
        ::redis::cmd("HSET").arg(&of_day).arg(&field).arg(of_hour.to_string()).exec(&mut connection).unwrap();
        if let Some(of_counter) = of_counter {
            set("", &hour.to_string(), &mut connection);
            set("a", of_counter, &mut connection);
        }
        if has_sketch {
            ::redis::cmd("PFADD").arg(&key).arg(&sketch).exec(&mut connection).unwrap();
        }
        let answer = unique(server, "a", hour, hour + 3_600).await;
        let found = (answer["unique_request_count"].as_u64().unwrap(), answer["complete"].as_bool().unwrap());
        assert_eq!(found, expected, "{of_hour} {of_counter:?} {has_sketch}");
        let step = steps(server, &format!("from={hour}&to={}&step=hour&counter=a", hour + 3_600)).await;
        assert_eq!(step, [(hour, expected.0, expected.1)]);
    }
    // The records were lost, and a later window made them anew: what they say of the counter may be wrong.
    let of_hour = record(true, true, true).to_string();
    ::redis::cmd("HSET").arg(&of_day).arg(&field).arg(of_hour).exec(&mut connection).unwrap();
    for (since, expected) in [(Some(hour), true), (Some(hour + 60), false), (None, false)] {
        ::redis::cmd("DEL").arg(&records).exec(&mut connection).unwrap();
        set("b", "1", &mut connection);
        if let Some(since) = since {
            set("", &since.to_string(), &mut connection);
        }
        assert_eq!(unique(server, "a", hour, hour + 3_600).await["complete"], json!(expected), "{since:?}");
    }
}

/// Another program deletes the sketch of a counter's hour. Later windows make it anew, but it lacks ids.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_hour_of_a_counter_is_noticed_by_the_next_window() {
    let redis = Redis::start();
    wait_for_room_in_the_hour().await;
    let fleet = Fleet::start(1, &redis, "shrunk", &[]).await;
    let server = &fleet.servers[0];
    let bucket = bucket_of("a");
    let start = next_window(Duration::from_millis(50)).await;
    let hour = start / 3_600 * 3_600;
    let key = format!("{{shrunk:c{bucket}}}:hour:{hour}:a");
    let records = format!("{{shrunk:c{bucket}}}:rolled:hour:{hour}");
    let record = || -> Option<String> {
        ::redis::cmd("HGET").arg(&records).arg("a").query(&mut redis.connect()).unwrap()
    };
    accept(server, "a", 0..50).await;
    wait_until("the counter to be rolled up", async || record() == Some(estimate(0..50).to_string())).await;
    ::redis::cmd("DEL").arg(&key).exec(&mut redis.connect()).unwrap();
    accept(server, "a", 100..200).await;
    let expected = format!("{}?", estimate(100..200));
    wait_until("the loss to be noted", async || record().as_ref() == Some(&expected)).await;
    // Something else under its name is put aside.
    ::redis::cmd("SET").arg(&key).arg("other").exec(&mut redis.connect()).unwrap();
    accept(server, "a", 300..310).await;
    let expected = format!("{}?", estimate(300..310));
    wait_until("the counter to be rolled up again", async || record().as_ref() == Some(&expected)).await;
    // Nothing is kept of the day of a counter: it is not called whole.
    let of_day = format!("{{shrunk}}:rolled:{}", start / DAY * DAY);
    let record = |field: String| -> Value {
        let stored: String =
            ::redis::cmd("HGET").arg(&of_day).arg(field).query(&mut redis.connect()).unwrap();
        serde_json::from_str(&stored).unwrap()
    };
    assert_eq!(record(format!("hour:{hour}"))["has_all_counters"], json!(true));
    assert_eq!(record(format!("day:{}", start / DAY * DAY))["has_all_counters"], json!(false));
}

/// Without Redis. The service starts shortly before an hour ends.
#[tokio::test(flavor = "multi_thread")]
async fn a_standalone_instance_has_hours_and_days_of_counters() {
    let now = seconds(SystemTime::now());
    // Eleven seconds to midnight.
    let offset = 2 * DAY - now % DAY - 11;
    let midnight = now + offset + 11;
    let until = async |second: u64| {
        wait_until("a time", async || seconds(SystemTime::now()) + offset >= second).await;
    };
    let args = ["--window", "2s", "--counter-keep-days", "2days"];
    let server = Server::start_with_clock(&format!("+{offset}s"), &args).await;
    accept(&server, "a", 0..100).await;
    accept(&server, "b", 0..10).await;
    until(midnight).await;
    accept(&server, "a", 50..150).await;
    until(midnight + 5).await;
    accept(&server, "a", 145..160).await;
    let (hour, day, later) = (midnight - 3_600, midnight - DAY, midnight + 7_200);
    for (counter, from, to, ids) in [
        ("a", hour, midnight, 0..100),
        ("a", day, midnight, 0..100),
        ("a", midnight, later, 50..160),
        ("a", day, later, 0..160),
        ("b", hour, later, 0..10),
        ("b", midnight, later, 0..0),
    ] {
        let answer = unique(&server, counter, from, to).await;
        assert_eq!(answer["unique_request_count"], json!(estimate(ids)), "{counter} {from} {to}");
    }
    let hours = steps(&server, &format!("from={hour}&to={later}&step=hour&counter=a")).await;
    assert_eq!(hours, [(hour, estimate(0..100), false), (midnight, estimate(50..160), false)]);
    let days = steps(&server, &format!("from={day}&to={later}&step=day")).await;
    assert_eq!(days, [(day, estimate(0..100), false), (midnight, estimate(50..160), false)]);
}

/// Without Redis. A process that was stopped for a while closes several windows in one round.
#[tokio::test(flavor = "multi_thread")]
async fn windows_that_are_closed_together_leave_no_counter_out() {
    wait_for_room_in_the_hour().await;
    let server = Server::start(&["--window", "1s"]).await;
    let first = next_window(Duration::from_millis(50)).await;
    accept(&server, "a", 0..100).await;
    server.process.signal("STOP");
    tokio::time::sleep(Duration::from_millis(4_500)).await;
    server.process.signal("CONT");
    let hour = first / 3_600 * 3_600;
    let last = next_window_of(Duration::from_secs(1), Duration::from_millis(50)).await;
    accept(&server, "a", 90..110).await;
    wait_until("that window to be closed", async || {
        server.closed().iter().any(|closed| seconds(closed.start()) > last)
    })
    .await;
    wait_until("all ids to be in the hour", async || {
        let answer =
            server.get(&format!("/api/verve/unique?from={hour}&to={}&counter=a", hour + 3_600)).await;
        answer.status == 200 && answer.json()["unique_request_count"] == json!(estimate(0..110))
    })
    .await;
}

const KILLS: u64 = 10;
const MANY: u64 = 400;

/// Leaders are killed while they roll up many counters. Then no hour and no day lacks an id of a closed window.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_dies_in_a_roll_up_leaves_no_id_out() {
    let redis = Redis::start();
    let args = [["--lease-ttl", "2s"], ["--counter-keep-days", "2days"], LATE_IS_NOT_AWAY];
    let mut fleet = Fleet::start(3, &redis, "dying", args.as_flattened()).await;
    let mut alive = vec![0, 1, 2];
    fleet.wait_published(next_window(Duration::ZERO).await).await;
    let name = |number: u64| format!("c-{number:03}");
    let ids_of = |kill: u64, number: u64| (kill * 5..kill * 5 + 10).map(move |id| id * MANY + number);
    let records = || -> Vec<String> {
        let pattern = format!("{{dying:c{}}}:rolled:day:*", bucket_of(&name(0)));
        let keys: Vec<String> = ::redis::cmd("KEYS").arg(pattern).query(&mut redis.connect()).unwrap();
        let value = |key: &String| -> Option<String> {
            ::redis::cmd("HGET").arg(key).arg(name(0)).query(&mut redis.connect()).unwrap()
        };
        keys.iter().filter_map(value).collect()
    };
    for kill in 0..KILLS {
        next_window(Duration::from_millis(100)).await;
        let before = records();
        let ids: Vec<_> = (0..MANY)
            .flat_map(|number| ids_of(kill, number).map(move |id| (id, number)))
            .map(|(id, number)| json!({ "id": id, "counters": [name(number)] }))
            .collect();
        let server = &fleet.servers[alive[kill as usize % alive.len()]];
        let mut connection = Connection::open(server.address).await.unwrap();
        let answer = connection.post("application/json", json!(ids).to_string().as_bytes()).await.unwrap();
        assert_eq!(answer.body, "ok", "{answer:?}");
        // The counters are merged in the order of their names.
        let begun = tokio::time::Instant::now();
        while records() == before {
            assert!(begun.elapsed() < Duration::from_secs(60), "nothing is rolled up");
        }
        let leader = fleet.leader();
        fleet.servers[leader].process.signal("KILL");
        fleet.servers[leader].ended().await;
        alive.retain(|server| *server != leader);
        fleet.add().await;
        alive.push(fleet.servers.len() - 1);
        wait_until("another leader", async || fleet.leader() != leader).await;
    }
    let last = next_window(Duration::ZERO).await;
    wait_until("all windows to be rolled up", async || rolled_up(&redis, "dying") >= Some(last)).await;
    let mut connection = redis.connect();
    for number in 0..MANY {
        let all = estimate((0..KILLS).flat_map(|kill| ids_of(kill, number)));
        for level in ["hour", "day"] {
            let pattern = format!("{{dying:c{}}}:{level}:*:{}", bucket_of(&name(number)), name(number));
            let keys: Vec<String> = ::redis::cmd("KEYS").arg(pattern).query(&mut connection).unwrap();
            let count: u64 = ::redis::cmd("PFCOUNT").arg(&keys).query(&mut connection).unwrap();
            assert_eq!(count, all, "{level} of {}", name(number));
        }
    }
    let keys: Vec<String> = ::redis::cmd("KEYS").arg("*:rolled:*").query(&mut connection).unwrap();
    for key in keys.iter().filter(|key| key.starts_with("{dying:c")) {
        let noted: Vec<String> = ::redis::cmd("HVALS").arg(key).query(&mut connection).unwrap();
        assert!(noted.iter().all(|noted| !noted.ends_with('?')), "{key}: {noted:?}");
    }
}
