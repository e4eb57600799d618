//! `--api-token`: which requests are accepted with it, and which without.

use crate::support::http::{Answer, Connection, once};
use crate::support::process::{headcount, output_of};
use crate::support::server::Server;

const TOKEN: &str = "9f86d081884c7d659a2feaa0c55ad015";
const ACCEPT: &str = "/api/verve/accept";
const UNIQUE: &str = "/api/verve/unique";

async fn start() -> Server {
    let mut command = headcount();
    command
        .args(["--listen", "127.0.0.1:0", "--window", "24h", "--mode", "exact"])
        .env("HEADCOUNT_API_TOKEN", TOKEN);
    Server::run(command).await
}

/// A request with these headers, one a line, and this body.
fn request(method: &str, target: &str, headers: &[&str], body: &str) -> Vec<u8> {
    let headers = headers.iter().flat_map(|header| [header, "\r\n"]).collect::<String>();
    let length = body.len();
    format!("{method} {target} HTTP/1.1\r\nhost: test\r\n{headers}content-length: {length}\r\n\r\n{body}")
        .into_bytes()
}

async fn ask(server: &Server, method: &str, target: &str, headers: &[&str], body: &str) -> Answer {
    once(server.address, &request(method, target, headers, body)).await
}

async fn count(server: &Server) -> u64 {
    let right = format!("authorization: Bearer {TOKEN}");
    let answer = ask(server, "GET", UNIQUE, &[&right], "").await;
    answer.json()["current"]["unique_request_count"].as_u64().unwrap()
}

#[track_caller]
fn assert_refused(answer: &Answer, method: &str, what: &str) {
    let body = if method == "HEAD" { "" } else { "failed" };
    assert_eq!((answer.status, &*answer.body), (401, body), "{what}");
    for (header, value) in [
        ("failure-reason", "unauthorized"),
        ("www-authenticate", r#"Bearer realm="headcount""#),
        ("content-type", "text/plain; charset=utf-8"),
        ("cache-control", "no-store"),
    ] {
        assert_eq!(answer.header(header), Some(value), "{what}");
    }
}

/// Valid requests, and some invalid ones.
const REQUESTS: [(&str, &str, &str, &str); 12] = [
    ("GET", "/api/verve/accept?id=5", "", ""),
    ("GET", "/api/verve/accept?id=five", "", ""),
    ("HEAD", "/api/verve/accept?id=5", "", ""),
    ("PUT", "/api/verve/accept?id=5", "", ""),
    ("POST", ACCEPT, "text/plain", "5\n6\n"),
    ("POST", ACCEPT, "application/json", "[5,6]"),
    ("POST", ACCEPT, "application/json", "[5,"),
    ("POST", ACCEPT, "image/png", "5"),
    ("GET", UNIQUE, "", ""),
    ("HEAD", UNIQUE, "", ""),
    ("POST", UNIQUE, "text/plain", "5"),
    ("DELETE", UNIQUE, "", ""),
];

#[tokio::test]
async fn only_the_token_is_accepted() {
    let server = start().await;
    let prefix = &TOKEN[..TOKEN.len() - 1];
    let sets: Vec<Vec<String>> = vec![
        vec![],
        vec!["authorization:".to_owned()],
        vec!["authorization: Bearer".to_owned()],
        vec![format!("authorization: {TOKEN}")],
        vec![format!("authorization: Bearer {prefix}")],
        vec![format!("authorization: Bearer {TOKEN}0")],
        vec![format!("authorization: Bearer {}", TOKEN.to_uppercase())],
        vec![format!("authorization: Bearer {}", "x".repeat(TOKEN.len()))],
        vec![format!("authorization: Basic {TOKEN}")],
        vec![format!("authorization: Bearer\u{e9} {TOKEN}")],
        vec![format!("authorization: Bearer {TOKEN}"), format!("authorization: Bearer {TOKEN}")],
        vec!["authorization: Bearer x".to_owned(), format!("authorization: Bearer {TOKEN}")],
        vec![format!("authorization: Bearer {TOKEN}, Bearer {TOKEN}")],
        vec![format!("proxy-authorization: Bearer {TOKEN}")],
    ];
    let mut refused = 0;
    for set in &sets {
        for (method, target, content_type, body) in REQUESTS {
            let content_type = format!("content-type: {content_type}");
            let headers: Vec<_> = set.iter().map(String::as_str).chain([&*content_type]).collect();
            let what = format!("{method} {target} {headers:?}");
            assert_refused(&ask(&server, method, target, &headers, body).await, method, &what);
            refused += 1;
        }
    }
    // A token in the query does not count, because every log would show it.
    let query = format!("{ACCEPT}?id=5&access_token={TOKEN}");
    assert_refused(&ask(&server, "GET", &query, &[], "").await, "GET", "query");
    assert_eq!(count(&server).await, 0, "nothing that is refused is counted");
    let mut told = 0.0;
    for route in ["accept", "bulk", "unique"] {
        told += server
            .metric(&format!(r#"headcount_requests_total{{route="{route}",result="unauthorized"}}"#))
            .await;
    }
    assert_eq!(told, f64::from(refused + 1));
}

#[tokio::test]
async fn the_token_opens_everything() {
    let server = start().await;
    for (index, scheme) in ["Bearer", "bearer", "BEARER", "bEaReR "].into_iter().enumerate() {
        let header = format!("authorization: {scheme} {TOKEN}");
        let one = ask(&server, "GET", &format!("{ACCEPT}?id={index}"), &[&header], "").await;
        assert_eq!((one.status, &*one.body), (200, "ok"), "{scheme}");
        let bulk =
            ask(&server, "POST", ACCEPT, &[&header, "content-type: text/plain"], &format!("{index}0\n"))
                .await;
        assert_eq!((bulk.status, &*bulk.body), (200, "ok"), "{scheme}");
        let unique = ask(&server, "GET", UNIQUE, &[&header], "").await;
        assert_eq!((unique.status, unique.header("www-authenticate")), (200, None), "{scheme}");
        // A client with the token learns what else is wrong.
        let wrong = ask(&server, "HEAD", ACCEPT, &[&header], "").await;
        assert_eq!((wrong.status, wrong.header("failure-reason")), (405, Some("method_not_allowed")));
        let wrong = ask(&server, "GET", ACCEPT, &[&header], "").await;
        assert_eq!((wrong.status, wrong.header("failure-reason")), (400, Some("missing_id")));
    }
    // 0, 1, 2, 3, 10, 20, 30: 00 is 0.
    assert_eq!(count(&server).await, 7);
}

/// A client that sends its body at once sees the answer. A client that asks first (`expect`) gets it instead of a 100.
#[tokio::test]
async fn a_large_body_without_the_token_is_refused() {
    let server = start().await;
    let body = "5\n".repeat(8 << 20);
    let answer = ask(&server, "POST", ACCEPT, &["content-type: text/plain"], &body).await;
    assert_refused(&answer, "POST", "16 MB");

    let mut connection = Connection::open(server.address).await.unwrap();
    let head = "POST /api/verve/accept HTTP/1.1\r\nhost: test\r\nexpect: 100-continue\r\ncontent-length: 1000000\r\n\r\n";
    assert_refused(&connection.request(head.as_bytes()).await.unwrap(), "POST", "asked first");
    assert_eq!(count(&server).await, 0);
}

/// Orchestrators and Prometheus send no token.
#[tokio::test]
async fn operational_endpoints_need_no_token() {
    let server = start().await;
    for path in ["/livez", "/readyz", "/metrics", "/openapi.json"] {
        assert_eq!(server.get(path).await.status, 200, "{path}");
    }
    assert_eq!(server.get("/nowhere").await.status, 404);
    let address = server.address.to_string();
    assert!(output_of(headcount().args(["healthcheck", "--listen", &address])).status.success());
}

#[tokio::test]
async fn without_the_flag_no_token_is_needed() {
    let server = Server::start(&["--window", "24h"]).await;
    for headers in [&[][..], &["authorization: Bearer what.ever"], &["authorization: Basic YTpi"]] {
        assert_eq!(ask(&server, "GET", &format!("{ACCEPT}?id=5"), headers, "").await.body, "ok");
    }
}

#[tokio::test]
async fn a_read_token_opens_only_what_counts_nothing() {
    const READER: &str = "a-token-only-for-those-who-read";
    let mut command = headcount();
    command
        .args(["--listen", "127.0.0.1:0", "--window", "24h", "--mode", "exact"])
        .envs([("HEADCOUNT_API_TOKEN", TOKEN), ("HEADCOUNT_READ_TOKEN", READER)]);
    let server = Server::run(command).await;
    for (bearer, may_write) in [(TOKEN, true), (READER, false)] {
        let bearer = format!("authorization: Bearer {bearer}");
        for target in [UNIQUE, "/api/verve/unique?counter=a", "/api/verve/counters", "/status"] {
            let answer = ask(&server, "GET", target, &[&bearer], "").await;
            assert_eq!(answer.status, 200, "{target}");
        }
        let post = [&*bearer, "content-type: text/plain"];
        for answer in [
            ask(&server, "GET", "/api/verve/accept?id=5", &[&bearer], "").await,
            ask(&server, "POST", ACCEPT, &post, "5").await,
        ] {
            if may_write {
                assert_eq!(answer.status, 200);
            } else {
                assert_refused(&answer, "GET", "a read token");
            }
        }
    }
    assert_eq!(count(&server).await, 1);
    for headers in [&[][..], &["authorization: Bearer 0123456789abcdef0"]] {
        assert_refused(&ask(&server, "GET", UNIQUE, headers, "").await, "GET", "no token");
    }
}
