//! The pipelines of a worker: one for each server that its ids went to.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio_util::task::task_tracker::TaskTrackerToken;

use super::batch::Receipt;
use super::pipeline::{Pipeline, PipelineMetrics, pipeline};
use super::primaries::{Primaries, Task};
use super::target::Target;
use crate::hll::Observation;
use crate::platform::unavailable::Unavailable;
use crate::redis::Redis;
use crate::telemetry::metrics::Metrics;

/// Where the requests on a worker put their writes.
pub(super) struct Pipelines {
    worker: usize,
    redis: Redis,
    primaries: Arc<Primaries>,
    /// By the number of the server. A pipeline begins with the first write to its server.
    to_servers: Box<[OnceLock<Pipeline>]>,
    timeout: Duration,
    /// The same one for all pipelines.
    epoch: Arc<AtomicU64>,
    metrics: PipelineMetrics,
}

impl Pipelines {
    /// A write has `timeout` from when it is put into a pipeline.
    pub(super) fn new(
        worker: usize,
        redis: &Redis,
        primaries: &Arc<Primaries>,
        timeout: Duration,
        epoch: &Arc<AtomicU64>,
        metrics: &Metrics,
    ) -> Self {
        Self {
            worker,
            redis: redis.clone(),
            primaries: Arc::clone(primaries),
            to_servers: (0..redis.most_nodes()).map(|_| OnceLock::new()).collect(),
            timeout,
            epoch: Arc::clone(epoch),
            metrics: PipelineMetrics::new(metrics),
        }
    }

    /// Puts a write into the queue to the server of its target. Its reply comes by the deadline, more or less. If it cannot, no
    /// request waits for that server any more.
    pub(super) fn send<'a>(
        &self,
        target: &Arc<Target>,
        ids: impl ExactSizeIterator<Item = &'a [u8]>,
        under_way: &TaskTrackerToken,
    ) -> Result<Receipt, Unavailable> {
        let number = self.primaries.number_of(target.slot);
        let sent = self.to(number)?.send(target, ids, under_way);
        if let Err(error) = &sent {
            self.primaries.get(number)?.breaker.open(error);
        }
        sent
    }

    /// The pipeline to the server with this number.
    pub(super) fn to(&self, number: usize) -> Result<&Pipeline, Unavailable> {
        if let Some(pipeline) = self.to_servers[number].get() {
            return Ok(pipeline);
        }
        let primary = self.primaries.get(number)?;
        Ok(self.to_servers[number].get_or_init(|| {
            let writer = self.redis.writer(&primary.node);
            primary.writers.lock().push((self.worker, writer.clone()));
            let (pipeline, task) = pipeline(writer, primary, self.timeout, &self.epoch, self.metrics.clone());
            self.primaries.start(Task::Pipeline(self.worker, task));
            pipeline
        }))
    }

    /// True when the server has acknowledged this in the current epoch.
    pub(super) fn is_acknowledged(&self, target: &Target, observation: Observation) -> bool {
        target.has(observation, self.epoch())
    }

    /// The current epoch.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Relaxed)
    }

    /// From now on nothing counts as acknowledged that a server acknowledged before.
    pub(super) fn begin_epoch(&self) {
        self.epoch.fetch_add(1, Ordering::Relaxed);
    }
}
