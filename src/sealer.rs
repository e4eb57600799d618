//! The sealer: seals this instance's windows as they end, and reports how far it is.
//!
//! Every instance has one, whether it leads or not. A round is: seal what has ended, report, and take note
//! of what has been closed. It comes at the end of every window and at least once a second, because the
//! reports are also what shows that this instance lives.
//!
//! A window that the others have closed without this instance (it was away for too long) is sealed here
//! too: ids that come for it now are counted in the next one. What was accepted for it while Redis could not be
//! reached is missing from its count; that is all that can be said then, and it is said.
//!
//! After an interruption the report comes first: from then on the others wait for what is to be sealed.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::coordinator::{Coordinator, LastClosed, Report, ReportError, Reported};
use crate::counter::UniqueCounter;
use crate::metrics::Metrics;
use crate::unavailable::Unavailable;
use crate::window::{Clock, ClockOffset, Window, WindowLength};

/// The longest time between two reports, and between two looks at the clock.
const REPORT_EVERY: Duration = Duration::from_secs(1);
/// The first wait after a round that failed; it doubles up to [`REPORT_EVERY`].
const RETRY_AFTER: Duration = Duration::from_millis(50);
/// Whoever has not looked at the clock for so long, or finds that a window ended so long ago without his
/// noticing, was not there: the process was stopped or the clock was set.
const MISSED: Duration = Duration::from_secs(5);

/// Seals and reports.
pub struct Sealer {
    clock: Arc<dyn Clock>,
    counter: Arc<dyn UniqueCounter>,
    coordinator: Arc<dyn Coordinator>,
    metrics: Arc<Metrics>,
    /// Shows the last window that is closed.
    last: LastClosed,
    /// Shows the watermark.
    watermark: watch::Sender<Window>,
    presence: Presence,
    /// The store may lack what this instance has added.
    must_restore: bool,
    /// The last round failed.
    interrupted: bool,
    clock_is_off: bool,
}

impl Sealer {
    /// Introduces this instance: from here on it accepts ids.
    ///
    /// # Errors
    ///
    /// [`ReportError`] when it must not, or when nobody could be asked.
    pub async fn introduce(
        clock: Arc<dyn Clock>,
        counter: Arc<dyn UniqueCounter>,
        coordinator: Arc<dyn Coordinator>,
        window: WindowLength,
        metrics: Arc<Metrics>,
        last: LastClosed,
    ) -> Result<Self, ReportError> {
        let presence = Presence::new(Arc::clone(&clock), window);
        let watermark = watch::channel(window.window_at(clock.now())).0;
        let mut sealer = Self {
            clock,
            counter,
            coordinator,
            metrics,
            last,
            watermark,
            presence,
            must_restore: false,
            interrupted: false,
            clock_is_off: false,
        };
        sealer.report().await?;
        Ok(sealer)
    }

    /// The oldest window that is not sealed here, as it moves.
    pub fn watermark(&self) -> watch::Receiver<Window> {
        self.watermark.subscribe()
    }

    /// Seals and reports until `stop`. Then everything is sealed, the running window too, and reported;
    /// that is tried until it is done. Nothing may be added to the counter after `stop`.
    ///
    /// # Errors
    ///
    /// [`ReportError::Disagreement`] when others have taken over the namespace and count differently.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), ReportError> {
        let mut wait = RETRY_AFTER;
        loop {
            let round = unless_disagreed(self.round().await)?;
            let pause = match &round {
                Ok(()) => self.until_next_end(),
                Err(_) => wait,
            };
            wait = if round.is_ok() { RETRY_AFTER } else { (2 * wait).min(REPORT_EVERY) };
            self.say_how_it_went(round);
            if tokio::time::timeout(pause, stop.cancelled()).await.is_ok() {
                break;
            }
        }
        while let Err(error) = unless_disagreed(self.seal_everything().await)? {
            self.say_how_it_went(Err(error));
            tokio::time::sleep(RETRY_AFTER).await;
        }
        Ok(())
    }

    /// One line when it begins to fail, one when it is over.
    fn say_how_it_went(&mut self, round: Result<(), Unavailable>) {
        match round {
            Err(error) if !self.interrupted => {
                warn!(%error, "cannot seal and report, trying again");
                self.interrupted = true;
            }
            Ok(()) if self.interrupted => {
                info!("sealing and reporting again");
                self.interrupted = false;
            }
            _ => {}
        }
    }

    /// Until the running window ends, but never long.
    fn until_next_end(&self) -> Duration {
        let end = self.watermark.borrow().end();
        end.duration_since(self.clock.now()).unwrap_or_default().min(REPORT_EVERY)
    }

    fn running(&self) -> Window {
        self.watermark.borrow().length().window_at(self.clock.now())
    }

    async fn round(&mut self) -> Result<(), ReportError> {
        self.presence.note(*self.watermark.borrow());
        self.come_back().await?;
        let running = self.running();
        if *self.watermark.borrow() < running {
            self.seal(running.previous()).await?;
        }
        self.report().await
    }

    /// After an interruption.
    async fn come_back(&mut self) -> Result<(), ReportError> {
        if self.interrupted {
            self.report().await?;
        }
        Ok(())
    }

    async fn seal_everything(&mut self) -> Result<(), ReportError> {
        self.come_back().await?;
        let newest = self.counter.windows().last().copied();
        let last = newest.map_or(self.running(), |newest| newest.max(self.running()));
        self.seal(last).await?;
        self.report().await
    }

    async fn seal(&mut self, window: Window) -> Result<(), ReportError> {
        let watermark = *self.watermark.borrow();
        self.presence.while_doing(watermark, self.counter.seal(window)).await?;
        if watermark <= window {
            self.watermark.send_replace(window.next());
        }
        Ok(())
    }

    /// Reports, and does what is due to what it is told.
    async fn report(&mut self) -> Result<(), ReportError> {
        let reported = loop {
            if self.must_restore {
                let watermark = *self.watermark.borrow();
                self.presence.while_doing(watermark, self.counter.restore()).await?;
                self.must_restore = false;
            }
            let reported = self.report_once().await?;
            if !reported.lost {
                break reported;
            }
            warn!("the store may have lost what it held: adding once more what this instance has");
            self.must_restore = true;
        };
        if let Some(closed) = reported.closed
            && *self.watermark.borrow() <= closed
        {
            self.say_what_is_missed(closed);
            self.seal(closed).await?;
        }
        if let Some(published) = reported.published {
            self.counter.forget(published).await;
        }
        if let Some(last) = reported.last {
            self.last.advance(last);
        }
        Ok(())
    }

    /// Windows up to `closed` were closed without this instance.
    fn say_what_is_missed(&self, closed: Window) {
        let missed_ids = self.counter.kept_apart(closed);
        if missed_ids > 0 {
            self.metrics.missed_ids.increment(missed_ids);
            error!(
                missed_ids, first = %*self.watermark.borrow(), last = %closed,
                "windows were closed without this instance: what it accepted for them while Redis was away is \
                 not in their counts"
            );
        }
    }

    async fn report_once(&mut self) -> Result<Reported, ReportError> {
        let watermark = *self.watermark.borrow();
        let newest = watermark.max(self.running());
        let Self { interrupted, .. } = *self;
        let report = Report { watermark, newest, since: self.presence.since(), interrupted };
        let asked = self.clock.now();
        let reported = self.presence.while_doing(watermark, self.coordinator.report(&report)).await?;
        if let Some(time) = reported.time {
            self.note_offset(ClockOffset::new(time, asked, self.clock.now()));
        }
        Ok(reported)
    }

    fn note_offset(&mut self, offset: ClockOffset) {
        self.metrics.clock_offset.set(offset.seconds());
        let is_off = offset.is_worth_a_warning();
        if is_off && !self.clock_is_off {
            warn!(
                "this machine's clock is {offset} the store's: ids may be counted in a neighbouring window"
            );
        }
        self.clock_is_off = is_off;
    }
}

/// What may be over soon is for a log line and another try; a disagreement is not.
fn unless_disagreed(round: Result<(), ReportError>) -> Result<Result<(), Unavailable>, ReportError> {
    match round {
        Ok(()) => Ok(Ok(())),
        Err(ReportError::Unavailable(error)) => Ok(Err(error)),
        Err(error @ ReportError::Disagreement { .. }) => Err(error),
    }
}

/// Since when this process has been there without a break, at the pace of the clock.
struct Presence {
    clock: Arc<dyn Clock>,
    window: WindowLength,
    since: SystemTime,
    /// The last look at the clock.
    looked: (SystemTime, Instant),
    clock_was_behind: bool,
}

impl Presence {
    fn new(clock: Arc<dyn Clock>, window: WindowLength) -> Self {
        let now = clock.now();
        Self { clock, window, since: now, looked: (now, Instant::now()), clock_was_behind: false }
    }

    fn since(&self) -> SystemTime {
        self.since
    }

    /// Looks at the clock.
    fn note(&mut self, watermark: Window) {
        let now = self.clock.now();
        let (last, at) = self.looked;
        self.looked = (now, Instant::now());
        if self.window.window_at(last).end() + MISSED < now || at.elapsed() > MISSED {
            self.since = now;
            warn!("this process was stopped for a while, or its clock set forward");
        }
        let behind = watermark.start().duration_since(now).unwrap_or_default();
        if behind <= self.window.duration() {
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

    /// Goes on looking while something takes long, which is not the same as being stopped.
    async fn while_doing<T>(&mut self, watermark: Window, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                () = tokio::time::sleep(REPORT_EVERY) => self.note(watermark),
            }
        }
    }
}
