//! How much memory the service takes.

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

/// Counts 350 000 counters in the window that has just begun. Returns how much more memory the service has then, or nothing if
/// the window ended meanwhile.
async fn grown_by_counters_of_one_window(server: &Server, before: u64) -> Option<u64> {
    let mut connection = Connection::open(server.address).await.unwrap();
    let closed = server.closed().len();
    for first in (0..350_000).step_by(2_000) {
        let names: Vec<_> = (first..first + 2_000).map(|counter| format!(r#""{counter:0>128}""#)).collect();
        let elements =
            names.chunks(8).map(|some| format!("{{\"id\":7,\"counters\":[{}]}}\n", some.join(",")));
        let body: String = elements.collect();
        assert_eq!(connection.post("application/x-ndjson", body.as_bytes()).await.unwrap().body, "ok");
    }
    let grown = server.process.resident() - before;
    (server.closed().len() == closed).then_some(grown)
}

/// The allocator keeps what is freed between other things. A window with many counters would otherwise be felt for good.
#[tokio::test(flavor = "multi_thread")]
async fn memory_goes_back_after_a_window_with_many_counters() {
    let args = ["--window", "20s", "--max-counters", "400000", "--counter-memory", "1GiB"];
    // On a slow machine a window may be too short. In parts, the counters are too few to give memory back.
    for _ in 0..4 {
        let server = Server::start(&args).await;
        server.wait_closed(1).await;
        let before = server.process.resident();
        let Some(grown) = grown_by_counters_of_one_window(&server, before).await else { continue };
        assert!(grown > 70_000_000, "{grown}");
        // The counts stay until the next window is counted. At the end of the one after it, far less is used than before.
        // If no memory were given back, more than `grown` would stay.
        for closed in server.closed().len()..server.closed().len() + 3 {
            server.wait_closed(closed + 1).await;
        }
        let back = || Some(server.process.resident()).filter(|resident| *resident < before + grown / 2);
        let after = wait_for("memory to go back", back).await;
        println!("{before} bytes resident, {grown} more with 350 000 counters, {after} after it");
        return;
    }
    panic!("no window was long enough");
}
