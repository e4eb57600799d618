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
    /// Notes which servers have failed in some work, and forgets those that answered.
    pub(super) fn note(&self, around: &Around, now: Instant) {
        let mut since = self.0.lock();
        since.retain(|node, _| !around.is_there(*node));
        for node in around.failed().keys() {
            since.entry(*node).or_insert(now);
        }
    }

    /// An error, unless every server that has failed has been away for so long. One that refuses is not away, nor is one that was
    /// not noted.
    pub(super) fn all_last_for(
        &self,
        around: &Around,
        long: Duration,
        now: Instant,
    ) -> Result<(), Unavailable> {
        let since = self.0.lock();
        let is_long_away = |node: &usize| since.get(node).is_some_and(|since| now - *since >= long);
        let must_wait_for =
            |(node, error): &(&usize, &Unavailable)| error.is_refusal() || !is_long_away(node);
        around.failed().iter().find(must_wait_for).map_or(Ok(()), |(_, error)| Err(error.clone()))
    }

    /// Notes that a server is back.
    pub(super) fn forget(&self, node: usize) {
        self.0.lock().remove(&node);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(7);

    /// What work was like that some servers failed in, and others did.
    fn around(failed: &[usize], answered: &[usize]) -> Around {
        let mut around = Around::default();
        for node in failed {
            around.note(*node, Err::<(), _>(Unavailable::because("away")));
        }
        for node in answered {
            around.note(*node, Ok(()));
        }
        around
    }

    #[test]
    fn a_server_that_came_back_is_away_anew() {
        let (absences, start) = (Absences::default(), Instant::now());
        let are_long_away = |failed: &[usize], answered: &[usize], seconds| {
            let (around, now) = (around(failed, answered), start + Duration::from_secs(seconds));
            absences.note(&around, now);
            absences.all_last_for(&around, LONG, now).is_ok()
        };
        assert!(!are_long_away(&[1], &[], 0), "it has just failed");
        assert!(are_long_away(&[], &[1], 5), "it is back");
        assert!(!are_long_away(&[1, 2], &[], 10), "both have just failed");
        assert!(are_long_away(&[], &[3], 14), "nothing was asked of them");
        assert!(!are_long_away(&[1, 2, 3], &[], 15), "one of them has just failed");
        assert!(are_long_away(&[1, 2], &[], 17));
        absences.forget(2);
        assert!(!are_long_away(&[1, 2], &[], 22), "one of them was back");
        assert!(are_long_away(&[1, 2], &[], 29));
    }

    #[test]
    fn a_server_that_refuses_is_not_away() {
        let (absences, start, mut around) = (Absences::default(), Instant::now(), Around::default());
        around.note(1, Err::<(), _>(Unavailable::refused("READONLY")));
        for now in [start, start + 2 * LONG] {
            absences.note(&around, now);
            assert!(absences.all_last_for(&around, LONG, now).is_err());
        }
    }
}
