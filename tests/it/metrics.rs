//! `/metrics` has all series from the start, and each tells the truth.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::support::fleet::{Fleet, WINDOW, next_window, seconds};
use crate::support::http::Connection;
use crate::support::redis::Redis;
use crate::support::server::{Server, value_of};
use crate::support::tools::succeeds;
use crate::support::{PATIENCE, lines, wait_until};

const REASONS: [&str; 11] = [
    "missing_id",
    "invalid_id",
    "repeated_id",
    "invalid_endpoint",
    "invalid_body",
    "body_too_large",
    "unsupported_media_type",
    "unauthorized",
    "method_not_allowed",
    "overloaded",
    "store_unavailable",
];

#[tokio::test]
async fn all_series_are_there_from_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&["--window", "24h", "--log-dir", dir.path().to_str().unwrap()]).await;
    let text = server.get("/metrics").await.body;
    let mut series = vec![
        "headcount_accepted_ids_total".to_owned(),
        "headcount_changed_ids_total".to_owned(),
        "headcount_late_ids_total".to_owned(),
        "headcount_unique_ids".to_owned(),
        "headcount_window_accepted_ids".to_owned(),
        "headcount_current_unique_ids".to_owned(),
        "headcount_unpublished_windows".to_owned(),
        "headcount_unacknowledged_ids_max".to_owned(),
        "headcount_last_published_window_timestamp_seconds".to_owned(),
        r#"headcount_requests_total{route="other",result="not_found"}"#.to_owned(),
        r#"headcount_requests_total{route="other",result="overloaded"}"#.to_owned(),
    ];
    for reason in ["idle", "header", "write"] {
        series.push(format!(r#"headcount_connections_timed_out_total{{reason="{reason}"}}"#));
    }
    for route in ["accept", "bulk", "unique", "status"] {
        for result in REASONS.into_iter().chain(["ok"]) {
            series.push(format!(r#"headcount_requests_total{{route="{route}",result="{result}"}}"#));
        }
        series.push(format!(r#"headcount_request_duration_seconds_count{{route="{route}"}}"#));
        series.push(format!(r#"headcount_request_duration_seconds_bucket{{route="{route}",le="0.001"}}"#));
    }
    for sink in ["log", "file"] {
        for result in ["ok", "retry", "skipped"] {
            series.push(format!(r#"headcount_published_windows_total{{sink="{sink}",result="{result}"}}"#));
        }
    }
    for complete in ["true", "false"] {
        series.push(format!(r#"headcount_closed_windows_total{{complete="{complete}"}}"#));
    }
    for sink in ["log", "file"] {
        series.push(format!(r#"headcount_publish_lag_seconds_count{{sink="{sink}"}}"#));
    }
    for series in series {
        assert_eq!(value_of(&text, &series), Some(0.0), "{series} in\n{text}");
    }
    let info = format!(
        r#"headcount_info{{version="{}",counter="memory",mode="hll",window="86400",shards="1",host="{}"}}"#,
        env!("CARGO_PKG_VERSION"),
        gethostname::gethostname().to_string_lossy()
    );
    assert_eq!(value_of(&text, &info), Some(1.0), "{text}");
    assert_eq!(value_of(&text, "headcount_standard_error_ratio"), Some(0.008_125));
    assert_eq!(value_of(&text, "headcount_window_seconds"), Some(86_400.0));
    for series in [
        "headcount_connections",
        "process_cpu_seconds_total",
        "process_resident_memory_bytes",
        "process_open_fds",
    ] {
        assert!(value_of(&text, series).is_some(), "{series} in\n{text}");
    }
    // docs/operations.md lists exactly our metrics. Those of Redis exist only with Redis, those of a Redis Cluster only with one,
    // that of a counter only if it is chosen.
    let of_a_cluster = ["headcount_redis_primary_away", "headcount_redis_redirects_total"].map(str::to_owned);
    let chosen = Server::start(&["--metrics-counter", "a"]).await.get("/metrics").await.body;
    let redis = Redis::start();
    let server = Server::start(&["--redis-url", &redis.url()]).await;
    let text = server.get("/metrics").await.body;
    for command in ["ask", "write", "seal", "count", "heartbeat", "close", "lease"] {
        let errors = format!(r#"headcount_redis_errors_total{{command="{command}"}}"#);
        assert!(value_of(&text, &errors).is_some(), "{text}");
    }
    let operations = include_str!("../../docs/operations.md");
    let described = |word: &&str| word.starts_with("`headcount_");
    let name = |word: &str| word.trim_matches(['`', ',', '|']).split(['{', '`']).next().unwrap().to_owned();
    let table = operations.lines().filter(|line| line.starts_with('|'));
    let in_operations: BTreeSet<_> =
        table.flat_map(str::split_whitespace).filter(described).map(name).collect();
    let ours = |line: &&str| line.starts_with("# TYPE headcount_");
    let in_metrics: BTreeSet<_> = text
        .lines()
        .chain(chosen.lines())
        .filter(ours)
        .map(|line| line.split(' ').nth(2).unwrap().to_owned())
        .chain(of_a_cluster)
        .collect();
    assert_eq!(in_operations, in_metrics);
    // Every metric has a help, a type, and the prefix `headcount_` or `process_`.
    for name in text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .map(|line| line.split(' ').next().unwrap())
    {
        assert!(name.starts_with("headcount_") || name.starts_with("process_"), "{name}");
        assert!(text.contains(&format!("# HELP {name} ")), "{name}");
    }
}

/// promtool accepts the names, types, units and help.
#[tokio::test]
async fn promtool_accepts_the_file() {
    let (redis, dir) = (Redis::start(), tempfile::tempdir().unwrap());
    let server = Server::start(&["--redis-url", &redis.url(), "--redis-stream", "counts"]).await;
    let metrics = dir.path().join("metrics");
    std::fs::write(&metrics, server.get("/metrics").await.body).unwrap();
    let check = "promtool check metrics < \"$0\" || test $? = 3";
    let said = succeeds(Command::new("sh").args(["-c", check]).arg(metrics));
    // It takes our word for the type of a metric.
    let is_our_word = |line: &str| {
        line.starts_with("headcount_counter_") && line.ends_with(" should not include type 'counter'")
    };
    let lints: Vec<_> = said.lines().filter(|line| !is_our_word(line)).collect();
    assert!(lints.is_empty(), "{lints:?}");
}

#[tokio::test]
async fn metrics_count_events() {
    let server = Server::start(&["--window", "24h", "--mode", "exact"]).await;
    let mut connection = Connection::open(server.address).await.unwrap();
    for id in [1, 2, 2, 3] {
        connection.get(&format!("/api/verve/accept?id={id}")).await.unwrap();
    }
    connection.get("/api/verve/accept?id=x").await.unwrap();
    connection.post("text/plain", b"3\n4\n5\n").await.unwrap();
    connection.post("text/plain", b"6\nx\n").await.unwrap();
    connection.get("/api/verve/unique").await.unwrap();
    connection.get("/status").await.unwrap();
    connection.get("/nowhere").await.unwrap();
    let text = connection.get("/metrics").await.unwrap().body;
    for (series, value) in [
        (r#"headcount_requests_total{route="accept",result="ok"}"#, 4.0),
        (r#"headcount_requests_total{route="accept",result="invalid_id"}"#, 1.0),
        (r#"headcount_requests_total{route="bulk",result="ok"}"#, 1.0),
        (r#"headcount_requests_total{route="bulk",result="invalid_id"}"#, 1.0),
        (r#"headcount_requests_total{route="unique",result="ok"}"#, 1.0),
        (r#"headcount_requests_total{route="status",result="ok"}"#, 1.0),
        (r#"headcount_requests_total{route="other",result="not_found"}"#, 1.0),
        (r#"headcount_request_duration_seconds_count{route="accept"}"#, 5.0),
        (r#"headcount_request_duration_seconds_bucket{route="accept",le="+Inf"}"#, 5.0),
        ("headcount_accepted_ids_total", 7.0),
        ("headcount_changed_ids_total", 5.0),
        ("headcount_current_unique_ids", 5.0),
        ("headcount_connections", 1.0),
    ] {
        assert_eq!(value_of(&text, series), Some(value), "{series} in\n{text}");
    }
}

/// Both instances show the hour and the day, which grow with each window.
#[tokio::test]
async fn metrics_show_the_running_hour_and_day() {
    let redis = Redis::start();
    let fleet = Fleet::start(2, &redis, "running-periods", &[]).await;
    let day_of = |time| seconds(time) / 86_400;
    let today = day_of(SystemTime::now());
    let series = |name: &str, level: &str| format!(r#"headcount_period_{name}{{level="{level}"}}"#);
    for ids in [300, 500] {
        let mut connection = Connection::open(fleet.servers[0].address).await.unwrap();
        let began = next_window(Duration::ZERO).await;
        connection.post("text/plain", lines(0..ids).as_bytes()).await.unwrap();
        fleet.wait_published(began + WINDOW.as_secs()).await;
        for server in &fleet.servers {
            wait_until("the day to grow", async || {
                let day = server.metric(&series("unique_ids", "day")).await;
                (day - ids as f64).abs() < 0.05 * ids as f64
            })
            .await;
            let text = server.get("/metrics").await.body;
            let value = |name: &str, level: &str| value_of(&text, &series(name, level)).unwrap();
            assert!(value("unique_ids", "hour") <= value("unique_ids", "day"), "{text}");
            let began_before_us = day_of(SystemTime::now()) == today;
            assert!(value("complete", "day") == 0.0 || !began_before_us, "{text}");
        }
    }
}

/// What is not kept is not shown, and no count of another instance is hidden by it.
#[tokio::test]
async fn metrics_show_no_hour_or_day_that_is_not_kept() {
    let no_hours = Server::start(&["--window", "1s", "--keep-hours", "0s"]).await;
    let exact = Server::start(&["--window", "1s", "--mode", "exact"]).await;
    no_hours.get("/api/verve/accept?id=1").await;
    no_hours.wait_for_metric(r#"headcount_period_unique_ids{level="day"}"#, 1.0).await;
    exact.wait_closed(2).await;
    for (server, level) in [(&no_hours, "hour"), (&exact, "hour"), (&exact, "day")] {
        for name in ["unique_ids", "complete"] {
            let value = server.metric(&format!(r#"headcount_period_{name}{{level="{level}"}}"#)).await;
            assert!(value.is_nan(), "{level}: {value}");
        }
    }
}

#[tokio::test]
async fn metrics_show_closed_windows() {
    let server = Server::start(&["--window", "1s"]).await;
    server.wait_closed(1).await;
    let mut connection = Connection::open(server.address).await.unwrap();
    let deadline = std::time::Instant::now() + PATIENCE;
    // Repeats until a scrape falls between two windows and the first had ids. Then all values must agree.
    loop {
        assert!(std::time::Instant::now() < deadline, "the metrics never agree with the log");
        for id in [1, 2, 2] {
            connection.get(&format!("/api/verve/accept?id={id}")).await.unwrap();
        }
        let before = server.closed();
        let text = connection.get("/metrics").await.unwrap().body;
        let last = before.last().unwrap();
        let start = last.start().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let expected = [
            ("headcount_unique_ids", last.unique as f64),
            ("headcount_window_accepted_ids", last.accepted as f64),
            ("headcount_unpublished_windows", 0.0),
            (r#"headcount_published_windows_total{sink="log",result="ok"}"#, before.len() as f64),
            (r#"headcount_publish_lag_seconds_count{sink="log"}"#, before.len() as f64),
            (r#"headcount_closed_windows_total{complete="false"}"#, 1.0),
            (r#"headcount_closed_windows_total{complete="true"}"#, before.len() as f64 - 1.0),
            ("headcount_last_published_window_timestamp_seconds", start as f64),
        ];
        if last.accepted > 0 && expected.iter().all(|(series, value)| value_of(&text, series) == Some(*value))
        {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
