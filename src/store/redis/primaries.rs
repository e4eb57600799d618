//! What the store knows of the servers that have its keys: for each whether requests may wait for it.
//!
//! A Redis that is no cluster is one server. In a cluster each primary has a [breaker](super::breaker) and a
//! [recovery](super::recovery) of its own: while one is away, ids go on to the others.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use tokio::sync::mpsc::UnboundedSender;

use super::around::Around;
use super::breaker::Breaker;
use super::config::OnRedisDown;
use super::pipeline::PipelineTask;
use super::primary::Primary;
use crate::platform::unavailable::Unavailable;
use crate::redis::Redis;
use crate::telemetry::metrics::Metrics;

/// A task of the store, which begins when a server is first needed. There are at most as many as servers and workers allow.
pub(super) enum Task {
    /// Sends writes, on this worker.
    Pipeline(usize, PipelineTask),
    /// Gets back to a server after its breaker has opened.
    Recovery(Arc<Primary>),
}

/// All servers, by the numbers of their nodes.
pub(super) struct Primaries {
    redis: Redis,
    known: Box<[OnceLock<Arc<Primary>>]>,
    /// How many breakers are open.
    open: Arc<AtomicUsize>,
    on_redis_down: OnRedisDown,
    metrics: Arc<Metrics>,
    tasks: UnboundedSender<Task>,
}

impl Primaries {
    pub(super) fn new(
        redis: &Redis,
        on_redis_down: OnRedisDown,
        metrics: &Arc<Metrics>,
        tasks: UnboundedSender<Task>,
    ) -> Self {
        Self {
            redis: redis.clone(),
            known: (0..redis.most_nodes()).map(|_| OnceLock::new()).collect(),
            open: Arc::default(),
            on_redis_down,
            metrics: Arc::clone(metrics),
            tasks,
        }
    }

    /// The server that has a slot.
    pub(super) fn number_of(&self, slot: u16) -> usize {
        self.redis.number_of(slot)
    }

    /// The server with this number.
    pub(super) fn get(&self, number: usize) -> Result<&Arc<Primary>, Unavailable> {
        let place = self.known.get(number).ok_or_else(unknown)?;
        if let Some(primary) = place.get() {
            return Ok(primary);
        }
        let node = self.redis.node(number).ok_or_else(unknown)?;
        Ok(place.get_or_init(|| {
            let away = node.name().map(|name| self.metrics.redis_primary_away(name));
            let breaker = Breaker::new(self.on_redis_down, node.name(), away, &self.open);
            let primary = Arc::new(Primary { node, breaker, writers: Mutex::default() });
            self.start(Task::Recovery(Arc::clone(&primary)));
            primary
        }))
    }

    /// Starts a task, unless the service has stopped.
    pub(super) fn start(&self, task: Task) {
        let _ = self.tasks.send(task);
    }

    /// Whether some server is away.
    pub(super) fn some_are_away(&self) -> bool {
        self.open.load(Ordering::Relaxed) > 0
    }

    /// Whether the server that has a slot is away.
    pub(super) fn is_away(&self, slot: u16) -> bool {
        let primary = self.known[self.number_of(slot)].get();
        primary.is_some_and(|primary| primary.breaker.is_open())
    }

    /// Work that leaves out the servers that are away.
    pub(super) fn around_those_away(&self) -> Around {
        let mut around = Around::default();
        if self.some_are_away() {
            let known =
                self.known.iter().enumerate().filter_map(|(number, known)| Some((number, known.get()?)));
            for (number, _) in known.filter(|(_, primary)| primary.breaker.is_open()) {
                around.leave_out(number);
            }
        }
        around
    }

    /// Notes which servers have failed that were not away: no request waits for them any more.
    pub(super) fn note_failed(&self, around: &Around) {
        // Of one that was left out nothing is known: it may be back.
        for (number, error) in around.failures() {
            if let Ok(primary) = self.get(number) {
                primary.breaker.open(error);
            }
        }
    }

    /// Notes ids that were accepted without the servers that are away.
    pub(super) fn note_kept(&self, ids: usize) {
        for primary in self.known.iter().filter_map(OnceLock::get) {
            if primary.breaker.is_open() {
                primary.breaker.note_kept(ids);
            }
        }
    }
}

fn unknown() -> Unavailable {
    Unavailable::because("no node of the cluster has the key")
}
