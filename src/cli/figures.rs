//! Counts as text: how far they may be off, and of what time they are.

use std::fmt::{self, Display};
use std::time::Duration;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// A count, and where the true one is 95 times of 100: within two standard errors.
pub(super) struct Estimate {
    pub(super) count: u64,
    /// The standard error, relative to the count; 0 of an exact one.
    pub(super) error: f64,
}

impl Display for Estimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { count, error } = self;
        if *error == 0.0 {
            return write!(f, "{count} (exact)");
        }
        let at = |factor: f64| *count as f64 * factor;
        let (low, high) = (at((1.0 - 2.0 * error).max(0.0)).ceil(), at(1.0 + 2.0 * error).floor());
        write!(f, "{count} (standard error {:.2} %, 95 %: {low} to {high})", 100.0 * error)
    }
}

/// How many elements two sets have in common, and where the true number is 95 times of 100.
pub(super) struct Common {
    pub(super) count: u64,
    /// The standard error, in elements; 0 of an exact number.
    pub(super) error: f64,
}

impl Common {
    /// Whether two sets without a common element could look like this, too.
    fn may_be_none(&self) -> bool {
        (self.count as f64) < 2.0 * self.error
    }
}

impl Display for Common {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { count, error } = self;
        if *error == 0.0 {
            return write!(f, "{count} (exact)");
        }
        let at = |distance: f64| (*count as f64 + distance).max(0.0);
        let (low, high) = (at(-2.0 * error).ceil(), at(2.0 * error).floor());
        write!(f, "{count} (standard error {error:.1}, 95 %: {low} to {high}")?;
        f.write_str(if self.may_be_none() { ", not distinguishable from none)" } else { ")" })
    }
}

/// Whether a count of a range that is asked for has all ids.
pub(super) fn state(complete: bool) -> &'static str {
    if complete { "complete" } else { "incomplete: not over, or ids may be missing" }
}

/// The end of what starts at `timestamp`, RFC 3339. Empty if that is no time.
pub(super) fn end_of(timestamp: &str, seconds: u32) -> String {
    let length = Duration::from_secs(seconds.into());
    let end = OffsetDateTime::parse(timestamp, &Rfc3339)
        .ok()
        .and_then(|start| start.checked_add(length.try_into().ok()?));
    end.and_then(|end| end.format(&Rfc3339).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_sets_have_in_common_is_within_two_standard_errors() {
        let text = |count, error| Common { count, error }.to_string();
        assert_eq!(text(18_020, 561.24), "18020 (standard error 561.2, 95 %: 16898 to 19142)");
        assert_eq!(text(18_020, 0.0), "18020 (exact)");
        assert_eq!(text(0, 0.0), "0 (exact)");
        // Just two standard errors are something; a little less may be none.
        assert_eq!(text(100, 50.0), "100 (standard error 50.0, 95 %: 0 to 200)");
        assert_eq!(text(99, 50.0), "99 (standard error 50.0, 95 %: 0 to 199, not distinguishable from none)");
    }

    #[test]
    fn an_end_may_be_on_another_day() {
        assert_eq!(end_of("2026-11-30T23:00:00Z", 3_600), "2026-12-01T00:00:00Z");
        assert_eq!(end_of("soon", 3_600), "");
    }
}
