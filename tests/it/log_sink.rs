//! The log as a sink: the service keeps, counts and repeats what standard output does not take.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;

use crate::support::disk::SmallDisk;
use crate::support::http::get;
use crate::support::process::{Process, headcount};
use crate::support::server::value_of;
use crate::support::{free_port, wait_until};

const TAKEN: &str = r#"headcount_published_windows_total{sink="log",result="ok"}"#;
const RETRIED: &str = r#"headcount_published_windows_total{sink="log",result="retry"}"#;
const WAITING: &str = "headcount_unpublished_windows";

/// A service whose standard output is elsewhere.
struct Service {
    process: Process,
    address: std::net::SocketAddr,
}

impl Service {
    async fn start(stdout: impl Into<Stdio>, args: &[&str]) -> Self {
        let address = format!("127.0.0.1:{}", free_port());
        let mut command = headcount();
        command.args(["--listen", &address, "--window", "1s", "--log-format", "json"]).args(args);
        let process = Process(command.stdout(stdout).stderr(Stdio::null()).spawn().unwrap());
        let address = address.parse().unwrap();
        wait_until("the service to be there", async || tokio::net::TcpStream::connect(address).await.is_ok())
            .await;
        wait_until("it to be ready", async || get(address, "/readyz").await.status == 200).await;
        Self { process, address }
    }

    async fn metric(&self, series: &str) -> f64 {
        value_of(&get(self.address, "/metrics").await.body, series).unwrap_or_default()
    }

    async fn wait_for_at_least(&self, series: &str, value: f64) {
        wait_until(series, async || self.metric(series).await >= value).await;
    }

    /// How it ended, after SIGTERM.
    fn stop(mut self) -> Option<i32> {
        self.process.signal("TERM");
        self.process.wait_for(Duration::from_secs(40)).code()
    }
}

/// The windows that lines tell of, each of which has to be JSON.
fn windows<'a>(lines: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let events = lines
        .into_iter()
        .map(|line| serde_json::from_str::<Value>(line).unwrap_or_else(|error| panic!("{error}: {line:?}")));
    let closed = events.filter(|event| event["fields"]["message"] == "window closed");
    closed.map(|event| event["fields"]["timestamp"].as_str().unwrap().to_owned()).collect()
}

/// Standard output is a file on a disk that is full for a while. The windows of that time arrive when there is room again.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_under_standard_output_costs_no_window() {
    let dir = tempfile::tempdir().unwrap();
    let disk = SmallDisk::mount(dir.path());
    let path = dir.path().join("log.jsonl");
    let service = Service::start(File::create(&path).unwrap(), &[]).await;
    service.wait_for_at_least(TAKEN, 2.0).await;
    disk.fill();
    service.wait_for_at_least(RETRIED, 1.0).await;
    service.wait_for_at_least(WAITING, 2.0).await;
    let taken = service.metric(TAKEN).await;
    service.wait_for_at_least(WAITING, 3.0).await;
    assert_eq!(service.metric(TAKEN).await, taken, "what was not written is not counted as such");
    disk.free();
    service.wait_for_at_least(TAKEN, taken + 3.0).await;
    assert_eq!(service.stop(), Some(0));
    let text = std::fs::read(&path).unwrap();
    let text = String::from_utf8(text.into_iter().filter(|byte| *byte != 0).collect()).unwrap();
    // The part of a line that fit on the full disk stands alone.
    let whole = text.lines().filter(|line| serde_json::from_str::<Value>(line).is_ok());
    let windows = windows(whole);
    let mut once = windows.clone();
    once.dedup();
    let seconds: Vec<_> = once
        .iter()
        .map(|window| {
            time::OffsetDateTime::parse(window, &time::format_description::well_known::Rfc3339)
                .unwrap()
                .unix_timestamp()
        })
        .collect();
    assert!(seconds.len() >= 5 && seconds.windows(2).all(|pair| pair[1] == pair[0] + 1), "{windows:?}");
}

/// The reader of the log pauses for longer than the time-out of a line. It gets each window once when it continues.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_pauses_gets_every_window_once() {
    let (reader, mut writer) = std::io::pipe().unwrap();
    // Of 64 KiB little is left.
    writer.write_all(&vec![b'\n'; 64_500]).unwrap();
    let service = Service::start(writer, &[]).await;
    service.wait_for_at_least(RETRIED, 2.0).await;
    let taken = service.metric(TAKEN).await;
    let reading = std::thread::spawn(move || std::io::read_to_string(reader).unwrap());
    service.wait_for_at_least(TAKEN, taken + 5.0).await;
    assert_eq!(service.stop(), Some(0));
    let text = reading.join().unwrap();
    let windows = windows(text.lines().filter(|line| !line.is_empty()));
    assert!(windows.len() >= 5 && windows.is_sorted_by(|one, next| one < next), "{windows:?}");
}

/// The reader of the log is gone. Windows wait until the end of the retention, and the service continues.
#[tokio::test(flavor = "multi_thread")]
async fn a_closed_standard_output_is_no_sink() {
    let mut service = Service::start(Stdio::piped(), &["--shutdown-timeout", "2s"]).await;
    let mut lines = BufReader::new(service.process.0.stdout.take().unwrap()).lines();
    while windows([&*lines.next().unwrap().unwrap()]).is_empty() {}
    drop(lines);
    service.wait_for_at_least(RETRIED, 1.0).await;
    service.wait_for_at_least(WAITING, 3.0).await;
    assert_eq!(get(service.address, "/api/verve/accept?id=1").await.body, "ok");
    assert_eq!(service.stop(), Some(1), "not all counts were published");
}

/// `--log-level warn` silences the windows too, unless counts would then go nowhere.
#[tokio::test(flavor = "multi_thread")]
async fn the_level_silences_windows_only_where_there_is_another_sink() {
    for (level, with_another, logged) in
        [("warn", false, true), ("off", false, true), ("warn", true, false), ("info", true, true)]
    {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let to = dir.path().join("counts");
        let mut args = vec!["--log-level", level];
        if with_another {
            args.extend(["--log-dir", to.to_str().unwrap()]);
        }
        let service = Service::start(File::create(&path).unwrap(), &args).await;
        let sink = if logged { "log" } else { "file" };
        let taken = format!(r#"headcount_published_windows_total{{sink="{sink}",result="ok"}}"#);
        service.wait_for_at_least(&taken, 2.0).await;
        if !logged {
            assert_eq!(service.metric(TAKEN).await, 0.0, "{level}");
        }
        assert_eq!(service.stop(), Some(0));
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(!windows(text.lines()).is_empty(), logged, "{level}, {with_another}: {text}");
    }
}
