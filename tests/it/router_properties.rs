//! Every request gets an answer that the API describes: never a 500, never a panic.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Method, Request, Response, StatusCode};
use clap::Parser;
use headcount::callback::{Callbacks, Dependencies};
use headcount::cli::flags::ServeFlags;
use headcount::cli::settings::Settings;
use headcount::coordination::{ClosedWindows, Coordinator, KeptSeries};
use headcount::http::{Api, Failure, Phase, routers};
use headcount::model::window::{Clock, Window};
use headcount::store::Store;
use headcount::store::memory::MemoryStore;
use headcount::telemetry::metrics::Metrics;
use http_body_util::BodyExt;
use proptest::collection::vec;
use proptest::prelude::*;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::support::doubles::ManualClock;

#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    serve: ServeFlags,
}

/// The real router with a store that the test can use, at a time that the test sets.
struct Service {
    router: Router,
    counter: Arc<Store>,
    metrics: Arc<Metrics>,
}

fn service(clock: &ManualClock, flags: &[&str]) -> Service {
    let flags = Flags::parse_from(["test"].iter().chain(flags));
    let Settings { counting, http, callbacks, .. } = flags.serve.settings().expect("settings");
    let counter = Arc::new(Store::Memory(MemoryStore::new(counting.mode, counting.shards)));
    let metrics = Arc::new(Metrics::new());
    // No callback is sent, because the tasks do not run.
    let closed = ClosedWindows::new(Arc::clone(&metrics));
    let series = KeptSeries::new(counting.window, counting.keep.total.days);
    let dependencies = Dependencies {
        own: Vec::new(),
        store: counter.clone(),
        closed: closed.clone(),
        clock: Arc::new(clock.clone()),
    };
    let (callbacks, _) = Callbacks::new(callbacks, dependencies, &metrics).expect("a client");
    let routers = routers(Api {
        store: counter.clone(),
        coordinator: Arc::new(Coordinator::standalone(series, Duration::ZERO, CancellationToken::new())),
        series,
        callbacks,
        clock: Arc::new(clock.clone()),
        closed,
        instance: "test/1".to_owned(),
        leader: watch::channel(None).1,
        phase: watch::channel(Phase::Starting).1,
        clock_is_wrong: watch::channel(false).1,
        counting,
        settings: http,
        metrics: Arc::clone(&metrics),
    });
    Service { router: routers.public, counter, metrics }
}

async fn send(router: &Router, request: Request<Body>) -> (StatusCode, Option<String>, String) {
    let response: Response<Body> = router.clone().oneshot(request).await.expect("a router has no errors");
    let reason = response.headers().get("failure-reason").map(|reason| reason.to_str().unwrap().to_owned());
    let status = response.status();
    let body = response.into_body().collect().await.expect("a whole body").to_bytes();
    (status, reason, String::from_utf8(body.to_vec()).expect("text"))
}

fn get(target: &str) -> Request<Body> {
    Request::get(target).body(Body::empty()).unwrap()
}

/// Pieces that queries are made of: what the parser looks for, and what could trip it.
fn query_piece() -> impl Strategy<Value = String> {
    let words = [
        "id",
        "=",
        "&",
        "id=",
        "&id=7",
        "endpoint",
        "endpoint=",
        "http://a.example",
        "endpoint=http://127.1",
        "https%3A%2F%2F",
        "ftp://x",
        "%",
        "%0",
        "%00",
        "%FF",
        "%2B",
        "+",
        "-",
        "0",
        "007",
        "18446744073709551616",
        "-9223372036854775808",
        ";",
        "?",
        "/",
        "[::1]",
        "1e9",
        "%EF%BC%95",
    ];
    prop_oneof![4 => prop::sample::select(words.to_vec()).prop_map(str::to_owned), 1 => "[!-~&&[^#]]{0,12}"]
}

fn target() -> impl Strategy<Value = String> {
    let paths = [
        "/api/verve/accept",
        "/api/verve/unique",
        "/api/verve/series",
        "/livez",
        "/readyz",
        "/",
        "/api/verve/accept/",
        "/api/verve/acceptx",
    ];
    let path = prop_oneof![20 => Just(paths[0].to_owned()), 4 => prop::sample::select(paths.to_vec()).prop_map(str::to_owned), 1 => "/[a-z/%0-9]{0,20}"];
    let sound = any::<i64>().prop_map(|id| format!("?id={id}"));
    let any_query = vec(query_piece(), 0..8).prop_map(|pieces| format!("?{}", pieces.concat()));
    let query = prop_oneof![1 => sound, 8 => any_query, 1 => Just(String::new())];
    (path, query).prop_map(|(path, query)| path + &query)
}

fn body() -> impl Strategy<Value = Vec<u8>> {
    let words = [
        "1",
        "\n",
        "\r\n",
        "-7",
        "[",
        "]",
        ",",
        " ",
        "1.5",
        "\"5\"",
        "null",
        "18446744073709551616",
        "{",
        "}",
        "\0",
        "e3",
    ];
    prop_oneof![
        vec(any::<u8>(), 0..40),
        vec(prop::sample::select(words.to_vec()), 0..20).prop_map(|words| words.concat().into_bytes()),
        vec(any::<i64>(), 0..20).prop_map(|ids| format!("{ids:?}").into_bytes()),
    ]
}

fn request() -> impl Strategy<Value = (Method, String, Option<String>, Vec<u8>)> {
    let others = [Method::HEAD, Method::PUT, Method::DELETE, Method::OPTIONS];
    let method = prop_oneof![4 => Just(Method::GET), 4 => Just(Method::POST), 1 => prop::sample::select(others.to_vec())];
    let types = [
        "text/plain",
        "application/json",
        "application/x-ndjson",
        "text/html",
        "application/json;charset=utf-8",
        ";",
        "é",
    ];
    let content_type =
        prop::option::weighted(0.8, prop::sample::select(types.to_vec()).prop_map(str::to_owned));
    (method, target(), content_type, body())
}

#[test]
fn every_request_has_an_answer_of_the_contract() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let clock = ManualClock::at(1_700_000_000.0);
    let service = service(&clock, &["--mode", "exact"]);
    let reasons = Failure::ALL.map(Failure::reason);
    let mut refused = std::collections::BTreeMap::<String, u32>::new();
    let mut accepted = 0;

    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 100_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let (refusals, oks) = (std::cell::RefCell::new(&mut refused), std::cell::RefCell::new(&mut accepted));
    let result = runner.run(&request(), |(method, target, content_type, body)| {
        // What is no URI, the parser refuses before the router.
        let mut request = Request::builder().method(&method).uri(&target);
        if let Some(content_type) = content_type {
            request = request.header("content-type", content_type);
        }
        let Ok(request) = request.body(Body::from(body)) else { return Ok(()) };
        let (status, reason, body) = runtime.block_on(send(&service.router, request));
        match (status.as_u16(), reason) {
            (200, None) => **oks.borrow_mut() += u32::from(body == "ok"),
            // This router's phase is not ready.
            (503, None) => prop_assert_eq!(body, if method == Method::HEAD { "" } else { "starting" }),
            (404, None) => prop_assert_eq!(body, if method == Method::HEAD { "" } else { "not found" }),
            (400 | 405 | 413 | 415, Some(reason)) => {
                prop_assert!(reasons.contains(&&*reason), "{}", reason);
                prop_assert_eq!(body, if method == Method::HEAD { "" } else { "failed" });
                *refusals.borrow_mut().entry(reason).or_default() += 1;
            }
            (status, reason) => prop_assert!(false, "{} {:?} for {} {}", status, reason, method, target),
        }
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
    // The generator does reach what it is meant to reach.
    println!("{accepted} ok, refused: {refused:?}");
    assert!(accepted > 1_000);
    for reason in [
        "missing_id",
        "invalid_id",
        "repeated_id",
        "invalid_endpoint",
        "forbidden_endpoint",
        "invalid_body",
        "unsupported_media_type",
        "method_not_allowed",
    ] {
        assert!(refused[reason] > 50, "{reason}: {refused:?}");
    }
}

#[test]
fn every_failure_reason_is_listed_once() {
    let mut reasons = Failure::ALL.map(Failure::reason).to_vec();
    reasons.sort_unstable();
    reasons.dedup();
    assert_eq!(reasons.len(), Failure::ALL.len());
    // A new kind of failure does not compile here until it is listed.
    for failure in Failure::ALL {
        match failure {
            Failure::MissingId
            | Failure::InvalidId { .. }
            | Failure::InvalidCounter { .. }
            | Failure::InvalidParameter { .. }
            | Failure::InvalidRange { .. }
            | Failure::RangeNotKept { .. }
            | Failure::NotAvailable { .. }
            | Failure::RepeatedId
            | Failure::InvalidEndpoint
            | Failure::ForbiddenEndpoint
            | Failure::InvalidSketch { .. }
            | Failure::InvalidBody { .. }
            | Failure::BodyTooLarge
            | Failure::UnsupportedMediaType
            | Failure::InvalidHost
            | Failure::UnsupportedTransferEncoding
            | Failure::Unauthorized
            | Failure::MethodNotAllowed { .. }
            | Failure::Overloaded
            | Failure::StoreUnavailable => {}
        }
    }
}

/// The window that a request arrives in may be sealed before its id is added: the clock went back, or
/// the publisher was faster. The id is counted all the same, in the oldest window that is open.
#[tokio::test]
async fn late_ids_go_to_the_oldest_open_window() {
    let clock = ManualClock::at(1_700_000_000.0);
    let service = service(&clock, &["--mode", "exact", "--window", "10s"]);
    let window: Window =
        "10s".parse::<headcount::model::window::WindowLength>().unwrap().window_at(clock.now());
    let count = async |window| service.counter.count(window).await.unwrap().unique_ids;

    let ok = (StatusCode::OK, None, "ok".to_owned());
    assert_eq!(send(&service.router, get("/api/verve/accept?id=1")).await, ok);
    service.counter.seal(window).await.unwrap();
    assert_eq!(send(&service.router, get("/api/verve/accept?id=2")).await, ok);
    let many = Request::post("/api/verve/accept")
        .header("content-type", "text/plain")
        .body(Body::from("3\n4\n"))
        .unwrap();
    assert_eq!(send(&service.router, many).await, ok);
    assert_eq!([count(window).await, count(window.next()).await], [1, 3]);

    // An hour back, and later on again.
    clock.set(1_699_996_400.0);
    assert_eq!(send(&service.router, get("/api/verve/accept?id=5")).await, ok);
    assert_eq!(count(window.next()).await, 4);
    clock.set(1_700_000_020.0);
    assert_eq!(send(&service.router, get("/api/verve/accept?id=6")).await, ok);
    assert_eq!([count(window.next()).await, count(window.next().next()).await], [4, 1]);

    let metrics = service.metrics.render();
    let value = |series| crate::support::server::value_of(&metrics, series);
    assert_eq!(value("headcount_late_ids_total"), Some(4.0));
    assert_eq!(value("headcount_accepted_ids_total"), Some(6.0));
}

/// The running window may be counted only while it is known.
#[tokio::test]
async fn an_unavailable_count_is_503() {
    let clock = ManualClock::at(1_700_000_000.0);
    let service = service(&clock, &["--window", "10s"]);
    let sealed = "10s".parse::<headcount::model::window::WindowLength>().unwrap().window_at(clock.now());
    service.counter.seal(sealed).await.unwrap();
    service.counter.evict(sealed).await;
    clock.set(1_600_000_000.0);
    let (status, reason, body) = send(&service.router, get("/api/verve/unique")).await;
    assert_eq!((status.as_u16(), reason.as_deref(), &*body), (503, Some("store_unavailable"), "failed"));
}
