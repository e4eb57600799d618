//! Counters: numbers that clients name, in a service that counts in memory.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::support::http::{Answer, Connection};
use crate::support::redis::Redis;
use crate::support::server::Server;
use crate::support::wait_until;

async fn serve(args: &[&str]) -> Server {
    Server::start(&[&["--window", "24h"], args].concat()).await
}

async fn current(server: &Server, counter: &str) -> u64 {
    let answer = server.get(&format!("/api/verve/unique?counter={counter}")).await.json();
    assert_eq!(answer["counter"], json!(counter));
    answer["current"]["unique_request_count"].as_u64().unwrap()
}

async fn accept(connection: &mut Connection, query: &str) {
    let answer = connection.get(&format!("/api/verve/accept?{query}")).await.unwrap();
    assert_eq!((answer.status, answer.body.as_str()), (200, "ok"), "{query}");
}

/// The reason and the detail of a refusal.
fn refusal(answer: &Answer) -> (u16, Option<&str>, &str) {
    (answer.status, answer.header("failure-reason"), answer.header("failure-detail").unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_counts_in_the_total_and_in_each_counter() {
    for mode in ["hll", "exact"] {
        let server = serve(&["--mode", mode]).await;
        let mut connection = Connection::open(server.address).await.unwrap();
        accept(&mut connection, "id=1&counter=a").await;
        accept(&mut connection, "id=1&counter=a&counter=b").await;
        accept(&mut connection, "id=2&counter=a&counter=a").await;
        accept(&mut connection, "counter=%61&id=3&counter=A:/@-_.9").await;
        accept(&mut connection, "id=4").await;
        for (counter, count) in [("a", 3), ("b", 1), ("A:/@-_.9", 1), ("unknown", 0), ("_other", 0)] {
            assert_eq!(current(&server, counter).await, count, "{counter}");
        }
        assert_eq!(server.get("/api/verve/unique").await.json()["current"]["unique_request_count"], json!(4));
        let answer = server.get("/api/verve/unique?counter=a").await.json();
        let names: Vec<_> = answer.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(names, ["counter", "current", "last", "mode", "standard_error", "window_seconds"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_are_not_sound_are_refused() {
    let server = serve(&[]).await;
    let mut connection = Connection::open(server.address).await.unwrap();
    let (longest, too_long) = ("x".repeat(128), "x".repeat(129));
    accept(&mut connection, &format!("id=1&counter={longest}")).await;
    let eight = (0..8).fold(String::new(), |mut query, n| {
        write!(query, "&counter=n{n}").unwrap();
        query
    });
    accept(&mut connection, &format!("id=1{eight}&counter=n0")).await;
    let bad = ["", &too_long, "_other", "_x", "a+b", "a%20b", "a%00", "%C3%A9", "%FF", "a,b", "a%25"];
    let bad = bad.map(|name| (format!("id=1&counter=ok&counter={name}"), "a name has 1 to 128 bytes"));
    let nine = (format!("id=1{eight}&counter=n8"), "at most 8 different counters");
    for (query, detail) in bad.into_iter().chain([nine]) {
        let answer = connection.get(&format!("/api/verve/accept?{query}")).await.unwrap();
        let (status, reason, said) = refusal(&answer);
        assert_eq!((status, reason), (400, Some("invalid_counter")), "{query}");
        assert!(said.contains(detail), "{query}: {said}");
        let (_, names) = query.split_once('&').unwrap();
        let request = format!(
            "POST /api/verve/accept?{names} HTTP/1.1\r\nhost: x\r\ncontent-type: text/plain\r\ncontent-length: 1\r\n\r\n1"
        );
        let answer = connection.request(request.as_bytes()).await.unwrap();
        assert_eq!(refusal(&answer).1, Some("invalid_counter"), "{query}");
    }
    assert_eq!(current(&server, "ok").await, 0, "a refused request counts nothing");
    assert_eq!(refusal(&server.get("/api/verve/unique?counter=_x").await).1, Some("invalid_counter"));
    let twice = server.get("/api/verve/unique?counter=a&counter=b").await;
    assert_eq!(refusal(&twice), (400, Some("invalid_parameter"), "counter is given twice"));
}

#[tokio::test(flavor = "multi_thread")]
async fn where_there_are_no_counters_their_names_are_refused() {
    let redis = Redis::start();
    let url = redis.url();
    for (args, detail) in [
        (["--max-counters", "0"], "counters are off: --max-counters is 0"),
        (["--redis-url", &*url], "counters are not available with --redis-url"),
    ] {
        let server = serve(&args).await;
        for target in ["accept?id=1&counter=a", "unique?counter=a", "counters"] {
            let answer = server.get(&format!("/api/verve/{target}")).await;
            assert_eq!(refusal(&answer), (400, Some("invalid_counter"), detail), "{target}");
        }
        assert_eq!(server.get("/api/verve/accept?id=1").await.body, "ok");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_query_of_a_post_names_counters_of_all_its_ids() {
    let server = serve(&[]).await;
    let mut connection = Connection::open(server.address).await.unwrap();
    let body: String = (0..3_000).fold(String::new(), |body, id| body + &format!("{id}\n"));
    let request = format!(
        "POST /api/verve/accept?counter=a&counter=b HTTP/1.1\r\nhost: x\r\ncontent-type: text/plain\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    assert_eq!(connection.request(request.as_bytes()).await.unwrap().body, "ok");
    let total = server.get("/api/verve/unique").await.json()["current"]["unique_request_count"].as_u64();
    for counter in ["a", "b"] {
        assert_eq!(Some(current(&server, counter).await), total, "the same registers, the same estimate");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_element_of_a_body_may_name_its_counters() {
    for (ids, id) in [("integer", "7"), ("text", r#""seven""#)] {
        let server = serve(&["--ids", ids, "--mode", "exact"]).await;
        let mut connection = Connection::open(server.address).await.unwrap();
        let elements = [
            format!(r#"{{"id":{id},"counters":["a"]}}"#),
            "8".to_owned(),
            r#"{"counters":["b","a","b"],"id":9}"#.to_owned(),
            r#"{"id":10,"counters":[]}"#.to_owned(),
        ];
        for (content_type, body) in [
            ("application/x-ndjson", elements.join("\n")),
            ("application/json", format!("[{}]", elements.join(","))),
        ] {
            let request = format!(
                "POST /api/verve/accept?counter=all HTTP/1.1\r\nhost: x\r\ncontent-type: {content_type}\r\n\
                 content-length: {}\r\n\r\n{body}",
                body.len()
            );
            assert_eq!(connection.request(request.as_bytes()).await.unwrap().body, "ok", "{body}");
            for (counter, count) in [("all", 4), ("a", 2), ("b", 1)] {
                assert_eq!(current(&server, counter).await, count, "{content_type}: {counter}");
            }
        }
        for (body, reason, line) in [
            (r#"[1,{"id":2,"counter":["a"]}]"#, "invalid_body", Some("2")),
            (r#"[1,{"id":2,"counters":["_a"]}]"#, "invalid_counter", Some("2")),
            (r#"[{"id":1.5,"counters":[]}]"#, "invalid_id", Some("1")),
        ] {
            let answer = connection.post("application/json", body.as_bytes()).await.unwrap();
            let refused = (answer.status, answer.header("failure-reason"), answer.header("failure-line"));
            assert_eq!(refused, (400, Some(reason), line), "{body}");
        }
        let total = server.get("/api/verve/unique").await.json()["current"]["unique_request_count"].clone();
        assert_eq!(total, json!(4), "a refused body counts nothing");
    }
}

/// Sends ids until one window has all of so many counters, and returns its list.
async fn list_of_closed(server: &Server, queries: &[&str], names: u64, list: &str) -> Value {
    let mut connection = Connection::open(server.address).await.unwrap();
    for _ in 0..50 {
        for query in queries {
            accept(&mut connection, query).await;
        }
        let closed = server.closed().len();
        server.wait_closed(closed + 1).await;
        let answer = server.get(&format!("/api/verve/counters?{list}")).await.json();
        if answer["total_counters"].as_u64() == Some(names) {
            return answer;
        }
    }
    panic!("no window had all");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_counters_of_a_closed_window_are_listed() {
    let server = Server::start(&["--window", "1s", "--mode", "exact"]).await;
    let empty = server.get("/api/verve/counters").await.json();
    if empty["timestamp"] == Value::Null {
        assert_eq!((&empty["counters"], &empty["total_counters"]), (&json!([]), &json!(0)));
    }
    let queries = ["id=1&counter=c", "id=1&counter=b", "id=1&counter=b2", "id=1&counter=a", "id=2&counter=c"];
    let names = |answer: &Value| -> Vec<String> {
        let counters = answer["counters"].as_array().unwrap();
        counters.iter().map(|counter| counter["counter"].as_str().unwrap().to_owned()).collect()
    };
    let answer = list_of_closed(&server, &queries, 4, "order=name&limit=2").await;
    assert_eq!((names(&answer), &answer["window_seconds"]), (vec!["a".into(), "b".into()], &json!(1)));
    assert_eq!(answer["counters"][0]["unique_request_count"], json!(1));
    let answer = list_of_closed(&server, &queries, 4, "order=name&after=b").await;
    assert_eq!(names(&answer), ["b2", "c"]);
    let answer = list_of_closed(&server, &queries, 2, "prefix=b").await;
    assert_eq!(names(&answer), ["b", "b2"]);
    // Most ids first, and equal ones by name. A window may end between the ids of c.
    let mut most_first = Vec::new();
    while most_first != ["c", "a", "b"] {
        let answer = list_of_closed(&server, &queries, 4, "limit=3").await;
        most_first = names(&answer);
        assert!(most_first == ["c", "a", "b"] || most_first == ["a", "b", "b2"], "{answer}");
    }
    for (query, detail) in [
        ("order=size", "order is count or name"),
        ("limit=0", "limit is a whole number from 1 to 1000"),
        ("limit=%2B5", "limit is a whole number from 1 to 1000"),
        ("limit=1001", "limit is a whole number from 1 to 1000"),
        ("limit=1&limit=2", "a parameter is given twice"),
        ("after=a", "after needs order=name"),
    ] {
        let answer = server.get(&format!("/api/verve/counters?{query}")).await;
        assert_eq!(refusal(&answer), (400, Some("invalid_parameter"), detail), "{query}");
    }
}

/// 64 connections and 200 counters, over some windows: no id is lost between a window's counters and its total, or between two
/// windows.
#[tokio::test(flavor = "multi_thread")]
async fn each_counter_has_the_ids_of_its_window() {
    const CONNECTIONS: u64 = 64;
    const COUNTERS: u64 = 200;
    let server = Server::start(&["--window", "4s", "--mode", "exact"]).await;
    let address = server.address;
    // Every id is sent once, so the counts of all windows add up to what was sent, for each counter and for the total.
    let sent: Vec<_> = (0..CONNECTIONS)
        .map(|connection_number| {
            tokio::spawn(async move {
                let mut connection = Connection::open(address).await.unwrap();
                let mut sent = BTreeMap::<u64, u64>::new();
                let begun = std::time::Instant::now();
                let mut number = 0;
                while begun.elapsed().as_secs() < 9 {
                    // The largest number up to 200 that divides the id.
                    let id = number * CONNECTIONS + connection_number;
                    let counter = (1..=COUNTERS).rev().find(|k| id.is_multiple_of(*k)).unwrap_or(1);
                    let answer = connection
                        .get(&format!("/api/verve/accept?id={id}&counter=c{counter}"))
                        .await
                        .unwrap();
                    assert_eq!(answer.body, "ok");
                    *sent.entry(counter).or_default() += 1;
                    number += 1;
                }
                sent
            })
        })
        .collect();
    let mut counted = BTreeMap::<String, u64>::new();
    let mut total = 0;
    let mut seen = std::collections::BTreeSet::new();
    let mut expected = BTreeMap::<String, u64>::new();
    let mut tasks = Some(sent);
    loop {
        let list = server.get("/api/verve/counters?limit=1000&order=name").await.json();
        if let Some(timestamp) = list["timestamp"].as_str()
            && seen.insert(timestamp.to_owned())
        {
            for counter in list["counters"].as_array().unwrap() {
                let count = counter["unique_request_count"].as_u64().unwrap();
                *counted.entry(counter["counter"].as_str().unwrap().to_owned()).or_default() += count;
                total += count;
            }
        }
        let is_done =
            tasks.as_ref().is_some_and(|tasks| tasks.iter().all(tokio::task::JoinHandle::is_finished));
        if is_done && let Some(tasks) = tasks.take() {
            for task in tasks {
                for (counter, count) in task.await.unwrap() {
                    *expected.entry(format!("c{counter}")).or_default() += count;
                }
            }
        }
        if tasks.is_none() && total == expected.values().sum::<u64>() {
            break;
        }
        assert!(seen.len() < 40, "{total} of {} ids were counted", expected.values().sum::<u64>());
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    assert_eq!(counted, expected);
    // Every id was sent to one counter. The log follows.
    wait_until("the total in the log", async || {
        server.closed().iter().map(|closed| closed.unique).sum::<u64>() == total
    })
    .await;
}

/// A client that invents names costs the total nothing. What it invents is in no log line.
#[tokio::test(flavor = "multi_thread")]
async fn invented_names_count_in_other() {
    let server = Server::start(&["--window", "2s", "--mode", "exact", "--max-counters", "10"]).await;
    let mut connection = Connection::open(server.address).await.unwrap();
    let mut invented = 0;
    let list = loop {
        for _ in 0..100 {
            invented += 1;
            accept(&mut connection, &format!("id={invented}&counter=invented{invented}")).await;
        }
        let list = server.get("/api/verve/counters?limit=1000&order=name").await.json();
        let has_other =
            list["counters"].as_array().unwrap().iter().any(|counter| counter["counter"] == "_other");
        if has_other {
            break list;
        }
        assert!(invented < 1_000_000, "{list}");
    };
    assert_eq!(
        (&list["complete"], list["total_counters"].as_u64() <= Some(11)),
        (&json!(false), true),
        "{list}"
    );
    let counts = list["counters"].as_array().unwrap().iter().map(|counter| &counter["unique_request_count"]);
    let in_counters: u64 = counts.map(|count| count.as_u64().unwrap()).sum();
    let timestamp = list["timestamp"].as_str().unwrap();
    wait_until("the window in the log", async || {
        server.closed().iter().any(|closed| closed.timestamp == timestamp)
    })
    .await;
    let closed = server.closed().into_iter().find(|closed| closed.timestamp == timestamp).unwrap();
    assert_eq!(closed.unique, in_counters, "the total is whole");
    assert!(server.metric("headcount_counter_overflow_ids_total").await > 0.0);
    let lines: Vec<_> = server.log().into_iter().filter(|line| line.to_string().contains("_other")).collect();
    assert!(
        !lines.is_empty() && !lines.iter().any(|line| line.to_string().contains("invented")),
        "{lines:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn chosen_counters_are_metrics() {
    let args = ["--window", "1s", "--metrics-counter", "a,b", "--metrics-counter", "_other"];
    let server = Server::start(&args).await;
    let series = |name: &str| format!(r#"headcount_counter_unique_ids{{counter="{name}"}}"#);
    for name in ["a", "b", "_other"] {
        assert_eq!(server.metric(&series(name)).await, 0.0, "{name}");
    }
    list_of_closed(&server, &["id=1&counter=a", "id=1&counter=c"], 2, "").await;
    let mut connection = Connection::open(server.address).await.unwrap();
    wait_until("a count of a", async || {
        accept(&mut connection, "id=1&counter=a&counter=c").await;
        server.metric(&series("a")).await == 1.0
    })
    .await;
    let metrics = server.get("/metrics").await.body;
    assert!(!metrics.contains(r#"counter="c""#), "a name that only a client chose");
    server.wait_for_metric(&series("a"), 0.0).await;
}
