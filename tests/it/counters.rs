//! Counters: numbers that clients name, mostly in a service that counts in memory.

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
    for range in ["", "from=1&to=2&"] {
        let twice = server.get(&format!("/api/verve/unique?{range}counter=a&counter=b")).await;
        assert_eq!(refusal(&twice), (400, Some("invalid_parameter"), "counter is given twice"), "{range}");
    }
}

/// Redis refuses writes and answers questions. The instance keeps the ids that it accepts then, so no count has them.
#[tokio::test(flavor = "multi_thread")]
async fn a_counter_is_not_read_while_the_instance_keeps_ids() {
    for mode in ["hll", "exact"] {
        let redis = Redis::start();
        let server = serve(&["--mode", mode, "--redis-url", &redis.url()]).await;
        let mut connection = Connection::open(server.address).await.unwrap();
        for id in 0..30 {
            accept(&mut connection, &format!("id={id}&counter=a")).await;
        }
        assert_eq!(current(&server, "a").await, 30);
        redis.set_max_memory(1);
        accept(&mut connection, "id=30&counter=a").await;
        for query in ["", "?counter=a"] {
            let answer = server.get(&format!("/api/verve/unique{query}")).await;
            assert_eq!(refusal(&answer).1, Some("store_unavailable"), "{mode} {query}: {answer:?}");
        }
        redis.set_max_memory(0);
        server.wait_until_replayed().await;
        wait_until("the counter to be read", async || {
            server.get("/api/verve/unique?counter=a").await.status == 200
        })
        .await;
        assert_eq!(current(&server, "a").await, 31, "{mode}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_there_are_no_counters_their_names_are_refused() {
    let server = serve(&["--max-counters", "0"]).await;
    for target in ["accept?id=1&counter=a", "unique?counter=a", "counters"] {
        let (answer, detail) =
            (server.get(&format!("/api/verve/{target}")).await, "counters are off: --max-counters is 0");
        assert_eq!(refusal(&answer), (400, Some("invalid_counter"), detail), "{target}");
    }
    assert_eq!(server.get("/api/verve/accept?id=1").await.body, "ok");
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
