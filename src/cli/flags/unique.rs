//! The flags of `headcount unique`.

use clap::Args;

use super::service::ServiceFlags;
use crate::cli::client::TimeRange;
use crate::cli::unique::Question;

#[derive(Debug, Args)]
pub(super) struct UniqueFlags {
    /// The start of a range: RFC 3339, or seconds since 1970. Without it, the running window and the last one
    #[arg(long, value_name = "TIME")]
    from: Option<String>,

    /// The end of the range; without it, now
    #[arg(long, value_name = "TIME", requires = "from")]
    to: Option<String>,

    /// The counter to ask for instead of the total
    #[arg(long, value_name = "NAME")]
    counter: Option<String>,

    /// Print the service's JSON instead of text
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    service: ServiceFlags,
}

impl UniqueFlags {
    /// The error is a line for the user, without the token.
    pub(super) fn question(self) -> Result<Question, String> {
        Ok(Question {
            service: self.service.service()?,
            range: TimeRange { from: self.from, to: self.to },
            counter: self.counter,
            as_json: self.json,
        })
    }
}
