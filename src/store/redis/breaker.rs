//! The breaker: whether requests may wait for Redis.
//!
//! It is closed while all is well. The first write that fails or is late opens it. From then on no request waits, until
//! the [recovery](super::recovery) closes it again. (Nygard, *Release It!*, 2007.)

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use ::metrics::Gauge;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::{info, warn};

use super::config::OnRedisDown;
use crate::platform::unavailable::Unavailable;

pub(super) struct Breaker {
    /// `Relaxed`: a request that sees a change a moment late waits for Redis, or keeps an id here, without need.
    open: AtomicBool,
    opened_at: Mutex<Instant>,
    has_opened: Notify,
    /// Ids that were kept here since it opened.
    kept: AtomicU64,
    on_redis_down: OnRedisDown,
    /// The server, in a cluster.
    node: Option<String>,
    /// Shows whether it is open, in a cluster.
    away: Option<Gauge>,
    /// How many breakers are open.
    all_open: Arc<AtomicUsize>,
}

impl Breaker {
    pub(super) fn new(
        on_redis_down: OnRedisDown,
        node: Option<String>,
        away: Option<Gauge>,
        all_open: &Arc<AtomicUsize>,
    ) -> Self {
        if let Some(away) = &away {
            away.set(0);
        }
        Self {
            open: AtomicBool::new(false),
            opened_at: Mutex::new(Instant::now()),
            has_opened: Notify::new(),
            kept: AtomicU64::new(0),
            on_redis_down,
            node,
            away,
            all_open: Arc::clone(all_open),
        }
    }

    /// True when no request may wait for Redis.
    pub(super) fn is_open(&self) -> bool {
        self.open.load(Ordering::Relaxed)
    }

    pub(super) fn open(&self, cause: &Unavailable) {
        let mut opened_at = self.opened_at.lock();
        if self.open.swap(true, Ordering::Relaxed) {
            return;
        }
        *opened_at = Instant::now();
        self.kept.store(0, Ordering::Relaxed);
        self.all_open.fetch_add(1, Ordering::Relaxed);
        if let Some(away) = &self.away {
            away.set(1);
        }
        let node = self.node.as_deref();
        match self.on_redis_down {
            OnRedisDown::Count => {
                warn!(node, error = %cause, "cannot write to Redis: ids are kept here until it is back");
            }
            OnRedisDown::Fail => {
                warn!(node, error = %cause, "cannot write to Redis: requests fail until it is back");
            }
        }
        // This is remembered if the recovery does not wait yet.
        self.has_opened.notify_one();
    }

    /// Waits until it is open.
    pub(super) async fn opened(&self) {
        while !self.is_open() {
            self.has_opened.notified().await;
        }
    }

    pub(super) fn close(&self) {
        let opened_at = self.opened_at.lock();
        if !self.open.swap(false, Ordering::Relaxed) {
            return;
        }
        self.all_open.fetch_sub(1, Ordering::Relaxed);
        if let Some(away) = &self.away {
            away.set(0);
        }
        let node = self.node.as_deref();
        let after = Duration::from_millis(opened_at.elapsed().as_millis() as u64);
        let (after, pending_ids) = (humantime::format_duration(after), self.kept.load(Ordering::Relaxed));
        match self.on_redis_down {
            OnRedisDown::Count => {
                info!(node, %after, pending_ids, "writing to Redis again: it has all pending ids");
            }
            OnRedisDown::Fail => info!(node, %after, "writing to Redis again"),
        }
    }

    /// Counts ids that were accepted without Redis.
    pub(super) fn note_kept(&self, ids: usize) {
        self.kept.fetch_add(ids as u64, Ordering::Relaxed);
    }
}
