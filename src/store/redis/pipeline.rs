//! The pipeline to a server: a task that owns a connection and sends what waits. Each worker has one for each server.
//!
//! A request puts its write into the last [batch](super::batch) of a queue and waits for its own reply. The task takes the first
//! batch, sends it as one pipeline, and reads the replies. Writes that come in meanwhile are the next batch. So at low load a
//! write goes out at once, alone. At high load one system call and one wake-up serve hundreds. There is no timer to tune.
//!
//! Before the task takes a batch, it lets all other tasks run that are ready. So requests that came together are in one batch,
//! and not some in the first and the rest in the second. When no task is ready, this costs one look for events.
//!
//! # When Redis does not answer
//!
//! Every write has a deadline. When the connection breaks, the batch is sent once more over a new one, if there is time left:
//! adding twice is adding once, and a connection that was closed because it was idle is no outage. If that fails too, or the
//! deadline passes, the [breaker](super::breaker) opens. Then all requests learn it at once: those of the batch, and those in the
//! queue behind it. Redis may still have done a write that was reported as failed.
//!
//! # Epochs
//!
//! A new connection may lead to a server that knows nothing of what the old one acknowledged. So what a [`Target`] knows about
//! the server (that its key expires, which registers it has) belongs to an *epoch*. Every failure begins a new one.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ::metrics::{Gauge, Histogram};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::batch::{Batch, Receipt, Recycled, Replies};
use super::primary::Primary;
use super::target::Target;
use crate::platform::unavailable::Unavailable;
use crate::redis::{self, Call, Writer};
use crate::telemetry::metrics::Metrics;

/// Writes that may wait to be sent; one more is refused.
const QUEUE: usize = 65_536;

/// Shared by both ends.
struct Shared {
    queue: Mutex<Queue>,
    /// There is a batch where there was none, or the other end is gone.
    news: Notify,
    /// The same one for all pipelines.
    epoch: Arc<AtomicU64>,
}

#[derive(Default)]
struct Queue {
    batches: VecDeque<Batch>,
    /// In all batches.
    writes: usize,
    /// How many of them are in the gauge, which all pipelines share.
    shown: usize,
    /// For the next batch.
    recycled: Option<Recycled>,
    /// An end is gone.
    closed: bool,
}

/// The end of the requests.
pub(super) struct Pipeline {
    shared: Arc<Shared>,
    timeout: Duration,
}

/// The end of the connection.
pub(super) struct PipelineTask {
    shared: Arc<Shared>,
    redis: Writer,
    primary: Arc<Primary>,
    metrics: PipelineMetrics,
}

/// How many writes went together, and how many wait.
#[derive(Clone)]
pub(super) struct PipelineMetrics {
    batch_size: Histogram,
    queue_length: Gauge,
}

impl PipelineMetrics {
    pub(super) fn new(metrics: &Metrics) -> Self {
        Self {
            batch_size: metrics.redis_batch_size.clone(),
            queue_length: metrics.redis_queue_length.clone(),
        }
    }
}

/// Makes a pipeline that writes with this writer. A write has `timeout` from when it enters the queue.
pub(super) fn pipeline(
    writer: Writer,
    primary: &Arc<Primary>,
    timeout: Duration,
    epoch: &Arc<AtomicU64>,
    metrics: PipelineMetrics,
) -> (Pipeline, PipelineTask) {
    let shared = Arc::new(Shared { queue: Mutex::default(), news: Notify::new(), epoch: Arc::clone(epoch) });
    let primary = Arc::clone(primary);
    let task = PipelineTask { shared: Arc::clone(&shared), redis: writer, primary, metrics };
    (Pipeline { shared, timeout }, task)
}

impl Pipeline {
    /// Puts a write into the queue. Its reply comes by the deadline, more or less.
    pub(super) fn send<'a>(
        &self,
        target: &Arc<Target>,
        ids: impl ExactSizeIterator<Item = &'a [u8]>,
        under_way: &TaskTrackerToken,
    ) -> Result<Receipt, Unavailable> {
        let mut queue = self.shared.queue.lock();
        if queue.closed {
            return Err(Unavailable::because("the pipeline to Redis has ended"));
        }
        if queue.writes >= QUEUE {
            return Err(Unavailable::because("the queue to Redis is full"));
        }
        let is_first = queue.writes == 0;
        queue.writes += 1;
        if !queue.batches.back().is_some_and(|batch| batch.has_room_for(ids.len())) {
            let recycled = queue.recycled.take();
            queue.batches.push_back(Batch::new(Instant::now() + self.timeout, recycled));
        }
        let last = queue.batches.len() - 1;
        let receipt = queue.batches[last].add(target, ids, under_way);
        drop(queue);
        if is_first {
            self.shared.news.notify_one();
        }
        Ok(receipt)
    }
}

/// The task sends the batches that are left, and ends.
impl Drop for Pipeline {
    fn drop(&mut self) {
        self.shared.queue.lock().closed = true;
        self.shared.news.notify_one();
    }
}

/// The queue takes no more writes. Requests that wait get an error.
impl Drop for PipelineTask {
    fn drop(&mut self) {
        let mut queue = self.shared.queue.lock();
        queue.closed = true;
        drop(std::mem::take(&mut queue.batches));
    }
}

impl PipelineTask {
    /// Sends until the end of the requests is dropped.
    pub(super) async fn run(self) {
        while let Some(mut batch) = self.next().await {
            if self.primary.breaker.is_open() {
                batch.fail(&Unavailable::because("Redis is away"));
                continue;
            }
            self.metrics.batch_size.record(batch.writes() as f64);
            match self.send(&mut batch).await {
                Ok((replies, epoch)) => {
                    let recycled = batch.answer(self.read(replies), epoch, self.redis.generation());
                    self.shared.queue.lock().recycled = Some(recycled);
                }
                Err(error) => {
                    self.primary.breaker.open(&error);
                    batch.fail(&error);
                }
            }
        }
    }

    /// The next batch, once there is one.
    async fn next(&self) -> Option<Batch> {
        loop {
            tokio::task::yield_now().await;
            {
                let mut queue = self.shared.queue.lock();
                if let Some(batch) = queue.batches.pop_front() {
                    queue.writes -= batch.writes();
                    self.metrics.queue_length.increment(queue.writes as f64 - queue.shown as f64);
                    queue.shown = queue.writes;
                    return Some(batch);
                }
                if queue.closed {
                    return None;
                }
            }
            self.shared.news.notified().await;
        }
    }

    /// Sends a batch, twice if need be, by its deadline. Returns the replies to the writes, and their epoch.
    async fn send(&self, batch: &mut Batch) -> Result<(redis::Replies, u64), Unavailable> {
        let sent = self.send_once(batch).await;
        if sent.is_err() && Instant::now() < batch.deadline {
            return self.send_once(batch).await;
        }
        sent
    }

    /// Sends a batch once. A failure begins a new epoch.
    async fn send_once(&self, batch: &mut Batch) -> Result<(redis::Replies, u64), Unavailable> {
        let epoch = self.shared.epoch.load(Ordering::Relaxed);
        let (deadline, writes) = (batch.deadline, batch.writes());
        // A refused write fails only its request. A refused PEXPIRE fails the batch: a key would never expire.
        let sent = self.redis.send(Call::Write, batch.commands(epoch), writes, deadline).await;
        sent.map(|replies| (replies, epoch)).inspect_err(|_| {
            batch.note_doubt();
            self.shared.epoch.fetch_add(1, Ordering::Relaxed);
        })
    }

    /// Turns the replies into those for the requests. A refused write opens the breaker: later writes would fail too. It begins a
    /// new epoch as well: its key may not exist, so the `PEXPIRE` of the batch did nothing.
    fn read(&self, replies: redis::Replies) -> Replies {
        let read =
            |reply: Result<_, _>| reply.map_err(|error| Unavailable::because(format_args!("Redis: {error}")));
        let replies: Replies = replies.into_iter().map(read).collect();
        for error in replies.iter().filter_map(|reply| reply.as_ref().err()) {
            self.shared.epoch.fetch_add(1, Ordering::Relaxed);
            self.primary.breaker.open(error);
        }
        replies
    }
}
