//! Faults at the end of hours and days: Redis is away, the service restarts, keys expire.

use std::time::SystemTime;

use headcount::model::period::{Level, Period};
use headcount::model::shard::Shards;
use headcount::redis::keys::Keys;
use serde_json::json;

use crate::support::fleet::{Fleet, WINDOW, assert_same_registers, estimate, seconds};
use crate::support::http::Connection;
use crate::support::redis::Redis;
use crate::support::server::Server;
use crate::support::{lines, wait_until};

const HOUR: u64 = 3_600;
const DAY: u64 = 86_400;

/// A fleet whose clock, and that of its Redis, is a few seconds before the end of an hour.
struct Site {
    redis: Redis,
    fleet: Fleet,
    keys: Keys,
    /// Seconds that the clocks are ahead.
    offset: u64,
    /// The end of the hour.
    end: u64,
}

/// Seconds from now until the end of the hour.
const LEAD: u64 = 16;

impl Site {
    /// At the end of a day, or of another hour. None without a Redis whose clock can be set.
    async fn new(namespace: &str, is_midnight: bool, args: &[&str]) -> Option<Self> {
        let now = seconds(SystemTime::now()) / 2 * 2;
        let day = (now / DAY + 2) * DAY;
        let end = if is_midnight { day } else { day + 13 * HOUR };
        let offset = end - LEAD - now;
        let redis = Redis::start_with_clock(&ahead(offset))?;
        let url = redis.url();
        let common = ["--window", "2s", "--redis-url", &url, "--namespace", namespace];
        let mut fleet = Fleet::start_with(0, &[&common[..], args].concat()).await;
        for _ in 0..2 {
            fleet.add_with_clock(&ahead(offset)).await;
        }
        Some(Self { redis, fleet, keys: Keys::new(namespace), offset, end })
    }

    fn now(&self) -> u64 {
        seconds(SystemTime::now()) + self.offset
    }

    /// Waits until so many seconds after the end of the hour, or before it.
    async fn until(&self, after: i64) {
        let second = self.end.saturating_add_signed(after);
        wait_until("a time", async || self.now() >= second).await;
    }

    /// Accepts ids, half of them at each instance that is there.
    async fn accept(&self, ids: std::ops::Range<u64>) {
        let running = &self.fleet.servers[self.fleet.servers.len() - 2..];
        let middle = u64::midpoint(ids.start, ids.end);
        for (server, ids) in running.iter().zip([ids.start..middle, middle..ids.end]) {
            accept(server, ids).await;
        }
    }

    /// Accepts ids in the hour, well before its end.
    async fn accept_before(&self, ids: std::ops::Range<u64>) {
        self.accept(ids).await;
        assert!(self.now() < self.end, "the machine is too slow");
    }

    fn ask<T: ::redis::FromRedisValue>(&self, command: &[&str]) -> T {
        let mut ask = ::redis::cmd(command[0]);
        ask.arg(&command[1..]);
        ask.query(&mut self.redis.connect()).unwrap()
    }

    /// Waits until a window that begins now is rolled up.
    async fn wait_rolled_up(&self) {
        let now = self.now();
        wait_until("the windows to be rolled up", async || {
            self.ask::<Option<u64>>(&["HGET", &self.keys.rolled(), "window"]) >= Some(now)
        })
        .await;
    }

    /// Asserts that the hours before and after the end have exactly these ids, and the days those of their hours.
    async fn assert_hours_have(&self, before: std::ops::Range<u64>, after: std::ops::Range<u64>) {
        let sketch =
            |period: Period| -> Vec<u8> { self.ask(&["GET", &self.keys.period(0, Shards::ONE, period)]) };
        let hours = [self.end - HOUR, self.end].map(|start| Level::Hour.at(start));
        for (hour, ids) in hours.into_iter().zip([before.clone(), after.clone()]) {
            assert_same_registers(&sketch(hour), ids.clone());
        }
        let [first, last] = hours.map(|hour| Level::Day.at(hour.start));
        if first == last {
            assert_same_registers(&sketch(first), before.clone().chain(after));
        } else {
            assert_same_registers(&sketch(first), before.clone());
            assert_same_registers(&sketch(last), after);
        }
        let (from, to) = (self.end - HOUR, self.end);
        let last = self.fleet.servers.last().unwrap();
        let answer = last.get(&format!("/api/verve/unique?from={from}&to={to}")).await.json();
        assert_eq!(answer["unique_request_count"], json!(estimate(before)), "{answer}");
        assert_eq!(answer["complete"], json!(false), "the service was not there all the time");
    }
}

fn ahead(offset: u64) -> String {
    format!("+{offset}s")
}

async fn accept(server: &Server, ids: std::ops::Range<u64>) {
    let mut connection = Connection::open(server.address).await.unwrap();
    assert_eq!(connection.post("text/plain", lines(ids).as_bytes()).await.unwrap().body, "ok");
}

/// What happens to Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Away {
    /// It is killed, and started again with its data on disk.
    Killed,
    /// It is paused.
    Stopped,
}

async fn redis_is_away(away: Away, is_midnight: bool) {
    let Some(mut site) = Site::new("away", is_midnight, &[]).await else { return };
    site.accept_before(0..1_000).await;
    site.until(-5).await;
    match away {
        Away::Killed => site.redis.kill(),
        Away::Stopped => site.redis.signal("STOP"),
    }
    site.accept_before(1_000..2_000).await;
    site.until(1).await;
    site.accept(2_000..3_000).await;
    site.until(4).await;
    match away {
        Away::Killed => site.redis.restart(),
        Away::Stopped => site.redis.signal("CONT"),
    }
    site.accept(3_000..4_000).await;
    site.wait_rolled_up().await;
    site.assert_hours_have(0..2_000, 2_000..4_000).await;
}

/// Instances keep the ids of both hours, and add them to the right one when Redis is back.
#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_is_away_over_the_end_of_an_hour_mixes_no_hours() {
    redis_is_away(Away::Killed, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_hangs_over_midnight_mixes_no_days() {
    redis_is_away(Away::Stopped, true).await;
}

/// Nobody is there at midnight. The next leader closes and rolls up what is left of the day before.
async fn all_restart(signal: &str) {
    let Some(mut site) = Site::new("restart", true, &[]).await else { return };
    site.accept_before(0..1_000).await;
    site.until(-6).await;
    site.accept_before(1_000..2_000).await;
    for server in &mut site.fleet.servers {
        server.process.signal(signal);
        server.ended().await;
    }
    assert!(site.now() < site.end, "the machine is too slow");
    site.until(2).await;
    for _ in 0..2 {
        let offset = ahead(site.offset);
        site.fleet.add_with_clock(&offset).await;
    }
    site.accept(2_000..3_000).await;
    site.wait_rolled_up().await;
    site.assert_hours_have(0..2_000, 2_000..3_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_that_restarts_over_midnight_leaves_no_window_out() {
    all_restart("TERM").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_that_dies_before_midnight_leaves_no_window_out() {
    all_restart("KILL").await;
}

/// Each key has a time to live, but those that the service needs for as long as it is used.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_of_hours_and_days_when_their_time_is_over() {
    let keep = ["--keep-hours", "2h", "--keep-days", "3days"];
    let Some(mut site) = Site::new("expiry", true, &keep).await else { return };
    site.accept_before(0..1_000).await;
    let accepted = site.fleet.servers[0].get("/api/verve/accept?id=1&counter=a").await;
    assert_eq!(accepted.body, "ok");
    site.until(2).await;
    site.accept(1_000..2_000).await;
    site.wait_rolled_up().await;
    let of_counters: Vec<String> = site.ask(&["KEYS", "*:hour:*:a"]);
    assert_eq!(of_counters.len(), 1, "{of_counters:?}");
    for server in &mut site.fleet.servers {
        assert!(server.stop().await.success());
    }
    let keys: Vec<String> = site.ask(&["KEYS", "*"]);
    let for_good: Vec<_> = keys.iter().filter(|key| site.ask::<i64>(&["TTL", key]) == -1).collect();
    let mut expected = [site.keys.token(), site.keys.published()];
    expected.sort();
    let mut for_good: Vec<_> = for_good.into_iter().cloned().collect();
    for_good.sort();
    assert_eq!(for_good, expected);

    let there = |site: &Site, period: Period| -> bool {
        site.ask(&["EXISTS", &site.keys.period(0, Shards::ONE, period)])
    };
    let hours = [site.end - HOUR, site.end].map(|start| Level::Hour.at(start));
    let days = hours.map(|hour| Level::Day.at(hour.start));
    let (first, last) = (hours[0].end() + 2 * HOUR, hours[1].end() + 2 * HOUR);
    let (first_day, last_day) = (days[0].end() + 3 * DAY, days[1].end() + 3 * DAY);
    for (at, expected) in [
        (first - 60, [true; 4]),
        (first, [false, true, true, true]),
        (last, [false, false, true, true]),
        (first_day, [false, false, false, true]),
        (last_day, [false; 4]),
    ] {
        let offset = at - seconds(SystemTime::now());
        site.redis.restart_with_clock(&ahead(offset));
        let [found, of_days] = [hours, days].map(|two| two.map(|period| there(&site, period)));
        assert_eq!([found, of_days].as_flattened(), expected, "{at}");
    }
    // Records and counts of a day go with it, and the position when nothing is left that it is about.
    site.redis.restart_with_clock(&ahead(last_day + DAY + WINDOW.as_secs() - seconds(SystemTime::now())));
    let mut left: Vec<String> = site.ask(&["KEYS", "*"]);
    left.retain(|key| site.ask(&["EXISTS", key]));
    left.sort();
    assert_eq!(left, expected);
}
