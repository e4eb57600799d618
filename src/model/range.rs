//! Ranges of time that clients ask for: from the start of a window until the start of a later one.
//!
//! All times are UTC. A day has 86 400 seconds: time since 1970 knows no leap seconds.

use thiserror::Error;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::window::{Window, WindowLength};

/// The last second that can be written with four digits for the year.
const LAST_SECOND: u64 = 253_402_300_799;

/// A moment that a client names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// Whole seconds since 1970.
    seconds: u64,
    /// Whether it is a whole second.
    is_whole: bool,
}

/// From the start of a window, inclusive, until that of a later one, exclusive. A series has ranges of hours and of days, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// The first window.
    pub from: Window,
    /// The window after the last one.
    pub to: Window,
}

/// Why a client gets no answer about a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum InvalidRange {
    /// A parameter is missing.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A parameter is given twice.
    #[error("{0} is given twice")]
    Repeated(&'static str),
    /// No time between 1970 and 9999.
    #[error("{0} is not a time: write 2026-11-28T14:00:00Z, or seconds since 1970")]
    NotATime(&'static str),
    /// Not the start of a window, an hour or a day.
    #[error("{name} is not the start of {}: {before} and {after} are", unit(*before).0)]
    NotAligned {
        /// The parameter.
        name: &'static str,
        /// The last start before it.
        before: Window,
        /// The first start after it.
        after: Window,
    },
    /// The range begins after the running window, hour or day.
    #[error("from is in the future: the running {} began at {running}", unit(*running).1)]
    Future {
        /// The running window, hour or day.
        running: Window,
    },
    /// The range ends where it begins, or earlier.
    #[error("to is not after from")]
    Empty,
    /// An answer would be too long.
    #[error("the range has {steps} steps: at most {} are answered", Range::MOST_STEPS)]
    TooManySteps {
        /// How many.
        steps: u64,
    },
    /// `step` is something else.
    #[error("step is not window, hour or day")]
    Step,
    /// There are no hours.
    #[error("there are no hours, because --window does not divide an hour: use step=window or step=day")]
    NoHours,
    /// A counter has no count for each window.
    #[error("counters have no counts by window, only that of the last closed one: use step=hour or step=day")]
    StepOfCounter,
}

/// What begins there, with its article and without.
fn unit(start: Window) -> (&'static str, &'static str) {
    match start.length() {
        WindowLength::HOUR => ("an hour", "hour"),
        WindowLength::DAY => ("a day", "day"),
        _ => ("a window", "window"),
    }
}

impl Moment {
    /// Reads RFC 3339, or seconds since 1970. None for anything else, and for times that are not between 1970 and 9999.
    pub fn parse(text: &str) -> Option<Self> {
        let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let (seconds, is_whole) = if is_number {
            (text.parse().ok()?, true)
        } else {
            let time = OffsetDateTime::parse(text, &Rfc3339).ok()?;
            (u64::try_from(time.unix_timestamp()).ok()?, time.nanosecond() == 0)
        };
        (seconds <= LAST_SECOND).then_some(Self { seconds, is_whole })
    }

    /// The window that it is the start of.
    fn start_of(self, length: WindowLength, name: &'static str) -> Result<Window, InvalidRange> {
        let window = length.starting_at(self.seconds);
        if self.is_whole && window.unix_seconds() == self.seconds {
            Ok(window)
        } else {
            Err(InvalidRange::NotAligned { name, before: window, after: window.next() })
        }
    }
}

impl Range {
    /// Steps of an answer, at most.
    pub const MOST_STEPS: u64 = 1_500;

    /// From a window until a later one. An end in the running window, or after it, is the end of that window.
    ///
    /// # Errors
    ///
    /// [`InvalidRange`].
    pub fn new(from: Moment, to: Moment, running: Window) -> Result<Self, InvalidRange> {
        let length = running.length();
        if from.seconds >= running.next().unix_seconds() {
            return Err(InvalidRange::Future { running });
        }
        let from = from.start_of(length, "from")?;
        let to = if to.seconds >= running.unix_seconds()
            && !(to.is_whole && to.seconds == running.unix_seconds())
        {
            running.next()
        } else {
            to.start_of(length, "to")?
        };
        if from < to { Ok(Self { from, to }) } else { Err(InvalidRange::Empty) }
    }

    /// From a window, an hour or a day, and so many of them: up to the running one at the latest.
    ///
    /// # Errors
    ///
    /// [`InvalidRange`].
    pub fn of_steps(from: Moment, steps: u64, running: Window) -> Result<Self, InvalidRange> {
        let seconds = from.seconds + steps * u64::from(running.length().seconds());
        Self::new(from, Moment { seconds, is_whole: true }, running)
    }

    /// Its windows, oldest first.
    ///
    /// # Errors
    ///
    /// [`InvalidRange::TooManySteps`].
    pub fn windows(self) -> Result<impl Iterator<Item = Window> + Clone, InvalidRange> {
        let seconds = self.to.unix_seconds() - self.from.unix_seconds();
        let steps = seconds / u64::from(self.from.length().seconds());
        if steps > Self::MOST_STEPS {
            return Err(InvalidRange::TooManySteps { steps });
        }
        let all = std::iter::successors(Some(self.from), |window| Some(window.next()));
        Ok(all.take(steps as usize))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(from: &str, to: &str) -> Result<(u64, u64), InvalidRange> {
        let running = "10s".parse::<WindowLength>().unwrap().starting_at(1_000);
        let moment = |text, name| Moment::parse(text).ok_or(InvalidRange::NotATime(name));
        let range = Range::new(moment(from, "from")?, moment(to, "to")?, running)?;
        Ok((range.from.unix_seconds(), range.to.unix_seconds()))
    }

    #[test]
    fn a_range_ends_at_the_start_of_a_window_or_with_the_running_one() {
        assert_eq!(range("980", "1000"), Ok((980, 1000)), "up to the running window");
        for to in ["1001", "1009", "1010", "1015", "253402300799", "1970-01-01T00:16:40.001Z"] {
            assert_eq!(range("980", to), Ok((980, 1010)), "{to}: with the running window");
        }
        assert_eq!(range("1000", "1001"), Ok((1000, 1010)), "only the running window");
        assert_eq!(range("1970-01-01T01:16:20+01:00", "1970-01-01T00:16:30Z"), Ok((980, 990)));
        for (from, to) in [("990", "990"), ("990", "980"), ("1000", "1000")] {
            assert_eq!(range(from, to), Err(InvalidRange::Empty), "{from} {to}");
        }
        for from in ["1010", "1011", "253402300799"] {
            assert!(matches!(range(from, "2000"), Err(InvalidRange::Future { .. })), "{from}");
        }
        for (from, to, name) in [("981", "990", "from"), ("1005", "1010", "from"), ("980", "999", "to")] {
            let refused = range(from, to);
            assert!(
                matches!(refused, Err(InvalidRange::NotAligned { name: found, .. }) if found == name),
                "{from}"
            );
        }
    }

    #[test]
    fn a_range_has_at_most_1500_windows() {
        let second = "1s".parse::<WindowLength>().unwrap();
        let windows =
            |number: u64| Range { from: second.starting_at(7), to: second.starting_at(7 + number) }.windows();
        let all: Vec<_> = windows(1_500).unwrap().map(Window::unix_seconds).collect();
        assert_eq!(all, (7..1_507).collect::<Vec<_>>());
        assert!(matches!(windows(1_501).map(|_| ()), Err(InvalidRange::TooManySteps { steps: 1_501 })));
    }
}
