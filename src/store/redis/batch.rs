//! A batch: the writes that go to Redis together, and the requests that wait for their replies.
//!
//! A write is only bytes after those of the write before it, and an index among the replies. So a request costs a copy of some
//! sixty bytes and a waker: no command, no channel and no task of its own.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::time::Instant;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::target::Target;
use crate::hll::Observation;
use crate::platform::unavailable::Unavailable;
use crate::redis::Commands;

/// Writes of a batch, at most.
const WRITES: usize = 1024;
/// Ids of a batch, at most, unless one write has more.
const IDS: usize = 16 * 1024;

/// Targets of a batch among which a write looks for its own: the shards of a usual window.
const LOOKED_AT: usize = 16;

/// A small batch allocates nothing.
type Few<T> = SmallVec<[T; 8]>;
/// The reply to each write, in their order.
pub(super) type Replies = Few<Result<u64, Unavailable>>;

/// The buffers of a batch that was answered.
#[derive(Default)]
pub(super) struct Recycled {
    commands: Commands,
    answers: Arc<Answers>,
}

/// Writes that go together.
pub(super) struct Batch {
    /// The deadline of the first write, and so of all.
    pub(super) deadline: Instant,
    /// The writes, and what is sent with them.
    commands: Commands,
    writes: usize,
    ids: usize,
    touched: SmallVec<[Touched; 1]>,
    /// For each write, the index of its target in `touched`.
    owners: SmallVec<[u16; 64]>,
    answers: Arc<Answers>,
}

/// A target that has writes in the batch.
struct Touched {
    target: Arc<Target>,
    /// Until it is dropped, the window cannot be sealed.
    _under_way: TaskTrackerToken,
    /// What the server will have, and by which write; empty if the target does not remember it.
    observed: SmallVec<[(usize, Observation); 1]>,
}

impl Batch {
    /// An empty batch, with the buffers of an answered one.
    pub(super) fn new(deadline: Instant, recycled: Option<Recycled>) -> Self {
        let Recycled { commands, mut answers } = recycled.unwrap_or_default();
        if let Some(answers) = Arc::get_mut(&mut answers) {
            *answers = Answers::default();
        } else {
            // A request has not read its reply yet.
            answers = Arc::default();
        }
        Self {
            deadline,
            commands,
            writes: 0,
            ids: 0,
            touched: SmallVec::new(),
            owners: SmallVec::new(),
            answers,
        }
    }

    pub(super) fn writes(&self) -> usize {
        self.writes
    }

    pub(super) fn has_room_for(&self, ids: usize) -> bool {
        self.writes < WRITES && (self.writes == 0 || self.ids + ids <= IDS)
    }

    /// Adds a write.
    pub(super) fn add<'a>(
        &mut self,
        target: &Arc<Target>,
        ids: impl ExactSizeIterator<Item = &'a [u8]>,
        under_way: &TaskTrackerToken,
    ) -> Receipt {
        let touched = self.touch(target, under_way);
        self.ids += ids.len();
        self.commands.begin(2 + ids.len());
        self.commands.word(target.command.as_bytes());
        self.commands.word(target.key.as_bytes());
        for id in ids {
            self.commands.word(id);
            if target.remembers_registers() {
                self.touched[touched].observed.push((self.writes, Observation::of(id)));
            }
        }
        let index = self.writes;
        self.owners.push(touched as u16);
        self.writes += 1;
        self.answers.expect_one();
        Receipt { answers: Arc::clone(&self.answers), index }
    }

    /// The index of a target in `touched`. Of shards there are few. Of counters there may be many: one that was not among the
    /// last is there twice.
    fn touch(&mut self, target: &Arc<Target>, under_way: &TaskTrackerToken) -> usize {
        let mut last = self.touched.iter().enumerate().rev().take(LOOKED_AT);
        let index = last.find(|(_, touched)| Arc::ptr_eq(&touched.target, target)).map(|(index, _)| index);
        index.unwrap_or_else(|| {
            let target = Arc::clone(target);
            self.touched.push(Touched { target, _under_way: under_way.clone(), observed: SmallVec::new() });
            self.touched.len() - 1
        })
    }

    /// The writes in their order, then a `PEXPIRE` for each key that has had none in this epoch.
    pub(super) fn commands(&mut self, epoch: u64) -> &Commands {
        for Touched { target, .. } in &self.touched {
            // If this batch fails, a new epoch begins.
            if target.must_expire(epoch) {
                let keep_for = target.keep_for.to_string();
                self.commands.add(&[b"PEXPIRE", target.key.as_bytes(), keep_for.as_bytes()]);
            }
        }
        &self.commands
    }

    /// Gives each request its reply. There are as many replies as writes. They came in this epoch, from a server of this
    /// generation. Returns the buffers for another batch.
    pub(super) fn answer(mut self, replies: Replies, epoch: u64, generation: u64) -> Recycled {
        // Here, and not where a request reads its reply: the request may be gone by now.
        for (owner, reply) in std::mem::take(&mut self.owners).iter().zip(&replies) {
            let target = &self.touched[usize::from(*owner)].target;
            target.note_ended(reply.is_ok().then_some(epoch));
            if reply.is_ok() {
                target.note_acknowledged(generation);
            }
            if let Ok(new @ 1..) = reply {
                target.note_new(*new);
            }
        }
        for Touched { target, observed, .. } in &self.touched {
            target.note_answer(generation);
            let done = observed.iter().filter(|(write, _)| replies[*write].is_ok());
            target.note_observed(done.map(|(_, observation)| *observation), epoch);
        }
        self.answers.give(|| Ok(replies));
        let commands = std::mem::take(&mut self.commands).recycled();
        Recycled { commands, answers: Arc::clone(&self.answers) }
    }

    /// Notes that the batch was sent and not answered.
    pub(super) fn note_doubt(&self) {
        for Touched { target, .. } in &self.touched {
            target.note_doubt();
        }
    }

    /// Gives each request the error.
    pub(super) fn fail(self, error: &Unavailable) {
        self.answers.give(|| Err(error.clone()));
    }
}

/// No request waits for a reply that cannot come.
impl Drop for Batch {
    fn drop(&mut self) {
        for owner in &self.owners {
            self.touched[usize::from(*owner)].target.note_ended(None);
        }
        self.answers.give(|| Err(Unavailable::because("the pipeline to Redis has ended")));
    }
}

/// The replies to a batch, or the requests that wait for them.
#[derive(Default)]
struct Answers(Mutex<State>);

enum State {
    /// A waker for each write; none until its request is polled.
    Awaited(Few<Option<Waker>>),
    Given(Result<Replies, Unavailable>),
}

impl Default for State {
    fn default() -> Self {
        Self::Awaited(Few::new())
    }
}

impl Answers {
    fn expect_one(&self) {
        if let State::Awaited(wakers) = &mut *self.0.lock() {
            wakers.push(None);
        }
    }

    /// Does nothing if replies were given before.
    fn give(&self, replies: impl FnOnce() -> Result<Replies, Unavailable>) {
        let mut state = self.0.lock();
        let State::Awaited(wakers) = &mut *state else { return };
        let wakers = std::mem::take(wakers);
        *state = State::Given(replies());
        drop(state);
        for waker in wakers.into_iter().flatten() {
            waker.wake();
        }
    }
}

/// One for each write of a request.
pub(super) type Receipts = SmallVec<[Receipt; 1]>;

/// A future of the reply to a write: how many ids were new, or 1 if the sketch changed.
pub(super) struct Receipt {
    answers: Arc<Answers>,
    index: usize,
}

impl Future for Receipt {
    type Output = Result<u64, Unavailable>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut *self.answers.0.lock() {
            State::Given(Ok(replies)) => Poll::Ready(replies[self.index].clone()),
            State::Given(Err(error)) => Poll::Ready(Err(error.clone())),
            State::Awaited(wakers) => {
                match &mut wakers[self.index] {
                    Some(waker) => waker.clone_from(context.waker()),
                    none => *none = Some(context.waker().clone()),
                }
                Poll::Pending
            }
        }
    }
}
