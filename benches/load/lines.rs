//! `headcount count`, `wc -l` and `sort -u` on the same file.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use serde_json::{Value, json};

use crate::report::{Target, head, line, median, ratio};
use crate::support::SplitMix;
use crate::support::process::headcount;

const LINES: usize = 100_000_000;
const ROUNDS: usize = 3;

pub fn measure() -> Result<Value, String> {
    // In the build directory, because /tmp may be in memory and too small.
    let dir = tempfile::tempdir_in("target").map_err(|error| error.to_string())?;
    let file = dir.path().join("lines");
    write(&file).map_err(|error| format!("cannot write the file: {error}"))?;
    let [mut wc, mut ours] = [const { Vec::new() }; 2];
    for _ in 0..ROUNDS {
        wc.push(time(Command::new("wc").arg("-l").arg(&file))?);
        ours.push(time(headcount().arg("count").arg(&file))?);
    }
    // Once, because it takes minutes.
    let mut sort = Command::new("sort");
    sort.arg("-u").arg("-T").arg(dir.path()).arg(&file).env("LC_ALL", "C");
    let sort = time(&mut sort)?;
    head("a file of 10⁸ lines", &["seconds", "headcount count / that"]);
    let seconds = |seconds: f64| format!("{seconds:.2}");
    line("headcount count", &[seconds(median(ours.clone()))]);
    line("wc -l", &[seconds(median(wc.clone())), Target::AtMost(10.0).judge(ratio(&ours, &wc))]);
    line("sort -u", &[seconds(sort), Target::AtMost(0.05).judge(median(ours.clone()) / sort)]);
    Ok(json!({ "headcount": ours, "wc": wc, "sort": sort }))
}

/// Numbers at random below ten million.
fn write(file: &Path) -> std::io::Result<()> {
    let mut file = BufWriter::with_capacity(1 << 20, File::create(file)?);
    for number in SplitMix(1).take(LINES) {
        writeln!(file, "{}", number % 10_000_000)?;
    }
    file.flush()
}

fn time(command: &mut Command) -> Result<f64, String> {
    let started = Instant::now();
    let status = command.stdout(Stdio::null()).status().map_err(|error| error.to_string())?;
    let seconds = started.elapsed().as_secs_f64();
    if status.success() { Ok(seconds) } else { Err(format!("{command:?} ended with {status}")) }
}
