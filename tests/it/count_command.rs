//! `headcount count` against `sort -u | wc -l`.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::SplitMix;
use crate::support::process::{headcount, run};

/// The count of `sort -u`, which compares bytes.
fn truth(file: &Path) -> u64 {
    let output = Command::new("sh")
        .args(["-c", r#"sort -u "$1" | wc -l"#, "sh"])
        .arg(file)
        .env("LC_ALL", "C")
        .output()
        .expect("sort and wc");
    String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
}

/// The count, and the rest of its line.
fn count(args: &[&str]) -> (u64, String) {
    let output = run(&[&["count"], args].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stderr.is_empty(), "no progress where there is no terminal");
    let line = String::from_utf8(output.stdout).unwrap();
    let (count, error) = line.strip_suffix('\n').expect("a line").split_once(' ').expect("count and error");
    (count.parse().unwrap(), error.to_owned())
}

/// `bound` in standard errors.
fn check_within(bound: f64, name: &str, text: &[u8]) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join(name);
    std::fs::write(&file, text).unwrap();
    let (truth, path) = (truth(&file), file.to_str().unwrap());

    assert_eq!(count(&["--mode", "exact", path]), (truth, "(exact)".to_owned()), "{name}");
    let (estimate, error) = count(&[path]);
    assert_eq!(error, "(standard error 0.81 %)");
    let off = (estimate as f64 - truth as f64).abs() / (truth as f64).max(1.0);
    assert!(off <= bound * 0.008_125, "{name}: {estimate} instead of {truth}");
    println!("{name}: {estimate} of {truth}");
}

fn check(name: &str, text: &[u8]) {
    check_within(3.0, name, text);
}

#[test]
fn a_log_of_two_million_lines() {
    // Addresses and paths as in an access log, most of them more than once.
    let mut text = Vec::new();
    for random in SplitMix(1).take(2_000_000) {
        let (host, path) = (random % 1_000, (random >> 32) % 900);
        writeln!(text, "10.0.{}.{} GET /articles/{path}?page={}", host / 250, host % 250, random % 3)
            .unwrap();
    }
    check("access.log", &text);
}

#[test]
fn edges() {
    check("empty", b"");
    check("newline", b"\n");
    check("one", b"one");
    check("without a last newline", b"a\nb\na\nc");
    check("with a last newline", b"a\nb\na\nc\n");
    check("empty lines", b"\n\na\n\n");
    check("carriage returns are bytes", b"a\r\na\nb\r\nb\n");
    check("long line", &[b"x".repeat(3_000_000), b"\n".to_vec(), b"x".repeat(3_000_001)].concat());
}

#[test]
fn binary() {
    let bytes: Vec<u8> = SplitMix(2).take(2_000_000).flat_map(u64::to_le_bytes).collect();
    check("random bytes", &bytes);
    // Another text with every build: one in 370 would be off by more than three standard errors.
    check_within(6.0, "this binary", &std::fs::read(env!("CARGO_BIN_EXE_headcount")).unwrap());
}

#[test]
fn standard_input() {
    for args in [&["count"][..], &["count", "-"]] {
        let mut child = headcount().args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(b"a\nb\nb").unwrap();
        assert_eq!(child.wait_with_output().unwrap().stdout, b"2 (standard error 0.81 %)\n");
    }
}

#[test]
fn a_file_that_cannot_be_read_is_one_line() {
    for file in ["/no/such/file", "/"] {
        let output = run(&["count", file]);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), error.lines().count()), (Some(1), 1), "{error}");
        assert!(error.starts_with(&format!("error: cannot read '{file}': ")), "{error}");
    }
}

/// On a terminal (script makes one), a count of more than a second shows how far it is, and leaves
/// nothing of that behind.
#[test]
fn progress_on_a_terminal() {
    let dir = tempfile::tempdir().unwrap();
    let result = dir.path().join("result");
    let slow = "{ seq 200000; sleep 1.3; seq 200000 400000; }";
    let command = format!("{slow} | '{}' count > '{}'", env!("CARGO_BIN_EXE_headcount"), result.display());
    let output =
        Command::new("script").args(["-qec", &command, "/dev/null"]).stdin(Stdio::null()).output().unwrap();
    let terminal = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(terminal.contains("B/s"), "{terminal:?}");
    assert!(std::fs::read_to_string(result).unwrap().ends_with("(standard error 0.81 %)\n"));

    let command = format!("seq 200000 | '{}' count > /dev/null", env!("CARGO_BIN_EXE_headcount"));
    let output =
        Command::new("script").args(["-qec", &command, "/dev/null"]).stdin(Stdio::null()).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "", "a quick one shows nothing");
}
