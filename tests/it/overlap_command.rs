//! `headcount overlap`: what sketches have in common, and counters of a running service, on the command line.

use std::ops::Range;
use std::path::Path;
use std::process::{Command, Output};
use std::time::SystemTime;

use headcount::hll::Overlap;
use serde_json::{Value, json};

use crate::support::fleet::{seconds, sketch_of};
use crate::support::http::Connection;
use crate::support::lines;
use crate::support::process::{headcount, output_of, run, said};
use crate::support::server::Server;

const TOKEN: &str = "9f86d081884c7d659a2feaa0c55ad015";

fn ask(url: &str, args: &[&str]) -> Output {
    output_of(&mut overlap(url, args))
}

/// The command for a service.
fn overlap(url: &str, args: &[&str]) -> Command {
    let mut command = headcount();
    command.arg("overlap").args(args).env("HEADCOUNT_URL", url);
    command
}

/// The only line of a command that fails with this code.
#[track_caller]
fn complaint(output: &Output, code: i32) -> String {
    let error = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!((output.status.code(), error.lines().count()), (Some(code), 1), "{error}");
    assert!(output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
    error.strip_prefix("error: ").expect("an error").trim_end().to_owned()
}

/// A sketch of these lines, by the command that makes them.
fn count(dir: &Path, name: &str, ids: Range<u64>) -> String {
    let (text, sketch) = (dir.join("text"), dir.join(name).to_str().unwrap().to_owned());
    std::fs::write(&text, lines(ids)).unwrap();
    assert!(run(&["count", text.to_str().unwrap(), "--sketch-out", &sketch]).status.success());
    sketch
}

/// The first words of lines, which are their numbers.
fn numbers(lines: &[String]) -> Vec<&str> {
    lines.iter().map(|line| line.split(' ').next().unwrap()).collect()
}

async fn send(server: &Server, counter: &str, ids: Range<u64>) {
    let ids: Vec<_> = ids.map(|id| json!({ "id": id, "counters": [counter] })).collect();
    let mut connection = Connection::open(server.address).await.unwrap();
    let answer = connection.post("application/json", json!(ids).to_string().as_bytes()).await.unwrap();
    assert_eq!(answer.body, "ok");
}

#[test]
fn files_are_compared_as_the_library_does() {
    let dir = tempfile::tempdir().unwrap();
    let (one, other) = (count(dir.path(), "one", 0..40_000), count(dir.path(), "other", 30_000..90_000));
    let overlap = Overlap::of(&sketch_of(0..40_000), &sketch_of(30_000..90_000));
    // 10 000 lines are in both.
    assert!((overlap.intersection as f64 - 10_000.0).abs() < 4.0 * overlap.standard_error, "{overlap:?}");
    // The service's address of the environment is no matter.
    let printed = said(&ask("http://127.0.0.1:1", &[&one, &other]));
    assert_eq!(
        numbers(&printed),
        [
            overlap.first.to_string(),
            overlap.second.to_string(),
            overlap.union.to_string(),
            overlap.intersection.to_string(),
            format!("{:.6}", overlap.jaccard),
        ]
    );
    let error = format!("(standard error {:.1}, 95 %: ", overlap.standard_error);
    assert!(printed[3].contains(&error) && !printed[3].contains("not distinguishable"), "{}", printed[3]);
    assert!(printed[3].ends_with(&format!(" in both {one} and {other}")), "{}", printed[3]);

    let json: Value =
        serde_json::from_str(&said(&run(&["overlap", "--json", &one, &other])).concat()).unwrap();
    assert_eq!(
        json,
        json!({
            "mode": "hll", "standard_error": 0.008_125,
            "files": [
                { "file": one, "unique_count": overlap.first }, { "file": other, "unique_count": overlap.second },
            ],
            "union": overlap.union, "intersection": overlap.intersection,
            "intersection_standard_error": (overlap.standard_error * 10.0).round() / 10.0,
            "jaccard": (overlap.jaccard * 1e6).round() / 1e6,
        })
    );

    // None in common looks like a few.
    let far = count(dir.path(), "far", 1_000_000..1_040_000);
    let none = &said(&run(&["overlap", &one, &far]))[3];
    assert!(
        none.contains(", 95 %: 0 to ") && none.contains(", not distinguishable from none) in both"),
        "{none}"
    );
}

#[test]
fn a_broken_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (good, broken) = (count(dir.path(), "good", 0..40_000), dir.path().join("broken"));
    let mut bytes = std::fs::read(&good).unwrap();
    bytes.pop();
    std::fs::write(&broken, bytes).unwrap();
    let broken = broken.to_str().unwrap();
    let why = format!("'{broken}' is no sketch: a dense HyperLogLog of 12303 bytes instead of 12304");
    for args in [["overlap", &good, broken], ["overlap", broken, &good]] {
        assert_eq!(complaint(&run(&args), 1), why);
    }
    let missing = complaint(&run(&["overlap", &good, "/no/such/file"]), 1);
    assert!(missing.starts_with("cannot read '/no/such/file': "), "{missing}");
}

#[tokio::test]
async fn counters_of_a_service_are_compared() {
    let server = Server::start(&["--window", "24h"]).await;
    let url = format!("http://{}", server.address);
    send(&server, "de", 0..4_000).await;
    send(&server, "fr", 3_000..6_000).await;
    send(&server, "it", 10_000..10_100).await;
    let two = ["--counter", "de", "--counter", "fr"];
    let answer = server.get("/api/verve/overlap?counter=de&counter=fr").await;
    let of_json = |pointer: &str| answer.json().pointer(pointer).unwrap().to_string();
    let printed = said(&ask(&url, &two));
    assert_eq!(
        numbers(&printed)[..4],
        [
            of_json("/counters/0/unique_request_count"),
            of_json("/counters/1/unique_request_count"),
            of_json("/union"),
            of_json("/intersection"),
        ]
    );
    assert!(printed[0].ends_with(" in de") && printed[1].ends_with(" in fr"), "{printed:?}");
    assert!(
        printed[2].contains(" in all together from ") && printed[2].contains(", incomplete: "),
        "{printed:?}"
    );
    assert!(printed[3].ends_with(") in both de and fr"), "{printed:?}");
    assert_eq!(said(&ask(&url, &[&two[..], &["--json"]].concat())), [&*answer.body]);

    let three = said(&ask(&url, &[&two[..], &["--counter", "it"]].concat()));
    assert_eq!(three.len(), 3 + 1 + 2 * 3, "{three:?}");
    assert_eq!(three[4], printed[3]);
    assert!(three[6].contains(", not distinguishable from none) in both de and it"), "{three:?}");

    // The same day, up to now and up to its end.
    let today = seconds(SystemTime::now()) / 86_400 * 86_400;
    let (from, to) = (today.to_string(), (today + 86_400).to_string());
    for range in [&["--from", &from][..], &["--from", &from, "--to", &to]] {
        assert_eq!(said(&ask(&url, &[&two[..], range].concat())), printed);
    }
}

#[tokio::test]
async fn it_says_why_the_service_refuses() {
    let server = Server::start(&["--window", "24h", "--api-token", TOKEN]).await;
    let url = format!("http://{}", server.address);
    let with_token = |args: &[&str]| output_of(overlap(&url, args).env("HEADCOUNT_API_TOKEN", TOKEN));
    for (args, words) in [
        (&["--counter", "de", "--counter", "_x"][..], "invalid_counter"),
        (&["--counter", "a", "--counter", "b", "--from", "1"], "invalid_range: from is not the start of a "),
        (&["--counter", "a", "--counter", "b", "--from", "0", "--to", "86400"], "range_not_kept: "),
    ] {
        let error = complaint(&with_token(args), 1);
        assert!(error.starts_with(&format!("{url} answers {words}")), "{error}");
    }
    let none = complaint(&ask(&url, &["--counter", "a", "--counter", "b"]), 1);
    assert!(
        none.contains("unauthorized: the service wants a token, give it by HEADCOUNT_READ_TOKEN"),
        "{none}"
    );
    let seen = ask(&url, &["--counter", "a", "--counter", "b", "--api-token", TOKEN]);
    let warning = String::from_utf8(seen.stderr).unwrap();
    assert!(seen.status.success() && warning.starts_with("warning: "), "{warning}");
    assert!(warning.contains("HEADCOUNT_API_TOKEN") && !warning.contains(TOKEN), "{warning}");
}

#[test]
fn files_and_a_service_exclude_each_other() {
    let nine: Vec<_> = (0..9).flat_map(|number| ["--counter".to_owned(), format!("c{number}")]).collect();
    let nine: Vec<_> = nine.iter().map(String::as_str).collect();
    let requires =
        "'overlap' requires two files, or 2 to 8 different counters of a service, each with '--counter'";
    for (args, words) in [
        (&[][..], requires),
        (&["--counter", "a"], requires),
        (&["--counter", "a", "--counter", "a"], requires),
        (&nine, requires),
        (&["one"], "required arguments were not provided: <FILE>"),
        (&["one", "two", "three"], "'three'"),
        (&["one", "two", "--counter", "a"], "'--counter' cannot be used with files: it is for a service"),
        (&["one", "two", "--url", "http://h"], "'--url' cannot be used with files"),
        (&["one", "two", "--from", "0"], "'--from' cannot be used with files"),
        (&["one", "two", "--timeout", "1s"], "'--timeout' cannot be used with files"),
        (&["one", "two", "--read-token", TOKEN], "'--read-token' cannot be used with files"),
        (&["--counter", "a", "--counter", "b", "--to", "5"], "--from"),
    ] {
        let error = complaint(&run(&[&["overlap"], args].concat()), 2);
        assert!(error.contains(words) && !error.contains(TOKEN), "{error}");
    }
}
