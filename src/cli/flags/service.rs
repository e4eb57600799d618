//! The flags that say which service is asked, and how.

use std::time::Duration;

use clap::Args;
use url::Url;

use super::values;
use crate::cli::client::Service;
use crate::http::ApiToken;
use crate::platform::secret::SecretArg;

#[derive(Debug, Args)]
pub(super) struct ServiceFlags {
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

impl ServiceFlags {
    /// These flags, by their names in `clap`.
    pub(super) const NAMES: [&str; 4] = ["url", "read_token", "api_token", "timeout"];

    /// The error is a line for the user, without the token.
    pub(super) fn service(self) -> Result<Service, String> {
        let authorization = match (&self.read_token, &self.api_token) {
            (Some(token), _) => Some(ApiToken::header("--read-token <TOKEN>", token)?),
            (None, Some(token)) => Some(ApiToken::header("--api-token <TOKEN>", token)?),
            (None, None) => None,
        };
        Ok(Service { url: self.url, authorization, timeout: self.timeout })
    }
}
