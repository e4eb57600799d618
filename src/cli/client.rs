//! Asks a running service: the request, and why there is no answer.

use std::error::Error;
use std::iter;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use axum::http::HeaderValue;
use axum::http::header::AUTHORIZATION;
use reqwest::redirect::Policy;
use reqwest::{Client, Response, StatusCode};
use serde::de::DeserializeOwned;
use url::Url;

use crate::platform::tls;

/// No answer of the service is longer, in bytes.
const LONGEST_ANSWER: usize = 64 * 1024;
/// After every moment: a service ends a range with its own running window, also where the clock of this machine is wrong.
const UNTIL_NOW: &str = "9999-12-31T23:59:59Z";
const USER_AGENT: &str = concat!("headcount/", env!("CARGO_PKG_VERSION"));

/// Names and values of a query, in its order.
pub(super) type Parameters<'a> = Vec<(&'static str, &'a str)>;

/// A running service, and how to ask it.
#[derive(Debug)]
pub(super) struct Service {
    /// Where it is: an http or https URL. It may end in a path.
    pub(super) url: Url,
    /// The header `authorization`, if the service wants a token.
    pub(super) authorization: Option<HeaderValue>,
    /// How long an answer may take.
    pub(super) timeout: Duration,
}

/// What a service answered.
pub(super) struct Answered<A> {
    pub(super) answer: A,
    /// The JSON, as it came.
    pub(super) body: Vec<u8>,
}

/// The range of time that is asked for, if one is.
#[derive(Debug, Default)]
pub(super) struct TimeRange {
    pub(super) from: Option<String>,
    /// Without it, a range ends now.
    pub(super) to: Option<String>,
}

impl TimeRange {
    pub(super) fn parameters(&self) -> Parameters<'_> {
        let until = self.from.as_ref().map(|_| UNTIL_NOW);
        let from = self.from.as_deref().map(|from| ("from", from));
        from.into_iter().chain(self.to.as_deref().or(until).map(|to| ("to", to))).collect()
    }
}

impl Service {
    /// Gets `path`, which begins with a slash. The error is a line for the user.
    pub(super) async fn ask<A: DeserializeOwned>(
        &self,
        path: &str,
        parameters: &[(&str, &str)],
    ) -> anyhow::Result<Answered<A>> {
        let service = self.name();
        let asked = tokio::time::timeout(self.timeout, self.get(self.url_of(path, parameters))).await;
        let body = asked
            .map_err(|_| {
                anyhow!("{service} does not answer within {}", humantime::format_duration(self.timeout))
            })?
            .map_err(|error| explain(service, error))?;
        let answer = serde_json::from_slice(&body)
            .map_err(|_| anyhow!("{service} answers something else than counts, is that headcount?"))?;
        Ok(Answered { answer, body })
    }

    fn name(&self) -> &str {
        self.url.as_str().trim_end_matches('/')
    }

    fn url_of(&self, path: &str, parameters: &[(&str, &str)]) -> Url {
        let mut url = self.url.clone();
        url.set_path(&format!("{}{path}", self.url.path().trim_end_matches('/')));
        if !parameters.is_empty() {
            url.query_pairs_mut().extend_pairs(parameters);
        }
        url
    }

    /// The body of the answer.
    async fn get(&self, url: Url) -> anyhow::Result<Vec<u8>> {
        let mut request = client()?.get(url);
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

    /// A line for the user about an answer other than 200.
    fn refusal(&self, response: &Response) -> String {
        let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
        let service = self.name();
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

    fn url(service: &str, parameters: &[(&str, &str)]) -> String {
        let url = Url::parse(service).unwrap();
        let service = Service { url, authorization: None, timeout: Duration::ZERO };
        service.url_of("/api/verve/unique", parameters).into()
    }

    #[test]
    fn the_query_has_what_was_given() {
        assert_eq!(url("http://h:1", &[]), "http://h:1/api/verve/unique");
        assert_eq!(url("https://h/below/", &[]), "https://h/below/api/verve/unique");
        assert_eq!(
            url("http://h", &[("counter", "a/b"), ("counter", "c&d")]),
            "http://h/api/verve/unique?counter=a%2Fb&counter=c%26d"
        );
        assert_eq!(
            url("http://h", &[("from", "2026-11-23T00:00:00+01:00"), ("to", "5")]),
            "http://h/api/verve/unique?from=2026-11-23T00%3A00%3A00%2B01%3A00&to=5"
        );
    }

    #[test]
    fn a_range_without_an_end_ends_now() {
        let range = |from: Option<&str>, to: Option<&str>| {
            let range = TimeRange { from: from.map(str::to_owned), to: to.map(str::to_owned) };
            range.parameters().iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>()
        };
        assert_eq!(range(None, None), [""; 0]);
        assert_eq!(range(Some("0"), Some("5")), ["from=0", "to=5"]);
        assert_eq!(range(Some("0"), None), ["from=0", "to=9999-12-31T23:59:59Z"]);
    }
}
