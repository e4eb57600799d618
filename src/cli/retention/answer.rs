//! The service's answer as text.

use serde::Deserialize;

use crate::cli::figures::{Common, Estimate, end_of, state};

#[derive(Debug, Deserialize)]
pub(super) struct Answer {
    standard_error: f64,
    step_seconds: u32,
    from: String,
    unique_request_count: u64,
    complete: bool,
    steps: Vec<Step>,
}

/// A step after the first one.
#[derive(Debug, Deserialize)]
struct Step {
    timestamp: String,
    unique_request_count: u64,
    returned: u64,
    returned_standard_error: f64,
    complete: bool,
}

impl Answer {
    /// The ids of the first step, and for each later one how many of them came again. The number comes first, so that a
    /// script can cut it off.
    pub(super) fn lines(&self) -> Vec<String> {
        let first = Estimate { count: self.unique_request_count, error: self.standard_error };
        let first = format!("{first} {}, {}", self.time(&self.from), state(self.complete));
        let later = self.steps.iter().map(|step| {
            let returned = Common { count: step.returned, error: step.returned_standard_error };
            let (time, among) = (self.time(&step.timestamp), step.unique_request_count);
            format!("{returned} of these again {time}, among {among}, {}", state(step.complete))
        });
        [first].into_iter().chain(later).collect()
    }

    /// The step that starts at this time.
    fn time(&self, start: &str) -> String {
        format!("from {start} to {}", end_of(start, self.step_seconds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_a_line() {
        let json = r#"{"counter":"de","mode":"hll","standard_error":0.008125,"step":"day","step_seconds":86400,
            "from":"2026-11-21T00:00:00Z","to":"2026-11-24T00:00:00Z","unique_request_count":1204511,"complete":true,
            "steps":[{"timestamp":"2026-11-22T00:00:00Z","unique_request_count":1190873,"returned":381240,
                "returned_standard_error":5120.4,"complete":true},
                {"timestamp":"2026-11-23T00:00:00Z","unique_request_count":903,"returned":40,
                "returned_standard_error":320.0,"complete":false}]}"#;
        let answer: Answer = serde_json::from_str(json).unwrap();
        assert_eq!(
            answer.lines(),
            [
                "1204511 (standard error 0.81 %, 95 %: 1184938 to 1224084) \
                 from 2026-11-21T00:00:00Z to 2026-11-22T00:00:00Z, complete",
                "381240 (standard error 5120.4, 95 %: 371000 to 391480) of these again \
                 from 2026-11-22T00:00:00Z to 2026-11-23T00:00:00Z, among 1190873, complete",
                "40 (standard error 320.0, 95 %: 0 to 680, not distinguishable from none) of these again \
                 from 2026-11-23T00:00:00Z to 2026-11-24T00:00:00Z, among 903, \
                 incomplete: not over, or ids may be missing",
            ]
        );
    }
}
