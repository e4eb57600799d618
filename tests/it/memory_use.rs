//! How much memory the service takes.

use std::fmt::Write;

use crate::support::http::Connection;
use crate::support::server::Server;
use crate::support::{lines, wait_for};

const PIECE: u64 = 10_000;

/// Sends ten million ids in bulk, `PIECE` at a time, with `different` values. Returns the resident memory afterwards.
async fn resident_after(different: u64, args: &[&str]) -> u64 {
    let server = Server::start(&[&["--window", "24h"], args].concat()).await;
    let mut connection = Connection::open(server.address).await.unwrap();
    for piece in 0..10_000_000 / PIECE {
        let first = piece * PIECE % different;
        let ids = lines(1_000_000_000 + first..1_000_000_000 + first + PIECE);
        assert_eq!(connection.post("text/plain", ids.as_bytes()).await.unwrap().body, "ok");
    }
    let count =
        server.get("/api/verve/unique").await.json()["current"]["unique_request_count"].as_u64().unwrap();
    let error = (count as f64 - different as f64) / different as f64;
    assert!(error.abs() < 0.04, "{count} instead of {different}");
    server.process.resident()
}

/// The same traffic with ten thousand and with ten million different ids: a sketch has a fixed size. What the allocator
/// keeps varies, so the test allows two megabytes. A set of ten million ids would be over two hundred.
#[tokio::test(flavor = "multi_thread")]
async fn ten_million_ids_take_no_more_memory_than_ten_thousand() {
    let few = resident_after(10_000, &[]).await;
    let many = resident_after(10_000_000, &[]).await;
    println!("resident after 10^4 different ids: {few}, after 10^7: {many}");
    assert!(many < few + 2_000_000, "{few} and {many}");
}

/// Proves that the measurement works: exact counting uses memory for each id.
#[tokio::test(flavor = "multi_thread")]
async fn exact_ids_take_at_most_fifty_bytes_each() {
    let few = resident_after(10_000, &["--mode", "exact"]).await;
    let many = resident_after(10_000_000, &["--mode", "exact"]).await;
    let each = (many - few) as f64 / 10_000_000.0;
    println!("an exact id takes {each:.1} bytes");
    assert!((20.0..=50.0).contains(&each), "{each}");
}

/// The memory of a closed window's ids is released. A leak of six million ids would be over 150 MB.
#[tokio::test(flavor = "multi_thread")]
async fn closed_windows_release_their_memory() {
    let server = Server::start(&["--window", "1s", "--mode", "exact"]).await;
    let mut connection = Connection::open(server.address).await.unwrap();
    let mut first = 0;
    for windows in 2..14 {
        for _ in 0..50 {
            let ids = lines(1_000_000_000 + first..1_000_000_000 + first + PIECE);
            first += PIECE;
            assert_eq!(connection.post("text/plain", ids.as_bytes()).await.unwrap().body, "ok");
        }
        server.wait_closed(windows).await;
    }
    let resident = server.process.resident();
    println!("resident after {first} ids in windows of half a million: {resident}");
    assert!(resident < 100_000_000, "{resident}");
    let counted = || server.closed().iter().map(|closed| closed.unique).sum::<u64>();
    wait_for("all of them to be counted", || (counted() == first).then_some(())).await;
}

/// The allocator keeps what is freed between other things. A window with many counters would otherwise be felt for good.
#[tokio::test(flavor = "multi_thread")]
async fn memory_goes_back_after_a_window_with_many_counters() {
    let args = ["--window", "20s", "--max-counters", "600000", "--counter-memory", "1GiB"];
    let server = Server::start(&args).await;
    let mut connection = Connection::open(server.address).await.unwrap();
    // All counters in one window, also on a slow machine: a few of them are too little to give back.
    assert_eq!(connection.post("text/plain", b"7").await.unwrap().body, "ok");
    server.wait_closed(1).await;
    let resident = || server.process.resident();
    let before = resident();
    let mut grown = 0;
    for first in (0..500_000).step_by(2_000) {
        let mut body = String::new();
        for counter in first..first + 2_000 {
            let _ = writeln!(body, r#"{{"id":7,"counters":["{counter:0>100}"]}}"#);
        }
        assert_eq!(connection.post("application/x-ndjson", body.as_bytes()).await.unwrap().body, "ok");
        grown = grown.max(resident() - before);
    }
    assert!(grown > 40_000_000, "{grown}");
    server.wait_closed(server.closed().len() + 1).await;
    let back = || Some(resident()).filter(|resident| *resident < before + grown / 4);
    let after = wait_for("memory to go back", back).await;
    println!("{before} bytes resident, {grown} more with 500 000 counters, {after} after it");
}
