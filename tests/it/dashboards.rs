//! The dashboards: Grafana's own types accept them, no panel overlaps another, and every panel shows data.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::support::fleet::{Fleet, WINDOW, next_window};
use crate::support::http::Connection;
use crate::support::kafka;
use crate::support::process::output_of;
use crate::support::prometheus::Prometheus;
use crate::support::receiver::{Answering, Receiver};
use crate::support::redis::Redis;
use crate::support::tools::{in_repository, list, node, succeeds, text, yaml};
use crate::support::wait_until;

use headcount::redis::keys::Keys;

const DASHBOARDS: [(&str, &str); 2] = [
    ("unique-ids", include_str!("../../grafana/dashboards/unique-ids.json")),
    ("operations", include_str!("../../grafana/dashboards/operations.json")),
];

fn dashboards() -> impl Iterator<Item = (&'static str, Value)> {
    DASHBOARDS.into_iter().map(|(name, json)| (name, serde_json::from_str(json).expect("JSON")))
}

/// Runs the TypeScript compiler on files that assign a dashboard to its type.
fn compiler(dashboards: &[(String, String)]) -> (tempfile::TempDir, Command) {
    let dir = tempfile::tempdir().unwrap();
    let mut compiler = node("node_modules/typescript/bin/tsc");
    compiler.args(["--noEmit", "--strict", "--skipLibCheck", "--pretty", "false"]);
    compiler.args(["--target", "es2022", "--module", "esnext", "--moduleResolution", "bundler"]);
    let types = in_repository("tests/node/dashboard");
    for (name, json) in dashboards {
        let path = dir.path().join(format!("{name}.ts"));
        let types = types.display();
        let program = format!(
            "import type {{ CheckedDashboard }} from '{types}';\nexport const dashboard: CheckedDashboard = {json};\n"
        );
        std::fs::write(&path, program).unwrap();
        compiler.arg(path);
    }
    (dir, compiler)
}

#[test]
fn grafanas_types_accept_the_dashboards() {
    let dashboards = DASHBOARDS.map(|(name, json)| (name.to_owned(), json.to_owned()));
    let (_dir, mut compiler) = compiler(&dashboards);
    succeeds(&mut compiler);
}

/// Misspelt fields at five levels: of every panel, of its type, of queries, of overrides and of values.
#[test]
fn grafanas_types_reject_misspelt_fields() {
    let (_, json) = DASHBOARDS[0];
    let broken = [
        (r#""gridPos""#, r#""gridPosition""#),
        (r#""type": "stat""#, r#""type": "state""#),
        (r#""graphMode""#, r#""graphsMode""#),
        (r#""legendFormat""#, r#""legend_format""#),
        (r#""custom.fillBelowTo""#, r#""custom.fillBelow""#),
        (r#""lineInterpolation": "stepAfter""#, r#""lineInterpolation": "step""#),
        (r#""mode": "absolute""#, r#""mode": "absolutely""#),
        (r#""displayMode": "list","#, ""),
        (r#""schemaVersion": 42"#, r#""schemaVersion": 43"#),
    ];
    let dashboards: Vec<_> = broken
        .iter()
        .enumerate()
        .map(|(index, (right, wrong))| {
            assert!(json.contains(right), "{right}");
            (format!("broken{index}"), json.replacen(right, wrong, 1))
        })
        .collect();
    let (_dir, mut compiler) = compiler(&dashboards);
    let output = output_of(&mut compiler);
    let said = String::from_utf8_lossy(&output.stdout);
    for ((name, _), change) in dashboards.iter().zip(broken) {
        assert!(said.contains(&format!("{name}.ts(")), "nothing is said of {change:?}:\n{said}");
    }
}

#[test]
fn every_panel_is_complete() {
    for (name, dashboard) in dashboards() {
        assert_eq!(dashboard["uid"], format!("headcount-{name}"));
        let mut ids = BTreeSet::new();
        for panel in list(&dashboard, "panels") {
            assert!(ids.insert(panel["id"].as_u64()), "{panel}");
            assert!(!text(panel, "title").is_empty());
            if panel["type"] == "row" || panel["type"] == "text" {
                continue;
            }
            assert!(text(panel, "description").ends_with('.'), "{panel}");
            assert_eq!(text(&panel["datasource"], "uid"), "${datasource}");
            let defaults = &panel["fieldConfig"]["defaults"];
            assert!(!text(defaults, "unit").is_empty());
            assert_eq!(list(&defaults["thresholds"], "steps")[0]["value"], Value::Null, "{panel}");
            for target in list(panel, "targets") {
                assert!(text(target, "expr").contains(r#"job="$job""#), "{target}");
            }
        }
        let variables = list(&dashboard["templating"], "list");
        let variables: Vec<_> = variables.iter().map(|variable| text(variable, "name")).collect();
        assert_eq!(variables, ["datasource", "job", "instance"]);
    }
}

#[test]
fn no_panel_overlaps_another() {
    for (name, dashboard) in dashboards() {
        let mut taken = BTreeSet::new();
        for panel in list(&dashboard, "panels") {
            let [x, y, w, h] =
                ["x", "y", "w", "h"].map(|key| panel["gridPos"][key].as_u64().expect("a number"));
            assert!(w > 0 && h > 0 && x + w <= 24, "{name}: {panel}");
            for cell in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
                assert!(taken.insert(cell), "{name}: {} at {cell:?}", panel["title"]);
            }
        }
        // There are no gaps either.
        let height = taken.iter().map(|(_, y)| y + 1).max().expect("panels");
        assert_eq!(taken.len() as u64, 24 * height, "{name}");
    }
}

/// Checks the files of `grafana/provisioning`, and the runbook, which is a panel so that links can point to it.
#[test]
fn dashboards_provisioning_and_runbook_agree() {
    let source = &yaml("grafana/provisioning/datasources/prometheus.yml")["datasources"][0];
    assert_eq!((text(source, "uid"), text(source, "url")), ("prometheus", "http://prometheus:9090"));
    let provider = &yaml("grafana/provisioning/dashboards/headcount.yml")["providers"][0];
    assert_eq!(provider["options"]["path"], "/etc/grafana/dashboards");
    let panels: Vec<_> = dashboards().flat_map(|(_, dashboard)| list(&dashboard, "panels").clone()).collect();
    let runbook = panels.iter().find(|panel| panel["type"] == "text").expect("the runbook");
    assert_eq!(text(&runbook["options"], "content"), include_str!("../../prometheus/RUNBOOK.md"));
    let linked = format!("/d/headcount-operations?viewPanel=panel-{}", runbook["id"]);
    for (name, dashboard) in dashboards() {
        let links: Vec<_> = list(&dashboard, "links").iter().map(|link| text(link, "url")).collect();
        assert!(links.contains(&&*linked), "{name}: {links:?}");
        let other = DASHBOARDS.iter().map(|(other, _)| *other).find(|other| *other != name);
        assert!(links.contains(&&*format!("/d/headcount-{}", other.expect("two"))), "{name}: {links:?}");
    }
}

/// A real Prometheus with the repository's configuration, and two real instances.
#[tokio::test(flavor = "multi_thread")]
async fn every_panel_shows_a_healthy_service_and_only_the_missing_leader_alerts() {
    let (redis, receiver) = (Redis::start(), Receiver::start(Answering::Status(204)).await);
    let (namespace, brokers, dir) =
        (kafka::namespace("pictures"), kafka::shared(), tempfile::tempdir().unwrap());
    // A busy machine must not look like an outage.
    let args = ["--kafka-brokers", &brokers, "--callback-allow", "127.0.0.1", "--redis-timeout", "5s"];
    let more = ["--redis-stream", "counts", "--log-dir", dir.path().to_str().unwrap()];
    let more = [&more[..], &["--metrics-counter", "campaign-1,campaign-2"]].concat();
    let mut fleet = Fleet::start(2, &redis, &namespace, &[&args[..], &more].concat()).await;
    let prometheus = Prometheus::start(&fleet.addresses()).await;
    let traffic = tokio::spawn(traffic(fleet.addresses(), receiver.url()));

    // Eight windows take longer than alerts wait for.
    let first = fleet.wait_published(0).await.into_keys().next().expect("a window");
    wait_published_and_seen(&fleet, &prometheus, first + 7 * WINDOW.as_secs()).await;
    every_panel_has_data(&prometheus, &fleet.addresses()).await;
    assert_eq!(fired(&prometheus).await, [""; 0]);

    let nobody = "HeadcountNobodyLeads";
    let mut connection = redis.connect();
    let lease = Keys::new(&namespace).lease();
    let mut take = redis::cmd("SET");
    take.arg(&lease).arg("somebody who is not there").arg("PX").arg(60_000);
    take.exec(&mut connection).unwrap();
    wait_until("the alert", async || prometheus.firing().await.iter().any(|name| name == nobody)).await;
    redis::cmd("DEL").arg(&lease).exec(&mut connection).unwrap();
    wait_until("its end", async || prometheus.firing().await.is_empty()).await;
    assert!(!traffic.is_finished(), "a request failed");
    traffic.abort();

    // A rolling restart fires no alert.
    for index in 0..2 {
        let address = fleet.servers[index].address;
        assert!(fleet.servers[index].stop().await.success());
        fleet.add_on(address).await;
    }
    let next = next_window(Duration::ZERO).await;
    wait_published_and_seen(&fleet, &prometheus, next).await;
    assert_eq!(fired(&prometheus).await, [nobody]);
}

/// Waits until Prometheus knows that the window with this start is published.
async fn wait_published_and_seen(fleet: &Fleet, prometheus: &Prometheus, start: u64) {
    fleet.wait_published(start).await;
    let seen = format!("headcount:last_published_window_timestamp_seconds:max >= {start}");
    wait_until("a window to be seen", async || !prometheus.query(&seen).await.is_empty()).await;
}

/// The alerts that have fired so far.
async fn fired(prometheus: &Prometheus) -> Vec<String> {
    let fired = r#"count by (alertname) (count_over_time(ALERTS{alertstate="firing"}[10m]))"#;
    let fired = prometheus.query(fired).await;
    fired.iter().map(|series| text(&series["metric"], "alertname").to_owned()).collect()
}

/// Sends every kind of request to all instances until it is stopped. No request fails.
async fn traffic(instances: Vec<SocketAddr>, endpoint: String) {
    let mut connections = Vec::new();
    for instance in instances {
        connections.push(Connection::open(instance).await.unwrap());
    }
    for id in 0.. {
        for connection in &mut connections {
            let callback = format!("/api/verve/accept?id={id}&endpoint={endpoint}");
            let named = format!("/api/verve/accept?id={}&counter=campaign-{}", id % 100, id % 5);
            for target in [&named, &callback, "/api/verve/unique"] {
                assert_eq!(connection.get(target).await.unwrap().status, 200);
            }
            assert_eq!(connection.post("text/plain", b"1\n2\n3\n").await.unwrap().status, 200);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn every_panel_has_data(prometheus: &Prometheus, instances: &[SocketAddr]) {
    let instance = format!("{}|{}", instances[0], instances[1]);
    let filled = |text: &str| {
        [("$job", "headcount"), ("$instance", &instance), ("$__rate_interval", "4s"), ("$__interval", "1s")]
            .iter()
            .fold(text.to_owned(), |text, (variable, value)| text.replace(variable, value))
    };
    let mut queries = 0;
    for (_, dashboard) in dashboards() {
        for panel in list(&dashboard, "panels").iter().filter(|panel| panel["targets"].is_array()) {
            for target in list(panel, "targets") {
                let query = filled(text(target, "expr"));
                assert!(!query.contains('$'), "{query}");
                let what = format!("{}: {query}", panel["title"]);
                wait_until(&what, async || has_data(prometheus, target, &query).await).await;
                queries += 1;
            }
        }
        for annotation in list(&dashboard["annotations"], "list") {
            if let Some(query) = annotation["target"]["expr"].as_str() {
                prometheus.query_range(&filled(query), 20).await;
            }
        }
        for variable in list(&dashboard["templating"], "list").iter().skip(1) {
            let definition = filled(text(&variable["query"], "query"));
            let (series, label) = definition
                .strip_prefix("label_values(")
                .and_then(|definition| definition.strip_suffix(')')?.rsplit_once(", "))
                .unwrap_or_else(|| panic!("{definition}"));
            assert!(!prometheus.label_values(series, label).await.is_empty(), "{definition}");
        }
    }
    println!("{queries} queries have data");
}

/// The value that a panel's query returns: not NaN, and not the 0 that a query returns in place of NaN.
async fn has_data(prometheus: &Prometheus, target: &Value, query: &str) -> bool {
    let stands_in = query.contains("or 0 *").then_some(0.0);
    let is_number = |sample: &Value| {
        let value = sample[1].as_str().and_then(|value| value.parse::<f64>().ok());
        value.is_some_and(|value| !value.is_nan() && Some(value) != stands_in)
    };
    if target["instant"] == true {
        let series = prometheus.query(query).await;
        series.iter().any(|series| is_number(&series["value"]))
    } else {
        let series = prometheus.query_range(query, 20).await;
        series.iter().flat_map(|series| list(series, "values")).any(is_number)
    }
}
