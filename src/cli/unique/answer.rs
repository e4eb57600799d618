//! The service's answer as text.

use serde::Deserialize;

use crate::cli::figures::{Estimate, end_of, state};

/// A range, or the windows of now.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Answer {
    Range { standard_error: f64, from: String, to: String, unique_request_count: u64, complete: bool },
    Now { standard_error: f64, window_seconds: u32, current: Count, last: Option<Count> },
}

/// The count of a window.
#[derive(Debug, Deserialize)]
pub(super) struct Count {
    timestamp: String,
    #[serde(rename = "unique_request_count")]
    unique: u64,
    /// Only of a closed window.
    complete: Option<bool>,
}

impl Answer {
    /// A line for each count. The count comes first, so that a script can cut it off.
    pub(super) fn lines(&self) -> Vec<String> {
        match self {
            Self::Range { standard_error, from, to, unique_request_count, complete } => {
                let estimate = Estimate { count: *unique_request_count, error: *standard_error };
                vec![format!("{estimate} from {from} to {to}, {}", state(*complete))]
            }
            Self::Now { standard_error, window_seconds, current, last } => {
                let line = |count: &Count| count.line(*standard_error, *window_seconds);
                let none = || "no window is closed yet".to_owned();
                vec![line(current), last.as_ref().map_or_else(none, line)]
            }
        }
    }
}

impl Count {
    fn line(&self, error: f64, window_seconds: u32) -> String {
        let Self { timestamp, unique, complete } = self;
        let estimate = Estimate { count: *unique, error };
        let end = end_of(timestamp, window_seconds);
        let state = match complete {
            None => "still running",
            Some(true) => "complete",
            Some(false) => "incomplete: ids may be missing",
        };
        format!("{estimate} from {timestamp} to {end}, {state}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(json: &str) -> Vec<String> {
        serde_json::from_str::<Answer>(json).unwrap().lines()
    }

    #[test]
    fn a_range_is_one_line() {
        let json = r#"{"mode":"hll","standard_error":0.008125,"from":"2026-11-23T00:00:00Z",
            "to":"2026-11-24T00:00:00Z","unique_request_count":1860211,"complete":true}"#;
        let line = "1860211 (standard error 0.81 %, 95 %: 1829983 to 1890439) from 2026-11-23T00:00:00Z to \
                    2026-11-24T00:00:00Z, complete";
        assert_eq!(lines(json), [line]);
        let incomplete = lines(&json.replace("true", "false")).remove(0);
        assert!(incomplete.ends_with("Z, incomplete: not over, or ids may be missing"), "{incomplete}");
    }

    #[test]
    fn now_is_two_lines() {
        let json = r#"{"counter":"de","mode":"exact","standard_error":0.0,"window_seconds":60,
            "current":{"timestamp":"2026-11-23T23:59:00Z","unique_request_count":4},
            "last":{"timestamp":"2026-11-23T23:58:00Z","unique_request_count":1,"accepted_ids":1,"complete":false}}"#;
        assert_eq!(
            lines(json),
            [
                "4 (exact) from 2026-11-23T23:59:00Z to 2026-11-24T00:00:00Z, still running",
                "1 (exact) from 2026-11-23T23:58:00Z to 2026-11-23T23:59:00Z, incomplete: ids may be missing"
            ]
        );
        let (before, _) = json.split_once("\"last\":").unwrap();
        assert_eq!(lines(&format!("{before}\"last\":null}}")).remove(1), "no window is closed yet");
    }
}
