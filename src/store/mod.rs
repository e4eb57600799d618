//! Counters: what remembers the ids of a window.

mod id_set;
pub mod memory;
pub mod redis;

use std::collections::BTreeSet;
use std::future::{Future, Ready, ready};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use thiserror::Error;

use crate::hll::Sketch;
use crate::model::id::Id;
use crate::model::id_key::IdKey;
use crate::model::mode::Mode;
use crate::model::shard::Shards;
use crate::model::window::{Window, WindowLength};
use crate::platform::unavailable::Unavailable;

/// The standard error of a count over `shards`, relative to the truth.
///
/// Shards hold disjoint sets, so their errors are independent and add up as squares.
pub fn standard_error(mode: Mode, shards: Shards) -> f64 {
    match mode {
        Mode::Hll => Sketch::STANDARD_ERROR / f64::from(shards.count()).sqrt(),
        Mode::Exact => 0.0,
    }
}

/// What is counted, and how.
#[derive(Debug, Clone)]
pub struct Counting {
    /// How ids are remembered.
    pub mode: Mode,
    /// The length of a window.
    pub window: WindowLength,
    /// Sketches that the ids of a window are split over.
    pub shards: Shards,
    /// How long windows are kept after their end.
    pub retention: Duration,
    /// What ids are hashed with before they are counted; none if they are counted as they are.
    pub id_key: Option<IdKey>,
}

impl Counting {
    /// The standard error of the counts.
    pub fn standard_error(&self) -> f64 {
        standard_error(self.mode, self.shards)
    }
}

/// Remembers the ids of each window.
///
/// A window goes through three states: *open*, it takes ids; *sealed*, this process adds nothing more to it
/// and all that it accepted is in the count; *forgotten*, its count is stored elsewhere. Windows are sealed
/// in order. A counter never looks at a clock: which window is meant, and when one is over, is said by the
/// caller.
///
/// Several processes may share what is behind a counter. A count is then that of all of them, while each
/// seals for itself.
#[async_trait]
pub trait UniqueCounter: Send + Sync {
    /// Adds ids to a window: all of them, or none if the window is sealed.
    ///
    /// When it has ended with `Ok`, the ids are in every count of the window that starts later; adding an
    /// id again changes nothing but [`Tally::accepted_ids`]. Callers split long lists: other callers
    /// should not have to wait for one.
    ///
    /// # Errors
    ///
    /// [`AddError::Sealed`] and nothing was added; [`AddError::Unavailable`] and some of it may have been.
    fn add<'a>(&'a self, window: Window, ids: &'a [Id]) -> Adding<'a>;

    /// Seals a window and all before it. When this returns `Ok`, no addition to them is under way in this
    /// process, none will succeed, and all that succeeded are in what is shared.
    ///
    /// # Errors
    ///
    /// [`Unavailable`]: additions are refused from now on all the same; ask again for the rest.
    async fn seal(&self, window: Window) -> Result<(), Unavailable>;

    /// The windows that this process added to and that are not forgotten, oldest first. There may be
    /// some that are yet to come, by the clock as it is now: it may have been set back.
    fn windows(&self) -> Vec<Window>;

    /// How many different ids a window has: final once every process has sealed it. A window that was
    /// never added to has none.
    ///
    /// # Errors
    ///
    /// [`CountError::Evicted`] when the window is forgotten.
    async fn count(&self, window: Window) -> Result<Tally, CountError>;

    /// The same of a window that every process has sealed, and final: what of it is shared is put right first, as far
    /// as there is something to do it with. `parties` are the processes that are known to have sealed it; what one of them had
    /// may be missing too. [`Tally::lost_ids`] says whether something may be.
    ///
    /// # Errors
    ///
    /// As [`Self::count`].
    async fn settle(&self, window: Window, _parties: &BTreeSet<String>) -> Result<Tally, CountError> {
        self.count(window).await
    }

    /// The counts of a window and of all before it are stored: what was kept only to count them is of no more use.
    async fn closed(&self, _window: Window) {}

    /// What is still known of a window that somebody has counted before, perhaps long ago; none when nothing is.
    ///
    /// # Errors
    ///
    /// [`Unavailable`].
    async fn recall(&self, _window: Window) -> Result<Option<Tally>, Unavailable> {
        Ok(None)
    }

    /// Forgets a window and all before it, because their counts are stored.
    async fn forget(&self, window: Window);

    /// Adds once more what this process has of windows that are not forgotten, because what is shared was
    /// lost. In mode `exact` that is only what has not been shared yet: nobody has the other ids any more.
    ///
    /// # Errors
    ///
    /// [`Unavailable`]: some of it may be there again.
    async fn restore(&self) -> Result<(), Unavailable> {
        Ok(())
    }

    /// Whether ids are kept here for now, or refused, because what is shared cannot be reached.
    fn is_degraded(&self) -> bool {
        false
    }

    /// Ids that were accepted and that what is shared does not have yet.
    fn unacknowledged_ids(&self) -> u64 {
        0
    }

    /// How many ids were accepted for these windows, from one to another, while what is shared could not be reached.
    /// They are told once.
    fn take_kept_apart(&self, _first: Window, _last: Window) -> u64 {
        0
    }
}

/// An addition: ended already, or still to be waited for.
///
/// A counter in memory never waits. A box, which is what an `async` method of a trait object is, would be a good part of
/// what an id costs there; so only what waits has one.
#[must_use = "ids are not safe before it has ended"]
pub struct Adding<'a>(AddingState<'a>);

enum AddingState<'a> {
    Done(Ready<Result<Added, AddError>>),
    UnderWay(Pin<Box<dyn Future<Output = Result<Added, AddError>> + Send + 'a>>),
}

impl<'a> Adding<'a> {
    /// One that has ended.
    pub fn done(result: Result<Added, AddError>) -> Self {
        Self(AddingState::Done(ready(result)))
    }

    /// One that is to be waited for.
    pub fn under_way(rest: impl Future<Output = Result<Added, AddError>> + Send + 'a) -> Self {
        Self(AddingState::UnderWay(Box::pin(rest)))
    }

    /// False if it had ended from the start.
    pub fn is_under_way(&self) -> bool {
        matches!(self.0, AddingState::UnderWay(_))
    }
}

impl Future for Adding<'_> {
    type Output = Result<Added, AddError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.get_mut().0 {
            AddingState::Done(result) => Pin::new(result).poll(context),
            AddingState::UnderWay(rest) => rest.as_mut().poll(context),
        }
    }
}

/// What an addition did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Added {
    /// How many of the ids changed the counter: new ones in mode `exact`, those that raised a
    /// register in mode `hll`, which are fewer.
    pub changed: u64,
}

/// The ids were not added.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum AddError {
    /// The window takes no more ids.
    #[error("the window is sealed, {open} is open")]
    Sealed {
        /// The oldest window that still takes some.
        open: Window,
    },
    /// They could not be kept.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// There is no count.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CountError {
    /// The window is forgotten.
    #[error("window {0} is not kept any more")]
    Evicted(Window),
    /// Nobody could be asked.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// What a window holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Different ids.
    pub unique_ids: u64,
    /// All ids, repeats among them.
    pub accepted_ids: u64,
    /// How many ids what is shared has had and does not have, or had to be told again. Above zero, some may be
    /// missing.
    pub lost_ids: u64,
}
