//! Signatures after [Standard Webhooks](https://www.standardwebhooks.com) 1.0. With them a receiver can refuse forged
//! callbacks, and callbacks that it has already taken.
//!
//! HMAC-SHA256 signs `<webhook-id>.<webhook-timestamp>.<body>`. The header `webhook-signature` is `v1,` and the
//! signature in Base64.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;

const PREFIX: &str = "whsec_";

/// The secret that is shared with receivers.
#[derive(Clone, PartialEq)]
pub struct SigningKey(Vec<u8>);

impl SigningKey {
    /// Reads `whsec_` and the key in Base64; the prefix may be left out. The error does not show the secret.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        match STANDARD.decode(text.strip_prefix(PREFIX).unwrap_or(text)) {
            Ok(key) if (24..=64).contains(&key.len()) => Ok(Self(key)),
            _ => Err(format!(
                "expected {PREFIX} and 24 to 64 bytes in Base64, as `echo {PREFIX}$(openssl rand -base64 32)` makes"
            )),
        }
    }

    /// The header `webhook-signature` of a message that is sent `timestamp` seconds after 1970.
    pub(crate) fn sign(&self, id: &str, timestamp: u64, body: &[u8]) -> String {
        let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, &self.0));
        context.update(format!("{id}.{timestamp}.").as_bytes());
        context.update(body);
        format!("v1,{}", STANDARD.encode(context.sign()))
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vectors of the specification's own libraries.
    #[test]
    fn the_signatures_of_the_specification() {
        let key = SigningKey::parse("whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD").unwrap();
        assert_eq!(
            key.sign(
                "msg_27UH4WbU6Z5A5EzD8u03UvzRbpk",
                1_649_367_553,
                br#"{"email":"test@example.com","username":"test_user"}"#
            ),
            "v1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw="
        );
        let key = SigningKey::parse("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        assert_eq!(
            key.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, br#"{"test": 2432232314}"#),
            "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
        );
    }

    #[test]
    fn other_keys_are_refused_and_not_told() {
        for bad in ["", "whsec_", "whsec_c2hvcnQ=", "not base64!", &"A".repeat(100)] {
            let error = SigningKey::parse(bad).unwrap_err();
            assert!(error.contains("24 to 64 bytes") && (bad.len() < 8 || !error.contains(bad)), "{error}");
        }
    }
}
