//! `headcount retention`: asks a running service how many ids came again.

mod answer;

use self::answer::Answer;
use crate::cli::client::{Answered, Parameters, Service};
use crate::cli::output;

/// What to ask, and whom.
#[derive(Debug)]
pub(super) struct Question {
    pub(super) service: Service,
    /// The start of the first step.
    pub(super) from: String,
    /// `hour` or `day`.
    pub(super) step: String,
    /// How many steps, with the first one.
    pub(super) steps: String,
    /// The counter to ask for instead of the total.
    pub(super) counter: Option<String>,
    /// Whether to print the answer as it came.
    pub(super) as_json: bool,
}

/// Asks, and prints the answer: a line for each step, or the JSON of the service.
pub(super) async fn run(question: Question) -> anyhow::Result<()> {
    let Answered::<Answer> { answer, body } =
        question.service.ask("/api/verve/retention", &question.parameters()).await?;
    if question.as_json { output::print_json(&body) } else { output::print_lines(&answer.lines()) }
}

impl Question {
    fn parameters(&self) -> Parameters<'_> {
        let mut parameters = vec![("from", &*self.from), ("step", &*self.step), ("steps", &*self.steps)];
        parameters.extend(self.counter.as_deref().map(|counter| ("counter", counter)));
        parameters
    }
}
