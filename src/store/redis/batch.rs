//! A batch: the writes that go to Redis together, and the requests that wait for their replies.
//!
//! A write is only bytes after those of the write before it, and an index among the replies. So a request costs a copy of some
//! sixty bytes and a waker: no command, no channel and no task of its own.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::time::Instant;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::hll::{Observation, Sketch};
use crate::platform::unavailable::Unavailable;
use crate::redis::Commands;

/// Writes of a batch, at most.
const WRITES: usize = 1024;
/// Ids of a batch, at most, unless one write has more.
const IDS: usize = 16 * 1024;

/// A small batch allocates nothing.
type Few<T> = SmallVec<[T; 8]>;
/// The reply to each write, in their order.
pub(super) type Replies = Few<Result<u64, Unavailable>>;

/// Where ids go: the key of a shard of a window, and what this instance knows about it.
pub(super) struct Target {
    /// `PFADD` or `SADD`.
    pub(super) command: &'static str,
    pub(super) key: String,
    /// How long the server keeps the key after the last `PEXPIRE`, in milliseconds. It measures that by its own clock:
    /// ours may be wrong.
    pub(super) keep_for: u64,
    /// The epoch of the last `PEXPIRE`; 0 for none.
    expires_since: AtomicU64,
    /// The registers that the server has. None if every id is sent, so that it does not matter.
    acknowledged: Option<Acknowledged>,
    /// How many ids the server called new; for `PFADD`, how many writes changed something.
    new: AtomicU64,
    /// A write was not answered. The server may have done it, and then more ids were new than it said.
    in_doubt: AtomicBool,
    /// One more than the [generation](crate::redis::Redis::generation) of the server that answered a write after that; 0 for
    /// none.
    answered_in_doubt: AtomicU64,
}

struct Acknowledged {
    epoch: AtomicU64,
    registers: Sketch,
    /// Held while registers are added, so that no register of an old epoch is added after a new epoch has begun.
    adding: Mutex<()>,
}

impl Target {
    pub(super) fn new(
        command: &'static str,
        key: String,
        keep_for: u64,
        remember_acknowledged: bool,
    ) -> Self {
        let acknowledged = remember_acknowledged.then(|| Acknowledged {
            epoch: AtomicU64::new(0),
            registers: Sketch::new(),
            adding: Mutex::default(),
        });
        Self {
            command,
            key,
            keep_for,
            expires_since: AtomicU64::new(0),
            acknowledged,
            new: AtomicU64::new(0),
            in_doubt: AtomicBool::new(false),
            answered_in_doubt: AtomicU64::new(0),
        }
    }

    /// How many ids the server called new.
    pub(super) fn new_ids(&self) -> u64 {
        self.new.load(Ordering::Relaxed)
    }

    /// Notes that a server has answered a write.
    pub(super) fn note_answer(&self, generation: u64) {
        if self.in_doubt.load(Ordering::Relaxed) {
            let none = self.answered_in_doubt.load(Ordering::Relaxed) == 0;
            if none {
                self.answered_in_doubt.store(generation + 1, Ordering::Relaxed);
            }
        }
    }

    /// Whether a server before this generation may have lost ids unnoticed. It had ids that it never called new, so it may
    /// have lost as many that it acknowledged later.
    ///
    /// A write that stays unanswered because the server dies hides nothing: it was the last one of that server.
    pub(super) fn may_hide_a_loss(&self, generation: u64) -> bool {
        let answered = self.answered_in_doubt.load(Ordering::Relaxed);
        answered > 0 && answered <= generation
    }

    /// True when the server has acknowledged this in this epoch.
    pub(super) fn has(&self, observation: Observation, epoch: u64) -> bool {
        self.acknowledged.as_ref().is_some_and(|acknowledged| {
            acknowledged.epoch.load(Ordering::Acquire) == epoch && acknowledged.registers.covers(observation)
        })
    }
}

impl Acknowledged {
    /// Notes that the server has these.
    fn add(&self, observed: impl Iterator<Item = Observation>, epoch: u64) {
        let _adding = self.adding.lock();
        let known = self.epoch.load(Ordering::Relaxed);
        if known > epoch {
            return;
        }
        if known < epoch {
            self.registers.clear();
            // A thread that sees the new epoch sees no register of the old one.
            self.epoch.store(epoch, Ordering::Release);
        }
        for observation in observed {
            self.registers.raise(observation);
        }
    }
}

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
            if target.acknowledged.is_some() {
                self.touched[touched].observed.push((self.writes, Observation::of(id)));
            }
        }
        let index = self.writes;
        self.owners.push(touched as u16);
        self.writes += 1;
        self.answers.expect_one();
        Receipt { answers: Arc::clone(&self.answers), index }
    }

    /// The index of a target in `touched`. There are few: shards of the running window.
    fn touch(&mut self, target: &Arc<Target>, under_way: &TaskTrackerToken) -> usize {
        let index = self.touched.iter().rposition(|touched| Arc::ptr_eq(&touched.target, target));
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
            if target.expires_since.swap(epoch, Ordering::Relaxed) != epoch {
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
        for (owner, new) in self.owners.iter().zip(&replies) {
            if let Ok(new @ 1..) = new {
                self.touched[usize::from(*owner)].target.new.fetch_add(*new, Ordering::Relaxed);
            }
        }
        for Touched { target, observed, .. } in &self.touched {
            target.note_answer(generation);
            if let Some(acknowledged) = &target.acknowledged {
                let done = observed.iter().filter(|(write, _)| replies[*write].is_ok());
                acknowledged.add(done.map(|(_, observation)| *observation), epoch);
            }
        }
        self.answers.give(|| Ok(replies));
        let commands = std::mem::take(&mut self.commands).recycled();
        Recycled { commands, answers: Arc::clone(&self.answers) }
    }

    /// Notes that the batch was sent and not answered.
    pub(super) fn note_doubt(&self) {
        for Touched { target, .. } in &self.touched {
            target.in_doubt.store(true, Ordering::Relaxed);
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
