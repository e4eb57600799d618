//! What a user of the command line sees: help, errors in one line, exit codes.

use std::net::TcpListener;
use std::process::Output;

use crate::support::http::get;
use crate::support::process::{Process, headcount, output_of, run};
use crate::support::server::Server;
use crate::support::{free_port, wait_until};

#[track_caller]
fn assert_one_line(output: &Output, code: i32, words: &[&str]) {
    let error = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(code), "{error}");
    assert!(
        error.starts_with("error: ") && error.ends_with('\n') && error.lines().count() == 1,
        "one line: {error:?}"
    );
    for word in words {
        assert!(error.contains(word), "{word:?} in {error:?}");
    }
    assert!(!error.contains("panicked") && !error.contains("stack"), "{error}");
}

#[test]
fn wrong_values_name_the_flag_the_value_and_valid_ones() {
    for (args, words) in [
        (&["--mode", "bloom"][..], &["--mode", "'bloom'", "hll, exact"][..]),
        (&["--window", "7s"], &["--window", "'7s'", "divide a day"]),
        (&["--window", "60"], &["--window", "'60'", "such as 60s"]),
        (&["--window", "0s"], &["--window", "'0s'", "divide a day"]),
        (&["--window", "1500ms"], &["--window", "'1500ms'", "whole seconds"]),
        (&["--retention", "90s"], &["--retention", "'1m 30s'", "at least two windows", "2m"]),
        (&["--retention", "1year"], &["--retention", "'1year'", "31days"]),
        (
            &["--retention", "10m", "--counter-retention", "1h"],
            &["--counter-retention", "'1h'", "at most --retention", "10m"],
        ),
        (&["--shards", "0"], &["--shards", "'0'", "1 to 1024"]),
        (&["--shards", "many"], &["--shards", "'many'", "1 to 1024"]),
        (&["--id-key", "beef"], &["--id-key", "32 hexadecimal digits", "openssl rand -hex 16"]),
        (&["--id-key", "file:/nowhere"], &["--id-key", "'/nowhere'"]),
        (&["--api-token", "short"], &["--api-token", "16 to 512"]),
        (&["--read-token", "0123456789abcdef"], &["--read-token", "requires", "--api-token"]),
        (&["--allow-sketches"], &["--allow-sketches", "requires", "--api-token"]),
        (&["--listen", "8080"], &["--listen", "'8080'", "such as 0.0.0.0:8080"]),
        (&["--listen", "localhost"], &["--listen", "'localhost'", "an IP address and a port"]),
        (&["--admin-listen", ":9090"], &["--admin-listen", "':9090'", "an IP address and a port"]),
        (&["--max-connections", "0"], &["--max-connections", "'0'", "1 to 1000000"]),
        (
            &["--max-connections-per-address", "1000001"],
            &["--max-connections-per-address", "'1000001'", "1 to 1000000"],
        ),
        (&["--max-in-flight", "0"], &["--max-in-flight", "'0'", "1 to 1000000"]),
        (&["--idle-timeout", "0s"], &["--idle-timeout", "'0s'", "above zero"]),
        (&["--write-timeout", "10"], &["--write-timeout", "'10'", "such as 350ms"]),
        (&["--body-limit", "8MiB"], &["--body-limit", "'8MiB'", "a whole number"]),
        (&["--keep-alive", "maybe"], &["--keep-alive", "'maybe'", "on or off"]),
        (&["--header-read-timeout", "0s"], &["--header-read-timeout", "'0s'", "above zero"]),
        (&["--log-level", "loud"], &["--log-level", "'loud'", "debug"]),
        (&["--log-level", ""], &["--log-level", "debug"]),
        (&["--log-level", "info,"], &["--log-level", "'info,'", "debug"]),
        (&["--log-format", "xml"], &["--log-format", "'xml'", "text, json"]),
        (&["--drain-delay", "30s"], &["--drain-delay", "'30s'", "--shutdown-timeout", "25s"]),
        (&["--shutdown-timeout", "soon"], &["--shutdown-timeout", "'soon'", "25s"]),
        (&["--kafka-brokers", "a,,b"], &["--kafka-brokers", "'a,,b'", "kafka1:9092"]),
        (&["--kafka-topic", "a b"], &["--kafka-topic", "'a b'", "letters"]),
        (&["--kafka-topic", "counts"], &["--kafka-topic", "--kafka-brokers"]),
        (
            &["--kafka-brokers", "b:1", "--kafka-option", "acks=1"],
            &["--kafka-option", "'acks'", "exactly once"],
        ),
        (&["--kafka-brokers", "b:1", "--kafka-option", "transactional.id=x"], &["'transactional.id'"]),
        (
            &["--kafka-brokers", "b:1", "--kafka-option", "enable.idempotence=false"],
            &["'enable.idempotence'"],
        ),
        (&["--kafka-brokers", "b:1", "--kafka-option", "isolation.level=x"], &["'isolation.level'"]),
        (
            &["--kafka-brokers", "b:1", "--kafka-option", "linger"],
            &["--kafka-option", "an option of librdkafka"],
        ),
        (&["--kafka-brokers", "b:1", "--kafka-option", "no.such=1"], &["--kafka-option", "'no.such'"]),
        (&["--redis-stream", "counts"], &["--redis-stream", "--redis-url"]),
        (&["verify"], &["--kafka-brokers"]),
        (&["--callbacks", "maybe"], &["--callbacks", "'maybe'", "on or off"]),
        (&["--callback-allow", "10.0.0.0/33"], &["--callback-allow", "'10.0.0.0/33'", "*.internal"]),
        (&["--callback-allow", "10.0.0.0/8,http://a"], &["--callback-allow", "'http://a'", "a host name"]),
        (&["--callback-queue", "0"], &["--callback-queue", "'0'", "1 to 1000000"]),
        (&["--callback-concurrency", "0"], &["--callback-concurrency", "'0'", "1 to 10000"]),
        (&["--callback-host-rate", "0"], &["--callback-host-rate", "'0'", "1 to 1000000"]),
        (&["--callback-secret", "whsec_c2hvcnQ="], &["--callback-secret", "24 to 64 bytes"]),
        (&["--callback-secret", "file:/nowhere"], &["--callback-secret", "'/nowhere'"]),
        (&["--no-such-flag"], &["--no-such-flag"]),
        (&["serf"], &["serf"]),
        (&["serve", "--mode", "bloom"], &["--mode", "'bloom'"]),
        (&["count", "--mode", "bloom"], &["--mode", "'bloom'"]),
        (&["unique", "--to", "5"], &["--from"]),
        (&["overlap"], &["two files", "2 to 8 different counters", "'--counter'"]),
        (&["overlap", "--url", "h"], &["--url", "'h'", "such as http://localhost:8080"]),
        (&["retention"], &["--from", "--step", "--steps"]),
        (&["retention", "--from", "0", "--step", "week", "--steps", "2"], &["--step", "'week'", "hour, day"]),
        (&["retention", "--from", "0", "--step", "day", "--steps", "1"], &["--steps", "'1'", "2..=35"]),
        (
            &["unique", "--url", "localhost:8080"],
            &["--url", "'localhost:8080'", "such as http://localhost:8080"],
        ),
        (&["unique", "--timeout", "0s"], &["--timeout", "'0s'", "above zero"]),
        (&["unique", "--read-token", "file:/nowhere"], &["--read-token", "'/nowhere'"]),
    ] {
        assert_one_line(&run(args), 2, words);
    }
}

#[test]
fn every_flag_has_an_environment_variable() {
    let help = String::from_utf8(run(&["serve", "--help"]).stdout).unwrap();
    let flags: Vec<_> = help
        .split_whitespace()
        .filter_map(|word| word.strip_prefix("--"))
        .map(|flag| flag.trim_end_matches([',', '.', ';', ':', '/']))
        .filter(|flag| !["help", "version"].contains(flag))
        .collect();
    assert!(flags.len() >= 16, "{flags:?}");
    for flag in flags {
        let variable = format!("HEADCOUNT_{}", flag.to_uppercase().replace('-', "_"));
        // The help does not show the value of a secret.
        let (mark, wrong) = match flag {
            "redis-url" => ("]", "expected redis://"),
            "id-key" => ("]", "32 hexadecimal digits"),
            "api-token" | "read-token" => ("]", "16 to 512"),
            "kafka-option" => ("]", "--kafka-brokers"),
            "redis-stream" => ("=", "--redis-url"),
            "callback-secret" => ("]", "whsec_ and 24 to 64 bytes"),
            _ => ("=", "non sense"),
        };
        assert!(help.contains(&format!("[env: {variable}{mark}")), "{variable}");
        if ["log-dir", "kafka-brokers"].contains(&flag) {
            // Anything could be one.
            continue;
        }
        let output = output_of(headcount().env(&variable, "non sense"));
        assert_one_line(&output, 2, &[&format!("--{flag}"), wrong]);
    }
    for heading in
        ["Counting:", "Redis:", "Kafka:", "HTTP:", "Callbacks:", "Publishing:", "Stopping:", "Logging:"]
    {
        assert!(help.contains(heading), "{heading}");
    }
}

#[test]
fn help_and_version() {
    let version = run(&["--version"]);
    assert!(version.status.success());
    assert_eq!(
        String::from_utf8(version.stdout).unwrap(),
        format!("headcount {}\n", env!("CARGO_PKG_VERSION"))
    );
    let help = String::from_utf8(run(&["--help"]).stdout).unwrap();
    for command in ["serve", "count", "unique", "overlap", "retention", "healthcheck"] {
        assert!(help.contains(&format!("\n  {command} ")), "{command}: {help}");
    }
    assert!(help.lines().all(|line| line.chars().count() <= 100), "no line is longer than a terminal");
}

#[tokio::test]
async fn a_port_that_is_taken_is_one_line() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    assert_one_line(&run(&["--listen", &address]), 1, &[&address, "--listen", "in use"]);
    let output = run(&["--listen", "127.0.0.1:0", "--admin-listen", &address]);
    assert_one_line(&output, 1, &[&address, "--admin-listen", "in use"]);
    assert_one_line(&run(&["--listen", "192.0.2.1:80"]), 1, &["192.0.2.1:80", "--listen"]);
}

#[test]
fn a_log_dir_that_cannot_be_written_is_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "not a directory").unwrap();
    for bad in [file.clone(), file.join("below"), "/proc/nowhere".into()] {
        let output = run(&["--listen", "127.0.0.1:0", "--log-dir", bad.to_str().unwrap()]);
        assert_one_line(&output, 1, &[bad.to_str().unwrap(), "--log-dir"]);
    }
}

#[tokio::test]
async fn serve_is_the_default_command() {
    for args in [&["serve", "--window", "24h"][..], &["--window", "24h"]] {
        let mut child = headcount();
        // The command comes first, so not through `Server`, which puts flags there.
        child
            .args(args)
            .args(["--listen", "127.0.0.1:0", "--log-format", "json"])
            .stdout(std::process::Stdio::piped());
        let mut child = Process(child.spawn().unwrap());
        let mut line = String::new();
        std::io::BufRead::read_line(
            &mut std::io::BufReader::new(child.0.stdout.as_mut().unwrap()),
            &mut line,
        )
        .unwrap();
        let event: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(event["fields"]["window_seconds"], 86_400);
        let address = event["fields"]["address"].as_str().unwrap().parse().unwrap();
        assert_eq!(get(address, "/api/verve/accept?id=1").await.body, "ok");
        child.signal("TERM");
        assert_eq!(child.wait().code(), Some(0));
    }
}

#[tokio::test]
async fn healthcheck_asks_where_the_service_listens() {
    let server = Server::start(&[]).await;
    let address = server.address.to_string();
    assert!(run(&["healthcheck", "--listen", &address]).status.success());
    let everywhere = format!("0.0.0.0:{}", server.address.port());
    assert!(
        run(&["healthcheck", "--listen", &everywhere]).status.success(),
        "loopback stands in for all addresses"
    );
    assert!(output_of(headcount().arg("healthcheck").env("HEADCOUNT_LISTEN", &address)).status.success());

    let server = Server::start(&["--admin-listen", "127.0.0.1:0"]).await;
    let (address, admin) = (server.address.to_string(), server.admin.unwrap().to_string());
    assert!(run(&["healthcheck", "--listen", &address, "--admin-listen", &admin]).status.success());
    assert_one_line(&run(&["healthcheck", "--listen", &address]), 1, &[&address, "404"]);
    drop(server);
    assert_one_line(&run(&["healthcheck", "--listen", &address]), 1, &[&address, "--listen"]);

    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    assert_one_line(&run(&["healthcheck", "--listen", &address]), 1, &[&address, "does not answer"]);
}

/// In a container the flags of the service are known only from process 1.
#[tokio::test]
async fn healthcheck_asks_where_process_one_listens() {
    const PROGRAM: &str = env!("CARGO_BIN_EXE_headcount");
    let port = free_port().to_string();
    let mut container = std::process::Command::new("unshare");
    container.args(["--fork", "--kill-child", "--pid", "--mount-proc", PROGRAM, "--window", "24h"]);
    container.args(["--listen", &format!("127.0.0.1:{port}")]).stdout(std::process::Stdio::null());
    let container = Process(container.spawn().unwrap());
    let children = format!("/proc/{0}/task/{0}/children", container.0.id());
    let in_container = |args: &[&str]| {
        let first = std::fs::read_to_string(&children).unwrap_or_default();
        let mut command = std::process::Command::new("nsenter");
        command.args(["--target", first.trim(), "--pid", "--mount", PROGRAM, "healthcheck"]);
        output_of(command.args(args).env_remove("HEADCOUNT_LISTEN"))
    };
    wait_until("process 1 to be healthy", async || in_container(&[]).status.success()).await;
    // A flag that is typed counts more.
    let other = format!("127.0.0.1:{}", free_port());
    assert_one_line(&in_container(&["--listen", &other]), 1, &[&other]);
}

/// If the log cannot be written, standard error says so once, and the service continues. At the end it says that counts
/// without another sink are lost.
#[tokio::test]
async fn a_log_that_cannot_be_written_is_reported() {
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let mut command = headcount();
    command
        .args(["--listen", "127.0.0.1:0", "--window", "1s", "--shutdown-timeout", "2s"])
        .stdout(full)
        .stderr(std::process::Stdio::piped());
    let mut child = Process(command.spawn().unwrap());
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.0.stderr.take().unwrap()));
    let first = lines.next().unwrap().unwrap();
    assert!(first.contains("the log cannot be written"), "{first}");
    // Two more windows cannot be logged, without another message.
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    child.signal("TERM");
    assert_eq!(child.wait().code(), Some(1));
    let last: Vec<_> = lines.map(Result::unwrap).collect();
    assert_eq!(last, ["error: not all counts were published within --shutdown-timeout"]);
}

#[test]
fn a_result_that_cannot_be_written_is_reported() {
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let output = headcount().args(["count", "/dev/null"]).stdout(full).output().unwrap();
    assert_one_line(&output, 1, &["cannot write the result"]);
}

/// The environment variables of the service do not affect other commands.
#[test]
fn settings_of_the_service_do_not_affect_other_commands() {
    let output = output_of(headcount().args(["count", "/dev/null"]).envs([
        ("HEADCOUNT_WINDOW", "10s"),
        ("HEADCOUNT_MODE", "exact"),
        ("HEADCOUNT_LISTEN", "127.0.0.1:0"),
    ]));
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "0 (exact)\n", "{:?}", output.stderr);
}
