//! `/api/verve/series`: the counts of windows, long after their ids are gone.

use std::time::Duration;

use headcount::model::range::{Moment, Range};
use headcount::model::window::WindowLength;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::support::fleet::{Fleet, WINDOW, next_window, seconds, window};
use crate::support::http::Answer;
use crate::support::load::Load;
use crate::support::redis::Redis;
use crate::support::server::{Closed, Server};
use crate::support::wait_until;

const SERIES: &str = "/api/verve/series";

async fn series(server: &Server, from: u64, to: u64) -> Answer {
    server.get(&format!("{SERIES}?from={from}&to={to}&step=window")).await
}

/// What the service answers about windows that were published.
fn as_answered(published: &[Closed]) -> Value {
    let count = |closed: &Closed| {
        json!({
            "timestamp": closed.timestamp, "unique_request_count": closed.unique, "complete": closed.complete,
        })
    };
    published.iter().map(count).collect()
}

/// The number of keys in Redis that match a pattern.
fn keys(redis: &Redis, pattern: &str) -> usize {
    ::redis::cmd("KEYS").arg(pattern).query::<Vec<String>>(&mut redis.connect()).unwrap().len()
}

/// Compares the series that each server answers with what was published.
async fn assert_is_published(servers: &[Server], published: &[Closed]) {
    let (first, last) = (published.first().unwrap(), published.last().unwrap());
    let (from, to) = (seconds(first.start()), seconds(last.start()) + WINDOW.as_secs());
    for server in servers {
        let answer = series(server, from, to).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.json()["counts"], as_answered(published));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_series_is_what_was_published_also_when_the_ids_are_gone() {
    let redis = Redis::start();
    for mode in ["hll", "exact"] {
        let args = ["--mode", mode, "--retention", "4s"];
        let fleet = Fleet::start(2, &redis, mode, &args).await;
        let load = Load::start(fleet.servers[0].address, 4, 0);
        let start = next_window(Duration::ZERO).await;
        let published = fleet.wait_published(start + 3 * WINDOW.as_secs()).await;
        load.stop().await;
        let published: Vec<_> = published.into_values().map(|closed| closed[0].1.clone()).collect();
        assert!(published.iter().map(|closed| closed.unique).sum::<u64>() > 0);
        assert_is_published(&fleet.servers, &published).await;
        let newest = seconds(published.last().unwrap().start());
        let sketches = format!("*:{mode}:{newest}");
        wait_until("the ids to expire", async || keys(&redis, &sketches) == 0).await;
        assert_is_published(&fleet.servers, &published).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standalone_instance_answers_what_it_published() {
    let server = Server::start(&["--window", "2s", "--mode", "exact"]).await;
    let load = Load::start(server.address, 4, 0);
    let published = server.wait_closed(4).await;
    load.stop().await;
    assert!(published.iter().map(|closed| closed.unique).sum::<u64>() > 0);
    let servers = [server];
    assert_is_published(&servers, &published).await;
    // Before the service ran, nothing is known.
    let from = seconds(published[0].start()) - WINDOW.as_secs();
    let answer = series(&servers[0], from, from + WINDOW.as_secs()).await.json();
    let unknown =
        json!({ "timestamp": window(from).to_string(), "unique_request_count": 0, "complete": false });
    assert_eq!(answer["counts"], json!([unknown]));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_running_window_is_counted_so_far() {
    let redis = Redis::start();
    for args in [&["--window", "24h"][..], &["--window", "24h", "--redis-url", &redis.url()]] {
        let server = Server::start(&[args, &["--mode", "exact"]].concat()).await;
        let midnight = seconds(std::time::SystemTime::now()) / 86_400 * 86_400;
        for id in [1, 2, 2, 3] {
            assert_eq!(server.get(&format!("/api/verve/accept?id={id}")).await.body, "ok");
        }
        // Up to the end of the window, within it, and far behind it.
        for to in [midnight + 86_400, midnight + 1, 253_402_300_799] {
            let answer = series(&server, midnight, to).await.json();
            let count = &answer["counts"][0];
            assert_eq!((&count["unique_request_count"], &count["complete"]), (&json!(3), &json!(false)));
            assert_eq!(answer["from"], count["timestamp"]);
            assert_eq!((&answer["step"], &answer["step_seconds"]), (&json!("window"), &json!(86_400)));
            assert_eq!((&answer["mode"], &answer["standard_error"]), (&json!("exact"), &json!(0.0)));
        }
        let days = series(&server, midnight - 35 * 86_400, midnight).await.json();
        assert_eq!(days["counts"].as_array().unwrap().len(), 35);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_that_is_not_sound_is_refused_with_the_reason() {
    let server = Server::start(&["--window", "10s"]).await;
    let now = seconds(std::time::SystemTime::now());
    let start = now / 10 * 10 - 100;
    let old = now - 40 * 86_400;
    let before = |seconds: u64| {
        let window = "10s".parse::<WindowLength>().unwrap().starting_at(seconds);
        window.to_string()
    };
    let aligned =
        format!("from is not the start of a window: {} and {} are", before(start), before(start + 10));
    let aligned_to =
        format!("to is not the start of a window: {} and {} are", before(start), before(start + 10));
    let (hour, day) = (now / 3_600 * 3_600, now / 86_400 * 86_400);
    let aligned_hour =
        format!("from is not the start of an hour: {} and {} are", before(hour), before(hour + 3_600));
    let too_many = "the range has 1501 steps: at most 1500 are answered";
    let not_a_time = "from is not a time: write 2026-11-28T14:00:00Z, or seconds since 1970";
    for (query, reason, detail) in [
        (String::new(), "invalid_range", "from is missing"),
        (format!("from={start}"), "invalid_range", "to is missing"),
        (format!("from={start}&to={start}&from={start}"), "invalid_range", "from is given twice"),
        (format!("from={start}&to={start}"), "invalid_range", "to is not after from"),
        (format!("from={start}&to={}", start - 10), "invalid_range", "to is not after from"),
        (format!("from={}&to={now}", start + 1), "invalid_range", &aligned),
        (format!("from={start}&to={}", start + 9), "invalid_range", &aligned_to),
        (format!("from={}.5&to={now}", &before(start)[..19]), "invalid_range", not_a_time),
        (format!("from={}.5Z&to={now}", &before(start)[..19]), "invalid_range", &aligned),
        (format!("from=&to={now}"), "invalid_range", not_a_time),
        (format!("from=yesterday&to={now}"), "invalid_range", not_a_time),
        (format!("from=-10&to={now}"), "invalid_range", not_a_time),
        (format!("from=%FF&to={now}"), "invalid_range", not_a_time),
        (format!("from=99999999999999999999&to={now}"), "invalid_range", not_a_time),
        (format!("from=253402300800&to={now}"), "invalid_range", not_a_time),
        (format!("from={}&to={start}", start - 15_010), "invalid_range", too_many),
        (format!("from={start}&to={now}&step=minute"), "invalid_range", "step is not window, hour or day"),
        (format!("from={}&to={now}&step=hour", hour + 10), "invalid_range", &aligned_hour),
        (
            format!("from={}&to={now}&step=day", day + 3_600),
            "invalid_range",
            "from is not the start of a day",
        ),
        (
            format!("from={}&to={now}&step=hour", hour - 1_500 * 3_600),
            "invalid_range",
            "the range has 1501 steps",
        ),
        (format!("from={}&to={day}&step=day", day - 100 * 86_400), "range_not_kept", "nothing is kept of "),
        (
            format!("from={}&to={day}&step=day&counter=a", day - 86_400),
            "range_not_kept",
            "nothing is kept of ",
        ),
        (
            format!("from={}&to={}&step=hour", hour + 7_200, hour + 10_800),
            "invalid_range",
            "from is in the future",
        ),
        (format!("from={start}&to={now}&counter=a"), "invalid_range", "counters have no counts by window"),
        (format!("from={}&to={}", now + 3_600, now + 7_200), "invalid_range", "from is in the future"),
        (
            format!("from={}&to={}", old - old % 10, old - old % 10 + 10),
            "range_not_kept",
            "nothing is kept of ",
        ),
    ] {
        let answer = server.get(&format!("{SERIES}?{query}")).await;
        let found = (answer.status, answer.body.as_str(), answer.header("failure-reason"));
        assert_eq!(found, (400, "failed", Some(reason)), "{query}");
        let found = answer.header("failure-detail").unwrap();
        assert!(found.starts_with(detail), "{query}: {found}");
    }
    // A `+` need not be encoded.
    let plus = before(start).replace('Z', "%2B00:00");
    for from in [before(start), plus.clone(), plus.replace("%2B", "+"), before(start).replace('Z', "-00:00")]
    {
        let answer = server.get(&format!("{SERIES}?from={from}&to={}", start + 10)).await;
        assert_eq!(answer.json()["from"], json!(before(start)), "{from}");
    }
    // `step` may be left out.
    assert_eq!(
        server.get(&format!("{SERIES}?from={start}&to={}", start + 10)).await.json()["step"],
        json!("window")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_series_of_a_day_expires_and_zero_keeps_none() {
    let redis = Redis::start();
    let kept = Fleet::start(1, &redis, "kept", &["--keep-days", "1day", "--keep-hours", "0s"]).await;
    let none = Fleet::start(1, &redis, "none", &["--keep-days", "0s", "--keep-hours", "0s"]).await;
    let start = next_window(Duration::ZERO).await;
    kept.wait_published(start).await;
    none.wait_published(start).await;
    let day = start / 86_400 * 86_400;
    let expires: i64 =
        ::redis::cmd("PTTL").arg(format!("{{kept}}:series:{day}")).query(&mut redis.connect()).unwrap();
    // Windows of two seconds: 100 000 of them are fewer than those of two days.
    let left = (day + 2 * 86_400 - start).cast_signed();
    assert!(((left - 60) * 1000..=left * 1000).contains(&expires), "{expires}");
    assert_eq!(keys(&redis, "{none}:series:*"), 0);
    let answer = series(&none.servers[0], start, start + WINDOW.as_secs()).await;
    assert_eq!(answer.header("failure-reason"), Some("range_not_kept"));
}

/// Another program wrote to the key. That must not hold up any window.
#[tokio::test(flavor = "multi_thread")]
async fn a_series_that_is_overwritten_is_put_aside() {
    let redis = Redis::start();
    let fleet = Fleet::start(1, &redis, "aside", &[]).await;
    let start = next_window(Duration::ZERO).await;
    fleet.wait_published(start).await;
    let key = format!("{{aside}}:series:{}", start / 86_400 * 86_400);
    let () = ::redis::cmd("SET").arg(&key).arg("something else").query(&mut redis.connect()).unwrap();
    let aside = format!("{key}:damaged");
    wait_until("the key to be put aside", async || keys(&redis, &aside) == 1).await;
    let last = *fleet.published().last_key_value().unwrap().0;
    let later = last + 2 * WINDOW.as_secs();
    fleet.wait_published(later).await;
    let answer = series(&fleet.servers[0], start, later + WINDOW.as_secs()).await.json();
    let counts = answer["counts"].as_array().unwrap();
    let is_complete = |count: Option<&Value>| count.unwrap()["complete"].clone();
    assert_eq!(
        (is_complete(counts.first()), is_complete(counts.last())),
        (json!(false), json!(true)),
        "{answer}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_series_is_not_answered_while_redis_is_away() {
    let mut redis = Redis::start();
    let fleet = Fleet::start(1, &redis, "away", &[]).await;
    let start = next_window(Duration::ZERO).await;
    fleet.wait_published(start).await;
    redis.kill();
    let server = &fleet.servers[0];
    let away = async || series(server, start, start + WINDOW.as_secs()).await;
    wait_until("the service to notice", async || away().await.status == 503).await;
    assert_eq!(away().await.header("failure-reason"), Some("store_unavailable"));
    redis.restart();
    wait_until("Redis to be back", async || away().await.status == 200).await;
}

/// Times near the running window, far from it, and what is no time.
fn time() -> impl Strategy<Value = String> {
    prop_oneof![
        (999_900_u64..1_000_100).prop_map(|second| second.to_string()),
        any::<u64>().prop_map(|second| second.to_string()),
        "1970-01-12T13:[0-9]{2}:[0-9]{2}(\\.[0-9]{1,9})?(Z|[+-][0-9]{2}:[0-9]{2})",
        "[0-9:TZ+.-]{0,30}",
        ".{0,20}",
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever a client writes.
    #[test]
    fn a_range_that_is_taken_has_only_whole_windows(from in time(), to in time(), length in prop::sample::select(vec![1, 10, 60, 3_600, 86_400])) {
        let running = WindowLength::new(Duration::from_secs(length)).unwrap().starting_at(1_000_000);
        if let (Some(from), Some(to)) = (Moment::parse(&from), Moment::parse(&to)) {
            match Range::new(from, to, running) {
                Ok(Range { from, to }) => {
                    prop_assert!(from < to && to <= running.next());
                    prop_assert!(from.unix_seconds() % length == 0 && to.unix_seconds() % length == 0);
                }
                Err(why) => prop_assert!(why.to_string().is_ascii()),
            }
        }
    }
}

/// A window is closed after its hour or day has ended. What is not kept is not called empty.
#[tokio::test(flavor = "multi_thread")]
async fn hours_that_are_not_kept_have_no_series() {
    let redis = Redis::start();
    let server = Server::start(&["--redis-url", &redis.url(), "--window", "1s", "--keep-hours", "0s"]).await;
    let now = seconds(std::time::SystemTime::now());
    let (hour, day) = (now / 3_600 * 3_600, now / 86_400 * 86_400);
    let refused = server.get(&format!("{SERIES}?from={hour}&to={now}&step=hour")).await;
    assert_eq!(refused.header("failure-reason"), Some("range_not_kept"), "{refused:?}");
    assert_eq!(server.get("/api/verve/accept?id=1").await.body, "ok");
    wait_until("the day to have the id", async || {
        let days = server.get(&format!("{SERIES}?from={day}&to={}&step=day", day + 2 * 86_400)).await.json();
        days["counts"].as_array().unwrap().iter().any(|day| day["unique_request_count"] == json!(1))
    })
    .await;
    let hours: Vec<String> = ::redis::cmd("KEYS").arg("*:hour:*").query(&mut redis.connect()).unwrap();
    assert!(hours.is_empty(), "{hours:?}");
}
