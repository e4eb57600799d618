//! Whatever a client writes as a range, `/api/verve/unique` and `/api/verve/series` answer it, or say why not.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::SystemTime;

use headcount::model::window::WindowLength;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{TestCaseError, TestRunner};
use tokio::sync::Mutex;

use crate::support::fleet::seconds;
use crate::support::http::Connection;
use crate::support::lines;
use crate::support::redis::Redis;
use crate::support::server::Server;

const DAY: u64 = 86_400;
/// Why a range is refused, all with 400.
const REASONS: [&str; 5] =
    ["invalid_range", "range_not_kept", "not_available", "invalid_counter", "invalid_parameter"];

fn one_second() -> WindowLength {
    "1s".parse().unwrap()
}

/// A time around now: in windows, hours or days from it, or a little beside that.
fn time_near(now: u64) -> impl Strategy<Value = String> {
    let unit = prop::sample::select(vec![1, 2, 32, 60, 3_600, DAY]);
    let second = (unit, -60_i64..4).prop_map(move |(unit, steps)| {
        let start = now / unit * unit;
        start.saturating_add_signed(steps * unit.cast_signed())
    });
    (second, 0..8).prop_map(|(second, form)| {
        let time = || one_second().starting_at(second).to_string();
        match form {
            0..4 => second.to_string(),
            4 => time(),
            5 => time().replace('Z', "+00:00"),
            6 => time().replace('Z', ".5Z"),
            _ => time().replace('T', " ").to_lowercase(),
        }
    })
}

fn value(now: u64) -> impl Strategy<Value = String> {
    let words = [
        "",
        "window",
        "hour",
        "day",
        "week",
        "WINDOW",
        "window,hour",
        "campaign-1",
        "_other",
        "0",
        "-1",
        "1e9",
        "NaN",
        "now",
        "253402300799",
        "253402300800",
        "18446744073709551615",
        "18446744073709551616",
        "9999-12-31T23:59:60Z",
        "1969-12-31T23:59:59Z",
        "2026-02-29T00:00:00Z",
        "2026-03-29T02:30:00+02:00",
        "0000-00-00T00:00:00Z",
    ];
    prop_oneof![
        6 => time_near(now),
        4 => prop::sample::select(words.to_vec()).prop_map(str::to_owned),
        1 => any::<u64>().prop_map(|second| second.to_string()),
        1 => "[0-9TZ:.+-]{0,40}",
        1 => any::<String>(),
        1 => "x{200,600}",
    ]
}

/// What may not be in a query is encoded, and sometimes everything.
fn encoded(text: &str, all: bool) -> String {
    let is_plain = |byte: u8| !all && (byte.is_ascii_alphanumeric() || b"-._~:+@!$'()*,;/?".contains(&byte));
    let encode = |byte| if is_plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    text.bytes().map(encode).collect()
}

/// A name, and a value for it. Mostly with both ends of a range.
fn target(now: u64) -> impl Strategy<Value = String> {
    let others = prop::sample::select(vec!["step", "counter", "from", "to", "id", "", "From"]);
    let both = (time_near(now), time_near(now));
    let both = both.prop_map(|(from, to)| vec![("from", from), ("to", to)]);
    let both = prop_oneof![4 => both, 1 => Just(Vec::new())];
    let step = prop::option::weighted(0.3, prop::sample::select(vec!["window", "hour", "day"]));
    let more =
        prop_oneof![3 => vec((others.clone(), value(now)), 0..1), 2 => vec((others, value(now)), 0..4)];
    let path = prop::sample::select(vec!["unique", "series"]);
    (path, both, step, more, any::<bool>(), "(|&|%|%f|&=&)").prop_map(|(path, both, step, more, all, end)| {
        let step = step.map(|step| ("step", step.to_owned()));
        let pairs = both.into_iter().chain(step).chain(more);
        let pairs: Vec<_> = pairs.map(|(name, value)| format!("{name}={}", encoded(&value, all))).collect();
        format!("/api/verve/{path}?{}{end}", pairs.join("&"))
    })
}

/// Sends many queries. Returns how many got each answer.
async fn ask(server: &Server, cases: u32) -> BTreeMap<String, u32> {
    let connection = Mutex::new(Connection::open(server.address).await.unwrap());
    let answers = RefCell::new(BTreeMap::<String, u32>::new());
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    let asked = TestRunner::new(config).run(&target(seconds(SystemTime::now())), |target| {
        let get = async { connection.lock().await.get(&target).await };
        let answer = tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(get));
        let answer = answer.map_err(|error| TestCaseError::fail(format!("{error:?}: {target}")))?;
        let reason = answer.header("failure-reason").unwrap_or("none");
        let is_refused = answer.status == 400 && answer.body == "failed" && REASONS.contains(&reason);
        let is_answered = answer.status == 200 && reason == "none";
        prop_assert!(is_answered || is_refused, "{target}: {answer:?}");
        *answers.borrow_mut().entry(reason.to_owned()).or_default() += 1;
        Ok(())
    });
    asked.unwrap_or_else(|error| panic!("{error}"));
    answers.into_inner()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_range_is_answered_or_refused_with_a_reason() {
    let redis = Redis::start();
    let url = redis.url();
    let mut all = BTreeMap::<String, u32>::new();
    for args in [
        &["--window", "2s"][..],
        // An hour has no whole number of windows.
        &["--window", "32s"],
        &["--window", "24h"],
        &["--window", "1s", "--mode", "exact"],
        &["--window", "2s", "--shards", "4", "--redis-url", &url, "--namespace", "hll"],
        &["--window", "60s", "--mode", "exact", "--redis-url", &url, "--namespace", "exact"],
        &["--window", "2s", "--keep-hours", "0s", "--keep-days", "0s"],
    ] {
        let server = Server::start(args).await;
        let mut connection = Connection::open(server.address).await.unwrap();
        assert_eq!(connection.post("text/plain", lines(0..1_000).as_bytes()).await.unwrap().body, "ok");
        let answers = ask(&server, 1_500).await;
        println!("{args:?}: {answers:?}");
        for (reason, number) in answers {
            *all.entry(reason).or_default() += number;
        }
    }
    // The generator does reach what it is meant to reach.
    for reason in ["none", "invalid_range", "range_not_kept", "not_available"] {
        assert!(all[reason] > 100, "{reason}: {all:?}");
    }
}
