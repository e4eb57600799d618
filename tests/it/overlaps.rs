//! `/api/verve/overlap`: how many ids counters have in common.

use std::ops::Range;
use std::pin::pin;
use std::time::Duration;

use futures_util::future::{Either, select};
use headcount::hll;
use serde_json::{Value, json};

use crate::check_command::RIGHTS;
use crate::support::fleet::{Fleet, estimate, next_window, sketch_of, wait_for_room_in_the_hour};
use crate::support::http::Connection;
use crate::support::proxy::Proxy;
use crate::support::redis::{Flavour, Redis};
use crate::support::server::Server;
use crate::support::wait_until;

const PATH: &str = "/api/verve/overlap";

/// Sends ids to a counter, or without a name only to the total.
async fn accept(server: &Server, counter: &str, ids: Range<u64>) {
    let mut connection = Connection::open(server.address).await.unwrap();
    for some in ids.collect::<Vec<_>>().chunks(50_000) {
        let ids: Vec<_> = some.iter().map(|id| json!({ "id": id, "counters": [counter] })).collect();
        let answer = connection.post("application/json", json!(ids).to_string().as_bytes()).await.unwrap();
        assert_eq!(answer.body, "ok", "{answer:?}");
    }
}

async fn overlap(server: &Server, query: &str) -> Value {
    let answer = server.get(&format!("{PATH}?{query}")).await;
    assert_eq!(answer.status, 200, "{query}: {answer:?}");
    answer.json()
}

/// What two sketches of these ids have in common, as the service answers it.
fn expected(one: Range<u64>, other: Range<u64>) -> (u64, f64, f64) {
    let hll::Overlap { intersection, standard_error, jaccard, .. } =
        hll::Overlap::of(&sketch_of(one), &sketch_of(other));
    (intersection, (10.0 * standard_error).round() / 10.0, (1e6 * jaccard).round() / 1e6)
}

fn found(common: &Value) -> (u64, f64, f64) {
    let number = |field: &str| common[field].as_f64().unwrap();
    (common["intersection"].as_u64().unwrap(), number("intersection_standard_error"), number("jaccard"))
}

/// Alone, and two instances with Redis: each counter has ids from both.
#[tokio::test(flavor = "multi_thread")]
async fn counters_of_the_running_window_are_compared() {
    let redis = Redis::start();
    let url = redis.url();
    let day = ["--window", "24h"];
    let together = [&day[..], &["--redis-url", &url, "--namespace", "overlap"]].concat();
    let alone = Server::start(&day).await;
    let (one, other) = (Server::start(&together).await, Server::start(&together).await);
    for servers in [[&alone, &alone], [&one, &other]] {
        accept(servers[0], "a", 0..12_000).await;
        accept(servers[1], "a", 8_000..20_000).await;
        accept(servers[0], "b", 15_000..24_000).await;
        accept(servers[1], "b", 20_000..40_000).await;
        accept(servers[1], "c", 0..100).await;
        for server in servers {
            let answer = overlap(server, "counter=a&counter=b").await;
            assert_eq!(found(&answer), expected(0..20_000, 15_000..40_000), "{answer}");
            // 5 000 ids are in both: within four standard errors.
            let (intersection, error, _) = found(&answer);
            assert!((intersection as f64 - 5_000.0).abs() < 4.0 * error, "{answer}");
            assert_eq!(answer["union"], estimate(0..40_000));
            assert_eq!(
                answer["counters"],
                json!([
                    { "counter": "a", "unique_request_count": estimate(0..20_000) },
                    { "counter": "b", "unique_request_count": estimate(15_000..40_000) },
                ])
            );
            assert_eq!((&answer["mode"], &answer["complete"]), (&json!("hll"), &json!(false)));
            assert!(answer.get("pairs").is_none(), "{answer}");

            let answer = overlap(server, "counter=c&counter=a&counter=nobody").await;
            assert_eq!(answer["union"], estimate(0..20_000));
            let pairs = answer["pairs"].as_array().unwrap();
            let names: Vec<_> = pairs.iter().map(|pair| pair["counters"].clone()).collect();
            assert_eq!(names, [json!(["c", "a"]), json!(["c", "nobody"]), json!(["a", "nobody"])]);
            assert_eq!(found(&pairs[0]), expected(0..100, 0..20_000));
            // All of c is in a.
            assert_eq!(pairs[0]["intersection"], estimate(0..100));
            assert_eq!(
                (pairs[1]["intersection"].as_u64(), pairs[1]["jaccard"].as_f64()),
                (Some(0), Some(0.0))
            );
            assert!(answer.get("intersection").is_none(), "{answer}");
        }
    }
}

/// A range: an id of several windows is one, whichever instance took it.
#[tokio::test(flavor = "multi_thread")]
async fn an_hour_of_counters_is_compared() {
    let redis = Redis::start();
    wait_for_room_in_the_hour().await;
    let fleet = Fleet::start(2, &redis, "hours", &[]).await;
    let first = next_window(Duration::from_millis(100)).await;
    accept(&fleet.servers[0], "a", 0..2_000).await;
    accept(&fleet.servers[1], "b", 1_000..3_000).await;
    let second = next_window(Duration::from_millis(100)).await;
    accept(&fleet.servers[1], "a", 1_500..4_000).await;
    next_window(Duration::from_millis(100)).await;
    let (hour, rolled) = (first / 3_600 * 3_600, "{hours}:rolled");
    wait_until("both windows to be rolled up", async || {
        let last: Option<u64> =
            ::redis::cmd("HGET").arg(rolled).arg("window").query(&mut redis.connect()).unwrap();
        last >= Some(second)
    })
    .await;
    for server in &fleet.servers {
        let answer = overlap(server, &format!("counter=a&counter=b&from={hour}&to={}", hour + 3_600)).await;
        assert_eq!(found(&answer), expected(0..4_000, 1_000..3_000), "{answer}");
        // The service was not there when the hour began.
        assert_eq!(answer["complete"], false);
    }
}

/// In mode `exact` the answer is the truth: from one set, from stripes, and from Redis, if it can compare sets.
#[tokio::test(flavor = "multi_thread")]
async fn exact_counters_are_compared_without_an_error() {
    let exact = ["--window", "24h", "--mode", "exact", "--retention", "48h"];
    let mut servers = vec![(Server::start(&exact).await, true)];
    let all: Vec<_> =
        Flavour::at_hand().into_iter().map(|flavour| (flavour, Redis::start_with(flavour, &[]))).collect();
    for (flavour, redis) in &all {
        let url = redis.url();
        let args = [&exact[..], &["--redis-url", &url]].concat();
        servers.push((Server::start(&args).await, *flavour != Flavour::Redis62));
    }
    for (server, compares) in servers {
        accept(&server, "a", 0..10_000).await;
        accept(&server, "b", 7_000..30_000).await;
        accept(&server, "few", 29_999..30_100).await;
        // These are in all three.
        accept(&server, "few", 9_000..9_010).await;
        if !compares {
            let answer = server.get(&format!("{PATH}?counter=a&counter=b")).await;
            assert_eq!(answer.header("failure-reason"), Some("not_available"), "{answer:?}");
            assert!(answer.header("failure-detail").unwrap().contains("SINTERCARD"), "{answer:?}");
            continue;
        }
        for (one, other, union, common) in [
            ("a", "b", 30_000, 3_000),
            ("b", "few", 23_100, 11),
            ("few", "a", 10_101, 10),
            ("a", "nobody", 10_000, 0),
        ] {
            for (one, other) in [(one, other), (other, one)] {
                let answer = overlap(&server, &format!("counter={one}&counter={other}")).await;
                let found = (&answer["union"], &answer["intersection"]);
                assert_eq!(found, (&json!(union), &json!(common)), "{answer}");
                let rest = (&answer["intersection_standard_error"], &answer["mode"], &answer["complete"]);
                assert_eq!(rest, (&json!(0.0), &json!("exact"), &json!(false)));
            }
        }
        let answer = overlap(&server, "counter=few&counter=b&counter=nobody&counter=a").await;
        let counts: Vec<_> =
            answer["counters"].as_array().unwrap().iter().map(|of| &of["unique_request_count"]).collect();
        assert_eq!(counts, [111, 23_000, 0, 10_000]);
        assert_eq!((&answer["union"], answer.get("intersection")), (&json!(30_100), None), "{answer}");
        let pairs = answer["pairs"].as_array().unwrap().iter();
        let pairs: Vec<_> =
            pairs.map(|pair| (&pair["counters"][0], &pair["counters"][1], &pair["intersection"])).collect();
        let expected = json!([
            ["few", "b", 11],
            ["few", "nobody", 0],
            ["few", "a", 10],
            ["b", "nobody", 0],
            ["b", "a", 3_000],
            ["nobody", "a", 0]
        ]);
        assert_eq!(json!(pairs), expected);
        let answer = server.get(&format!("{PATH}?counter=a&counter=b&from=0&to=86400")).await;
        assert_eq!(answer.header("failure-reason"), Some("not_available"), "{answer:?}");
    }
}

/// Redis serves nobody else while it compares. So it does not compare sets that are too large.
#[tokio::test(flavor = "multi_thread")]
async fn large_exact_counters_are_not_compared_by_redis() {
    let redis = Redis::start();
    let server = Server::start(&["--window", "24h", "--mode", "exact", "--redis-url", &redis.url()]).await;
    accept(&server, "a", 0..100_001).await;
    accept(&server, "b", 100_000..200_001).await;
    accept(&server, "few", 0..10).await;
    accept(&server, "some", 0..33_000).await;
    for query in ["counter=few&counter=a", "counter=few&counter=some&counter=nobody"] {
        assert_eq!(overlap(&server, query).await["counters"][0]["unique_request_count"], 10);
    }
    for query in ["counter=a&counter=b", "counter=few&counter=a&counter=nobody"] {
        let answer = server.get(&format!("{PATH}?{query}")).await;
        assert_eq!(answer.header("failure-reason"), Some("not_available"), "{answer:?}");
        assert!(answer.header("failure-detail").unwrap().contains("100000"), "{answer:?}");
    }
}

/// The documented user has only what all instances need. Redis 6.2 does not know one of the other rights.
#[tokio::test(flavor = "multi_thread")]
async fn exact_counters_are_compared_with_two_rights_more() {
    for (more, compares) in [(&["+sintercard", "+sunion"][..], true), (&["+sintercard"], false), (&[], false)]
    {
        let rights = RIGHTS.split_whitespace().chain(more.iter().copied());
        let user: Vec<_> = ["--user", "headcount", "on", ">secret"].into_iter().chain(rights).collect();
        let redis = Redis::start_with(Flavour::Debian, &user);
        let url = redis.url().replace("//", "//headcount:secret@");
        let server = Server::start(&["--window", "24h", "--mode", "exact", "--redis-url", &url]).await;
        accept(&server, "a", 0..10).await;
        let answer = server.get(&format!("{PATH}?counter=a&counter=b&counter=c")).await;
        let why = answer.header("failure-detail");
        assert_eq!(
            why.map(|why| why.contains("+sintercard or +sunion")),
            (!compares).then_some(true),
            "{answer:?}"
        );
        assert_eq!(answer.status, if compares { 200 } else { 400 }, "{answer:?}");
    }
}

/// A query keeps a thread busy and sketches in memory. So only some are answered at a time.
#[tokio::test(flavor = "multi_thread")]
async fn no_more_than_max_queries_are_answered_at_a_time() {
    let redis = Redis::start();
    let proxy = Proxy::start(redis.address()).await;
    let server = Server::start(&[
        "--window",
        "24h",
        "--max-queries",
        "1",
        "--redis-timeout",
        "1min",
        "--redis-url",
        &proxy.url(),
    ])
    .await;
    accept(&server, "a", 0..100).await;
    let overlap = format!("{PATH}?counter=a&counter=b");
    for other in [&overlap, "/api/verve/sketch?counter=a"] {
        // On a busy machine both may have been refused, because the answer took too long.
        wait_until("one to be refused and the other answered", async || {
            proxy.hold("GET");
            let (one, other) = (pin!(server.get(&overlap)), pin!(server.get(other)));
            let (Either::Left((refused, waiting)) | Either::Right((refused, waiting))) =
                select(one, other).await;
            proxy.release();
            assert_eq!(
                (refused.status, refused.header("failure-reason")),
                (503, Some("overloaded")),
                "{refused:?}"
            );
            waiting.await.status == 200
        })
        .await;
    }
}

/// The last closed window can be compared while Redis has its sets. An older one is gone.
#[tokio::test(flavor = "multi_thread")]
async fn exact_counters_of_the_last_closed_window_are_compared() {
    let redis = Redis::start();
    let fleet = Fleet::start(1, &redis, "exact", &["--mode", "exact"]).await;
    let server = &fleet.servers[0];
    let ask = async |start: u64| {
        server.get(&format!("{PATH}?counter=a&counter=b&from={start}&to={}", start + 2)).await
    };
    // Another window may be closed before the question comes.
    wait_until("a closed window to be compared", async || {
        let start = next_window(Duration::from_millis(100)).await;
        accept(server, "a", 0..50).await;
        accept(server, "b", 40..60).await;
        fleet.wait_published(start).await;
        let answer = ask(start).await;
        if answer.status != 200 {
            return false;
        }
        let found = answer.json();
        assert_eq!((&found["intersection"], &found["union"]), (&json!(10), &json!(60)));
        wait_until("the window to be an older one", async || {
            ask(start).await.header("failure-reason") == Some("not_available")
        })
        .await;
        true
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_compared_is_refused_with_the_reason() {
    let (hll, exact) = (
        Server::start(&["--window", "24h"]).await,
        Server::start(&["--window", "24h", "--mode", "exact"]).await,
    );
    let too_many = (0..9).map(|number| format!("counter=c{number}")).collect::<Vec<_>>().join("&");
    for (query, reason) in [
        ("", "invalid_parameter"),
        ("counter=a", "invalid_parameter"),
        ("counter=a&counter=a", "invalid_parameter"),
        (&too_many, "invalid_parameter"),
        ("counter=a&counter=_b", "invalid_counter"),
        ("counter=a&counter=", "invalid_counter"),
        ("counter=a&counter=b&from=1", "invalid_range"),
        ("counter=a&counter=b&from=1&to=2", "invalid_range"),
        ("counter=a&counter=b&from=0&to=86400", "range_not_kept"),
        ("counter=a&counter=b&from=0&from=0&to=86400", "invalid_range"),
    ] {
        let answer = hll.get(&format!("{PATH}?{query}")).await;
        assert_eq!(
            (answer.status, answer.header("failure-reason")),
            (400, Some(reason)),
            "{query}: {answer:?}"
        );
    }
    let none = Server::start(&["--max-counters", "0"]).await;
    for (server, reason) in [(&none, "invalid_counter"), (&exact, "not_available")] {
        let answer = server.get(&format!("{PATH}?counter=a&counter=b&from=0&to=86400")).await;
        assert_eq!((answer.status, answer.header("failure-reason")), (400, Some(reason)), "{answer:?}");
        assert!(answer.header("failure-detail").is_some(), "{answer:?}");
    }
    let post = format!("POST {PATH}?counter=a&counter=b HTTP/1.1\r\nhost: test\r\ncontent-length: 0\r\n\r\n");
    let answer = Connection::open(hll.address).await.unwrap().request(post.as_bytes()).await.unwrap();
    assert_eq!((answer.status, answer.header("allow")), (405, Some("GET, HEAD")));
}
