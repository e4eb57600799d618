//! Prometheus accepts recording rules and alerts; each alert fires in a test, and each says what to do.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::support::kafka;
use crate::support::redis::Redis;
use crate::support::server::Server;
use crate::support::tools::{in_repository, list, succeeds, text, yaml};

/// All rules of a file, in order.
fn rules(path: &str) -> Vec<Value> {
    let file = yaml(path);
    list(&file, "groups").iter().flat_map(|group| list(group, "rules").clone()).collect()
}

fn alerts() -> Vec<Value> {
    rules("prometheus/alerts.yml")
}

#[test]
fn promtool_accepts_the_file() {
    for args in
        ["check config prometheus.yml", "check rules rules.yml alerts.yml", "test rules rules_test.yml"]
    {
        let args = args.split(' ');
        succeeds(Command::new("promtool").args(args).current_dir(in_repository("prometheus")));
    }
}

/// The runbook has a section for each alert, in any order, and no other. docs/operations.md has a line for each, with its
/// severity.
#[test]
fn every_alert_says_what_to_do() {
    let runbook = include_str!("../../prometheus/RUNBOOK.md");
    let operations = include_str!("../../docs/operations.md");
    let sections: BTreeSet<_> = runbook.lines().filter_map(|line| line.strip_prefix("## ")).collect();
    let alerts = alerts();
    let names: BTreeSet<_> = alerts.iter().map(|alert| text(alert, "alert")).collect();
    assert_eq!(names.len(), alerts.len());
    assert_eq!(sections, names);
    let lines = operations.lines().filter_map(|line| line.strip_prefix("| `Headcount")?.split_once('`'));
    let described: BTreeSet<_> = lines
        .map(|(name, rest)| {
            (format!("Headcount{name}"), rest.trim_end_matches(" |").rsplit(" | ").next().unwrap_or_default())
        })
        .collect();
    let severities = alerts.iter().map(|alert| (text(alert, "alert"), text(&alert["labels"], "severity")));
    assert_eq!(described, severities.map(|(name, severity)| (name.to_owned(), severity)).collect());
    for alert in &alerts {
        let (name, annotations) = (text(alert, "alert"), &alert["annotations"]);
        assert!(!text(alert, "for").is_empty());
        assert!(["critical", "warning"].contains(&text(&alert["labels"], "severity")), "{alert}");
        assert!(text(annotations, "summary").contains("$labels.job"), "{alert}");
        assert!(text(annotations, "description").contains("$value"), "{alert}");
        let section = format!("prometheus/RUNBOOK.md#{}", name.to_lowercase());
        assert_eq!(text(annotations, "runbook"), section);
    }
}

#[test]
fn every_alert_fires_and_falls_silent() {
    let file = yaml("prometheus/rules_test.yml");
    let tests = file["tests"].as_array().expect("tests");
    let cases: Vec<_> =
        tests.iter().filter_map(|test| test["alert_rule_test"].as_array()).flatten().collect();
    for alert in alerts() {
        let of_it = |case: &&&Value| case["alertname"] == alert["alert"];
        let expected: Vec<_> =
            cases.iter().filter(of_it).map(|case| case["exp_alerts"].as_array().expect("alerts")).collect();
        assert!(expected.iter().any(|alerts| alerts.is_empty()), "{alert} is never silent");
        let mut firing = expected.into_iter().flatten().peekable();
        assert!(firing.peek().is_some(), "{alert} never fires");
        for alert in firing {
            for annotation in ["summary", "description", "runbook"] {
                assert!(!text(&alert["exp_annotations"], annotation).is_empty());
            }
        }
    }
}

/// Every metric that a rule, dashboard or document names exists on a service with all features.
#[tokio::test]
async fn every_metric_exists() {
    let (redis, dir) = (Redis::start(), tempfile::tempdir().unwrap());
    let (url, brokers, namespace) = (redis.url(), kafka::shared(), kafka::namespace("every-metric"));
    let args = ["--redis-url", &url, "--kafka-brokers", &brokers, "--namespace", &namespace];
    let more = ["--redis-stream", "counts", "--log-dir", dir.path().to_str().unwrap()];
    let counters = ["--metrics-counter", "campaign-1"];
    let server = Server::start(&[&args[..], &more, &counters].concat()).await;
    let metrics = server.get("/metrics").await.body;
    let mut there: BTreeSet<_> = metrics
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split(['{', ' ']).next())
        .collect();
    // Those of a Redis Cluster exist only with one.
    there.extend(["headcount_redis_primary_away", "headcount_redis_redirects_total"]);
    let rules = rules("prometheus/rules.yml");
    there.extend(rules.iter().map(|rule| text(rule, "record")));
    let mut named = 0;
    for path in files(&in_repository("prometheus")).into_iter().chain(files(&in_repository("grafana"))) {
        let text = std::fs::read_to_string(&path).unwrap();
        for name in names(&text) {
            assert!(there.contains(name), "{name} in {}", path.display());
            named += 1;
        }
    }
    assert!(named > 100, "{named}");
}

/// The names of metrics and of recorded series in a text.
fn names(text: &str) -> impl Iterator<Item = &str> {
    let of_a_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let words = text.split(move |c| !of_a_name(c));
    words.filter(|word| {
        ["headcount_", "process_", "headcount:"].iter().any(|first| {
            word.strip_prefix(first).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_alphabetic()))
        })
    })
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { all.extend(files(&path)) } else { all.push(path) }
    }
    all
}
