//! The files of counters that the service writes with `--log-dir`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::wait_for;

/// A line of a file of counters.
#[derive(Debug, Clone)]
pub struct Line {
    pub timestamp: String,
    pub counter: String,
    pub unique: u64,
    pub complete: bool,
    pub json: Value,
}

/// The contents of all files in a directory whose names begin like this, oldest first.
fn contents(dir: &Path, prefix: &str) -> Vec<String> {
    let files = std::fs::read_dir(dir).unwrap().map(|file| file.unwrap().path());
    let has_prefix = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with(prefix);
    let mut files: Vec<_> = files.filter(has_prefix).collect();
    files.sort();
    files.iter().map(|file| std::fs::read_to_string(file).unwrap()).collect()
}

/// The lines of all files of counters in a directory, in the order in which they were written.
pub fn counter_lines(dir: &Path) -> Vec<Line> {
    contents(dir, "headcount-counters.").iter().flat_map(|text| parse(text)).collect()
}

/// Whether a directory has all counters of a window: the service writes the window's own line after them.
fn has_window(dir: &Path, timestamp: &str) -> bool {
    contents(dir, "headcount.").iter().any(|lines| lines.contains(timestamp))
}

/// The counts by window and counter.
pub fn counts(lines: &[Line]) -> BTreeMap<(String, String), u64> {
    let counts: BTreeMap<_, _> =
        lines.iter().map(|line| ((line.timestamp.clone(), line.counter.clone()), line.unique)).collect();
    assert_eq!(counts.len(), lines.len(), "a counter of a window is there twice");
    counts
}

/// The counts of each window, by counter, and whether they are complete. A window may be there again after a change of
/// leader, with the same counts.
pub fn by_window(dir: &Path) -> BTreeMap<String, BTreeMap<String, (u64, bool)>> {
    let mut windows = BTreeMap::<String, BTreeMap<String, (u64, bool)>>::new();
    for line in counter_lines(dir) {
        let found = (line.unique, line.complete);
        let of_window = windows.entry(line.timestamp.clone()).or_default();
        let before = of_window.insert(line.counter.clone(), found);
        assert!(before.is_none_or(|before| before == found), "another count of {}: {before:?}", line.json);
    }
    windows
}

/// The counts of each counter, over all windows.
fn sums(dir: &Path) -> BTreeMap<String, u64> {
    let mut sums = BTreeMap::new();
    for (name, (count, _)) in by_window(dir).into_values().flatten() {
        *sums.entry(name).or_default() += count;
    }
    sums
}

/// The same, once all together have so many ids.
pub async fn wait_for_sum(dir: &Path, ids: u64) -> BTreeMap<String, u64> {
    wait_for("the counts of all ids in the files", || {
        Some(sums(dir)).filter(|sums| sums.values().sum::<u64>() >= ids)
    })
    .await
}

/// The same as [`by_window`], once all counters of the window with this timestamp are there.
pub async fn wait_by_window(dir: &Path, timestamp: &str) -> BTreeMap<String, BTreeMap<String, (u64, bool)>> {
    wait_for("the counters of a window in a file", || {
        let is_there = has_window(dir, timestamp);
        Some(by_window(dir)).filter(|windows| is_there && windows.contains_key(timestamp))
    })
    .await
}

/// All whole lines. A leader that is killed may leave half a line, which the next one ends. Then the next one writes all lines
/// of that window.
fn parse(text: &str) -> Vec<Line> {
    let line = |line: &str| {
        let json: Value = match serde_json::from_str(line) {
            Ok(json) => json,
            Err(error) if error.is_eof() && !line.is_empty() => return None,
            Err(error) => panic!("{error}: {line}"),
        };
        Some(Line {
            timestamp: json["timestamp"].as_str().unwrap().to_owned(),
            counter: json["counter"].as_str().unwrap().to_owned(),
            unique: json["unique_request_count"].as_u64().unwrap(),
            complete: json["complete"].as_bool().unwrap(),
            json,
        })
    };
    // The last line may still be written.
    let ended = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    ended.filter_map(|text| line(text.trim_end())).collect()
}
