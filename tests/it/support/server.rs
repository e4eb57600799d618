//! The real binary, serving on free ports of loopback.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::http::{self, Answer};
use super::process::{Process, headcount, headcount_with_clock};
use super::{until_there_is_room, wait_for, wait_until};

/// Dropping it stops it by its pid.
pub struct Server {
    pub process: Process,
    log: Arc<Mutex<Vec<Value>>>,
    pub address: SocketAddr,
    pub admin: Option<SocketAddr>,
}

/// A closed window as the log shows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Closed {
    pub timestamp: String,
    pub unique: u64,
    pub accepted: u64,
    pub complete: bool,
}

impl Closed {
    /// The window's start.
    pub fn start(&self) -> SystemTime {
        OffsetDateTime::parse(&self.timestamp, &Rfc3339).expect("a timestamp after RFC 3339").into()
    }
}

impl Server {
    /// Starts on a free port and waits until it listens.
    pub async fn start(args: &[&str]) -> Self {
        Self::start_on("127.0.0.1:0".parse().expect("an address"), args).await
    }

    /// Starts at the address of an earlier server.
    pub async fn start_on(address: SocketAddr, args: &[&str]) -> Self {
        let mut command = headcount();
        command.args(["--listen", &address.to_string()]).args(args);
        Self::run(command).await
    }

    /// Starts with a clock that is off by `offset`, such as `+1.5s`.
    pub async fn start_with_clock(offset: &str, args: &[&str]) -> Self {
        let mut command = headcount_with_clock(offset);
        command.args(["--listen", "127.0.0.1:0"]).args(args);
        Self::run(command).await
    }

    /// Starts a command, and adds the log format.
    pub async fn run(mut command: Command) -> Self {
        let args: Vec<_> = command.get_args().map(|arg| arg.to_string_lossy().into_owned()).collect();
        let window = args.iter().position(|arg| arg == "--window").and_then(|at| args.get(at + 1));
        if let Some(window) = window.and_then(|window| humantime::parse_duration(window).ok()) {
            tokio::time::sleep(until_there_is_room(window, SystemTime::now())).await;
        }
        let mut child =
            command.args(["--log-format", "json"]).stdout(Stdio::piped()).spawn().expect("the binary starts");
        let log = Arc::new(Mutex::new(Vec::<Value>::new()));
        let (lines, sink) = (BufReader::new(child.stdout.take().expect("a pipe")), Arc::clone(&log));
        // This thread ends when the process closes the pipe.
        std::thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                let event = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
                sink.lock().unwrap().push(event);
            }
        });
        let mut process = Process(child);
        let listening = wait_for("the server to listen", || {
            assert!(process.0.try_wait().unwrap().is_none(), "the server ended");
            log.lock().unwrap().iter().find(|event| event["fields"]["message"] == "listening").cloned()
        })
        .await;
        let address =
            |field| listening["fields"].get(field).map(|value| value.as_str().unwrap().parse().unwrap());
        Self {
            process,
            log,
            address: address("address").expect("an address"),
            admin: address("admin_address"),
        }
    }

    pub async fn get(&self, target: &str) -> Answer {
        http::get(self.address, target).await
    }

    /// The log so far.
    pub fn log(&self) -> Vec<Value> {
        self.log.lock().unwrap().clone()
    }

    /// The windows closed so far, in the order of the log.
    pub fn closed(&self) -> Vec<Closed> {
        let log = self.log.lock().unwrap();
        let events =
            log.iter().map(|event| &event["fields"]).filter(|fields| fields["message"] == "window closed");
        events
            .map(|fields| Closed {
                timestamp: fields["timestamp"].as_str().expect("a timestamp").to_owned(),
                unique: fields["unique_request_count"].as_u64().expect("a count"),
                accepted: fields["accepted_ids"].as_u64().expect("a number"),
                complete: fields["complete"].as_bool().expect("true or false"),
            })
            .collect()
    }

    /// Waits until the log has this many closed windows.
    pub async fn wait_closed(&self, windows: usize) -> Vec<Closed> {
        wait_for("closed windows", || Some(self.closed()).filter(|closed| closed.len() >= windows)).await
    }

    /// How many lines of the log so far have this message.
    pub fn logged(&self, message: &str) -> usize {
        self.log.lock().unwrap().iter().filter(|event| event["fields"]["message"] == message).count()
    }

    /// Waits until the log has a line with this message.
    pub async fn wait_for_log(&self, message: &str) {
        wait_for(message, || (self.logged(message) > 0).then_some(())).await;
    }

    /// Waits until Redis is back and has all ids.
    pub async fn wait_until_replayed(&self) {
        self.wait_for_metric("headcount_degraded", 0.0).await;
        self.wait_for_metric("headcount_unacknowledged_ids", 0.0).await;
    }

    /// Sends SIGTERM and waits for the end. The log is complete then.
    pub async fn stop(&mut self) -> ExitStatus {
        self.process.signal("TERM");
        self.ended().await
    }

    /// Waits for the process to end by itself.
    pub async fn ended(&mut self) -> ExitStatus {
        let status = self.process.wait();
        // The reader drops its reference after the last line.
        wait_for("the rest of the log", || (Arc::strong_count(&self.log) == 1).then_some(())).await;
        status
    }

    /// The value of a metric. Name and labels must be exactly as in `/metrics`.
    pub async fn metric(&self, series: &str) -> f64 {
        let text = http::get(self.admin.unwrap_or(self.address), "/metrics").await.body;
        value_of(&text, series).unwrap_or_else(|| panic!("no {series} in\n{text}"))
    }

    /// Waits until a metric has a value.
    pub async fn wait_for_metric(&self, series: &str, value: f64) {
        wait_until(&format!("{series} to be {value}"), async || self.metric(series).await == value).await;
    }
}

/// The value of a series in the Prometheus text format.
pub fn value_of(text: &str, series: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.rsplit_once(' ').is_some_and(|(name, _)| name == series))?;
    line.rsplit_once(' ')?.1.parse().ok()
}
