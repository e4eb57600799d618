//! `headcount overlap`: how much two sketches have in common, or counters of a running service.

mod answer;
mod comparison;
mod files;

use std::path::PathBuf;

use self::answer::Answer;
use crate::cli::client::{Answered, Parameters, Service, TimeRange};
use crate::cli::output;

/// What to compare.
#[derive(Debug)]
pub(super) enum Task {
    /// The sketches of two files.
    Files {
        files: [PathBuf; 2],
        /// Whether to print JSON.
        as_json: bool,
    },
    /// Counters of a service.
    Ask(Question),
}

/// What to ask, and whom.
#[derive(Debug)]
pub(super) struct Question {
    pub(super) service: Service,
    /// Without it, the running window is asked for.
    pub(super) range: TimeRange,
    /// Two to eight.
    pub(super) counters: Vec<String>,
    /// Whether to print the answer as it came.
    pub(super) as_json: bool,
}

/// Compares, and prints a line for each count, or JSON.
pub(super) async fn run(task: Task) -> anyhow::Result<()> {
    let question = match task {
        Task::Files { files, as_json } => {
            let compared = files::compare(&files)?;
            return if as_json {
                output::print_json(&serde_json::to_vec(&compared)?)
            } else {
                output::print_lines(&compared.into_comparison().lines())
            };
        }
        Task::Ask(question) => question,
    };
    let Answered::<Answer> { answer, body } =
        question.service.ask("/api/verve/overlap", &question.parameters()).await?;
    if question.as_json {
        output::print_json(&body)
    } else {
        output::print_lines(&answer.into_comparison().lines())
    }
}

impl Question {
    fn parameters(&self) -> Parameters<'_> {
        let counters = self.counters.iter().map(|counter| ("counter", counter.as_str()));
        counters.chain(self.range.parameters()).collect()
    }
}
