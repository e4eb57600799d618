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

    /// Looks at the clock, and notices if the clock was set or the process was paused.
    pub(super) fn note(&mut self, watermark: Window) {
        let now = self.clock.now();
        let (last, at) = self.looked;
        self.looked = (now, Instant::now());
        if watermark.length().window_at(last).end() + MISSED < now || at.elapsed() > MISSED {
            self.since = now;
            warn!("this process was paused, or its clock was set forward");
        }
        let behind = watermark.start().duration_since(now).unwrap_or_default();
        if behind <= watermark.length().duration() {
            self.clock_was_behind = false;
            return;
        }
        // Until the clock catches up, all ids go to the window at the watermark. It gets ids of other windows, so this
        // instance must not vouch for it.
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

    /// By Redis's clock the running window is another one. So this instance does not vouch for the one at its watermark.
    pub(super) fn note_other_window(&mut self, watermark: Window) {
        self.since = self.since.max(watermark.start() + Duration::from_nanos(1));
    }

    /// Looks at the clock while `work` runs, so that long work does not pass for a pause of the process.
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
