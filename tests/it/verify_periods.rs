//! `headcount verify` compares hours and days with the windows that are still in Redis.

use std::time::Duration;

use headcount::model::mode::Mode;
use headcount::model::period::{Level, Period};
use headcount::model::shard::Shards;
use headcount::redis::keys::Keys;
use serde_json::{Value, json};

use crate::support::fleet::{next_window, wait_for_room_in_the_hour, window};
use crate::support::http::Connection;
use crate::support::kafka::{namespace, shared, wait_recorded};
use crate::support::redis::Redis;
use crate::support::server::Server;
use crate::support::{lines, wait_until};
use crate::verify_command::{about, run};

const HOURS_AND_DAYS: &str = "hours and days";
const INCOMPLETE: &str = "incomplete hours and days";
const LATE: &str = "ids after the close, in no hour or day";

/// What a service left behind that published some windows of an hour.
struct Site {
    redis: Redis,
    brokers: String,
    keys: Keys,
    shards: Shards,
    /// The starts of its first window and of the last one, which have the ids 0 to 99 and 50 to 149.
    first: u64,
    last: u64,
}

impl Site {
    async fn new(shards: u16) -> Self {
        wait_for_room_in_the_hour().await;
        let (redis, brokers, namespace) = (Redis::start(), shared(), namespace("periods"));
        let shards = Shards::new(shards).unwrap();
        let mut site = Self { redis, brokers, keys: Keys::new(&namespace), shards, first: 0, last: 0 };
        site.first = next_window(Duration::from_millis(50)).await;
        let mut server = Server::start(&site.args().iter().map(String::as_str).collect::<Vec<_>>()).await;
        let mut connection = Connection::open(server.address).await.unwrap();
        let mut accept = async |ids| {
            let answer = connection.post("text/plain", lines(ids).as_bytes()).await.unwrap();
            assert_eq!(answer.body, "ok");
        };
        accept(0..100).await;
        site.first = next_window(Duration::from_millis(50)).await - 2;
        site.last = next_window(Duration::from_millis(50)).await;
        accept(50..150).await;
        wait_until("the windows to be rolled up", async || {
            site.ask::<Option<u64>>(&["HGET", &site.keys.rolled(), "window"]) >= Some(site.last)
        })
        .await;
        let topic = format!("{}.unique-counts", site.keys.namespace());
        wait_recorded(&site.brokers, &topic, site.last).await;
        assert!(server.stop().await.success());
        site
    }

    fn args(&self) -> Vec<String> {
        let (url, shards) = (self.redis.url(), self.shards.count().to_string());
        let flags = [
            ["--redis-url", &url],
            ["--namespace", self.keys.namespace()],
            ["--window", "2s"],
            ["--retention", "10m"],
            ["--kafka-brokers", &self.brokers],
            ["--shards", &shards],
        ];
        flags.as_flattened().iter().map(|&arg| arg.to_owned()).collect()
    }

    fn ask<T: ::redis::FromRedisValue>(&self, command: &[&str]) -> T {
        let mut ask = ::redis::cmd(command[0]);
        ask.arg(&command[1..]);
        ask.query(&mut self.redis.connect()).unwrap()
    }

    fn hour(&self) -> Period {
        Level::Hour.at(self.first)
    }

    /// The keys of the hour, of all shards.
    fn of_hour(&self) -> Vec<String> {
        let shards = 0..usize::from(self.shards.count());
        shards.map(|shard| self.keys.period(shard, self.shards, self.hour())).collect()
    }

    fn of_window(&self, start: u64) -> Vec<String> {
        let shards = 0..usize::from(self.shards.count());
        shards.map(|shard| self.keys.ids(Mode::Hll, shard, self.shards, window(start))).collect()
    }

    /// Changes the record of the hour.
    fn change_record(&self, change: impl Fn(&mut Value)) {
        let key = self.keys.rolled_periods(Level::Day.at(self.first).start);
        let field = self.hour().to_string();
        let mut record = serde_json::from_str(&self.ask::<String>(&["HGET", &key, &field])).unwrap();
        change(&mut record);
        let () = self.ask(&["HSET", &key, &field, &record.to_string()]);
    }

    fn verify(&self) -> (i32, Vec<String>) {
        run("verify", &self.args().iter().map(String::as_str).collect::<Vec<_>>())
    }

    #[track_caller]
    fn assert_sound(&self) {
        let (code, lines) = self.verify();
        let sound =
            "ok   hours and days: 2 have all ids of their windows, as far as these are still in Redis";
        assert_eq!((code, about(&lines, HOURS_AND_DAYS)), (0, sound), "{lines:?}");
        assert_eq!(about(&lines, LATE), format!("ok   {LATE}: none"));
    }

    /// What is said of the hour: a failure, or a warning.
    #[track_caller]
    fn assert_wrong(&self, wrong: &str) {
        let hour = format!("hour {} {wrong}", window(self.hour().start));
        self.change_record(|record| record["complete"] = json!(true));
        let (code, lines) = self.verify();
        let failure = format!("FAIL hours and days: 1 of 2 are wrong: {hour}");
        assert_eq!((code, about(&lines, HOURS_AND_DAYS)), (1, &*failure), "{lines:?}");
        // The record says that something is missing.
        self.change_record(|record| record["complete"] = json!(false));
        let (code, lines) = self.verify();
        let warning = format!("warn {INCOMPLETE}: 1: {hour}");
        assert_eq!((code, about(&lines, INCOMPLETE)), (0, &*warning), "{lines:?}");
        assert!(about(&lines, HOURS_AND_DAYS).starts_with("ok   hours and days: 1 have "), "{lines:?}");
    }
}

async fn compare(shards: u16) {
    let site = Site::new(shards).await;
    site.assert_sound();
    let keys = site.of_hour();
    let before: Vec<Vec<u8>> = keys.iter().map(|key| site.ask(&["GET", key])).collect();
    let put_back = || {
        for (key, sketch) in keys.iter().zip(&before) {
            ::redis::cmd("SET").arg(key).arg(sketch).exec(&mut site.redis.connect()).unwrap();
        }
    };

    for key in &keys {
        let () = site.ask(&["DEL", key]);
    }
    site.assert_wrong("is missing");
    // The hour has only what one shard of the last window has.
    let () = site.ask(&["PFMERGE", &keys[0], &site.of_window(site.last)[0]]);
    site.assert_wrong(if shards == 1 { "lacks ids of 1 windows" } else { "lacks ids of 2 windows" });
    put_back();
    site.assert_sound();

    // What another program wrote counts as nothing.
    let () = site.ask(&["SET", &keys[0], "no sketch"]);
    site.assert_wrong(if shards == 1 { "is missing" } else { "lacks ids of 2 windows" });
    put_back();

    let () = site.ask(&["PFADD", &keys[0], "foreign"]);
    site.assert_wrong("has ids of no window");
    put_back();

    site.change_record(|record| record["seconds"] = json!(record["seconds"].as_u64().unwrap() + 2));
    let (code, lines) = site.verify();
    assert!(code == 0 && about(&lines, INCOMPLETE).contains(" s of windows, and "), "{lines:?}");
    site.change_record(|record| record["seconds"] = json!(record["seconds"].as_u64().unwrap() - 2));
    site.assert_sound();

    site.change_record(|record| record["unique_request_count"] = json!(1_000));
    site.assert_wrong("has fewer ids than its record says");
    site.change_record(|record| record["unique_request_count"] = json!(1));

    // The first window is not complete, so its count may be lower than that of its key.
    let () = site.ask(&["PFADD", &site.of_window(site.first)[0], "late"]);
    let (code, lines) = site.verify();
    let late = format!("warn {LATE}: 1: {}", window(site.first));
    assert_eq!((code, about(&lines, LATE)), (0, &*late), "{lines:?}");
    assert!(about(&lines, HOURS_AND_DAYS).starts_with("ok   hours and days: 2 have "), "{lines:?}");

    // A window that Redis lost says nothing.
    for key in site.of_window(site.first) {
        let () = site.ask(&["DEL", &key]);
    }
    site.assert_sound();
}

#[tokio::test(flavor = "multi_thread")]
async fn hours_and_days_that_lack_ids_of_their_windows_are_found() {
    compare(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hours_and_days_of_four_shards_are_compared_too() {
    compare(4).await;
}
