//! The server's limits, and what clients see of them.

use std::net::Ipv4Addr;
use std::time::Duration;

use crate::support::http::{Answer, Connection, once};
use crate::support::process::run;
use crate::support::proxy::{Fault, Proxy};
use crate::support::redis::Redis;
use crate::support::server::Server;
use crate::support::{lines, wait_for};

const SOON: Duration = Duration::from_secs(10);

#[tokio::test]
async fn connections_are_kept_open() {
    let server = Server::start(&[]).await;
    let mut connection = Connection::open(server.address).await.unwrap();
    for id in 0..100 {
        assert_eq!(connection.get(&format!("/api/verve/accept?id={id}")).await.unwrap().body, "ok");
    }

    let server = Server::start(&["--keep-alive", "off"]).await;
    let mut connection = Connection::open(server.address).await.unwrap();
    let answer = connection.get("/api/verve/accept?id=1").await.unwrap();
    assert_eq!((&*answer.body, answer.header("connection")), ("ok", Some("close")));
    assert!(connection.is_closed_within(SOON).await);
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let server = Server::start(&["--mode", "exact", "--window", "24h"]).await;
    let mut connection = Connection::open(server.address).await.unwrap();
    let requests: Vec<String> = (0..100)
        .map(|id| {
            format!(
                "GET /api/verve/accept?id={} HTTP/1.1\r\nhost: test\r\n\r\n",
                if id % 10 == 9 { "x".to_owned() } else { id.to_string() }
            )
        })
        .collect();
    connection.send(requests.concat().as_bytes()).await.unwrap();
    for id in 0..100 {
        assert_eq!(connection.answer(false).await.unwrap().body, if id % 10 == 9 { "failed" } else { "ok" });
    }
    assert_eq!(server.get("/api/verve/unique").await.json()["current"]["unique_request_count"], 90);
}

#[tokio::test]
async fn connections_over_the_limit_get_an_answer() {
    let server = Server::start(&["--max-connections", "2", "--admin-listen", "127.0.0.1:0"]).await;
    let request = b"GET /api/verve/accept?id=1 HTTP/1.1\r\nhost: test\r\n\r\n";
    let mut first = Connection::open(server.address).await.unwrap();
    let mut second = Connection::open(server.address).await.unwrap();
    assert_eq!(first.request(request).await.unwrap().body, "ok");
    assert_eq!(second.request(request).await.unwrap().body, "ok");

    let refused = once(server.address, request).await;
    assert_eq!((refused.status, &*refused.body), (503, "failed"));
    assert_eq!(refused.header("failure-reason"), Some("overloaded"));
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert_eq!(refused.header("connection"), Some("close"));
    assert_eq!(server.metric(r#"headcount_requests_total{route="other",result="overloaded"}"#).await, 1.0);

    let alive = once(server.address, b"GET /livez HTTP/1.1\r\nhost: test\r\n\r\n").await;
    assert_eq!(alive.status, 404, "on this listener there is no /livez, and no 503 for it");
    assert_eq!(first.request(request).await.unwrap().body, "ok", "who is in stays in");
    drop(first);
    // The permit is free once the server notices that the connection closed.
    let deadline = std::time::Instant::now() + SOON;
    while once(server.address, request).await.status != 200 {
        assert!(std::time::Instant::now() < deadline, "the place is not given back");
    }
}

/// One address cannot use up all connections.
#[tokio::test]
async fn connections_over_the_limit_of_an_address_get_an_answer() {
    let server =
        Server::start(&["--max-connections-per-address", "2", "--admin-listen", "127.0.0.1:0"]).await;
    let [here, there] = [Ipv4Addr::LOCALHOST, Ipv4Addr::new(127, 0, 0, 2)];
    let open = async |client| Connection::open_from(client, server.address).await.unwrap();
    let accept = "/api/verve/accept?id=1";
    let mut connections = Vec::new();
    for client in [here, here, there, there] {
        let mut connection = open(client).await;
        assert_eq!(connection.get(accept).await.unwrap().body, "ok");
        connections.push(connection);
    }
    for client in [here, there] {
        let mut connection = open(client).await;
        let refused = connection.get(accept).await.unwrap();
        assert_eq!((refused.status, refused.header("failure-reason")), (503, Some("overloaded")));
        assert_eq!(refused.header("retry-after"), Some("1"));
        assert!(connection.is_closed_within(SOON).await);
    }
    assert_eq!(server.metric(r#"headcount_requests_total{route="other",result="overloaded"}"#).await, 2.0);

    drop(connections.pop());
    let deadline = std::time::Instant::now() + SOON;
    while open(there).await.get(accept).await.unwrap().status != 200 {
        assert!(std::time::Instant::now() < deadline, "the place is not given back");
    }
    assert_eq!(open(here).await.get(accept).await.unwrap().status, 503, "it was not this one's");
}

/// The number of requests that wait for a hanging store is bounded. One more gets 503 at once.
#[tokio::test]
async fn requests_over_the_limit_get_an_answer() {
    let redis = Redis::start();
    let network = Proxy::start(redis.address()).await;
    // One thread, which connects to Redis before the network hangs: a new connection would fail after a second.
    let args =
        ["--redis-url", &network.url(), "--redis-timeout", "1min", "--max-in-flight", "2", "--threads", "1"];
    let server = Server::start(&[&args[..], &["--window", "24h"]].concat()).await;
    assert_eq!(server.get("/api/verve/accept?id=0").await.body, "ok");
    network.set(Fault::Stall);
    let mut waiting = Vec::new();
    for id in 1..=3 {
        let mut connection = Connection::open(server.address).await.unwrap();
        let request = format!("GET /api/verve/accept?id={id} HTTP/1.1\r\nhost: test\r\n\r\n");
        connection.send(request.as_bytes()).await.unwrap();
        waiting.push(connection);
    }
    let [first, second, third] = &mut waiting[..] else { unreachable!() };
    let (answer, refused) = tokio::select! {
        answer = first.answer(false) => (answer, 0),
        answer = second.answer(false) => (answer, 1),
        answer = third.answer(false) => (answer, 2),
    };
    let assert_overloaded = |answer: &Answer| {
        assert_eq!((answer.status, answer.header("failure-reason")), (503, Some("overloaded")), "{answer:?}");
        assert_eq!(answer.header("retry-after"), Some("1"));
    };
    assert_overloaded(&answer.unwrap());
    // Its connection stays open.
    assert_overloaded(&waiting[refused].get("/api/verve/accept?id=4").await.unwrap());
    assert_overloaded(&server.get("/api/verve/unique").await);
    let mut bulk = Connection::open(server.address).await.unwrap();
    let body = lines(0..500_000);
    assert_overloaded(&bulk.post("text/plain", body.as_bytes()).await.expect("all of it is taken"));
    assert_overloaded(&bulk.post("text/plain", b"5\n").await.expect("and the connection stays"));
    assert_eq!(server.get("/livez").await.body, "alive", "operations do not count");

    network.set(Fault::None);
    waiting.remove(refused);
    for connection in &mut waiting {
        assert_eq!(connection.answer(false).await.unwrap().body, "ok");
    }
    assert_eq!(server.get("/api/verve/accept?id=6").await.body, "ok", "the places are given back");
    for (route, refused) in [("accept", 2.0), ("bulk", 2.0), ("unique", 1.0)] {
        let series = format!(r#"headcount_requests_total{{route="{route}",result="overloaded"}}"#);
        assert_eq!(server.metric(&series).await, refused, "{route}");
    }
}

/// Slow bodies do not keep out other requests.
#[tokio::test]
async fn a_body_that_is_still_arriving_takes_no_permit() {
    let server = Server::start(&["--max-in-flight", "1"]).await;
    let mut slow = Connection::open(server.address).await.unwrap();
    slow.send(b"POST /api/verve/accept HTTP/1.1\r\nhost: test\r\ncontent-type: text/plain\r\ncontent-length: 4\r\nexpect: 100-continue\r\n\r\n")
        .await
        .unwrap();
    assert_eq!(slow.answer(true).await.unwrap().status, 100, "it is being read");
    assert_eq!(server.get("/api/verve/accept?id=1").await.body, "ok");
    slow.send(b"2\n3\n").await.unwrap();
    assert_eq!(slow.answer(false).await.unwrap().body, "ok");
}

/// A full service still answers `/livez`, so that no orchestrator restarts it.
#[tokio::test]
async fn a_full_service_is_alive() {
    let server = Server::start(&["--max-connections", "1"]).await;
    let mut only = Connection::open(server.address).await.unwrap();
    assert_eq!(only.get("/api/verve/accept?id=1").await.unwrap().body, "ok");
    assert!(run(&["healthcheck", "--listen", &server.address.to_string()]).status.success());
    assert_eq!(server.get("/readyz").await.status, 503, "but it wants no more");
}

/// The memory of all bodies together is bounded.
#[tokio::test]
async fn bodies_over_the_limit_in_memory_get_an_answer() {
    let server = Server::start(&["--body-limit", "100", "--admin-listen", "127.0.0.1:0"]).await;
    let head = |length: u32| {
        format!(
            "POST /api/verve/accept HTTP/1.1\r\nhost: test\r\ncontent-type: text/plain\r\ncontent-length: {length}\r\n\r\n1\n"
        )
    };
    // A client that has sent nothing takes nothing of the limit.
    let mut silent = Vec::new();
    for _ in 0..100 {
        let mut connection = Connection::open(server.address).await.unwrap();
        connection.send(head(100).trim_end_matches("1\n").as_bytes()).await.unwrap();
        silent.push(connection);
    }
    // 40 of the largest bodies, each without its last line: 32 fit.
    let mut connections = Vec::new();
    for _ in 0..40 {
        let mut connection = Connection::open(server.address).await.unwrap();
        connection.send((head(100) + &"1\n".repeat(48)).as_bytes()).await.unwrap();
        connections.push(connection);
    }
    let overloaded = r#"headcount_requests_total{route="bulk",result="overloaded"}"#;
    let deadline = std::time::Instant::now() + SOON;
    while server.metric(overloaded).await < 8.0 {
        assert!(std::time::Instant::now() < deadline, "there is no bound");
    }
    let answer = once(server.address, (head(98) + &"1\n".repeat(48)).as_bytes()).await;
    assert_eq!((answer.status, answer.header("failure-reason")), (503, Some("overloaded")), "nor another");
    assert_eq!(server.get("/api/verve/accept?id=1").await.body, "ok", "single ids do not mind");

    let mut answers = std::collections::BTreeMap::<_, u32>::new();
    for mut connection in connections {
        // The server may have closed refused connections. Their answers can still be read.
        let _ = connection.send(b"1\n").await;
        *answers.entry(connection.answer(false).await.unwrap().status).or_default() += 1;
    }
    assert_eq!(answers, [(200, 32), (503, 8)].into());
    assert_eq!(once(server.address, head(2).as_bytes()).await.body, "ok", "room is given back");
}

/// A client that sends all of its body before it reads sees why it was refused.
#[tokio::test]
async fn refused_bodies_are_read_to_their_end() {
    let server = Server::start(&["--body-limit", "1000"]).await;
    let body = vec![b'1'; 4_000_000];
    for (content_type, status) in [("text/plain", 413), ("text/html", 415)] {
        for _ in 0..10 {
            let mut connection = Connection::open(server.address).await.unwrap();
            let head = format!(
                "POST /api/verve/accept HTTP/1.1\r\nhost: test\r\ncontent-type: {content_type}\r\ncontent-length: {}\r\n\r\n",
                body.len()
            );
            connection.send(head.as_bytes()).await.unwrap();
            connection.send(&body).await.expect("all of it is taken");
            assert_eq!(connection.answer(false).await.unwrap().status, status);
        }
    }
}

/// So does a client whose request is refused for its head, or is not HTTP.
#[tokio::test]
async fn unread_bodies_delay_no_answer() {
    const ACCEPT: &str = "POST /api/verve/accept HTTP/1.1";
    let server = Server::start(&["--api-token", "0123456789abcdef"]).await;
    let full = Server::start(&["--max-connections", "1"]).await;
    let mut only = Connection::open(full.address).await.unwrap();
    assert_eq!(only.get("/livez").await.unwrap().body, "alive");
    // More than the socket buffers of both sides hold.
    let body = vec![b'1'; 20_000_000];
    let chunk = [format!("{:x}\r\n", body.len()).as_bytes(), &body, b"\r\n0\r\n\r\n"].concat();
    let length = format!("content-length: {}", body.len());
    let chunked = "transfer-encoding: chunked".to_owned();
    let host = "host: test\r\ncontent-type: text/plain";
    let (sized, unsized_) = (format!("{host}\r\n{length}"), format!("{host}\r\n{chunked}"));
    let token = "authorization: Bearer 0123456789abcdef";
    let (with_token, in_chunks) = (format!("{token}\r\n{sized}"), format!("{token}\r\n{unsized_}"));
    let asks = format!("{with_token}\r\nexpect: 100-continue").replace("plain", "html");
    let (gzip, long) = (in_chunks.replace("chunked", "gzip, chunked"), format!("x: {}", "x".repeat(200_000)));
    let bad_length = format!("{host}\r\ncontent-length: +1");
    let preface = "PRI * HTTP/2.0\r\n\r\nSM";
    let mut unheard = Vec::new();
    for (what, server, line, headers, body, status) in [
        ("no host", &server, ACCEPT, &length, &body, 400),
        ("no such path", &server, "POST /nowhere HTTP/1.1", &with_token, &body, 404),
        ("no such path, in chunks", &server, "POST /nowhere HTTP/1.1", &in_chunks, &chunk, 404),
        ("PUT", &server, "PUT /api/verve/accept HTTP/1.1", &with_token, &body, 405),
        ("POST to what is read", &server, "POST /api/verve/unique HTTP/1.1", &with_token, &body, 405),
        ("POST to an operation", &server, "POST /livez HTTP/1.1", &with_token, &body, 405),
        ("POST without the token", &server, ACCEPT, &sized, &body, 401),
        ("GET without the token", &server, "GET /api/verve/unique HTTP/1.1", &sized, &body, 401),
        ("GET", &server, "GET /api/verve/unique HTTP/1.1", &with_token, &body, 200),
        ("too long as it says", &server, ACCEPT, &with_token, &body, 413),
        ("too long in chunks", &server, ACCEPT, &in_chunks, &chunk, 413),
        ("sent before it is asked for", &server, ACCEPT, &asks, &body, 415),
        ("another coding", &server, ACCEPT, &gzip, &chunk, 501),
        ("no chunk", &server, ACCEPT, &in_chunks, &[b"x", &*body].concat(), 400),
        ("no length", &server, ACCEPT, &bad_length, &body, 400),
        ("another version", &server, "POST / HTTP/3.0", &sized, &body, 400),
        ("too long a head", &server, ACCEPT, &long, &body, 431),
        ("HTTP/2", &server, preface, &String::new(), &body, 400),
        ("a full server", &full, ACCEPT, &sized, &body, 503),
        ("another version on a full server", &full, "POST / HTTP/3.0", &sized, &body, 400),
        ("HTTP/2 on a full server", &full, preface, &String::new(), &body, 400),
    ] {
        let mut connection = Connection::open(server.address).await.unwrap();
        let sent = connection.send(&[format!("{line}\r\n{headers}\r\n\r\n").as_bytes(), body].concat()).await;
        let answer = connection.answer(false).await.map(|answer| answer.status);
        if sent.is_err() || answer != Ok(status) {
            unheard.push((what, sent, answer));
        }
    }
    assert!(unheard.is_empty(), "{unheard:#?}");
}

/// The server does not wait for the body of a request that reads none.
#[tokio::test]
async fn a_client_that_does_not_close_is_disconnected() {
    let server = Server::start(&["--admin-listen", "127.0.0.1:0"]).await;
    let mut client = Connection::open(server.address).await.unwrap();
    let head = b"PUT /api/verve/accept HTTP/1.1\r\nhost: test\r\ncontent-length: 5\r\n\r\n";
    assert_eq!(client.request(head).await.unwrap().status, 405);
    assert!(client.is_closed_within(SOON).await, "the answer was the last");
    // The remaining connection is the one that reads the metrics.
    server.wait_for_metric("headcount_connections", 1.0).await;
}

#[tokio::test]
async fn a_head_that_does_not_end_is_cut_off() {
    let server = Server::start(&["--header-read-timeout", "300ms"]).await;
    let mut silent = Connection::open(server.address).await.unwrap();
    let mut idle = Connection::open(server.address).await.unwrap();
    assert_eq!(idle.get("/api/verve/accept?id=1").await.unwrap().body, "ok");

    let mut kept = Connection::open(server.address).await.unwrap();
    assert_eq!(kept.get("/api/verve/accept?id=1").await.unwrap().body, "ok");
    for mut slow in [Connection::open(server.address).await.unwrap(), kept] {
        let mut sent = 0;
        // Trickling does not help: the time-out is for the whole head.
        for byte in b"GET /api/verve/accept?id=1 HTTP/1.1\r\nhost: test\r\n".iter().cycle() {
            if slow.send(&[*byte]).await.is_err() || slow.is_closed_within(Duration::from_millis(20)).await {
                break;
            }
            sent += 1;
            assert!(sent < 1_000, "a head may take for ever");
        }
    }
    assert_eq!(server.metric(r#"headcount_connections_timed_out_total{reason="header"}"#).await, 2.0);
    for answer in [silent.get("/livez").await, idle.get("/livez").await] {
        assert_eq!(answer.unwrap().body, "alive", "no head was begun: no hurry");
    }
}

#[tokio::test]
async fn a_connection_without_requests_is_closed() {
    let server = Server::start(&["--idle-timeout", "1s", "--admin-listen", "127.0.0.1:0"]).await;
    let mut silent = Connection::open(server.address).await.unwrap();
    assert!(silent.is_closed_within(SOON).await, "not a byte");
    let mut idle = Connection::open(server.address).await.unwrap();
    assert_eq!(idle.get("/api/verve/accept?id=1").await.unwrap().body, "ok");
    assert!(idle.is_closed_within(SOON).await, "idle after an answer, and closed without another");

    // A connection with an arriving head or body is not idle.
    let mut busy = Connection::open(server.address).await.unwrap();
    let request =
        b"POST /api/verve/accept HTTP/1.1\r\nhost: a\r\ncontent-type: text/plain\r\ncontent-length: 4\r\n\r\n1\n2\n";
    for piece in request.chunks(9) {
        busy.send(piece).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(busy.answer(false).await.unwrap().body, "ok");
    assert!(busy.is_closed_within(SOON).await);
    assert_eq!(server.metric(r#"headcount_connections_timed_out_total{reason="idle"}"#).await, 3.0);
}

#[tokio::test]
async fn a_body_that_does_not_arrive_is_cut_off() {
    let server = Server::start(&["--body-read-timeout", "300ms"]).await;
    let mut slow = Connection::open(server.address).await.unwrap();
    slow.send(b"POST /api/verve/accept HTTP/1.1\r\nhost: test\r\ncontent-type: text/plain\r\ncontent-length: 9\r\n\r\n1\n")
        .await
        .unwrap();
    let answer = slow.answer(false).await.unwrap();
    assert_eq!((answer.status, answer.header("failure-reason")), (400, Some("invalid_body")));
    assert!(slow.is_closed_within(SOON).await);
}

#[tokio::test]
async fn clients_that_go_away_leave_nothing_behind() {
    let server = Server::start(&["--admin-listen", "127.0.0.1:0"]).await;
    for id in 0..200 {
        let mut connection = Connection::open(server.address).await.unwrap();
        connection
            .send(format!("GET /api/verve/accept?id={id} HTTP/1.1\r\nhost: te").as_bytes())
            .await
            .unwrap();
    }
    let mut closed = Connection::open(server.address).await.unwrap();
    assert_ne!(closed.request(b"nonsense\r\n\r\n").await.map(|answer| answer.status), Ok(200));
    drop(closed);
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", server.process.0.id())).unwrap().count();
    wait_for("descriptors to come back", || (descriptors() < 50).then_some(())).await;
    // The remaining connection is the one that reads the metrics.
    let deadline = std::time::Instant::now() + SOON;
    while server.metric("headcount_connections").await > 1.0 {
        assert!(std::time::Instant::now() < deadline, "connections are counted down");
    }
    assert_eq!(server.get("/api/verve/accept?id=1").await.body, "ok");
}

/// A client of another protocol gets 400, and the connection is closed.
#[tokio::test]
async fn bytes_that_are_not_http_are_refused() {
    let server = Server::start(&[]).await;
    for garbage in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"[..],
        b"*1\r\n$4\r\nPING\r\n",
        b"GET /livez HTTP/3.0\r\nhost: test\r\n\r\n",
        b"GET /livez HTTP/2.0\r\nhost: test\r\n\r\n",
        b"G@T /livez HTTP/1.1\r\nhost: test\r\n\r\n",
        b"GET /livez\r\n\r\n",
        HTTP_2,
    ] {
        let mut connection = Connection::open(server.address).await.unwrap();
        let answer = connection.request(garbage).await;
        assert_refused_as_no_http(&answer.unwrap(), &String::from_utf8_lossy(garbage));
        assert!(connection.is_closed_within(SOON).await);
    }
    assert_eq!(server.get("/livez").await.status, 200);
}

/// The preface of HTTP/2 with prior knowledge (RFC 9113, 3.4), and the first frame.
const HTTP_2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

#[track_caller]
fn assert_refused_as_no_http(answer: &Answer, what: &str) {
    assert_eq!((answer.status, &*answer.body), (400, ""), "{what}");
    assert_eq!(answer.header("connection"), Some("close"), "{what}");
    assert!(answer.header("date").is_some(), "{what}");
}

/// HTTP/2 is refused at any point of a connection, however its first bytes are split.
#[tokio::test]
async fn http_2_is_refused_with_an_explanation() {
    let server = Server::start(&["--max-connections", "40"]).await;
    let mut clients = Vec::new();
    for cut in 1..HTTP_2.len() {
        let mut client = Connection::open(server.address).await.unwrap();
        client.send(&HTTP_2[..cut]).await.unwrap();
        clients.push((cut, client));
    }
    // The server reads each first piece alone.
    tokio::time::sleep(Duration::from_millis(100)).await;
    for (cut, mut client) in clients {
        let answer = client.request(&HTTP_2[cut..]).await;
        let what = format!("cut after {cut}");
        assert_refused_as_no_http(&answer.unwrap_or_else(|error| panic!("{what}: {error:?}")), &what);
        assert!(client.is_closed_within(SOON).await, "{what}");
    }

    let request = b"GET /livez HTTP/1.1\r\nhost: test\r\n\r\n";
    for (what, before, answers) in [
        ("after a blank line", &b"\r\n"[..], 0),
        ("after two", b"\r\n\r\n", 0),
        ("pipelined", request, 1),
        ("after many", &request.repeat(50), 50),
    ] {
        let mut client = Connection::open(server.address).await.unwrap();
        client.send(&[before, HTTP_2].concat()).await.unwrap();
        for _ in 0..answers {
            assert_eq!(client.answer(false).await.unwrap().body, "alive", "{what}");
        }
        assert_refused_as_no_http(&client.answer(false).await.expect(what), what);
        assert!(client.is_closed_within(SOON).await, "{what}");
    }
    let mut client = Connection::open(server.address).await.unwrap();
    assert_eq!(client.get("/livez").await.unwrap().body, "alive");
    assert_refused_as_no_http(&client.request(HTTP_2).await.expect("a second request"), "a second request");
}

/// A full server answers clients of HTTP/2 too.
#[tokio::test]
async fn a_full_server_refuses_http_2_with_an_explanation() {
    let server = Server::start(&["--max-connections", "1"]).await;
    let mut only = Connection::open(server.address).await.unwrap();
    assert_eq!(only.get("/api/verve/accept?id=1").await.unwrap().body, "ok");
    for cut in [0, 1, 16, 20] {
        let mut client = Connection::open(server.address).await.unwrap();
        client.send(&HTTP_2[..cut]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        let what = format!("cut after {cut}");
        assert_refused_as_no_http(&client.request(&HTTP_2[cut..]).await.expect(&what), &what);
        assert!(client.is_closed_within(SOON).await, "{what}");
    }
}
