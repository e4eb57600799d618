//! `/api/verve/retention`: how many ids of a first hour came again.

use std::ops::Range;
use std::time::SystemTime;

use headcount::hll::{Overlap, Sketch};
use headcount::model::counter::bucket_of;
use headcount::model::period::Level;
use headcount::model::shard::Shards;
use headcount::redis::keys::Keys;
use serde_json::{Value, json};

use crate::support::fleet::{Fleet, seconds, sketch_of, wait_for_room_in_the_hour};
use crate::support::redis::Redis;
use crate::support::server::Server;
use crate::support::wait_until;

const PATH: &str = "/api/verve/retention";
pub const HOUR: u64 = 3_600;
const DAY: u64 = 86_400;
/// The ids of the hours before this one, the oldest first.
const IDS: [Range<u64>; 3] = [0..5_000, 2_500..7_500, 4_900..30_000];

async fn retention(server: &Server, query: &str) -> Value {
    let answer = server.get(&format!("{PATH}?{query}")).await;
    assert_eq!(answer.status, 200, "{query}: {answer:?}");
    answer.json()
}

/// The ids of each shard.
fn sketches_of(ids: &Range<u64>, shards: Shards) -> Vec<Sketch> {
    let of_shard = |shard| sketch_of(ids.clone().filter(|id| shards.of(id.to_string().as_bytes()) == shard));
    (0..shards.count().into()).map(of_shard).collect()
}

/// Fakes hours that are over, as a leader would have stored them, with a counter `a` that has the same ids.
pub fn store_hours(redis: &Redis, namespace: &str, shards: Shards, first: u64) {
    let (keys, mut connection, bucket) = (Keys::new(namespace), redis.connect(), bucket_of("a"));
    for (number, ids) in (0..).zip(&IDS) {
        let start = first + number * HOUR;
        let (period, sketches) = (Level::Hour.at(start), sketches_of(ids, shards));
        for (shard, sketch) in sketches.iter().enumerate() {
            let key = keys.period(shard, shards, period);
            ::redis::cmd("SET").arg(key).arg(sketch.to_bytes()).exec(&mut connection).unwrap();
        }
        let of_counter = sketch_of(ids.clone());
        ::redis::cmd("SET")
            .arg(keys.counter_period("a", period))
            .arg(of_counter.to_bytes())
            .exec(&mut connection)
            .unwrap();
        ::redis::cmd("HSET")
            .arg(keys.counter_records(bucket, period))
            .arg(&[("", start.to_string()), ("a", of_counter.estimate().to_string())])
            .exec(&mut connection)
            .unwrap();
        let total: u64 = sketches.iter().map(Sketch::estimate).sum();
        // The last hour lacks ids.
        let record = json!({
            "seconds": HOUR, "shards": shards.count(), "unique_request_count": total, "complete": number < 2,
            "has_all_counters": true, "buckets": { bucket.to_string(): start },
        });
        ::redis::cmd("HSET")
            .arg(keys.rolled_periods(start / DAY * DAY))
            .arg(period.to_string())
            .arg(record.to_string())
            .exec(&mut connection)
            .unwrap();
    }
}

/// Of the total it is the sum over the shards, with the root of the squares of their errors.
fn expected(step: usize, shards: Shards) -> (u64, f64) {
    let (first, later) = (sketches_of(&IDS[0], shards), sketches_of(&IDS[step], shards));
    let all = first.iter().zip(&later).map(|(first, later)| Overlap::of(first, later));
    let (mut returned, mut squares) = (0, 0.0);
    for overlap in all {
        returned += overlap.intersection;
        squares += overlap.standard_error.powi(2);
    }
    (returned, (10.0 * squares.sqrt()).round() / 10.0)
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_that_came_again_are_counted_for_the_total_and_for_counters() {
    let redis = Redis::start();
    wait_for_room_in_the_hour().await;
    for (number, namespace) in [(1, "one"), (4, "four")] {
        let shards = Shards::new(number).unwrap();
        let fleet = Fleet::start(1, &redis, namespace, &["--shards", &number.to_string()]).await;
        let server = &fleet.servers[0];
        let rolled = Keys::new(namespace).rolled();
        wait_until("a window to be rolled up", async || {
            ::redis::cmd("EXISTS").arg(&rolled).query::<bool>(&mut redis.connect()).unwrap()
        })
        .await;
        let running = seconds(SystemTime::now()) / HOUR * HOUR;
        let first = running - 3 * HOUR;
        store_hours(&redis, namespace, shards, first);
        // Beside 42, which came in the first hour, too, the running hour has no ids.
        assert_eq!(server.get("/api/verve/accept?id=42&counter=a").await.body, "ok");
        for (of, shards_of) in [("", shards), ("&counter=a", Shards::ONE)] {
            let answer = retention(server, &format!("from={first}&step=hour&steps=24{of}")).await;
            let total: u64 = sketches_of(&IDS[0], shards_of).iter().map(Sketch::estimate).sum();
            assert_eq!((&answer["unique_request_count"], &answer["complete"]), (&json!(total), &json!(true)));
            assert_eq!((&answer["step"], &answer["step_seconds"]), (&json!("hour"), &json!(HOUR)));
            let steps = answer["steps"].as_array().unwrap();
            assert_eq!(steps.len(), 3, "up to the running hour: {answer}");
            for (place, step) in [(1, &steps[0]), (2, &steps[1])] {
                let (returned, error) = expected(place, shards_of);
                assert_eq!(
                    (&step["returned"], &step["returned_standard_error"]),
                    (&json!(returned), &json!(error)),
                    "{of} {step}"
                );
                let truth = IDS[0].end.saturating_sub(IDS[place].start);
                assert!((returned as f64 - truth as f64).abs() < 4.0 * error, "{truth} {step}");
                assert_eq!(step["complete"], place == 1);
            }
            assert_eq!(
                (&steps[2]["returned"], &steps[2]["complete"]),
                (&json!(1), &json!(false)),
                "{answer}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_no_retention_is_refused_with_the_reason() {
    let running = seconds(SystemTime::now()) / HOUR * HOUR;
    let server = Server::start(&["--window", "60s", "--shards", "17"]).await;
    let odd = Server::start(&["--window", "32s"]).await;
    let exact = Server::start(&["--window", "60s", "--mode", "exact"]).await;
    let of_counter = format!("from={running}&step=hour&steps=2&counter=a");
    for (server, query, reason) in [
        (&server, String::new(), "invalid_parameter"),
        (&server, format!("from={running}&step=window&steps=2"), "invalid_parameter"),
        (&server, format!("from={running}&step=hour"), "invalid_parameter"),
        (&server, format!("from={running}&step=hour&steps=1"), "invalid_parameter"),
        (&server, format!("from={running}&step=hour&steps=36"), "invalid_parameter"),
        (&server, format!("from={running}&step=hour&steps=+2"), "invalid_parameter"),
        (&server, format!("from={running}&to=9&step=hour&steps=2"), "invalid_parameter"),
        (&server, "step=hour&steps=2".to_owned(), "invalid_range"),
        (&server, format!("from={}&step=hour&steps=2", running + 60), "invalid_range"),
        (&server, format!("from={}&step=hour&steps=2", running + HOUR), "invalid_range"),
        (&server, format!("from={running}&step=hour&steps=2"), "not_available"),
        (&server, "from=0&step=day&steps=35&counter=a".to_owned(), "range_not_kept"),
        (&odd, of_counter.clone(), "invalid_range"),
        (&exact, of_counter.clone(), "not_available"),
    ] {
        let answer = server.get(&format!("{PATH}?{query}")).await;
        assert_eq!(
            (answer.status, answer.header("failure-reason")),
            (400, Some(reason)),
            "{query}: {answer:?}"
        );
    }
}
