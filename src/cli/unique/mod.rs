//! `headcount unique`: asks a running service for its counts.

mod answer;

use self::answer::Answer;
use crate::cli::client::{Answered, Parameters, Service, TimeRange};
use crate::cli::output;

/// What to ask, and whom.
#[derive(Debug)]
pub(super) struct Question {
    pub(super) service: Service,
    /// Without it, the running window and the last one are asked for.
    pub(super) range: TimeRange,
    /// The counter to ask for instead of the total.
    pub(super) counter: Option<String>,
    /// Whether to print the answer as it came.
    pub(super) as_json: bool,
}

/// Asks, and prints the answer: a line for each count, or the JSON of the service.
pub(super) async fn run(question: Question) -> anyhow::Result<()> {
    let Answered::<Answer> { answer, body } =
        question.service.ask("/api/verve/unique", &question.parameters()).await?;
    if question.as_json { output::print_json(&body) } else { output::print_lines(&answer.lines()) }
}

impl Question {
    fn parameters(&self) -> Parameters<'_> {
        let mut parameters = self.range.parameters();
        parameters.extend(self.counter.as_deref().map(|counter| ("counter", counter)));
        parameters
    }
}
