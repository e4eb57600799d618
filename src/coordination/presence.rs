//! Presence: since when this instance has accepted ids without a break, by its own clock.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;
use tracing::{error, warn};

use crate::model::timing::{HEARTBEAT_EVERY, MISSED};
use crate::model::window::{Clock, Window};

pub(super) struct Presence {
    clock: Arc<dyn Clock>,
    pub(super) since: SystemTime,
    /// The last look at the clock.
    looked: (SystemTime, Instant),
    clock_was_behind: bool,
}

impl Presence {
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        let now = clock.now();
        Self { clock, since: now, looked: (now, Instant::now()), clock_was_behind: false }
    }

    /// Looks at the clock, and notices if it was set or the process stopped.
    pub(super) fn note(&mut self, watermark: Window) {
        let now = self.clock.now();
        let (last, at) = self.looked;
        self.looked = (now, Instant::now());
        if watermark.length().window_at(last).end() + MISSED < now || at.elapsed() > MISSED {
            self.since = now;
            warn!("this process was stopped for a while, or its clock set forward");
        }
        let behind = watermark.start().duration_since(now).unwrap_or_default();
        if behind <= watermark.length().duration() {
            self.clock_was_behind = false;
            return;
        }
        // The window that ids go to meanwhile is not whole: it has too many.
        self.since = watermark.start() + Duration::from_nanos(1);
        if !self.clock_was_behind {
            self.clock_was_behind = true;
            error!(
                behind = %humantime::format_duration(Duration::from_secs(behind.as_secs())),
                window = %watermark,
                "the clock was set back: all ids are counted in one window until it has caught up"
            );
        }
    }

    /// By the clock that all share this is another window: it is not this instance that was there in it.
    pub(super) fn is_elsewhere(&mut self, watermark: Window) {
        self.since = self.since.max(watermark.start() + Duration::from_nanos(1));
    }

    /// Goes on looking while something takes long, which is not the same as being stopped.
    pub(super) async fn while_doing<T>(&mut self, watermark: Window, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                () = tokio::time::sleep(HEARTBEAT_EVERY) => self.note(watermark),
            }
        }
    }
}
