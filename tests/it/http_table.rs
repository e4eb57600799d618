//! What the API answers to every kind of request: status, body, `failure-reason`.

use std::net::SocketAddr;

use crate::support::http::{Answer, Connection, get, once};
use crate::support::lines;
use crate::support::server::Server;

/// No window ends while these tests run.
const LONG_WINDOW: [&str; 2] = ["--window", "24h"];
const ACCEPT: &str = "/api/verve/accept";
const OPERATIONS: [&str; 4] = ["/livez", "/readyz", "/metrics", "/openapi.json"];

async fn exact_server() -> Server {
    let args = ["--mode", "exact", "--callback-allow", "127.0.0.1"];
    Server::start(&[&LONG_WINDOW[..], &args].concat()).await
}

#[track_caller]
fn assert_ok(answer: &Answer, what: &str) {
    assert_eq!((answer.status, &*answer.body), (200, "ok"), "{what}");
    assert_eq!(answer.header("failure-reason"), None, "{what}");
    assert_common(answer, what);
}

#[track_caller]
fn assert_failed(answer: &Answer, status: u16, reason: &str, what: &str) {
    assert_eq!(
        (answer.status, answer.header("failure-reason"), &*answer.body),
        (status, Some(reason), "failed"),
        "{what}"
    );
    assert_common(answer, what);
}

#[track_caller]
fn assert_common(answer: &Answer, what: &str) {
    assert_eq!(answer.header("content-type"), Some("text/plain; charset=utf-8"), "{what}");
    assert_eq!(answer.header("cache-control"), Some("no-store"), "{what}");
}

async fn current(address: SocketAddr) -> u64 {
    get(address, "/api/verve/unique").await.json()["current"]["unique_request_count"]
        .as_u64()
        .expect("a count")
}

#[tokio::test]
async fn one_id() {
    let server = exact_server().await;
    for query in [
        "id=5",
        "id=-5",
        "id=0",
        "id=-0",
        "id=007",
        "id=%31",
        "id=-9223372036854775808",
        "id=18446744073709551615",
        "id=6&other=x",
        "other=x&id=6",
        "id=6&",
        "&id=6",
        "ID=x&id=6",
        "%69%64=6",
        "id=6&endpoint=http://127.0.0.1:1024",
        "id=6&endpoint=https%3A%2F%2F127.0.0.1%3A1024%2Fa%3Fb%3Dc",
    ] {
        assert_ok(&server.get(&format!("{ACCEPT}?{query}")).await, query);
    }
    // 5, -5, 0, 7, 1, both ends, 6.
    assert_eq!(current(server.address).await, 8);

    let forty_digits = "id=".to_owned() + &"1234567890".repeat(4);
    for (query, reason) in [
        ("", "missing_id"),
        ("other=5", "missing_id"),
        ("ID=5", "missing_id"),
        ("endpoint=http://example.com", "missing_id"),
        ("id", "invalid_id"),
        ("id=", "invalid_id"),
        ("id=1.5", "invalid_id"),
        ("id=abc", "invalid_id"),
        ("id=1e3", "invalid_id"),
        ("id=0x10", "invalid_id"),
        ("id=+5", "invalid_id"),
        ("id=%2B5", "invalid_id"),
        ("id=%205", "invalid_id"),
        ("id=5%20", "invalid_id"),
        ("id=5%0A", "invalid_id"),
        ("id=--5", "invalid_id"),
        ("id=-", "invalid_id"),
        ("id=%EF%BC%95", "invalid_id"),
        ("id=%D9%A5", "invalid_id"),
        ("id=%00", "invalid_id"),
        ("id=5%00", "invalid_id"),
        ("id=%FF", "invalid_id"),
        ("id=5%FF", "invalid_id"),
        (&*forty_digits, "invalid_id"),
        ("id=-9223372036854775809", "invalid_id"),
        ("id=18446744073709551616", "invalid_id"),
        ("id=5&id=6", "repeated_id"),
        ("id=5&id=5", "repeated_id"),
        ("id=x&id=5", "repeated_id"),
        ("id=5&%69d=5", "repeated_id"),
        ("id=5&endpoint=", "invalid_endpoint"),
        ("id=5&endpoint=example.com", "invalid_endpoint"),
        ("id=5&endpoint=/relative", "invalid_endpoint"),
        ("id=5&endpoint=ftp://example.com", "invalid_endpoint"),
        ("id=5&endpoint=file:///etc/passwd", "invalid_endpoint"),
        ("id=5&endpoint=http://", "invalid_endpoint"),
        ("id=5&endpoint=javascript:alert(1)", "invalid_endpoint"),
        ("id=5&endpoint=http://[::1", "invalid_endpoint"),
        ("id=5&endpoint=http://a.example&endpoint=http://b.example", "invalid_endpoint"),
        ("id=5&endpoint=http://127.0.0.2", "forbidden_endpoint"),
        ("id=5&endpoint=http%3A%2F%2F169.254.169.254%2Flatest", "forbidden_endpoint"),
        ("id=5&endpoint=http://0x7f.2", "forbidden_endpoint"),
        ("endpoint=http://10.0.0.1", "forbidden_endpoint"),
    ] {
        assert_failed(&server.get(&format!("{ACCEPT}?{query}")).await, 400, reason, query);
    }
    assert_failed(&server.get(ACCEPT).await, 400, "missing_id", "no query");
    assert_eq!(current(server.address).await, 8, "nothing that is refused is counted");
}

#[tokio::test]
async fn long_queries() {
    let server = exact_server().await;
    let padding = "x".repeat(30 * 1024);
    assert_ok(&server.get(&format!("{ACCEPT}?pad={padding}&id=5")).await, "30 KB");
    assert_failed(&server.get(&format!("{ACCEPT}?id={padding}")).await, 400, "invalid_id", "an id of 30 KB");
    let zeros = "0".repeat(30 * 1024);
    assert_ok(&server.get(&format!("{ACCEPT}?id={zeros}5")).await, "5 with 30 KB of zeros before it");
    assert_eq!(current(server.address).await, 1);
    // Heads have a limit. A client that sends far more than that may find the connection reset instead.
    let head = format!("GET {ACCEPT}?pad={}", "x".repeat(32 * 1024 - ACCEPT.len() - 9));
    assert_eq!(head.len(), 32 * 1024);
    let answer = once(server.address, head.as_bytes()).await;
    assert_eq!((answer.status, &*answer.body), (431, ""));
}

/// hyper's parser refuses these before the router: the client gets a bare 400, and the connection is closed.
#[tokio::test]
async fn raw_bytes_in_the_target() {
    let server = exact_server().await;
    for target in
        [&b"/api/verve/accept?id=5\0"[..], b"/api/verve/accept?id=5\x07", b"/api/verve/accept?id=\xff"]
    {
        let request = [b"GET ", target, b" HTTP/1.1\r\nhost: test\r\n\r\n"].concat();
        let answer = once(server.address, &request).await;
        assert_eq!((answer.status, &*answer.body), (400, ""), "{target:?}");
    }
    assert_eq!(current(server.address).await, 0);
}

#[tokio::test]
async fn methods() {
    let server = exact_server().await;
    for method in ["HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"] {
        let request = format!("{method} {ACCEPT}?id=5 HTTP/1.1\r\nhost: test\r\n\r\n");
        let answer = once(server.address, request.as_bytes()).await;
        assert_eq!(
            (answer.status, answer.header("failure-reason")),
            (405, Some("method_not_allowed")),
            "{method}"
        );
        assert_eq!(answer.header("allow"), Some("GET, POST"), "{method}");
        assert_eq!(answer.body, if method == "HEAD" { "" } else { "failed" }, "{method}");
        assert_common(&answer, method);
    }
    assert_eq!(current(server.address).await, 0);

    let answer =
        once(server.address, b"POST /api/verve/unique HTTP/1.1\r\nhost: test\r\ncontent-length: 0\r\n\r\n")
            .await;
    assert_failed(&answer, 405, "method_not_allowed", "POST to unique");
    assert_eq!(answer.header("allow"), Some("GET, HEAD"));
}

#[tokio::test]
async fn unknown_paths() {
    let server = exact_server().await;
    for path in [
        "/index.html",
        "/api",
        "/api/verve/accept/",
        "/api/verve/accept/5",
        "//api/verve/accept",
        "/API/VERVE/ACCEPT",
        "/admin",
    ] {
        let answer = server.get(path).await;
        assert_eq!((answer.status, &*answer.body), (404, "not found"), "{path}");
        assert_common(&answer, path);
    }
}

#[tokio::test]
async fn bulk_bodies() {
    let server = exact_server().await;
    let mut connection = Connection::open(server.address).await.unwrap();
    for (content_type, body) in [
        ("text/plain", "1"),
        ("text/plain", "1\n"),
        ("text/plain", "1\n2\n3"),
        ("text/plain", "1\r\n2\r\n"),
        ("text/plain; charset=utf-8", "007\n-0\n"),
        ("TEXT/PLAIN", "1\n1\n1\n"),
        ("application/x-ndjson", "1\n2\n"),
        ("application/json", "[1]"),
        ("application/json", " [ 1 ,\n2 ] "),
        ("application/json; charset=utf-8", "[-5,18446744073709551615]"),
        ("application/json", "[-0]"),
        ("application/json", "[-9223372036854775808]"),
    ] {
        assert_ok(&connection.post(content_type, body.as_bytes()).await.unwrap(), body);
    }
    // 1, 2, 3, 7, 0, -5, u64::MAX, i64::MIN.
    assert_eq!(current(server.address).await, 8);

    for (content_type, body, reason, line) in [
        ("text/plain", &b""[..], "missing_id", None),
        ("application/x-ndjson", b"", "missing_id", None),
        ("application/json", b"[]", "missing_id", None),
        ("application/json", b"", "invalid_body", None),
        ("text/plain", b"\n", "invalid_id", Some("1")),
        ("text/plain", b"100\n\n101\n", "invalid_id", Some("2")),
        ("text/plain", b"100\n101\n\n", "invalid_id", Some("3")),
        ("text/plain", b"100\n 101\n", "invalid_id", Some("2")),
        ("text/plain", b"100,101", "invalid_id", Some("1")),
        ("text/plain", b"100\n1.5", "invalid_id", Some("2")),
        ("text/plain", b"100\n\xff\n", "invalid_id", Some("2")),
        ("text/plain", b"100\n101\0\n", "invalid_id", Some("2")),
        ("text/plain", "100\n\u{ff15}\n".as_bytes(), "invalid_id", Some("2")),
        ("application/x-ndjson", b"100\n\"101\"\n", "invalid_id", Some("2")),
        ("application/x-ndjson", b"[100]", "invalid_id", Some("1")),
        ("application/json", b"5", "invalid_body", None),
        ("application/json", b"{\"id\":5}", "invalid_body", None),
        ("application/json", b"null", "invalid_body", None),
        ("application/json", b"[100", "invalid_body", None),
        ("application/json", b"[100,]", "invalid_body", None),
        ("application/json", b"[100] 101", "invalid_body", None),
        ("application/json", b"[100,\xff]", "invalid_body", None),
        ("application/json", b"[007]", "invalid_body", None),
        ("application/json", b"[100,[101]]", "invalid_id", Some("2")),
        ("application/json", b"[100,101,1.0]", "invalid_id", Some("3")),
        ("application/json", b"[1e3]", "invalid_id", Some("1")),
        ("application/json", b"[100,\"101\"]", "invalid_id", Some("2")),
        ("application/json", b"[100,null,true]", "invalid_id", Some("2")),
        ("application/json", b"[18446744073709551616]", "invalid_id", Some("1")),
    ] {
        let what = format!("{content_type}: {}", String::from_utf8_lossy(body));
        let answer = connection.post(content_type, body).await.unwrap();
        assert_failed(&answer, 400, reason, &what);
        assert_eq!(answer.header("failure-line"), line, "{what}");
    }
    assert_eq!(current(server.address).await, 8, "nothing of a refused body is counted");
}

#[tokio::test]
async fn one_bad_line_of_ten_thousand_refuses_all() {
    let server = exact_server().await;
    let mut connection = Connection::open(server.address).await.unwrap();
    let mut lines: Vec<String> = (1..=10_000).map(|id| id.to_string()).collect();
    lines[6_776] = "six".to_owned();
    let answer = connection.post("text/plain", lines.join("\n").as_bytes()).await.unwrap();
    assert_failed(&answer, 400, "invalid_id", "text");
    assert_eq!(answer.header("failure-line"), Some("6777"));
    lines[6_776] = "6777.0".to_owned();
    let answer =
        connection.post("application/json", format!("[{}]", lines.join(",")).as_bytes()).await.unwrap();
    assert_failed(&answer, 400, "invalid_id", "JSON");
    assert_eq!(answer.header("failure-line"), Some("6777"));
    assert_eq!(current(server.address).await, 0);

    lines[6_776] = "6777".to_owned();
    assert_ok(&connection.post("text/plain", lines.join("\n").as_bytes()).await.unwrap(), "mended");
    assert_eq!(current(server.address).await, 10_000);
    assert_ok(
        &connection.post("application/json", format!("[{}]", lines.join(",")).as_bytes()).await.unwrap(),
        "again",
    );
    assert_eq!(current(server.address).await, 10_000);
}

#[tokio::test]
async fn content_types_of_bodies() {
    let server = exact_server().await;
    let mut connection = Connection::open(server.address).await.unwrap();
    for content_type in [
        "application/x-www-form-urlencoded",
        "text/csv",
        "application/octet-stream",
        "json",
        "",
        "text/plain2",
    ] {
        let answer = connection.post(content_type, b"5").await.unwrap();
        assert_failed(&answer, 415, "unsupported_media_type", content_type);
    }
    let without = b"POST /api/verve/accept HTTP/1.1\r\nhost: test\r\ncontent-length: 1\r\n\r\n5";
    assert_failed(&once(server.address, without).await, 415, "unsupported_media_type", "no type");
    let compressed = b"POST /api/verve/accept HTTP/1.1\r\nhost: test\r\ncontent-type: text/plain\r\ncontent-encoding: gzip\r\ncontent-length: 1\r\n\r\n5";
    assert_failed(&once(server.address, compressed).await, 415, "unsupported_media_type", "compressed");
    assert_eq!(current(server.address).await, 0);
}

#[tokio::test]
async fn chunked_bodies() {
    let server = exact_server().await;
    let head = "POST /api/verve/accept HTTP/1.1\r\nhost: test\r\ncontent-type: text/plain\r\ntransfer-encoding: chunked\r\n\r\n";
    // Cut in the middle of an id and of a line end.
    let body = "4\r\n1\n23\r\n2\r\n4\r\r\n2\r\n\n5\r\n0\r\n\r\n";
    assert_ok(&once(server.address, format!("{head}{body}").as_bytes()).await, "1, 234, 5");
    assert_eq!(current(server.address).await, 3);
    let answer = once(server.address, format!("{head}xyz\r\n").as_bytes()).await;
    assert_failed(&answer, 400, "invalid_body", "no chunk");
}

#[tokio::test]
async fn bodies_over_the_limit() {
    let server = exact_server().await;
    let eight_mebibytes = 8 * 1024 * 1024_u64;
    // 1 048 576 lines of eight bytes: exactly the limit.
    let ids = lines(1_000_000..1_000_000 + eight_mebibytes / 8);
    assert_eq!(ids.len() as u64, eight_mebibytes);
    let mut connection = Connection::open(server.address).await.unwrap();
    assert_ok(&connection.post("text/plain", ids.as_bytes()).await.unwrap(), "the limit");
    assert_eq!(current(server.address).await, 1_048_576);
    let answer = connection.post("text/plain", format!("{ids}\n").as_bytes()).await.unwrap();
    assert_failed(&answer, 413, "body_too_large", "a byte more");

    // Its `content-length` is too large, so the service does not wait for the body.
    let announced = b"POST /api/verve/accept HTTP/1.1\r\nhost: test\r\ncontent-type: text/plain\r\ncontent-length: 99999999999\r\n\r\n";
    assert_failed(&once(server.address, announced).await, 413, "body_too_large", "announced");

    // It has no `content-length`: the service stops reading at the limit.
    let chunk = format!("{:x}\r\n{}\r\n", 1 << 20, "5\n".repeat(1 << 19));
    let head = "POST /api/verve/accept HTTP/1.1\r\nhost: test\r\ncontent-type: text/plain\r\ntransfer-encoding: chunked\r\n\r\n";
    let answer = once(server.address, format!("{head}{}", chunk.repeat(9)).as_bytes()).await;
    assert_failed(&answer, 413, "body_too_large", "chunked");
    assert_eq!(current(server.address).await, 1_048_576);

    let small = Server::start(&["--body-limit", "10"]).await;
    let mut connection = Connection::open(small.address).await.unwrap();
    assert_ok(&connection.post("text/plain", b"1234567890").await.unwrap(), "ten bytes");
    assert_failed(
        &connection.post("text/plain", b"12345678901").await.unwrap(),
        413,
        "body_too_large",
        "eleven",
    );
}

#[tokio::test]
async fn reading() {
    let server = Server::start(&["--window", "24h", "--shards", "4"]).await;
    for id in 0..10 {
        assert_ok(&server.get(&format!("{ACCEPT}?id={id}")).await, "an id");
    }
    let answer = server.get("/api/verve/unique").await;
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    let json = answer.json();
    assert_eq!(json["mode"], "hll");
    assert_eq!(json["standard_error"], 0.008_125 / 2.0);
    assert_eq!(json["window_seconds"], 86_400);
    assert_eq!(json["current"]["unique_request_count"], 10);
    assert!(json["current"]["timestamp"].as_str().unwrap().ends_with("T00:00:00Z"));
    assert_eq!(json["last"], serde_json::Value::Null);

    let server = Server::start(&["--window", "1s", "--mode", "exact"]).await;
    let closed = server.wait_closed(2).await;
    let last = server.get("/api/verve/unique").await.json()["last"].clone();
    assert_eq!(last.as_object().unwrap().len(), 4, "{last}");
    let logged = server.closed().into_iter().find(|closed| closed.timestamp == last["timestamp"]).unwrap();
    assert_eq!(
        (last["unique_request_count"].as_u64(), last["accepted_ids"].as_u64()),
        (Some(logged.unique), Some(logged.accepted))
    );
    assert_eq!(last["complete"], logged.complete);
    assert!(
        closed[1].complete && !closed[0].complete,
        "{closed:?}: the first window was not seen from its start"
    );
}

#[tokio::test]
async fn operations() {
    let server = Server::start(&[]).await;
    for (path, body) in [("/livez", "alive"), ("/readyz", "ready")] {
        let answer = server.get(path).await;
        assert_eq!((answer.status, &*answer.body), (200, body));
        assert_common(&answer, path);
    }
    for (path, content_type) in
        [("/metrics", "text/plain; version=0.0.4; charset=utf-8"), ("/openapi.json", "application/json")]
    {
        let answer = server.get(path).await;
        assert_eq!((answer.status, answer.header("content-type")), (200, Some(content_type)));
        assert_eq!(answer.header("cache-control"), Some("no-store"), "{path}");
    }
    for path in OPERATIONS {
        let head =
            once(server.address, format!("HEAD {path} HTTP/1.1\r\nhost: test\r\n\r\n").as_bytes()).await;
        assert_eq!((head.status, &*head.body), (200, ""), "{path}");
        let request = format!("POST {path} HTTP/1.1\r\nhost: test\r\ncontent-length: 0\r\n\r\n");
        let post = once(server.address, request.as_bytes()).await;
        assert_failed(&post, 405, "method_not_allowed", path);
        assert_eq!(post.header("allow"), Some("GET, HEAD"), "{path}");
    }

    let server = Server::start(&["--admin-listen", "127.0.0.1:0"]).await;
    let admin = server.admin.expect("an address for operations");
    for path in OPERATIONS {
        assert_eq!(get(admin, path).await.status, 200, "{path} has moved here");
        assert_eq!(server.get(path).await.status, 404, "{path} has left");
    }
    assert_eq!(get(admin, "/api/verve/accept?id=5").await.status, 404);
}

/// RFC 9112, 3.2 and 6: two servers could read these as different requests. The service refuses and does not count them.
#[tokio::test]
async fn ambiguous_requests_are_refused() {
    let server = exact_server().await;
    let target = "/api/verve/accept?id=1";
    for (what, hosts) in [
        ("no host", &[][..]),
        ("two hosts", &["a.example", "b.example"]),
        ("the same host twice", &["a.example", "a.example"]),
        ("a path", &["a.example/x"]),
        ("a user", &["me@a.example"]),
        ("white space", &["a example"]),
        ("two ports", &["a:b:c"]),
        ("a port that is no number", &["a:http"]),
        ("a port with a sign", &["a:+80"]),
        ("a bracket that is not closed", &["[::1"]),
        ("a bracket that is not opened", &["a]b"]),
        ("an IPv6 address without brackets", &["::1"]),
        ("no address in brackets", &["[zz]"]),
        ("an IPv4 address in brackets", &["[127.0.0.1]"]),
        ("nothing in brackets", &["[]"]),
        ("a zone", &["[fe80::1%25eth0]"]),
        ("more after the brackets", &["[::1]a"]),
        ("an address of the future without a version", &["[v.a]"]),
        ("an address of the future without an address", &["[v1.]"]),
        ("half an escape", &["a%4"]),
        ("an escape that is none", &["a%zz"]),
    ] {
        let hosts = hosts.iter().map(|host| format!("host: {host}\r\n")).collect::<Vec<_>>().concat();
        let request = format!("GET {target} HTTP/1.1\r\n{hosts}connection: close\r\n\r\n");
        assert_failed(&once(server.address, request.as_bytes()).await, 400, "invalid_host", what);
    }
    // hyper refuses these with a bare 400, as it does other invalid requests.
    for (what, lines) in [
        ("a space before the colon", "host : a\r\n"),
        ("a folded line", "host: a\r\nx: 1\r\n 2\r\n"),
        ("two lengths", "host: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n"),
        ("a length that is none", "host: a\r\ncontent-length: +1\r\n"),
        ("another coding", "host: a\r\ntransfer-encoding: gzip\r\n"),
    ] {
        let request = format!("POST {target} HTTP/1.1\r\n{lines}content-type: text/plain\r\n\r\n1");
        assert_eq!(once(server.address, request.as_bytes()).await.status, 400, "{what}");
    }
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    assert_eq!(once(server.address, preface).await.status, 400, "HTTP/2");
    assert_eq!(current(server.address).await, 0);

    // One `host`, and HTTP/1.0, where it may be missing.
    for request in [
        format!("GET {target} HTTP/1.0\r\n\r\n"),
        format!("GET http://a.example{target} HTTP/1.1\r\nhost: b.example\r\n\r\n"),
    ] {
        assert_eq!(once(server.address, request.as_bytes()).await.body, "ok", "{request}");
    }
    for host in [
        "",
        "localhost",
        "127.0.0.1:80",
        "[::1]",
        "[::1]:80",
        "[::ffff:127.0.0.1]:",
        "[v1f.a:b]:80",
        "a.b:",
        "A-_~!$&'()*+,;=%4a%FF:8080",
    ] {
        let request = format!("GET {target} HTTP/1.1\r\nhost: {host}\r\n\r\n");
        assert_eq!(once(server.address, request.as_bytes()).await.body, "ok", "{host}");
    }
    assert_eq!(current(server.address).await, 1);
}

/// RFC 9112, 6.1 and 7: the only transfer coding that the service decodes is `chunked`, at most once.
#[tokio::test]
async fn transfer_codings() {
    let server = exact_server().await;
    for (lines, refusal) in [
        (&["chunked"][..], None),
        (&["Chunked"], None),
        (&[", chunked"], None),
        (&["", "chunked"], None),
        (&["gzip, chunked"], Some((501, "unsupported_transfer_encoding"))),
        (&["gzip", "chunked"], Some((501, "unsupported_transfer_encoding"))),
        (&["identity, chunked"], Some((501, "unsupported_transfer_encoding"))),
        (&["chunked, gzip, chunked"], Some((501, "unsupported_transfer_encoding"))),
        (&["gzip;q=\"a,chunked\"", "chunked"], Some((501, "unsupported_transfer_encoding"))),
        (&["chunked, chunked"], Some((400, "invalid_body"))),
        (&["chunked", "chunked"], Some((400, "invalid_body"))),
    ] {
        let codings =
            lines.iter().map(|line| format!("transfer-encoding: {line}\r\n")).collect::<Vec<_>>().concat();
        for (line, body) in [
            (format!("POST {ACCEPT}"), "1\r\n5\r\n0\r\n\r\n"),
            (format!("GET {ACCEPT}?id=5"), "0\r\n\r\n"),
            ("GET /livez".to_owned(), "0\r\n\r\n"),
            ("PUT /nowhere".to_owned(), "0\r\n\r\n"),
        ] {
            let what = format!("{line} {lines:?}");
            let request =
                format!("{line} HTTP/1.1\r\nhost: test\r\ncontent-type: text/plain\r\n{codings}\r\n{body}");
            let answer = once(server.address, request.as_bytes()).await;
            match refusal {
                Some((status, reason)) => assert_failed(&answer, status, reason, &what),
                None => assert_eq!(answer.status, if line.starts_with("PUT") { 404 } else { 200 }, "{what}"),
            }
        }
    }
    assert_eq!(current(server.address).await, 1);
    for (reason, refused) in [("unsupported_transfer_encoding", 20.0), ("invalid_body", 8.0)] {
        let series = format!(r#"headcount_requests_total{{route="other",result="{reason}"}}"#);
        assert_eq!(server.metric(&series).await, refused, "{reason}");
    }
}

/// The coding `identity` does not change the body, so it is allowed.
#[tokio::test]
async fn bodies_with_content_encoding_identity_are_accepted() {
    let server = exact_server().await;
    for (id, (encoding, ok)) in [
        ("identity", true),
        ("Identity", true),
        ("", true),
        ("identity, identity", true),
        ("identity, gzip", false),
    ]
    .into_iter()
    .enumerate()
    {
        let request = format!(
            "POST /api/verve/accept HTTP/1.1\r\nhost: test\r\ncontent-type: text/plain\r\ncontent-encoding: {encoding}\r\n\
             content-length: 1\r\n\r\n{id}"
        );
        let answer = once(server.address, request.as_bytes()).await;
        assert_eq!(answer.status, if ok { 200 } else { 415 }, "{encoding}");
    }
    assert_eq!(current(server.address).await, 4);
}
