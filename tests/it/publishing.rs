//! The publisher against clocks that are set and sinks that fail, and the file sink.

use std::fs::File;
use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Duration;

use headcount::coordination::sealer::Sealer;
use headcount::coordination::term::Term;
use headcount::coordination::{ClosedWindow, ClosedWindows, Coordinator, HeartbeatError, KeptSeries};
use headcount::model::id::IntegerId;
use headcount::model::mode::Mode;
use headcount::model::shard::Shards;
use headcount::model::window::{Clock, WindowCount, WindowLength};
use headcount::publish::Publisher;
use headcount::publish::sinks::CountSink;
use headcount::publish::sinks::Origin;
use headcount::publish::sinks::file::FileSink;
use headcount::store::memory::MemoryStore;
use headcount::store::{Keep, Store};
use headcount::telemetry::metrics::Metrics;
use rustix::fs::OFlags;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::support::disk::SmallDisk;
use crate::support::doubles::{ManualClock, TestSink};
use crate::support::server::{Server, value_of};
use crate::support::{PATIENCE, wait_for};

const START: f64 = 1_700_000_000.0;
/// Ten windows.
const RETENTION: Duration = Duration::from_secs(100);

/// A publisher of windows of ten seconds, at a time that the test sets.
struct Running {
    clock: ManualClock,
    counter: Arc<Store>,
    metrics: Arc<Metrics>,
    closed: ClosedWindows,
    draining: CancellationToken,
    stop_sealer: CancellationToken,
    stop: CancellationToken,
    sealer: JoinHandle<Result<(), HeartbeatError>>,
    task: JoinHandle<Result<(), JoinError>>,
}

fn window_length() -> WindowLength {
    "10s".parse().unwrap()
}

fn origin() -> Origin {
    let (namespace, instance) = ("test".to_owned(), "test/1".to_owned());
    Origin { namespace, instance, mode: Mode::Exact, standard_error: 0.0, window: window_length() }
}

async fn publish(start: f64, sinks: &[&TestSink]) -> Running {
    let manual = ManualClock::at(start);
    let clock: Arc<dyn Clock> = Arc::new(manual.clone());
    let counter = Arc::new(Store::Memory(MemoryStore::new(Mode::Exact, Shards::ONE)));
    let metrics = Arc::new(Metrics::new());
    let draining = CancellationToken::new();
    let coordinator = Arc::new(Coordinator::standalone(
        KeptSeries::new(window_length(), Duration::ZERO),
        Duration::ZERO,
        draining.clone(),
    ));
    let (stop_sealer, stop) = (CancellationToken::new(), CancellationToken::new());
    let closed = ClosedWindows::new(Arc::clone(&metrics));
    let sealer = Sealer::introduce(
        Arc::clone(&clock),
        counter.clone(),
        coordinator.clone(),
        window_length(),
        Arc::clone(&metrics),
        closed.clone(),
    );
    let sealer = sealer.await.unwrap();
    let publisher = Publisher {
        clock,
        store: counter.clone(),
        coordinator,
        term: watch::channel(Some(Term::for_ever())).1,
        watermark: sealer.watermark(),
        window: window_length(),
        retention: RETENTION,
        counter_retention: RETENTION,
        shards: Shards::ONE,
        keep: Keep::default(),
        close_timeout: Duration::from_secs(10),
        metrics: Arc::clone(&metrics),
        closed: closed.clone(),
    };
    let sealer = tokio::spawn(sealer.run(stop_sealer.clone()));
    let sinks = sinks.iter().map(|sink| Box::new((*sink).clone()) as Box<dyn CountSink>).collect();
    let task = tokio::spawn(publisher.run(sinks, stop.clone()));
    Running { clock: manual, counter, metrics, closed, draining, stop_sealer, stop, sealer, task }
}

impl Running {
    /// Adds this many ids to the window at `seconds` after the start.
    async fn add(&self, seconds: f64, ids: u64) {
        let window = window_length().window_at(ManualClock::at(START + seconds).now());
        let ids: Vec<_> = (0..ids).map(IntegerId::from).collect();
        self.counter.add(window, &ids).await.unwrap();
    }

    fn metric(&self, series: &str) -> f64 {
        // A sink's series are there once its delivery has started.
        value_of(&self.metrics.render(), series).unwrap_or_default()
    }

    /// Moves the clock from one window's end to the next. Each window closes in time.
    async fn run_to(&self, sink: &TestSink, seconds: f64) {
        let mut closed = sink.taken().len();
        loop {
            let next = 10.0 * (closed as f64 + 1.0);
            if next > seconds {
                break;
            }
            self.clock.set(START + next);
            closed += 1;
            wait_for("a window to be closed", || (sink.taken().len() == closed).then_some(())).await;
        }
        self.clock.set(START + seconds);
    }

    async fn finish(self) {
        self.stop_sealer.cancel();
        self.sealer.await.unwrap().unwrap();
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }
}

/// Seconds after the start, count, complete.
fn summary(counts: &[WindowCount]) -> Vec<(i64, u64, bool)> {
    let of = |count: &WindowCount| {
        (count.window.unix_seconds().cast_signed() - START as i64, count.unique_request_count, count.complete)
    };
    counts.iter().map(of).collect()
}

#[tokio::test]
async fn every_window_is_published_in_order_and_empty_ones_as_zero() {
    let sink = TestSink::new("a");
    // The service starts exactly at a window's start, so it sees the whole window.
    let running = publish(START, &[&sink]).await;
    running.add(0.0, 3).await;
    running.add(20.0, 5).await;
    running.clock.set(START + 9.999);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(sink.taken(), [], "it has not ended");
    running.run_to(&sink, 35.0).await;
    assert_eq!(summary(&sink.taken()), [(0, 3, true), (10, 0, true), (20, 5, true)]);
    assert_eq!(running.closed.last().unwrap(), sink.taken()[2]);

    running.add(35.0, 7).await;
    running.finish().await;
    assert_eq!(summary(&sink.taken())[3..], [(30, 7, false)], "the running window, incomplete");
}

#[tokio::test]
async fn the_window_it_starts_in_is_incomplete() {
    let sink = TestSink::new("a");
    let running = publish(START + 3.0, &[&sink]).await;
    running.run_to(&sink, 20.0).await;
    assert_eq!(summary(&sink.taken()), [(0, 0, false), (10, 0, true)]);
    running.finish().await;
}

#[tokio::test]
async fn a_sink_that_fails_gets_every_count_in_order_and_holds_up_no_other() {
    let (failing, healthy) = (TestSink::new("failing"), TestSink::new("healthy"));
    failing.refuse(4);
    let running = publish(START, &[&failing, &healthy]).await;
    for (seconds, ids) in [(0.0, 1), (10.0, 2), (20.0, 3)] {
        running.add(seconds, ids).await;
    }
    running.clock.set(START + 30.0);
    wait_for("the healthy sink", || (healthy.taken().len() == 3).then_some(())).await;
    assert!(failing.taken().is_empty(), "it is at its first retry");
    assert_eq!(running.metric("headcount_unpublished_windows"), 3.0);
    assert_eq!(running.metric("headcount_last_published_window_timestamp_seconds"), 0.0);

    wait_for("the failing sink", || (failing.taken().len() == 3).then_some(())).await;
    assert_eq!(failing.taken(), healthy.taken());
    wait_for("the metrics", || (running.metric("headcount_unpublished_windows") == 0.0).then_some(())).await;
    assert_eq!(running.metric("headcount_last_published_window_timestamp_seconds"), START + 20.0);
    assert_eq!(running.metric(r#"headcount_published_windows_total{sink="failing",result="retry"}"#), 4.0);
    assert_eq!(running.metric(r#"headcount_published_windows_total{sink="failing",result="ok"}"#), 3.0);
    assert_eq!(running.metric(r#"headcount_published_windows_total{sink="healthy",result="retry"}"#), 0.0);
    running.finish().await;
}

/// A stop waits for a slow sink.
#[tokio::test]
async fn pending_windows_are_published_on_stop() {
    let sink = TestSink::new("a");
    sink.refuse(3);
    let running = publish(START, &[&sink]).await;
    running.add(0.0, 4).await;
    running.finish().await;
    assert_eq!(summary(&sink.taken()), [(0, 4, false)]);
}

#[tokio::test]
async fn a_sink_away_past_the_retention_loses_windows_and_reports_it() {
    let sink = TestSink::new("a");
    sink.refuse(u32::MAX);
    let running = publish(START, &[&sink]).await;
    running.add(0.0, 1).await;
    running.clock.set(START + 10.0);
    let retry = r#"headcount_published_windows_total{sink="a",result="retry"}"#;
    wait_for("a retry", || (running.metric(retry) >= 1.0).then_some(())).await;
    // The first window is past retention, the next ones are not.
    running.clock.set(START + 110.5);
    let skipped = r#"headcount_published_windows_total{sink="a",result="skipped"}"#;
    wait_for("a skip", || (running.metric(skipped) == 1.0).then_some(())).await;
    sink.refuse(0);
    wait_for("the others", || (sink.taken().len() == 10).then_some(())).await;
    assert_eq!(summary(&sink.taken())[0], (10, 0, false), "closed long after its end");
    running.finish().await;
}

/// A clock that is set forward by a year does not publish half a million empty windows.
#[tokio::test]
async fn a_clock_set_forward_past_the_retention_skips() {
    let sink = TestSink::new("a");
    let running = publish(START, &[&sink]).await;
    let year = 31_536_000.0;
    running.clock.set(START + year);
    wait_for("the windows within retention", || (sink.taken().len() == 10).then_some(())).await;
    assert_eq!(summary(&sink.taken())[0].0, year as i64 - 100);
    assert_eq!(
        running.metric(r#"headcount_published_windows_total{sink="a",result="skipped"}"#),
        year / 10.0 - 10.0
    );
    running.finish().await;
}

/// The same for a paused process: it skips empty windows, but no ids.
#[tokio::test]
async fn ids_are_published_however_late() {
    let sink = TestSink::new("a");
    let running = publish(START, &[&sink]).await;
    running.add(0.0, 3).await;
    running.add(50.0, 4).await;
    running.clock.set(START + 100_000.0);
    wait_for("the windows", || (sink.taken().len() == 12).then_some(())).await;
    assert_eq!(summary(&sink.taken())[..3], [(0, 3, false), (50, 4, false), (99_900, 0, false)]);
    running.finish().await;
}

#[tokio::test]
async fn a_clock_set_back_repeats_nothing_and_loses_nothing() {
    let sink = TestSink::new("a");
    let running = publish(START, &[&sink]).await;
    running.add(10.0, 2).await;
    running.run_to(&sink, 25.0).await;
    running.clock.set(START + 5.0);
    // New ids go to the oldest open window.
    running.add(20.0, 5).await;
    // The publisher reads the clock at least once a second.
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    assert_eq!(summary(&sink.taken()), [(0, 0, true), (10, 2, true)]);
    running.run_to(&sink, 41.0).await;
    assert_eq!(
        summary(&sink.taken())[2..],
        [(20, 5, false), (30, 0, true)],
        "the one that took too much is not whole"
    );
    running.finish().await;
}

/// The clock was ahead when ids arrived, and is set back before a stop.
#[tokio::test]
async fn ids_in_future_windows_are_published_on_stop() {
    let sink = TestSink::new("a");
    let running = publish(START, &[&sink]).await;
    running.add(0.0, 1).await;
    running.add(3_600.0, 2).await;
    running.finish().await;
    assert_eq!(summary(&sink.taken()), [(0, 1, false), (3_600, 2, false)]);
}

#[tokio::test]
async fn windows_that_end_while_draining_are_incomplete() {
    let sink = TestSink::new("a");
    let running = publish(START, &[&sink]).await;
    running.run_to(&sink, 10.0).await;
    running.draining.cancel();
    running.run_to(&sink, 20.0).await;
    assert_eq!(summary(&sink.taken()), [(0, 0, true), (10, 0, false)]);
    running.finish().await;
}

/// Between the end of the sealer and the stop of the publisher nothing wakes it. It reads the clock some three times a round.
#[tokio::test(flavor = "multi_thread")]
async fn the_publisher_rests_while_the_sealer_has_ended() {
    let sink = TestSink::new("a");
    let mut running = publish(START, &[&sink]).await;
    running.run_to(&sink, 10.0).await;
    running.stop_sealer.cancel();
    (&mut running.sealer).await.unwrap().unwrap();
    let before = running.clock.reads();
    tokio::time::sleep(Duration::from_millis(200)).await;
    let reads = running.clock.reads() - before;
    assert!(reads < 100, "{reads} reads of the clock");
    running.stop.cancel();
    running.task.await.unwrap().unwrap();
}

/// A stop interrupts the long back-off of a failing sink.
#[tokio::test]
async fn a_stop_wakes_a_sink_that_waits() {
    let sink = TestSink::new("a");
    sink.refuse(u32::MAX);
    let running = publish(START, &[&sink]).await;
    running.add(0.0, 1).await;
    running.clock.set(START + 10.0);
    let retry = r#"headcount_published_windows_total{sink="a",result="retry"}"#;
    // 100, 200, 400, 800, 1 600 ms: the next wait is 3.2 s.
    wait_for("five retries", || (running.metric(retry) >= 6.0).then_some(())).await;
    sink.refuse(0);
    let stopped = std::time::Instant::now();
    running.finish().await;
    assert_eq!(sink.taken().len(), 2);
    println!("stopped after {:?}", stopped.elapsed());
}

#[tokio::test]
async fn with_a_log_dir_every_window_is_a_line_of_json() {
    let dir = tempfile::tempdir().unwrap();
    let nested = dir.path().join("not/yet/there");
    let mut server =
        Server::start(&["--window", "1s", "--mode", "exact", "--log-dir", nested.to_str().unwrap()]).await;
    for id in [1, 2, 2] {
        server.get(&format!("/api/verve/accept?id={id}")).await;
    }
    server.wait_closed(3).await;
    assert!(server.stop().await.success());

    let mut files: Vec<_> = std::fs::read_dir(&nested).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    // Two files if midnight has passed.
    assert!((1..=2).contains(&files.len()), "{files:?}");
    let text: String = files.iter().map(|file| std::fs::read_to_string(file).unwrap()).collect();
    for file in files {
        let name = file.file_name().unwrap().to_str().unwrap().to_owned();
        let date = name.strip_prefix("headcount.").and_then(|name| name.strip_suffix(".jsonl")).expect(&name);
        assert_eq!((date.len(), date.matches('-').count()), (10, 2), "{name}");
    }
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let closed = server.closed();
    assert_eq!(lines.len(), closed.len());
    for (line, closed) in lines.iter().zip(closed) {
        let expected = serde_json::json!({
            "timestamp": closed.timestamp, "unique_request_count": closed.unique, "accepted_ids": closed.accepted,
            "complete": closed.complete, "mode": "exact", "standard_error": 0.0,
        });
        assert_eq!(*line, expected);
    }
    assert_eq!(lines.iter().map(|line| line["accepted_ids"].as_u64().unwrap()).sum::<u64>(), 3);
}

/// The file sink alone, while the test changes its directory and its files.
#[tokio::test]
async fn files_recover_from_errors() {
    let dir = tempfile::tempdir().unwrap();
    let logs = dir.path().join("logs");
    let mut sink = FileSink::open(&logs, origin()).unwrap();
    assert_eq!(std::fs::read_dir(&logs).unwrap().count(), 0, "nothing before the first window");
    let window = window_length().window_at(ManualClock::at(START).now());
    let count = |window| {
        ClosedWindow::from(WindowCount {
            window,
            unique_request_count: 1,
            accepted_ids: 2,
            has_imports: false,
            complete: true,
        })
    };
    let file = logs.join("headcount.2023-11-14.jsonl");
    let lines = || std::fs::read_to_string(&file).unwrap().lines().map(str::to_owned).collect::<Vec<_>>();

    sink.publish(&count(window), &Term::for_ever()).await.unwrap();
    assert_eq!(lines().len(), 1);

    std::fs::remove_dir_all(&logs).unwrap();
    sink.publish(&count(window.next()), &Term::for_ever()).await.unwrap();
    assert_eq!(lines().len(), 1, "the directory is made again");

    std::fs::write(&file, "{\"timestamp\":\"2023-1").unwrap();
    sink.publish(&count(window), &Term::for_ever()).await.unwrap();
    assert_eq!(
        (lines().len(), lines()[0].as_str()),
        (2, "{\"timestamp\":\"2023-1"),
        "half a line is ended first"
    );
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(&lines()[1]).unwrap()["timestamp"],
        "2023-11-14T22:13:20Z"
    );

    std::fs::remove_dir_all(&logs).unwrap();
    std::fs::write(&logs, "in the way").unwrap();
    assert!(sink.publish(&count(window), &Term::for_ever()).await.is_err());
    std::fs::remove_file(&logs).unwrap();
    sink.publish(&count(window), &Term::for_ever()).await.unwrap();
    assert_eq!(lines().len(), 1);

    // At midnight the file's date is that of the window, not of the write.
    let midnight = window_length().window_at(ManualClock::at(1_700_006_400.0).now());
    sink.publish(&count(midnight), &Term::for_ever()).await.unwrap();
    assert!(logs.join("headcount.2023-11-15.jsonl").exists());
}

/// Writes to a file hang, as on a file server that is away. The sink names the file, and writes the line once.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_hangs_is_named_and_gets_each_line_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut sink = FileSink::open(dir.path(), origin()).unwrap();
    let window = window_length().window_at(ManualClock::at(START).now());
    let count = |window| {
        ClosedWindow::from(WindowCount {
            window,
            unique_request_count: 1,
            accepted_ids: 2,
            has_imports: false,
            complete: true,
        })
    };
    let file = dir.path().join("headcount.2023-11-14.jsonl");
    assert!(std::process::Command::new("mkfifo").arg(&file).status().unwrap().success());
    let flags = OFlags::RDWR | OFlags::NONBLOCK;
    let mut pipe = File::from(rustix::fs::open(&file, flags, rustix::fs::Mode::empty()).unwrap());
    while pipe.write(&[b' '; 4096]).is_ok() {}

    for _ in 0..2 {
        let refused = sink.publish(&count(window), &Term::for_ever()).await.unwrap_err().to_string();
        assert_eq!(refused, format!("cannot write to {}: no answer within 5 s", file.display()));
    }
    let mut text = String::new();
    let mut read = || _ = pipe.read_to_string(&mut text);
    read();
    sink.publish(&count(window), &Term::for_ever()).await.unwrap();
    sink.publish(&count(window.next()), &Term::for_ever()).await.unwrap();
    read();
    let of_windows: Vec<_> = text.trim().lines().map(|line| line[..35].to_owned()).collect();
    let line = |time: &str| format!(r#"{{"timestamp":"2023-11-14T22:13:{time}Z""#);
    assert_eq!(of_windows, [line("20"), line("30")]);
}

/// A full disk has no half lines, and gets every line when there is room again.
#[tokio::test]
async fn a_full_disk_costs_no_line() {
    let dir = tempfile::tempdir().unwrap();
    let disk = SmallDisk::mount(dir.path());
    let mut server =
        Server::start(&["--window", "1s", "--log-dir", dir.path().to_str().unwrap(), "--retention", "1h"])
            .await;
    server.wait_closed(2).await;
    disk.fill();
    let failed = async |server: &Server| {
        server.metric(r#"headcount_published_windows_total{sink="file",result="retry"}"#).await
    };
    let deadline = std::time::Instant::now() + PATIENCE;
    while failed(&server).await == 0.0 {
        assert!(std::time::Instant::now() < deadline, "the disk is not full");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let closed = server.closed().len();
    server.wait_closed(closed + 2).await;
    assert!(server.metric("headcount_unpublished_windows").await >= 2.0, "the log goes on");
    disk.free();
    assert_eq!(server.stop().await.code(), Some(0));

    let closed = server.closed();
    let lines = disk.lines();
    assert_eq!(lines.len(), closed.len());
    for (line, closed) in lines.iter().zip(closed) {
        let line: serde_json::Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert_eq!(line["timestamp"], closed.timestamp);
    }
}

/// In the JSON log a window is nested under `fields`.
#[tokio::test]
async fn the_log_shows_closed_windows() {
    let server = Server::start(&["--window", "1s"]).await;
    server.wait_closed(1).await;
    let event = server.log().into_iter().find(|event| event["fields"]["message"] == "window closed").unwrap();
    assert_eq!(event["level"], "INFO");
    let mut fields: Vec<_> = event["fields"].as_object().unwrap().keys().cloned().collect();
    fields.sort();
    let expected = [
        "accepted_ids",
        "complete",
        "message",
        "mode",
        "standard_error",
        "timestamp",
        "unique_request_count",
    ];
    assert_eq!(fields, expected);
    assert_eq!(
        (&event["fields"]["mode"], &event["fields"]["standard_error"]),
        (&"hll".into(), &0.008_125.into())
    );
}
