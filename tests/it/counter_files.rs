//! The counts of counters in files: a line for each counter of a window, also after a time without the files.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use time::OffsetDateTime;

use crate::support::counter_files::{counter_lines, counts};
use crate::support::disk::LinkedDir;
use crate::support::http::Connection;
use crate::support::server::Server;
use crate::support::wait_until;

const SKIPPED: &str = r#"headcount_skipped_counters_total{sink="file"}"#;
const RETRIED: &str = r#"headcount_published_windows_total{sink="file",result="retry"}"#;

async fn serve(dir: &Path, args: &[&str]) -> Server {
    let fixed = ["--window", "1s", "--mode", "exact", "--log-dir", dir.to_str().unwrap()];
    Server::start(&[&fixed, args].concat()).await
}

/// Sends ids from a number on, one to each of these counters.
async fn send(connection: &mut Connection, from: u64, counters: impl IntoIterator<Item = String>) {
    let body = counters.into_iter().zip(from..).fold(String::new(), |mut body, (counter, id)| {
        writeln!(body, r#"{{"id":{id},"counters":["{counter}"]}}"#).unwrap();
        body
    });
    let answer = connection.post("application/x-ndjson", body.as_bytes()).await.unwrap();
    assert_eq!((answer.status, answer.body.as_str()), (200, "ok"));
}

/// The text of all files of totals in a directory.
fn totals(dir: &Path) -> String {
    let files = std::fs::read_dir(dir).unwrap().map(|file| file.unwrap().path());
    let is_total = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with("headcount.");
    files.filter(is_total).map(|path| std::fs::read_to_string(path).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_has_a_line_for_each_counter_of_a_window() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = serve(dir.path(), &["--max-counters", "3"]).await;
    let mut connection = Connection::open(server.address).await.unwrap();
    server.wait_closed(1).await;
    send(&mut connection, 0, ["b", "a", "b", "c"].map(str::to_owned)).await;
    wait_until("a line", async || !counter_lines(dir.path()).is_empty()).await;
    send(&mut connection, 10, ["a", "d", "e"].map(str::to_owned)).await;
    assert_eq!(server.stop().await.code(), Some(0));

    let lines = counter_lines(dir.path());
    // The names of the first window may fall into two, if it ended between two elements. None is counted twice.
    let of = |counter: &str| -> u64 {
        lines.iter().filter(|line| line.counter == counter).map(|line| line.unique).sum()
    };
    assert_eq!(["a", "b", "c"].map(of), [2, 2, 1]);
    assert_eq!(of("d") + of("e") + of("_other"), 2);
    let order: Vec<_> = lines.iter().map(|line| (&line.timestamp, &line.counter)).collect();
    assert!(order.is_sorted_by(|one, next| one < next), "{order:?}");

    let closed = server.closed();
    for line in &lines {
        let window = closed.iter().find(|closed| closed.timestamp == line.timestamp).unwrap();
        let overflowed =
            lines.iter().any(|other| other.timestamp == line.timestamp && other.counter == "_other");
        assert_eq!(line.complete, window.complete && !overflowed, "{line:?}");
        let names: Vec<_> = line.json.as_object().unwrap().keys().map(String::as_str).collect();
        let expected = ["complete", "counter", "mode", "standard_error", "timestamp", "unique_request_count"];
        assert_eq!(names, expected);
        assert_eq!((&line.json["mode"], &line.json["standard_error"]), (&"exact".into(), &0.0.into()));
    }
    // The log says how many there are, and nothing where there are none.
    for event in server.log() {
        if event["fields"]["message"] == "window closed" {
            let timestamp = event["fields"]["timestamp"].as_str().unwrap();
            let of_window = lines.iter().filter(|line| line.timestamp == timestamp).count() as u64;
            assert_eq!(event["fields"]["counters"].as_u64().unwrap_or_default(), of_window, "{event}");
        }
    }
    // The lines of totals have no more fields than without counters.
    let totals = totals(dir.path());
    assert!(!totals.is_empty() && !totals.contains("counter"), "{totals}");
}

/// The files are away for longer than `--counter-retention`. They get all totals, and the counts of counters that did not wait
/// too long.
#[tokio::test(flavor = "multi_thread")]
async fn counts_of_counters_wait_as_long_as_counter_retention() {
    let dir = LinkedDir::new();
    let server = serve(&dir.path(), &["--counter-retention", "6s"]).await;
    let mut connection = Connection::open(server.address).await.unwrap();
    wait_until("a line", async || !totals(&dir.real()).is_empty()).await;
    dir.take_away();
    let names = || (0..1_000).map(|number| format!("counter-{number}"));
    let memory = async || server.metric("headcount_counter_memory_bytes").await;
    send(&mut connection, 0, names()).await;
    wait_until("the window to be closed", async || {
        server.closed().iter().map(|closed| closed.unique).sum::<u64>() == 1_000
    })
    .await;
    // After two more windows, only the files still need the counts.
    let closed = server.closed().len();
    send(&mut connection, 10_000, ["one".to_owned()]).await;
    server.wait_closed(closed + 2).await;
    let held = memory().await;
    assert!(held > 50_000.0, "the counts still wait: {held} bytes");

    wait_until("counts to be too old", async || server.metric(SKIPPED).await >= 1_000.0).await;
    wait_until("memory to be given back", async || memory().await < 50_000.0).await;
    dir.bring_back();
    let lines = || counter_lines(&dir.real());
    // The sink tries again after some seconds, so the first of these may be too old as well.
    let mut id = 20_000;
    wait_until("a later counter", async || {
        id += 1;
        send(&mut connection, id, ["late".to_owned()]).await;
        lines().iter().any(|line| line.counter == "late")
    })
    .await;

    let lines = counts(&lines());
    assert!(!lines.keys().any(|(_, counter)| counter.starts_with("counter-")), "{lines:?}");
    assert_eq!(server.metric(r#"headcount_skipped_counters_total{sink="log"}"#).await, 0.0);
    let last = server.closed().last().unwrap().timestamp.clone();
    wait_until("the last total", async || totals(&dir.real()).contains(&last)).await;
    let totals = totals(&dir.real());
    for closed in server.closed().iter().filter(|closed| closed.timestamp <= last) {
        assert_eq!(totals.matches(&closed.timestamp).count(), 1, "{}", closed.timestamp);
    }
    let skipped = totals.matches(r#""counters":"skipped""#).count();
    assert!(skipped >= 1, "a total says that its counters were skipped: {totals}");
    let errors = server.log().into_iter().filter(|event| event["level"] == "ERROR");
    let errors: Vec<_> = errors.map(|event| event["fields"]["message"].to_string()).collect();
    assert!(errors.iter().any(|error| error.contains("--counter-retention")), "{errors:?}");
}

/// The file of totals cannot be written, that of counters can. The next tries do not write the counters again.
#[tokio::test(flavor = "multi_thread")]
async fn a_retry_of_a_total_repeats_no_counter() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path(), &[]).await;
    let mut connection = Connection::open(server.address).await.unwrap();
    wait_until("a line", async || !totals(dir.path()).is_empty()).await;
    // The files of today and tomorrow, in case that midnight is near.
    let days = [0, 1].map(|days| (OffsetDateTime::now_utc() + time::Duration::days(days)).date());
    let files = days.map(|day| dir.path().join(format!("headcount.{day}.jsonl")));
    for file in &files {
        // The service may make it again in between.
        while std::fs::create_dir(file).is_err() {
            std::fs::rename(file, dir.path().join("before")).unwrap();
        }
    }
    send(&mut connection, 0, ["a", "b"].map(str::to_owned)).await;
    wait_until("counters", async || counter_lines(dir.path()).len() >= 2).await;
    let retried = server.metric(RETRIED).await;
    wait_until("two more tries", async || server.metric(RETRIED).await >= retried + 2.0).await;
    for file in &files {
        std::fs::remove_dir(file).unwrap();
    }
    wait_until("the file to be written", async || files.iter().any(|file| file.is_file())).await;

    let lines = counts(&counter_lines(dir.path()));
    assert_eq!(lines.values().sum::<u64>(), 2);
}
