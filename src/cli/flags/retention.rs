//! The flags of `headcount retention`.

use clap::Args;

use super::service::ServiceFlags;
use crate::cli::retention::Question;

#[derive(Debug, Args)]
pub(super) struct RetentionFlags {
    /// The start of the first hour or day: RFC 3339, or seconds since 1970
    #[arg(long, value_name = "TIME")]
    from: String,

    /// What a step is; a day is one of UTC
    #[arg(long, value_parser = ["hour", "day"])]
    step: String,

    /// How many steps, with the first one: 2 to 35
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u8).range(2..=35))]
    steps: u8,

    /// The counter to ask for instead of the total
    #[arg(long, value_name = "NAME")]
    counter: Option<String>,

    /// Print the service's JSON instead of text
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    service: ServiceFlags,
}

impl RetentionFlags {
    /// The error is a line for the user, without the token.
    pub(super) fn question(self) -> Result<Question, String> {
        Ok(Question {
            service: self.service.service()?,
            from: self.from,
            step: self.step,
            steps: self.steps.to_string(),
            counter: self.counter,
            as_json: self.json,
        })
    }
}
