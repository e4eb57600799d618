//! `/status`: the data of the live page.

use serde_json::{Value, json};

use crate::support::fleet::{Fleet, seconds};
use crate::support::http;
use crate::support::redis::Redis;
use crate::support::server::{Closed, Server};
use crate::support::wait_until;

async fn status_of(server: &Server) -> Value {
    server.get("/status").await.json()
}

/// The windows as the log shows them.
fn windows(status: &Value) -> Vec<Closed> {
    let windows = status["windows"].as_array().unwrap().iter();
    windows
        .map(|window| Closed {
            timestamp: window["timestamp"].as_str().unwrap().to_owned(),
            unique: window["unique_request_count"].as_u64().unwrap(),
            accepted: window["accepted_ids"].as_u64().unwrap(),
            complete: window["complete"].as_bool().unwrap(),
        })
        .collect()
}

#[tokio::test]
async fn status_lists_instances_and_windows() {
    let server = Server::start(&["--window", "24h", "--mode", "exact"]).await;
    server.get("/api/verve/accept?id=1").await;
    http::once(
        server.address,
        b"POST /api/verve/accept HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\ncontent-length: 7\r\n\r\n[1,2,3]",
    )
    .await;
    let answer = server.get("/status").await;
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    let mut status = answer.json();
    let timestamp = server.get("/api/verve/unique").await.json()["current"]["timestamp"].clone();
    let instance = status["instance"].take();
    assert!(instance.as_str().unwrap().contains('/'), "{instance}");
    assert_eq!(status["leader"].take(), instance, "it is alone");
    assert_eq!(
        status,
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "instance": null,
            "leader": null,
            "mode": "exact",
            "standard_error": 0.0,
            "window_seconds": 86400,
            "counters": true,
            "degraded": false,
            "requests_total": 2,
            "accepted_ids_total": 4,
            "current": {"timestamp": timestamp, "unique_request_count": 3},
            "windows": [],
        })
    );
}

#[tokio::test]
async fn status_needs_the_token() {
    let server = Server::start(&["--api-token", "0123456789abcdef"]).await;
    let answer = server.get("/status").await;
    assert_eq!((answer.status, answer.header("failure-reason")), (401, Some("unauthorized")));
    let request = |method: &str| {
        format!("{method} /status HTTP/1.1\r\nhost: test\r\nauthorization: Bearer 0123456789abcdef\r\n\r\n")
    };
    assert_eq!(http::once(server.address, request("GET").as_bytes()).await.status, 200);
    assert_eq!(http::once(server.address, request("HEAD").as_bytes()).await.status, 200);
    let answer = http::once(server.address, request("DELETE").as_bytes()).await;
    assert_eq!((answer.status, answer.header("allow")), (405, Some("GET, HEAD")));
}

/// Every instance knows the last sixty windows, also those from before it was started.
#[tokio::test(flavor = "multi_thread")]
async fn all_instances_know_the_same_windows() {
    let redis = Redis::start();
    let mut fleet = Fleet::start(2, &redis, "status", &[]).await;
    for id in 0..100 {
        fleet.servers[id % 2].get(&format!("/api/verve/accept?id={}", id % 10)).await;
    }
    let first = *fleet.wait_published(0).await.keys().next().unwrap();
    fleet.wait_published(first + 4).await;
    fleet.add().await;
    let last = first + 8;
    let published = fleet.wait_published(last).await;
    let published: Vec<_> = published.into_values().map(|mut published| published.remove(0).1).collect();
    let leader = status_of(&fleet.servers[fleet.leader()]).await["instance"].clone();
    for server in &fleet.servers {
        let known = wait_for_window(server, last).await;
        assert_eq!(known[..published.len()], published);
        assert_eq!(status_of(server).await["leader"], leader);
    }
}

async fn wait_for_window(server: &Server, start: u64) -> Vec<Closed> {
    let mut known = Vec::new();
    wait_until("an instance to hear of the last window", async || {
        known = windows(&status_of(server).await);
        known.last().is_some_and(|last| seconds(last.start()) >= start)
    })
    .await;
    known
}
