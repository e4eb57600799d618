//! Signatures after [Standard Webhooks](https://www.standardwebhooks.com) 1.0: so that a receiver can tell
//! callbacks from what anybody else may send, and does not take one twice.
//!
//! What is signed, with HMAC-SHA256, is `<webhook-id>.<webhook-timestamp>.<body>`; the header `webhook-signature`
//! is `v1,` and the signature in Base64.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;

/// Bytes of a key, by the specification.
const KEY_LEN: std::ops::RangeInclusive<usize> = 24..=64;
const PREFIX: &str = "whsec_";

/// The secret that is shared with receivers.
#[derive(Clone)]
pub struct SigningKey {
    key: hmac::Key,
    /// What it is made of.
    bytes: Vec<u8>,
}

impl PartialEq for SigningKey {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

impl SigningKey {
    /// Reads `whsec_` and the key in Base64; the prefix may be left out.
    ///
    /// # Errors
    ///
    /// What was expected instead, without the secret.
    pub fn parse(text: &str) -> Result<Self, String> {
        let key = STANDARD.decode(text.strip_prefix(PREFIX).unwrap_or(text)).ok();
        key.filter(|key| KEY_LEN.contains(&key.len()))
            .map(|bytes| Self { key: hmac::Key::new(hmac::HMAC_SHA256, &bytes), bytes })
            .ok_or_else(|| {
                format!(
                    "expected {PREFIX} and {} to {} bytes in Base64, as `echo {PREFIX}$(openssl rand -base64 32)` makes",
                    KEY_LEN.start(),
                    KEY_LEN.end()
                )
            })
    }

    /// The header `webhook-signature` of a message that is sent `timestamp` seconds after 1970.
    pub fn sign(&self, id: &str, timestamp: u64, body: &[u8]) -> String {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(format!("{id}.{timestamp}.").as_bytes());
        context.update(body);
        format!("v1,{}", STANDARD.encode(context.sign()))
    }
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
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
