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
    /// Notes which servers have failed in some work. An error, unless each of them has now failed for so long, and because it is
    /// away: not because it refused something.
    pub(super) fn all_last_for(&self, around: &Around, long: Duration) -> Result<(), Unavailable> {
        let mut since = self.0.lock();
        since.retain(|node, _| around.has_failed(*node));
        for (node, error) in around.failed() {
            let since = since.entry(*node).or_insert_with(Instant::now);
            if error.is_refusal() || since.elapsed() < long {
                return Err(error.clone());
            }
        }
        Ok(())
    }
}
