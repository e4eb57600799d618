//! What the flags of several modules have in common.

use std::time::Duration;

/// The longest time-out or delay: far from overflowing any clock, and longer than anybody means.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// Reads a duration such as `350ms`, `25s` or `1min`; zero is allowed.
///
/// # Errors
///
/// What was expected instead.
pub fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(duration) if duration <= LONGEST => Ok(duration),
        _ => Err("expected a duration up to 24h, such as 350ms, 25s or 1min".to_owned()),
    }
}

/// Reads a duration as [`duration`] does; zero is refused.
///
/// # Errors
///
/// What was expected instead.
pub fn positive_duration(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("expected a duration above zero, such as 350ms, 25s or 1min".to_owned()),
        duration => Ok(duration),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
