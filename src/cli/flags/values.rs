//! How the values of flags are read.

use std::net::SocketAddr;
use std::time::Duration;

use clap::ValueEnum;
use clap::builder::PossibleValue;
use url::Url;

use crate::model::id::IdKind;
use crate::model::mode::Mode;
use crate::store::redis::{OnRedisDown, RedisWrites};
use crate::telemetry::logging::Format;

/// The longest time-out or delay: far from overflowing any clock, and longer than any service needs.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// Reads a duration such as `350ms`, `25s` or `1min`; zero is allowed.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(duration) if duration <= LONGEST => Ok(duration),
        _ => Err("expected a duration up to 24h, such as 350ms, 25s or 1min".to_owned()),
    }
}

/// Reads a duration as [`duration`] does; zero is refused.
pub(super) fn positive_duration(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("expected a duration above zero, such as 350ms, 25s or 1min".to_owned()),
        duration => Ok(duration),
    }
}

/// Reads how long windows are kept.
pub(super) fn retention(text: &str) -> Result<Duration, String> {
    const LONGEST: Duration = Duration::from_secs(31 * 24 * 60 * 60);
    match humantime::parse_duration(text) {
        Ok(retention) if retention <= LONGEST => Ok(retention),
        _ => Err("expected a duration up to 31days, such as 15min, 24h or 7days".to_owned()),
    }
}

/// Reads how long history is kept; zero is allowed.
pub(super) fn history(text: &str) -> Result<Duration, String> {
    const LONGEST: Duration = Duration::from_secs(400 * 24 * 60 * 60);
    match humantime::parse_duration(text) {
        Ok(kept) if kept <= LONGEST => Ok(kept),
        _ => Err("expected a duration up to 400days, such as 0s, 7days or 35days".to_owned()),
    }
}

/// Reads an address to listen on, such as `0.0.0.0:8080`.
pub(super) fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse()
        .map_err(|_| "expected an IP address and a port, such as 0.0.0.0:8080 or [::1]:8080".to_owned())
}

/// Reads the URL of a service.
pub(super) fn http_url(text: &str) -> Result<Url, String> {
    let is_plain = |url: &Url| {
        let has_user = !url.username().is_empty() || url.password().is_some();
        matches!(url.scheme(), "http" | "https")
            && !has_user
            && url.query().is_none()
            && url.fragment().is_none()
    };
    let url = Url::parse(text).ok().filter(is_plain);
    url.ok_or_else(|| "expected an http or https URL, such as http://localhost:8080".to_owned())
}

/// Reads `on` or `off`.
pub(super) fn on_off(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("expected on or off".to_owned()),
    }
}

/// Reads a whole number from 1 to `MAX`.
pub(super) fn up_to<const MAX: u32>(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(number) if (1..=MAX).contains(&number) => Ok(number),
        _ => Err(format!("expected a whole number from 1 to {MAX}")),
    }
}

/// Gives the values of a flag their names and help texts here, so that their types do not depend on clap.
macro_rules! possible_values {
    ($type:ty: $($value:path = $name:literal, $help:literal;)+) => {
        impl ValueEnum for $type {
            fn value_variants<'a>() -> &'a [Self] {
                &[$($value),+]
            }

            fn to_possible_value(&self) -> Option<PossibleValue> {
                Some(match self {
                    $($value => PossibleValue::new($name).help($help),)+
                })
            }
        }
    };
}

possible_values! { IdKind:
    IdKind::Integer = "integer", "An integer that fits 64 bits";
    IdKind::Text = "text", "1 to 256 bytes of UTF-8 without control characters, compared byte for byte";
}

possible_values! { Mode:
    Mode::Hll = "hll", "In a HyperLogLog: a few kilobytes for any number of ids, and a standard error";
    Mode::Exact = "exact", "In a set: no error, and memory for every id";
}

possible_values! { RedisWrites:
    RedisWrites::All = "all", "All ids";
        RedisWrites::Changed = "changed", "In mode hll only ids that can change the sketch. The count is the same, with \
                                           far fewer commands";
}

possible_values! { OnRedisDown:
    OnRedisDown::Count = "count", "Count them in the instance, and send them to Redis later";
    OnRedisDown::Fail = "fail", "Refuse them at once";
}

possible_values! { Format:
    Format::Text = "text", "A line for people";
    Format::Json = "json", "A JSON object a line";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_addresses_and_switches() {
        assert_eq!(up_to::<10>("10"), Ok(10));
        for bad in ["0", "11", "-1", "1.5", "8MiB", "", "99999999999"] {
            assert_eq!(up_to::<10>(bad), Err("expected a whole number from 1 to 10".to_owned()), "{bad}");
        }
        assert!(address("[::1]:80").is_ok() && address("localhost:80").is_err() && address("8080").is_err());
        assert_eq!((on_off("on"), on_off("off")), (Ok(true), Ok(false)));
        assert!(on_off("true").is_err());
    }

    #[test]
    fn urls_of_services() {
        for good in ["http://localhost:8080", "https://counts.example/below/", "http://[::1]:80"] {
            assert!(http_url(good).is_ok(), "{good}");
        }
        for bad in [
            "localhost:8080",
            "8080",
            "ftp://h",
            "http://",
            "http://u@h",
            "http://:p@h",
            "http://h/?a",
            "http://h#a",
        ] {
            assert!(http_url(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations() {
        assert_eq!(duration("0s"), Ok(Duration::ZERO));
        assert_eq!(duration("1min 30s"), Ok(Duration::from_secs(90)));
        assert_eq!(positive_duration("350ms"), Ok(Duration::from_millis(350)));
        for bad in ["", "5", "-1s", "25h", "100000years", "soon"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        assert!(positive_duration("0s").is_err());
    }
}
