//! `headcount unique`: counts of a running service on the command line.

use std::net::TcpListener;
use std::process::{Command, Output};
use std::time::SystemTime;

use crate::support::fleet::seconds;
use crate::support::http::Connection;
use crate::support::process::{headcount, output_of, said};
use crate::support::server::Server;
use crate::support::{lines, wait_until};

const TOKEN: &str = "9f86d081884c7d659a2feaa0c55ad015";

/// The command for a service.
fn unique(url: &str, args: &[&str]) -> Command {
    let mut command = headcount();
    command.arg("unique").args(args).env("HEADCOUNT_URL", url);
    command
}

fn ask(server: &Server, args: &[&str]) -> Output {
    output_of(&mut unique(&format!("http://{}", server.address), args))
}

/// The only line of a command that fails.
#[track_caller]
fn complaint(output: &Output) -> String {
    let error = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!((output.status.code(), error.lines().count()), (Some(1), 1), "{error}");
    assert!(output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
    error.strip_prefix("error: ").expect("an error").trim_end().to_owned()
}

async fn send(server: &Server, ids: u64) {
    let mut connection = Connection::open(server.address).await.unwrap();
    let answer = connection.post("text/plain", lines(0..ids).as_bytes()).await.unwrap();
    assert_eq!(answer.body, "ok");
}

#[tokio::test]
async fn without_a_range_it_prints_the_running_window_and_the_last_one() {
    let server = Server::start(&["--window", "24h", "--mode", "exact"]).await;
    send(&server, 1234).await;
    server.get("/api/verve/accept?id=1&counter=de").await;
    let now = said(&ask(&server, &[]));
    assert!(
        now[0].starts_with("1234 (exact) from ") && now[0].ends_with("T00:00:00Z, still running"),
        "{now:?}"
    );
    assert_eq!(now[1..], ["no window is closed yet"]);
    let of_counter = said(&ask(&server, &["--counter", "de"]));
    assert!(of_counter[0].starts_with("1 (exact) from "), "{of_counter:?}");
    // The service's own answer, and the end of a line.
    let json = ask(&server, &["--json"]);
    let answer = server.get("/api/verve/unique").await.body;
    assert_eq!(String::from_utf8(json.stdout).unwrap(), format!("{answer}\n"));
}

#[tokio::test]
async fn it_counts_a_range() {
    let server = Server::start(&["--window", "1s"]).await;
    let began = seconds(SystemTime::now()).to_string();
    send(&server, 5000).await;
    let closed = server.wait_closed(1).await;
    wait_until("the window to be closed", async || {
        server.closed().iter().map(|closed| closed.accepted).sum::<u64>() == 5000
    })
    .await;
    let until_now = said(&ask(&server, &["--from", &began]));
    let [line] = &until_now[..] else { panic!("{until_now:?}") };
    assert!(line.ends_with("Z, incomplete: not over, or ids may be missing"), "{line}");
    assert!(line.contains("(standard error 0.81 %, 95 %: "), "{line}");
    let count: f64 = line.split(' ').next().unwrap().parse().unwrap();
    assert!((count - 5000.0).abs() <= 5.0 * 0.008_125 * 5000.0, "{line}");

    // Closed windows do not change: so the whole line is known.
    let first = closed[0].timestamp.clone();
    let after = (seconds(server.closed().last().unwrap().start()) + 1).to_string();
    let range = ["--from", &*first, "--to", &*after];
    let [line] = &said(&ask(&server, &range))[..] else { panic!("one line") };
    let answer = server.get(&format!("/api/verve/unique?from={first}&to={after}")).await;
    let json = answer.json();
    let of_json = |field: &str| json[field].to_string().trim_matches('"').to_owned();
    assert!(line.starts_with(&format!("{} (", of_json("unique_request_count"))), "{line} {json}");
    assert!(line.contains(&format!(" from {first} to {}, ", of_json("to"))), "{line} {json}");
    let as_json = said(&ask(&server, &[&range[..], &["--json"]].concat()));
    assert_eq!(as_json, [answer.body]);
}

#[tokio::test]
async fn it_counts_a_range_of_a_counter() {
    let server = Server::start(&["--window", "24h"]).await;
    send(&server, 100).await;
    server.get("/api/verve/accept?id=1&counter=de").await;
    let today = (seconds(SystemTime::now()) / 86_400 * 86_400).to_string();
    for (args, count) in [(&[][..], "100 "), (&["--counter", "de"], "1 "), (&["--counter", "fr"], "0 ")] {
        let output = ask(&server, &[&["--from", &*today], args].concat());
        let [line] = &said(&output)[..] else { panic!("{args:?}") };
        let is_near = count == "100 " && (line.starts_with("99 ") || line.starts_with("101 "));
        assert!(line.starts_with(count) || is_near, "{line}");
        assert!(line.contains("T00:00:00Z to "), "{line}");
    }
}

#[tokio::test]
async fn it_says_why_the_service_refuses() {
    let server = Server::start(&["--window", "24h"]).await;
    let url = format!("http://{}", server.address);
    for (args, words) in [
        (&["--from", "1"][..], "invalid_range: from is not the start of a "),
        (&["--from", "yesterday"], "invalid_range: from is not a time: write 2026-11-28T14:00:00Z"),
        (&["--from", "253402300799"], "invalid_range: from is in the future: "),
        (&["--counter", "_x"], "invalid_counter"),
        (&["--from", "0", "--to", "86400"], "range_not_kept: "),
    ] {
        let error = complaint(&ask(&server, args));
        assert!(error.starts_with(&format!("{url} answers {words}")), "{error}");
    }
    let exact = Server::start(&["--window", "24h", "--mode", "exact"]).await;
    let today = (seconds(SystemTime::now()) / 86_400 * 86_400).to_string();
    let error = complaint(&ask(&exact, &["--from", &today]));
    assert!(error.contains("answers not_available: mode exact keeps no sketches"), "{error}");
}

#[tokio::test]
async fn it_sends_a_token_and_never_shows_it() {
    let read_token = "0123456789abcdef-for-readers";
    let args = ["--window", "24h", "--api-token", TOKEN, "--read-token", read_token];
    let server = Server::start(&args).await;
    let url = format!("http://{}", server.address);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, format!("{read_token}\n")).unwrap();
    let in_file = format!("file:{}", file.path().display());
    for (variable, value) in [
        ("HEADCOUNT_READ_TOKEN", read_token),
        ("HEADCOUNT_API_TOKEN", TOKEN),
        ("HEADCOUNT_READ_TOKEN", &in_file),
    ] {
        said(&output_of(unique(&url, &[]).env(variable, value)));
    }
    let both = [("HEADCOUNT_READ_TOKEN", read_token), ("HEADCOUNT_API_TOKEN", "not the right one")];
    said(&output_of(unique(&url, &[]).envs(both)));

    let none = complaint(&ask(&server, &[]));
    assert_eq!(
        none,
        format!(
            "{url} answers unauthorized: the service wants a token, give it by HEADCOUNT_READ_TOKEN or --read-token file:PATH"
        )
    );
    let wrong = "another-token-of-this-length";
    let error = complaint(&output_of(unique(&url, &[]).env("HEADCOUNT_READ_TOKEN", wrong)));
    assert!(
        error.contains("unauthorized: the service has another token") && !error.contains(wrong),
        "{error}"
    );

    // On the command line it is seen by others.
    let seen = ask(&server, &["--read-token", read_token]);
    let warning = String::from_utf8(seen.stderr).unwrap();
    assert!(seen.status.success() && warning.starts_with("warning: "), "{warning}");
    assert!(warning.contains("HEADCOUNT_READ_TOKEN") && !warning.contains(read_token), "{warning}");
    let short = output_of(unique(&url, &[]).env("HEADCOUNT_API_TOKEN", "too short"));
    let error = String::from_utf8(short.stderr).unwrap();
    assert!(short.status.code() == Some(2) && error.contains("--api-token <TOKEN>"), "{error}");
    assert!(!error.contains("too short"), "{error}");
}

#[tokio::test]
async fn it_says_that_no_service_answers() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    // Nobody accepts the connection: the kernel does.
    let url = format!("http://{}", listener.local_addr().unwrap());
    let silent = complaint(&output_of(&mut unique(&url, &["--timeout", "100ms"])));
    assert_eq!(silent, format!("{url} does not answer within 100ms"));
    drop(listener);
    let none = complaint(&output_of(&mut unique(&url, &[])));
    assert!(
        none.starts_with(&format!("{url} cannot be reached, is the service up and is --url right? ")),
        "{none}"
    );

    let server = Server::start(&["--window", "24h"]).await;
    let elsewhere = format!("http://{}/elsewhere", server.address);
    let not_found = complaint(&output_of(&mut unique(&elsewhere, &[])));
    assert_eq!(not_found, format!("{elsewhere} answers 404 Not Found, is that headcount?"));
    // TLS where there is none.
    let secure = format!("https://{}", server.address);
    let error = complaint(&output_of(&mut unique(&secure, &[])));
    assert!(error.starts_with(&format!("{secure} cannot be reached, ")), "{error}");
}

/// A slash that ends the URL is not doubled.
#[tokio::test]
async fn a_url_may_end_in_a_slash() {
    let server = Server::start(&["--window", "24h"]).await;
    let answer = server.get("/api/verve/unique").await.body;
    for end in ["", "/", "//"] {
        let output = output_of(&mut unique(&format!("http://{}{end}", server.address), &["--json"]));
        assert_eq!(said(&output), [&*answer]);
    }
}
