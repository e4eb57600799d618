//! The live page in a real browser. What the browser has to see is in `tests/node/live_page.js`; pictures go to
//! `target/screenshots`.

use std::net::SocketAddr;

use crate::support::fleet::{Fleet, wait_for_room_in_the_hour};
use crate::support::http;
use crate::support::nginx::Nginx;
use crate::support::redis::Redis;
use crate::support::server::Server;
use crate::support::tools::{in_repository, node, succeeds};

fn browse(check: &str, address: SocketAddr, more: &[&str]) {
    let screenshots = in_repository("target/screenshots");
    std::fs::create_dir_all(&screenshots).unwrap();
    let url = format!("http://{address}/");
    succeeds(node("live_page.js").args([check, &url]).arg(screenshots).args(more));
}

#[tokio::test]
async fn the_count_reaches_what_was_sent() {
    let server = Server::start(&["--mode", "exact", "--window", "24h"]).await;
    browse("count", server.address, &[]);
}

#[tokio::test]
async fn the_chart_has_a_mark_a_window() {
    let server = Server::start(&["--window", "1s"]).await;
    browse("chart", server.address, &[]);
}

#[tokio::test]
async fn the_page_asks_for_the_token() {
    let token = "0123456789abcdef";
    let server = Server::start(&["--window", "24h", "--api-token", token]).await;
    browse("access", server.address, &[token]);
}

#[tokio::test]
async fn the_page_lists_sorts_and_filters_the_largest_counters() {
    let server = Server::start(&["--mode", "exact", "--window", "3s"]).await;
    browse("counters", server.address, &[]);
}

#[tokio::test]
async fn the_page_explains_the_counter_of_those_without_a_place() {
    let token = "0123456789abcdef";
    let args = ["--window", "2s", "--max-counters", "2", "--shards", "4", "--api-token", token];
    let server = Server::start(&args).await;
    browse("overflow", server.address, &[token]);
}

#[tokio::test]
async fn the_page_keeps_the_last_counters_while_a_list_fails() {
    let server = Server::start(&["--mode", "exact", "--window", "3s"]).await;
    browse("failures", server.address, &[]);
}

#[tokio::test]
async fn the_page_asks_for_no_counters_where_there_are_none() {
    let without = Server::start(&["--window", "1s", "--max-counters", "0"]).await;
    browse("none", without.address, &[]);
}

#[tokio::test]
async fn the_page_shows_hours_and_days() {
    let server = Server::start(&["--window", "1s"]).await;
    browse("history", server.address, &[]);
}

#[tokio::test]
async fn the_page_counts_ranges() {
    let server = Server::start(&["--window", "1s"]).await;
    server.wait_closed(2).await;
    browse("ranges", server.address, &[]);
}

#[tokio::test]
async fn the_page_shows_what_two_counters_have_in_common() {
    wait_for_room_in_the_hour().await;
    let server = Server::start(&["--window", "1s"]).await;
    browse("overlaps", server.address, &[]);
}

#[tokio::test]
async fn the_page_shows_how_many_ids_come_again() {
    wait_for_room_in_the_hour().await;
    let server = Server::start(&["--window", "1s"]).await;
    browse("returns", server.address, &[]);
}

#[tokio::test]
async fn the_page_asks_for_no_history_that_cannot_be() {
    let exact = Server::start(&["--window", "1s", "--mode", "exact"]).await;
    browse("exact", exact.address, &[]);
    let long = Server::start(&["--window", "24h"]).await;
    browse("long", long.address, &[]);
}

#[tokio::test]
async fn the_page_adds_up_the_instances_behind_a_load_balancer() {
    let redis = Redis::start();
    let fleet = Fleet::start(2, &redis, "live-page", &[]).await;
    fleet.wait_published(0).await;
    let nginx = Nginx::start(&fleet.addresses());
    browse("instances", nginx.address, &["2"]);
}

#[tokio::test]
async fn the_page_says_that_redis_is_away() {
    let mut redis = Redis::start();
    let server = Server::start(&["--window", "1s", "--redis-url", &redis.url()]).await;
    server.wait_closed(3).await;
    redis.kill();
    server.get("/api/verve/accept?id=1").await;
    server.wait_for_metric("headcount_degraded", 1.0).await;
    browse("degraded", server.address, &[]);
}

#[tokio::test]
async fn the_page_says_that_no_instance_answers() {
    let server = Server::start(&["--window", "24h"]).await;
    browse("away", server.address, &[&server.process.0.id().to_string()]);
}

#[tokio::test]
async fn the_page_forbids_other_origins() {
    let server = Server::start(&["--api-token", "0123456789abcdef"]).await;
    let page = server.get("/").await;
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    assert_eq!(page.header("cache-control"), Some("no-store"));
    assert_eq!(page.header("x-content-type-options"), Some("nosniff"));
    assert_eq!(page.header("referrer-policy"), Some("no-referrer"));
    let policy = page.header("content-security-policy").unwrap();
    for part in ["default-src 'none'", "connect-src 'self'", "form-action 'none'", "frame-ancestors 'none'"] {
        assert!(policy.contains(part), "{policy}");
    }
    assert!(!policy.contains("unsafe"), "{policy}");
    assert_eq!(policy.matches("'sha256-").count(), 2, "{policy}");
    // The page holds no counts, so it needs no token. It loads nothing from elsewhere.
    for elsewhere in ["http://", "https://", "src=", "@import", "url("] {
        let found = page.body.replace("http://www.w3.org/2000/svg", "").contains(elsewhere);
        assert!(!found, "{elsewhere}");
    }
}

#[tokio::test]
async fn the_page_can_be_left_out_or_moved() {
    let without = Server::start(&["--no-ui"]).await;
    let apart = Server::start(&["--admin-listen", "127.0.0.1:0"]).await;
    for path in ["/", "/status"] {
        assert_eq!(without.get(path).await.status, 404);
        assert_eq!(apart.get(path).await.status, 404);
        assert_eq!(http::get(apart.admin.unwrap(), path).await.status, 200);
    }
    // Clients ask for them, and so does the page.
    for address in [without.address, apart.address, apart.admin.unwrap()] {
        for path in [
            "/api/verve/counters",
            "/api/verve/unique",
            "/api/verve/series?from=0&to=5",
            "/api/verve/overlap",
            "/api/verve/retention",
        ] {
            assert_ne!(http::get(address, path).await.status, 404, "{path}");
        }
        assert_eq!(http::get(address, "/api/verve/counters").await.status, 200);
    }
}

/// The README on a wide screen, the page about the API on a phone too, and what it says of counters.
#[test]
fn the_documents_show_the_page() {
    let (readme, api) = (include_str!("../../README.md"), include_str!("../../docs/api.md"));
    for (document, prefix, expected) in [(readme, "docs/live-page", 1), (api, "live-page", 3)] {
        let pictures: Vec<_> = document
            .split(['(', ')', '"'])
            .filter(|word| word.starts_with(prefix))
            .map(|picture| {
                let picture = in_repository("docs").join(picture.trim_start_matches("docs/"));
                std::fs::read(&picture).unwrap_or_else(|error| panic!("{}: {error}", picture.display()))
            })
            .collect();
        assert_eq!(pictures.len(), expected);
        for picture in pictures {
            assert!(picture.starts_with(b"\x89PNG"));
        }
    }
}
