//! Since when servers of a cluster are away, as far as windows could not be sealed or counted because of it.

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::around::Around;
use crate::platform::unavailable::Unavailable;

/// By the numbers of their nodes.
#[derive(Default)]
pub(super) struct Absences(Mutex<BTreeMap<usize, Instant>>);

impl Absences {
    /// Notes which servers have failed in some work, and that the others are not away any more. An error, unless each of them has
    /// now failed for so long, and because it is away: not because it refused something.
    pub(super) fn all_last_for(
        &self,
        around: &Around,
        long: Duration,
        now: Instant,
    ) -> Result<(), Unavailable> {
        let mut since = self.0.lock();
        since.retain(|node, _| around.has_failed(*node));
        for node in around.failed().keys() {
            since.entry(*node).or_insert(now);
        }
        let is_no_reason =
            |(node, error): &(&usize, &Unavailable)| error.is_refusal() || now - since[*node] < long;
        around.failed().iter().find(is_no_reason).map_or(Ok(()), |(_, error)| Err(error.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(7);

    fn around(failed: &[usize]) -> Around {
        let mut around = Around::default();
        for node in failed {
            around.note(*node, Err::<(), _>(Unavailable::because("away")));
        }
        around
    }

    #[test]
    fn a_server_that_came_back_is_away_anew() {
        let (absences, start) = (Absences::default(), Instant::now());
        let are_long_away = |failed: &[usize], seconds| {
            absences.all_last_for(&around(failed), LONG, start + Duration::from_secs(seconds)).is_ok()
        };
        assert!(!are_long_away(&[1], 0), "it has just failed");
        assert!(are_long_away(&[], 5), "it is back");
        assert!(!are_long_away(&[1, 2], 10), "both have just failed");
        assert!(!are_long_away(&[1, 2, 3], 15), "one of them has just failed");
        assert!(!are_long_away(&[1, 2, 3], 17), "that one is not away for long");
        assert!(are_long_away(&[1, 2, 3], 22));
    }

    #[test]
    fn a_server_that_refuses_is_not_away() {
        let (absences, start, mut around) = (Absences::default(), Instant::now(), Around::default());
        around.note(1, Err::<(), _>(Unavailable::refused("READONLY")));
        for now in [start, start + 2 * LONG] {
            assert!(absences.all_last_for(&around, LONG, now).is_err());
        }
    }
}
