//! The API token: with one, only clients that send it may use the API.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, HeaderValue};
use subtle::ConstantTimeEq;

use crate::platform::secret::{Secret, SecretArg};

/// In bytes. An attacker could guess a shorter token.
const LENGTHS: std::ops::RangeInclusive<usize> = 16..=512;

/// Holds however many requests have a wrong token.
const READ_AT_MOST_EVERY: Duration = Duration::from_secs(1);

/// The token that a request needs. Its `Debug` does not show it.
///
/// When a request has another token, a token file is read again in the background. So operators change the token
/// without a restart. The first requests with the new token may still get 401.
#[derive(Clone)]
pub struct ApiToken(Secret<Arc<str>>);

impl ApiToken {
    /// Reads the value of a flag, which is written as in `--api-token <TOKEN>`.
    ///
    /// # Errors
    ///
    /// The message for the user. It does not show the token.
    pub fn new(flag: &'static str, arg: &SecretArg) -> Result<Self, String> {
        Secret::new(arg, flag, Self::parse).map(Self)
    }

    /// The header `authorization` of a client that sends the token. `flag` and errors are as in [`ApiToken::new`].
    pub(crate) fn header(flag: &str, arg: &SecretArg) -> Result<HeaderValue, String> {
        arg.parse(flag, |text| {
            let token = Self::parse(text)?;
            let mut header =
                HeaderValue::try_from(format!("Bearer {token}")).map_err(|error| error.to_string())?;
            header.set_sensitive(true);
            Ok::<_, String>(header)
        })
    }

    fn parse(text: &str) -> Result<Arc<str>, String> {
        if LENGTHS.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Ok(text.into());
        }
        let (shortest, longest) = LENGTHS.into_inner();
        Err(format!(
            "expected {shortest} to {longest} visible ASCII characters without spaces, such as `openssl rand -hex 32` \
             prints"
        ))
    }

    /// Whether a request with these headers has the token, in exactly one `authorization`.
    ///
    /// The comparison takes constant time: its duration reveals only the token's length.
    pub(super) fn is_borne_by(&self, headers: &HeaderMap) -> bool {
        let mut values = headers.get_all(AUTHORIZATION).iter();
        let (Some(value), None) = (values.next(), values.next()) else { return false };
        let value = value.as_bytes();
        let Some(space) = value.iter().position(|byte| *byte == b' ') else { return false };
        let (scheme, token) = value.split_at(space);
        scheme.eq_ignore_ascii_case(b"bearer") && self.is(token.trim_ascii_start())
    }

    fn is(&self, token: &[u8]) -> bool {
        let is_it: bool = token.ct_eq(self.0.value().as_bytes()).into();
        if !is_it {
            // In the background, because the file may be on a slow disk. This request gets 401.
            self.0.read_again_after(READ_AT_MOST_EVERY);
        }
        is_it
    }
}

impl fmt::Debug for ApiToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admits(values: &[&str]) -> bool {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(AUTHORIZATION, HeaderValue::from_str(value).unwrap());
        }
        ApiToken::new("--api-token <TOKEN>", &"0123456789abcdef".parse().unwrap())
            .unwrap()
            .is_borne_by(&headers)
    }

    #[test]
    fn only_one_right_token_is_accepted() {
        for value in ["Bearer 0123456789abcdef", "bearer 0123456789abcdef", "BEARER  0123456789abcdef"] {
            assert!(admits(&[value]), "{value}");
        }
        for value in [
            "",
            "Bearer",
            "Bearer ",
            "0123456789abcdef",
            "Bearer0123456789abcdef",
            "Basic 0123456789abcdef",
            "Bearer 0123456789abcde",
            "Bearer 0123456789abcdef0",
            "Bearer 0123456789ABCDEF",
            "Bearer 0123456789abcdef, Bearer 0123456789abcdef",
            "Bearer 0123456789abcdef x",
            " Bearer 0123456789abcdef",
        ] {
            assert!(!admits(&[value]), "{value:?}");
        }
        assert!(!admits(&[]));
        assert!(!admits(&["Bearer 0123456789abcdef", "Bearer 0123456789abcdef"]), "two headers");
    }

    #[test]
    fn tokens_are_16_to_512_visible_characters() {
        let token = |text: &str| ApiToken::new("--api-token <TOKEN>", &text.parse().unwrap());
        for good in ["0123456789abcdef", "~!@#$%^&*()_+-={}", &"x".repeat(512), " 0123456789abcdef\n"] {
            assert!(token(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "0123456789abcde",
            "0123456789 abcdef",
            "0123456789\u{e9}bcdef",
            &"x".repeat(513),
            "0123456789abcd\u{7f}f",
        ] {
            let error = token(bad).unwrap_err();
            assert!(error.contains("--api-token") && (bad.is_empty() || !error.contains(bad)), "{error}");
        }
    }
}
