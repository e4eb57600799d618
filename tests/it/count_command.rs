//! `headcount count`: against `sort -u | wc -l`, and its sketches against Redis.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::fleet::sketch_of;
use crate::support::process::{Process, headcount, output_of, run};
use crate::support::redis::Redis;
use crate::support::{SplitMix, lines};

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

/// A count of these arguments as JSON.
fn json(args: &[&str]) -> Value {
    let output = run(&[&["count", "--json"], args].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The only line of a command that fails with this code.
#[track_caller]
fn complaint(args: &[&str], code: i32) -> String {
    let output = run(&[&["count"], args].concat());
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), error.lines().count()), (Some(code), 1), "{error}");
    error.strip_prefix("error: ").expect("an error").trim_end().to_owned()
}

/// Files of a directory, by their names.
fn paths<const N: usize>(dir: &TempDir, names: [&str; N]) -> [String; N] {
    names.map(|name| dir.path().join(name).to_str().unwrap().to_owned())
}

#[test]
fn sketches_of_files_are_those_of_redis_and_count_their_union() {
    let dir = tempfile::tempdir().unwrap();
    let [one, other, both] = &paths(&dir, ["one", "other", "both"]);
    let [one_sketch, other_sketch, merged] = &paths(&dir, ["one.hll", "other.hll", "merged.hll"]);
    let (first, second) = (lines(0..30_000), lines(20_000..60_000));
    std::fs::write(one, &first).unwrap();
    std::fs::write(other, &second).unwrap();
    std::fs::write(both, first + &second).unwrap();
    let counted = count(&[one, "--sketch-out", one_sketch]);
    assert_eq!(counted, count(&[one]));
    count(&["--sketch-out", other_sketch, other]);
    assert_eq!(std::fs::read(one_sketch).unwrap(), sketch_of(0..30_000).to_bytes());

    // Redis takes the string, and counts the same.
    let redis = Redis::start();
    let key = std::fs::read(one_sketch).unwrap();
    ::redis::cmd("SET").arg("lines").arg(key).exec(&mut redis.connect()).unwrap();
    let of_redis: u64 = ::redis::cmd("PFCOUNT").arg("lines").query(&mut redis.connect()).unwrap();
    assert_eq!(of_redis, counted.0);

    let union = count(&["--merge", one_sketch, other_sketch]);
    assert_eq!(union, count(&[both]));
    // One that is read is replaced.
    std::fs::copy(one_sketch, merged).unwrap();
    assert_eq!(count(&["--sketch-out", merged, "--merge", merged, other_sketch]), union);
    assert_eq!(std::fs::read(merged).unwrap(), sketch_of(0..60_000).to_bytes());
    assert_eq!(count(&["--merge", merged]), union);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 6, "no other file is left");
}

#[test]
fn programs_get_json() {
    let dir = tempfile::tempdir().unwrap();
    let [text, sketch] = &paths(&dir, ["text", "sketch"]);
    std::fs::write(text, "a\nb\na\n").unwrap();
    let of_hll = json!({ "mode": "hll", "standard_error": 0.008_125, "unique_count": 2 });
    assert_eq!(json(&[text, "--sketch-out", sketch]), of_hll);
    assert_eq!(json(&["--merge", sketch]), of_hll);
    let of_exact = json!({ "mode": "exact", "standard_error": 0.0, "unique_count": 2 });
    assert_eq!(json(&[text, "--mode", "exact"]), of_exact);
}

#[test]
fn what_cannot_be_merged_or_written_is_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let [text, good, broken] = &paths(&dir, ["text", "good", "broken"]);
    std::fs::write(text, "a\nb\n").unwrap();
    count(&[text, "--sketch-out", good]);
    let sketch = std::fs::read(good).unwrap();
    std::fs::write(broken, &sketch[..sketch.len() - 1]).unwrap();
    let out = &dir.path().join("out").display().to_string();
    for (file, why) in [(text, "no HYLL header"), (broken, "runs do not cover its registers")] {
        let error = complaint(&["--sketch-out", out, "--merge", good, file], 1);
        assert!(error.starts_with(&format!("'{file}' is no sketch: ")) && error.ends_with(why), "{error}");
    }
    assert!(!Path::new(out).exists(), "nothing is written");
    let error = complaint(&["--merge", good, "/no/such/file"], 1);
    assert!(error.starts_with("cannot read '/no/such/file': "), "{error}");

    // Said before standard input is read, which never ends here.
    let mut never_ends = headcount();
    never_ends.args(["count", "--sketch-out", "/no/such/file"]).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut child = Process(never_ends.spawn().unwrap());
    let _held = child.0.stdin.take();
    assert_eq!(child.wait().code(), Some(1));

    let exact = "cannot be used with '--mode exact', which keeps no sketch";
    for (args, words) in [
        (&["--mode", "exact", "--sketch-out", out][..], &["--sketch-out", exact][..]),
        (&["--mode", "exact", "--merge", good], &["--merge", exact]),
        (&[text, "--merge", good], &["--merge", "cannot be used with", "[FILE]"]),
        (&["--merge"], &["--merge", "a value is required"]),
    ] {
        let error = complaint(args, 2);
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    }
    let by_environment =
        output_of(headcount().args(["count", text, "--sketch-out", out]).env("HEADCOUNT_MODE", "exact"));
    assert_eq!(by_environment.status.code(), Some(2), "{by_environment:?}");
    assert!(!Path::new(out).exists(), "nothing is written");
}
