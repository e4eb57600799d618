//! `headcount unique`: asks a running service for its counts.

mod answer;

use std::error::Error;
use std::io::{self, Write};
use std::iter;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use axum::http::HeaderValue;
use axum::http::header::AUTHORIZATION;
use reqwest::redirect::Policy;
use reqwest::{Client, Response, StatusCode};
use url::Url;

use self::answer::Answer;
use crate::platform::tls;

/// No answer of the service is longer, in bytes.
const LONGEST_ANSWER: usize = 64 * 1024;
/// After every moment: a service ends a range with its own running window, also where the clock of this machine is wrong.
const UNTIL_NOW: &str = "9999-12-31T23:59:59Z";
const USER_AGENT: &str = concat!("headcount/", env!("CARGO_PKG_VERSION"));

/// What to ask, and whom.
#[derive(Debug)]
pub(super) struct Question {
    /// Where the service is: an http or https URL. It may end in a path.
    pub(super) service: Url,
    /// The header `authorization`, if the service wants a token.
    pub(super) authorization: Option<HeaderValue>,
    /// How long the answer may take.
    pub(super) timeout: Duration,
    /// The start of a range. Without it, the running window and the last one are asked for.
    pub(super) from: Option<String>,
    /// The end of that range. Without it, now.
    pub(super) to: Option<String>,
    /// The counter to ask for instead of the total.
    pub(super) counter: Option<String>,
    /// Whether to print the answer as it came.
    pub(super) as_json: bool,
}

/// Asks, and prints the answer: a line for each count, or the JSON of the service.
pub(super) async fn run(question: Question) -> anyhow::Result<()> {
    let service = question.service.as_str().trim_end_matches('/');
    let asked = tokio::time::timeout(question.timeout, question.ask()).await;
    let body = asked
        .map_err(|_| {
            anyhow!("{service} does not answer within {}", humantime::format_duration(question.timeout))
        })?
        .map_err(|error| explain(service, error))?;
    let answer: Answer = serde_json::from_slice(&body)
        .map_err(|_| anyhow!("{service} answers something else than counts, is that headcount?"))?;
    let mut out = io::stdout().lock();
    let printed = if question.as_json {
        out.write_all(&body).and_then(|()| out.write_all(b"\n"))
    } else {
        answer.lines().iter().try_for_each(|line| writeln!(out, "{line}"))
    };
    printed.context("cannot write to standard output")
}

impl Question {
    /// The body of the answer.
    async fn ask(&self) -> anyhow::Result<Vec<u8>> {
        let mut request = client()?.get(self.url());
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let mut response = request.send().await?;
        if response.status() != StatusCode::OK {
            bail!(self.refusal(&response));
        }
        let mut body = Vec::new();
        while let Some(piece) = response.chunk().await? {
            body.extend_from_slice(&piece);
            if body.len() > LONGEST_ANSWER {
                break;
            }
        }
        Ok(body)
    }

    fn url(&self) -> Url {
        let mut url = self.service.clone();
        url.set_path(&format!("{}/api/verve/unique", self.service.path().trim_end_matches('/')));
        let until = self.from.as_ref().map(|_| UNTIL_NOW);
        let parameters = [
            ("from", self.from.as_deref()),
            ("to", self.to.as_deref().or(until)),
            ("counter", self.counter.as_deref()),
        ];
        let given: Vec<_> = parameters.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
        if !given.is_empty() {
            url.query_pairs_mut().extend_pairs(given);
        }
        url
    }

    /// A line for the user about an answer other than 200.
    fn refusal(&self, response: &Response) -> String {
        let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
        let service = self.service.as_str().trim_end_matches('/');
        let Some(reason) = header("failure-reason") else {
            return format!("{service} answers {}, is that headcount?", response.status());
        };
        let what_to_do = match (reason, header("failure-detail"), header("retry-after")) {
            (_, Some(detail), _) => detail.to_owned(),
            ("unauthorized", ..) if self.authorization.is_some() => {
                "the service has another token, give it by HEADCOUNT_READ_TOKEN or --read-token file:PATH"
                    .to_owned()
            }
            ("unauthorized", ..) => {
                "the service wants a token, give it by HEADCOUNT_READ_TOKEN or --read-token file:PATH"
                    .to_owned()
            }
            (.., Some(seconds)) => format!("try again in {seconds} s"),
            _ => return format!("{service} answers {reason}"),
        };
        format!("{service} answers {reason}: {what_to_do}")
    }
}

/// It asks the service itself: it uses no proxy, and sends the token nowhere else.
fn client() -> anyhow::Result<Client> {
    let (tls, _) = tls::client_config().context("cannot use TLS")?;
    let client = Client::builder()
        .tls_backend_preconfigured(tls)
        .no_proxy()
        .redirect(Policy::none())
        .user_agent(USER_AGENT)
        .build();
    client.context("cannot make an HTTP client")
}

/// An error without an answer.
fn explain(service: &str, error: anyhow::Error) -> anyhow::Error {
    let Some(failed) = error.downcast_ref::<reqwest::Error>() else { return error };
    // Not the error itself: it repeats the URL.
    let causes = iter::successors(failed.source(), |&cause| cause.source());
    let cause = causes.last().map_or_else(|| failed.to_string(), ToString::to_string);
    if failed.is_connect() {
        anyhow!("{service} cannot be reached, is the service up and is --url right? {cause}")
    } else {
        anyhow!("{service} does not finish its answer: {cause}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(service: &str, from: Option<&str>, to: Option<&str>, counter: Option<&str>) -> String {
        let text = |text: Option<&str>| text.map(str::to_owned);
        let question = Question {
            service: Url::parse(service).unwrap(),
            authorization: None,
            timeout: Duration::ZERO,
            from: text(from),
            to: text(to),
            counter: text(counter),
            as_json: false,
        };
        question.url().into()
    }

    #[test]
    fn the_query_has_what_was_given() {
        assert_eq!(url("http://h:1", None, None, None), "http://h:1/api/verve/unique");
        assert_eq!(url("https://h/below/", None, None, None), "https://h/below/api/verve/unique");
        assert_eq!(url("http://h", None, None, Some("a/b")), "http://h/api/verve/unique?counter=a%2Fb");
        assert_eq!(
            url("http://h", Some("2026-11-23T00:00:00+01:00"), Some("5"), None),
            "http://h/api/verve/unique?from=2026-11-23T00%3A00%3A00%2B01%3A00&to=5"
        );
        assert_eq!(
            url("http://h", Some("0"), None, None),
            "http://h/api/verve/unique?from=0&to=9999-12-31T23%3A59%3A59Z"
        );
    }
}
