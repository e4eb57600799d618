//! The pipeline to Redis: one task that owns a connection and sends what waits.
//!
//! A request puts its write into a queue and waits for its own reply. The task takes all that is in the
//! queue, sends it as one pipeline, and reads the replies; what comes in meanwhile is the next pipeline. So at
//! low load a write goes out at once, alone, and at high load a system call and a wake-up serve hundreds: the
//! batch grows by itself with what there is to do, and there is no timer to tune.
//!
//! # When Redis does not answer
//!
//! Every write has a deadline. A pipeline whose connection breaks is sent once more over a new one, if there is
//! time left: adding twice is adding once, and a connection that was closed because it was idle is no outage. If
//! that fails too, or the first deadline passes, the [breaker](super::breaker) opens, and whoever
//! waits is told at once: those of the pipeline, and those who are in the queue behind it. A write of which its
//! requester was told that it failed may be done all the same.
//!
//! # Epochs
//!
//! A new connection may lead to a server that knows nothing of what the old one acknowledged. What a
//! [`Target`] knows about the server (that its key expires, which registers it has) therefore belongs to
//! an *epoch*, and every failure begins a new one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ::metrics::{Gauge, Histogram};
use ::redis::{RedisError, RedisResult, Value};
use smallvec::SmallVec;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::breaker::Breaker;
use crate::id::Id;
use crate::metrics::Metrics;
use crate::redis::{self, Call, Redis};
use crate::sketch::{Observation, Sketch};
use crate::unavailable::Unavailable;

/// Writes that may wait to be sent; one more is refused.
const QUEUE: usize = 65_536;
/// Writes that are sent as one pipeline, at most.
const BATCH: usize = 1024;
/// Ids that are sent as one pipeline, at most, unless one write has more.
const IDS_A_BATCH: usize = 16 * 1024;

/// Where ids go: the key of a shard of a window, and what is known about it.
pub(super) struct Target {
    /// `PFADD` or `SADD`.
    pub(super) command: &'static str,
    pub(super) key: String,
    /// When the key expires, in seconds since 1970.
    pub(super) expire_at: u64,
    /// The epoch in which the server was told when the key expires; 0 is none.
    expires_since: AtomicU64,
    /// The registers that the server has, where writes that cannot change any are left out.
    acknowledged: Option<Acknowledged>,
}

struct Acknowledged {
    epoch: AtomicU64,
    registers: Sketch,
}

impl Target {
    pub(super) fn new(
        command: &'static str,
        key: String,
        expire_at: u64,
        remember_acknowledged: bool,
    ) -> Self {
        let acknowledged = remember_acknowledged
            .then(|| Acknowledged { epoch: AtomicU64::new(0), registers: Sketch::new() });
        Self { command, key, expire_at, expires_since: AtomicU64::new(0), acknowledged }
    }

    /// Notes that the server has ids.
    fn acknowledge(&self, ids: &[Id], epoch: u64) {
        if let Some(acknowledged) = &self.acknowledged {
            // Only the pipeline's task comes here.
            if acknowledged.epoch.load(Ordering::Relaxed) != epoch {
                acknowledged.registers.clear();
                // Whoever sees the new epoch sees no register of the old one.
                acknowledged.epoch.store(epoch, Ordering::Release);
            }
            for id in ids {
                acknowledged.registers.raise(Observation::of(id.as_bytes()));
            }
        }
    }
}

/// Ids for a target, and who waits for the reply.
pub(super) struct Write {
    pub(super) target: Arc<Target>,
    pub(super) ids: SmallVec<[Id; 1]>,
    pub(super) reply: oneshot::Sender<Result<u64, Unavailable>>,
    /// The window cannot be sealed while there is one.
    pub(super) under_way: TaskTrackerToken,
}

struct Queued {
    write: Write,
    deadline: Instant,
}

/// The end that writes are put into.
pub(super) struct Pipeline {
    queue: mpsc::Sender<Queued>,
    timeout: Duration,
    epoch: Arc<AtomicU64>,
}

/// The other end.
pub(super) struct PipelineTask {
    queue: mpsc::Receiver<Queued>,
    redis: Redis,
    breaker: Arc<Breaker>,
    epoch: Arc<AtomicU64>,
    batch_size: Histogram,
    queue_length: Gauge,
}

/// A pipeline over a connection of its own; writes have `timeout` from when they are put in.
pub(super) fn pipeline(
    redis: &Redis,
    timeout: Duration,
    breaker: &Arc<Breaker>,
    metrics: &Metrics,
) -> (Pipeline, PipelineTask) {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let epoch = Arc::new(AtomicU64::new(1));
    let task = PipelineTask {
        queue: receiver,
        redis: redis.another(),
        breaker: Arc::clone(breaker),
        epoch: Arc::clone(&epoch),
        batch_size: metrics.redis_batch_size.clone(),
        queue_length: metrics.redis_queue_length.clone(),
    };
    (Pipeline { queue: sender, timeout, epoch }, task)
}

impl Pipeline {
    /// Puts a write into the queue; its reply comes by the deadline, more or less.
    pub(super) fn send(&self, write: Write) -> Result<(), Unavailable> {
        let queued = Queued { write, deadline: Instant::now() + self.timeout };
        self.queue.try_send(queued).map_err(|error| match error {
            TrySendError::Full(_) => Unavailable::because("the queue to Redis is full"),
            TrySendError::Closed(_) => Unavailable::because("the pipeline to Redis has ended"),
        })
    }

    /// True when the server is known to have what this would change.
    pub(super) fn is_acknowledged(&self, target: &Target, observation: Observation) -> bool {
        target.acknowledged.as_ref().is_some_and(|acknowledged| {
            acknowledged.epoch.load(Ordering::Acquire) == self.epoch.load(Ordering::Relaxed)
                && acknowledged.registers.covers(observation)
        })
    }

    /// Nothing is known any more about what the server has.
    pub(super) fn forget_acknowledged(&self) {
        self.epoch.fetch_add(1, Ordering::Relaxed);
    }
}

impl PipelineTask {
    /// The connection that the writes take.
    pub(super) fn redis(&self) -> &Redis {
        &self.redis
    }

    /// Sends until there is nobody left to put anything in.
    pub(super) async fn run(mut self) {
        let mut waiting = Vec::with_capacity(BATCH);
        while !waiting.is_empty() || self.queue.recv_many(&mut waiting, BATCH).await > 0 {
            if self.breaker.is_open() {
                fail(&mut waiting, &Unavailable::because("Redis is away"));
                continue;
            }
            let rest = waiting.split_off(one_batch(&waiting));
            self.queue_length.set((self.queue.len() + rest.len()) as f64);
            self.batch_size.record(waiting.len() as f64);
            if let Err(error) = self.send(&mut waiting).await {
                self.breaker.open(&error);
                fail(&mut waiting, &error);
            }
            waiting.extend(rest);
        }
    }

    /// Sends by the deadline of the first write. If a write of the batch has no reply then, it is still there.
    async fn send(&self, batch: &mut Vec<Queued>) -> Result<(), Unavailable> {
        let Some(deadline) = batch.first().map(|first| first.deadline) else { return Ok(()) };
        let sent = self.send_by(deadline, batch).await;
        if sent.is_err() && Instant::now() < deadline {
            return self.send_by(deadline, batch).await;
        }
        sent
    }

    /// Sends once; if that fails, nothing is known any more about what the server has.
    async fn send_by(&self, deadline: Instant, batch: &mut Vec<Queued>) -> Result<(), Unavailable> {
        let sent = tokio::time::timeout_at(deadline, self.try_to_send(batch)).await;
        sent.unwrap_or_else(|_| Err(Unavailable::because("Redis does not answer in time"))).inspect_err(
            |_| {
                self.epoch.fetch_add(1, Ordering::Relaxed);
            },
        )
    }

    /// One try; every write of the batch has had its reply when it succeeds.
    async fn try_to_send(&self, batch: &mut Vec<Queued>) -> Result<(), Unavailable> {
        let epoch = self.epoch.load(Ordering::Relaxed);
        let (commands, writes) = (pack(batch, epoch), batch.len());
        let sending = self.redis.run(Call::Write, async |connection| {
            let replies = connection.send_packed_commands(&commands, 0, commands.len()).await?;
            check(&replies, writes)?;
            Ok(replies)
        });
        let replies = sending.await?;
        for (Queued { write, .. }, reply) in batch.drain(..).zip(replies) {
            let reply = added(reply);
            match &reply {
                Ok(_) => write.target.acknowledge(&write.ids, epoch),
                Err(error) => self.breaker.open(error),
            }
            let Write { reply: sender, under_way, .. } = write;
            // Nobody is left to tell when the client has gone.
            let _ = sender.send(reply);
            drop(under_way);
        }
        Ok(())
    }
}

/// Tells everybody.
fn fail(writes: &mut Vec<Queued>, error: &Unavailable) {
    for Queued { write, .. } in writes.drain(..) {
        // The requester may have gone.
        let _ = write.reply.send(Err(error.clone()));
    }
}

/// How many of the writes are sent together.
fn one_batch(waiting: &[Queued]) -> usize {
    let mut ids = 0;
    let fits = waiting.iter().take_while(|queued| {
        ids += queued.write.ids.len();
        ids <= IDS_A_BATCH
    });
    fits.count().max(1)
}

/// The writes in their order, then when the keys expire that are new in this epoch.
fn pack(batch: &[Queued], epoch: u64) -> ::redis::Pipeline {
    let mut commands = ::redis::Pipeline::with_capacity(batch.len() + 1);
    for Queued { write, .. } in batch {
        let target = &write.target;
        commands.cmd(target.command).arg(&target.key);
        for id in &write.ids {
            commands.arg(id.as_bytes());
        }
    }
    for Queued { write: Write { target, .. }, .. } in batch {
        // If this pipeline fails, so does the epoch.
        if target.expires_since.swap(epoch, Ordering::Relaxed) != epoch {
            commands.cmd("EXPIREAT").arg(&target.key).arg(target.expire_at);
        }
    }
    commands
}

/// A write that was refused concerns its request. But what another server may take, or a key that would never
/// expire, concerns them all.
fn check(replies: &[Value], writes: usize) -> RedisResult<()> {
    for (index, reply) in replies.iter().enumerate() {
        if let Value::ServerError(error) = reply
            && (index >= writes || error.kind().is_some_and(redis::is_passing))
        {
            return Err(RedisError::from(error.clone()));
        }
    }
    Ok(())
}

/// How many ids the reply says were new, or that the sketch changed.
fn added(reply: Value) -> Result<u64, Unavailable> {
    match reply {
        Value::Int(added) => Ok(added.unsigned_abs()),
        Value::ServerError(error) => Err(Unavailable::because(format_args!("Redis: {error}"))),
        other => Err(Unavailable::because(format_args!("Redis answers {other:?} to a write"))),
    }
}
