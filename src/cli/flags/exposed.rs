//! Secrets on the command line itself, where everybody who can list the processes of the machine reads them.

use clap::ArgMatches;
use clap::parser::ValueSource;

use crate::platform::secret::FILE;
use crate::redis::Address;

/// Whether a value is a secret that is written out.
type IsSecret = fn(&str) -> bool;

/// Every flag that may hold a secret, by its name in `clap`. A flag that hides its variable's value in the help must be
/// here.
const SECRETS: [(&str, IsSecret); 6] = [
    ("api_token", is_literal),
    ("callback_secret", is_literal),
    ("id_key", is_literal),
    ("kafka_option", is_secret_option),
    ("read_token", is_literal),
    ("redis_url", shows_password),
];

/// A line for the user that names the flags whose values show a secret; none if none does.
///
/// `matches` are those of a command that has some of these flags.
pub(super) fn warning(matches: &ArgMatches) -> Option<String> {
    let exposed = SECRETS.iter().filter(|(flag, is_secret)| {
        let values = matches.try_get_raw(flag).ok().flatten();
        let values = values.filter(|_| matches.value_source(flag) == Some(ValueSource::CommandLine));
        values.into_iter().flatten().any(|value| value.to_str().is_some_and(is_secret))
    });
    let (flags, variables): (Vec<_>, Vec<_>) = exposed
        .map(|(flag, _)| {
            (format!("--{}", flag.replace('_', "-")), format!("HEADCOUNT_{}", flag.to_uppercase()))
        })
        .unzip();
    (!flags.is_empty()).then(|| {
        format!(
            "everybody who can list the processes can read a secret on the command line: give {} by the \
             environment ({}), or write file:PATH in place of the secret",
            flags.join(", "),
            variables.join(", "),
        )
    })
}

/// Whether [`warning`] looks at a flag.
#[cfg(test)]
pub(super) fn knows(flag: &str) -> bool {
    SECRETS.iter().any(|(known, _)| *known == flag)
}

fn is_literal(value: &str) -> bool {
    !value.starts_with(FILE)
}

fn shows_password(url: &str) -> bool {
    is_literal(url) && Address::parse(url).is_ok_and(|address| address.shows_password())
}

/// Whether an option of librdkafka is a private key, or has a name for a secret.
fn is_secret_option(option: &str) -> bool {
    let Some((key, value)) = option.split_once('=') else { return false };
    let key = key.to_ascii_lowercase();
    let is_secret = ["password", "passphrase", "secret", "key.pem", "oauthbearer.config"]
        .iter()
        .any(|word| key.contains(word));
    is_secret && is_literal(value.trim_start())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_a_secret_if_it_has_a_password() {
        for url in [
            "redis://:p@host",
            "rediss://user:p@host:1/2",
            "unix:///tmp/redis.sock?pass=p",
            "redis-cluster://:p@one,two",
            "redis-sentinel://:p@host?master=m",
            "redis-sentinel://host?master=m&sentinel_password=p",
        ] {
            assert!(shows_password(url), "{url}");
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "p").unwrap();
        let in_file =
            format!("redis-sentinel://host?master=m&sentinel_password=file:{}", file.path().display());
        assert!(Address::parse(&in_file).is_ok(), "{in_file}");
        for url in [
            "redis://host",
            "redis://user@host",
            "unix:///tmp/redis.sock",
            "file:/run/url",
            "redis-sentinel://host?master=m",
            &in_file,
            "no url",
        ] {
            assert!(!shows_password(url), "{url}");
        }
    }

    #[test]
    fn an_option_is_a_secret_if_it_says_so() {
        for option in [
            "sasl.password=p",
            "ssl.key.password= p",
            "sasl.oauthbearer.client.secret=p",
            "ssl.key.pem=p",
            "sasl.oauthbearer.config=p",
        ] {
            assert!(is_secret_option(option), "{option}");
        }
        for option in
            ["sasl.password=file:/run/p", "sasl.password", "linger.ms=0", "ssl.key.location=/run/key"]
        {
            assert!(!is_secret_option(option), "{option}");
        }
    }
}
