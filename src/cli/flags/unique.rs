//! The flags of `headcount unique`.

use std::time::Duration;

use clap::Args;
use url::Url;

use super::values;
use crate::cli::unique::Question;
use crate::http::ApiToken;
use crate::platform::secret::SecretArg;

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

    /// Where the service is
    #[arg(
        long, env = "HEADCOUNT_URL", value_name = "URL", default_value = "http://localhost:8080",
        value_parser = values::http_url
    )]
    url: Url,

    // Not a doc comment: help has no Markdown, and file:PATH is no URL there.
    #[arg(
        long,
        env = "HEADCOUNT_READ_TOKEN",
        value_name = "TOKEN",
        hide_env_values = true,
        help = "The service's token for readers, or file:PATH of a file that has it"
    )]
    read_token: Option<SecretArg>,

    // Not a doc comment, as above.
    #[arg(
        long,
        env = "HEADCOUNT_API_TOKEN",
        value_name = "TOKEN",
        hide_env_values = true,
        help = "The service's API token, or file:PATH of a file that has it; not sent if there is a --read-token"
    )]
    api_token: Option<SecretArg>,

    /// How long the answer may take
    #[arg(
        long, env = "HEADCOUNT_TIMEOUT", value_name = "DURATION", default_value = "10s",
        value_parser = values::positive_duration
    )]
    timeout: Duration,
}

impl UniqueFlags {
    /// The error is a line for the user, without the token.
    pub(super) fn question(self) -> Result<Question, String> {
        let authorization = match (&self.read_token, &self.api_token) {
            (Some(token), _) => Some(ApiToken::header("--read-token <TOKEN>", token)?),
            (None, Some(token)) => Some(ApiToken::header("--api-token <TOKEN>", token)?),
            (None, None) => None,
        };
        Ok(Question {
            service: self.url,
            authorization,
            timeout: self.timeout,
            from: self.from,
            to: self.to,
            counter: self.counter,
            as_json: self.json,
        })
    }
}
