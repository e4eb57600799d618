//! The service stops: every answer that it began is whole, and every `ok` is in a count.

use std::time::Duration;

use crate::support::http::{Connection, NoAnswer, get};
use crate::support::load::Load;
use crate::support::server::Server;
use crate::support::soak;

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_under_load_loses_nothing() {
    for round in 0..if soak() { 100 } else { 5 } {
        let mut server = Server::start(&["--mode", "exact", "--window", "1s"]).await;
        let load = Load::start(server.address, 64, 0);
        // Stop at another point of the window in every round.
        tokio::time::sleep(Duration::from_millis(600 + 170 * (round % 7))).await;
        let status = server.stop().await;
        let outcome = load.stop().await;

        assert_eq!(status.code(), Some(0), "round {round}");
        assert!(outcome.broken.is_empty(), "round {round}: {:?}", outcome.broken.first());
        let closed = server.closed();
        let counted: u64 = closed.iter().map(|closed| closed.unique).sum();
        let ok = outcome.ok.len() as u64;
        // An id without an answer may be counted or not; there is at most one a connection.
        assert!(
            (ok..=ok + outcome.unanswered as u64).contains(&counted),
            "round {round}: {ok} ok, {counted} counted"
        );
        assert!(ok > 100 && outcome.unanswered <= 64);
        assert!(!closed.last().unwrap().complete, "the running window is incomplete");
        println!("round {round}: {ok} ok, {counted} counted, {} without an answer", outcome.unanswered);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sigint_stops_as_sigterm_does() {
    let mut server = Server::start(&["--window", "24h"]).await;
    for id in 0..3 {
        assert_eq!(server.get(&format!("/api/verve/accept?id={id}")).await.body, "ok");
    }
    server.process.signal("INT");
    assert_eq!(server.ended().await.code(), Some(0));
    let closed = server.closed();
    assert_eq!(closed.len(), 1);
    assert_eq!((closed[0].unique, closed[0].accepted, closed[0].complete), (3, 3, false));
}

/// While draining the service still counts; the load balancer is told to send no more.
#[tokio::test(flavor = "multi_thread")]
async fn requests_are_served_during_the_drain_delay() {
    let mut server =
        Server::start(&["--window", "24h", "--drain-delay", "1500ms", "--admin-listen", "127.0.0.1:0"]).await;
    let admin = server.admin.unwrap();
    assert_eq!(get(admin, "/readyz").await.status, 200);
    server.process.signal("TERM");
    server.wait_for_log("stopping").await;
    let ready = get(admin, "/readyz").await;
    assert_eq!((ready.status, &*ready.body), (503, "draining"));
    assert_eq!(get(admin, "/livez").await.status, 200);
    assert_eq!(server.get("/api/verve/accept?id=7").await.body, "ok");
    assert_eq!(server.ended().await.code(), Some(0));
    assert_eq!(server.closed().last().unwrap().unique, 1);
}

/// A request whose body is still coming is waited for; idle connections are not.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_in_progress_is_finished() {
    let mut server = Server::start(&["--window", "24h", "--mode", "exact"]).await;
    let mut idle = Connection::open(server.address).await.unwrap();
    idle.get("/livez").await.unwrap();
    let mut slow = Connection::open(server.address).await.unwrap();
    slow.send(
        b"POST /api/verve/accept HTTP/1.1\r\nhost: test\r\ncontent-type: text/plain\r\ncontent-length: 4\r\n\
          expect: 100-continue\r\n\r\n",
    )
    .await
    .unwrap();
    // Until the server says so, it may not have read the head: then the connection would be idle.
    assert_eq!(slow.answer(true).await.unwrap().status, 100);
    slow.send(b"1\n").await.unwrap();
    server.process.signal("TERM");
    assert!(idle.is_closed_within(Duration::from_secs(10)).await, "idle connections are closed at once");
    slow.send(b"2\n").await.unwrap();
    let answer = slow.answer(false).await.unwrap();
    assert_eq!((answer.status, &*answer.body), (200, "ok"));
    assert_eq!(server.ended().await.code(), Some(0));
    assert_eq!(server.closed().last().unwrap().unique, 2);
}

/// A client that never finishes its request does not delay the counts of others.
#[tokio::test(flavor = "multi_thread")]
async fn a_hanging_client_is_cut_off() {
    let mut server = Server::start(&["--window", "24h", "--shutdown-timeout", "2s"]).await;
    let mut hanging = Connection::open(server.address).await.unwrap();
    hanging
        .send(b"POST /api/verve/accept HTTP/1.1\r\nhost: test\r\ncontent-type: text/plain\r\ncontent-length: 4\r\n\r\n1\n")
        .await
        .unwrap();
    assert_eq!(server.get("/api/verve/accept?id=7").await.body, "ok");
    assert_eq!(server.stop().await.code(), Some(0));
    assert_eq!(hanging.answer(false).await.unwrap_err(), NoAnswer::Closed);
    let closed = server.closed();
    assert_eq!((closed.last().unwrap().unique, closed.len()), (1, 1), "the half body is not counted");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_stops_at_once() {
    let mut server = Server::start(&["--drain-delay", "20s"]).await;
    server.process.signal("INT");
    server.wait_for_log("stopping").await;
    // A signal within a second would count as the same one.
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    server.process.signal("INT");
    assert_eq!(server.ended().await.code(), Some(1));
    assert!(server.log().iter().any(|event| event["level"] == "ERROR"));
}
