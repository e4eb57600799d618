//! A real Prometheus with the repository's configuration, but with shorter times.

use std::fmt::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use url::form_urlencoded::Serializer;

use super::process::Process;
use super::tools::{in_repository, replaced};
use super::{PATIENCE, free_port, wait_until};

/// Texts of the repository's files, and their replacements in tests. Prometheus finds targets after five seconds, and
/// Kafka's client reports every five seconds. So an alert that waits for less would fire at the start. Alerts that wait
/// for five minutes stay unchanged, because requests may be slow for a while where tests run.
const SOONER: [(&str, &str, &str); 5] = [
    ("prometheus.yml", "scrape_interval: 5s", "scrape_interval: 500ms"),
    ("prometheus.yml", "evaluation_interval: 5s", "evaluation_interval: 500ms"),
    ("alerts.yml", "for: 15s", "for: 3s"),
    ("alerts.yml", "for: 1m", "for: 12s"),
    ("alerts.yml", "for: 2m", "for: 12s"),
];

const FOUND_BY_NAME: &str = "    dns_sd_configs:
      - names: [headcount]
        type: A
        port: 8080
        refresh_interval: 5s
";

/// Dropping it stops it by its pid.
pub struct Prometheus {
    address: SocketAddr,
    _process: Process,
    _dir: TempDir,
}

impl Prometheus {
    /// Starts one that scrapes these instances. Returns once it answers.
    pub async fn start(instances: &[SocketAddr]) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        configure(dir.path(), instances);
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let mut command = Command::new("prometheus");
        command
            .arg(format!("--config.file={}", dir.path().join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .arg("--log.level=warn")
            .stdin(Stdio::null());
        let process = Process(command.spawn().expect("prometheus starts: ./scripts/test installs it"));
        let prometheus = Self { address, _process: process, _dir: dir };
        wait_until("Prometheus to be ready", async || prometheus.get("/-/ready").await.is_some()).await;
        prometheus
    }

    /// The series that an expression has now.
    pub async fn query(&self, expression: &str) -> Vec<Value> {
        self.ask("query", &[("query", expression)]).await["result"].as_array().expect("series").clone()
    }

    /// The series that it had in the last `seconds`.
    pub async fn query_range(&self, expression: &str, seconds: u64) -> Vec<Value> {
        let end = super::fleet::seconds(std::time::SystemTime::now());
        let (start, end) = ((end - seconds).to_string(), end.to_string());
        let parameters = [("query", expression), ("start", &start), ("end", &end), ("step", "1")];
        self.ask("query_range", &parameters).await["result"].as_array().expect("series").clone()
    }

    /// The values of a label in the series of a metric, queried as Grafana does for a variable.
    pub async fn label_values(&self, series: &str, label: &str) -> Vec<Value> {
        let values = self.ask(&format!("label/{label}/values"), &[("match[]", series)]).await;
        values.as_array().expect("values").clone()
    }

    /// The names of the alerts that fire.
    pub async fn firing(&self) -> Vec<String> {
        let alerts = self.ask("alerts", &[]).await;
        let alerts = alerts["alerts"].as_array().expect("alerts");
        let firing = alerts.iter().filter(|alert| alert["state"] == "firing");
        firing.map(|alert| alert["labels"]["alertname"].as_str().expect("a name").to_owned()).collect()
    }

    async fn ask(&self, what: &str, parameters: &[(&str, &str)]) -> Value {
        let parameters = Serializer::new(String::new()).extend_pairs(parameters).finish();
        let body = self.get(&format!("/api/v1/{what}?{parameters}")).await.expect("an answer");
        let mut answer: Value = serde_json::from_str(&body).unwrap_or_else(|error| panic!("{error}: {body}"));
        assert_eq!(answer["status"], "success", "{what} {parameters}: {body}");
        answer["data"].take()
    }

    /// The body of a 200. The request is HTTP/1.0, so the body is never chunked.
    async fn get(&self, target: &str) -> Option<String> {
        let mut stream = TcpStream::connect(self.address).await.ok()?;
        stream.write_all(format!("GET {target} HTTP/1.0\r\n\r\n").as_bytes()).await.ok()?;
        let mut answer = String::new();
        tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer)).await.expect("an end").ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        // The body says what is wrong with a query.
        (head.starts_with("HTTP/1.0 200") || body.starts_with('{')).then(|| body.to_owned())
    }
}

/// Writes the files with the replacements. A text that is to change must be there.
fn configure(dir: &Path, instances: &[SocketAddr]) {
    let mut targets = String::from("    static_configs:\n");
    for instance in instances {
        let _ = writeln!(targets, "      - targets: [\"{instance}\"]");
    }
    for name in ["prometheus.yml", "rules.yml", "alerts.yml"] {
        let mut text = std::fs::read_to_string(in_repository("prometheus").join(name)).expect("a file");
        for (_, from, to) in SOONER.into_iter().filter(|(file, ..)| *file == name) {
            text = replaced(&text, &format!("{from}\n"), &format!("{to}\n"));
        }
        if name == "prometheus.yml" {
            text = replaced(&text, FOUND_BY_NAME, &targets);
        }
        std::fs::write(dir.join(name), text).expect("a file");
    }
}
