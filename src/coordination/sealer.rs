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
//! # After an interruption
//!
//! The report comes first: from then on the others wait for what is to be sealed. If the store has lost
//! what it held, that is everything that is not published, so the report says so until it is
//! restored. And the reports go on while something takes long: whoever hands over millions of ids lives.

use std::convert::Infallible;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::coordination::{ClosedWindows, Coordinator, Report, ReportError, Reported};
use crate::model::timing::{HEARTBEAT_AGAIN, HEARTBEAT_EVERY, MISSED};
use crate::model::window::{Clock, ClockOffset, Window, WindowLength};
use crate::platform::unavailable::Unavailable;
use crate::store::UniqueCounter;
use crate::telemetry::metrics::Metrics;

/// Seals and reports.
pub struct Sealer {
    clock: Arc<dyn Clock>,
    counter: Arc<dyn UniqueCounter>,
    coordinator: Arc<dyn Coordinator>,
    metrics: Arc<Metrics>,
    /// Shows the windows that are closed.
    closed: ClosedWindows,
    /// Shows the watermark.
    watermark: watch::Sender<Window>,
    presence: Presence,
    /// The store may lack what this instance has added to windows from this one on.
    restoring: Option<Window>,
    /// How often it has lost something.
    losses: u64,
    /// The watermark as it was last reported.
    told: Window,
    /// The last round failed.
    interrupted: bool,
    clock_is_off: bool,
    /// Shows whether it is off by more than windows can bear.
    clock_is_wrong: watch::Sender<bool>,
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
        closed: ClosedWindows,
    ) -> Result<Self, ReportError> {
        let presence = Presence::new(Arc::clone(&clock), window);
        let told = window.window_at(clock.now());
        let watermark = watch::channel(told).0;
        let mut sealer = Self {
            clock,
            counter,
            coordinator,
            metrics,
            closed,
            watermark,
            presence,
            restoring: None,
            losses: 0,
            told,
            interrupted: false,
            clock_is_off: false,
            clock_is_wrong: watch::channel(false).0,
        };
        sealer.report().await?;
        Ok(sealer)
    }

    /// The oldest window that is not sealed here, as it moves.
    pub fn watermark(&self) -> watch::Receiver<Window> {
        self.watermark.subscribe()
    }

    /// True while the clock is off by more than windows can bear: others should get the requests.
    pub fn clock_is_wrong(&self) -> watch::Receiver<bool> {
        self.clock_is_wrong.subscribe()
    }

    /// Seals and reports until `stop`. Then everything is sealed, the running window too, and reported;
    /// that is tried until it is done. Nothing may be added to the counter after `stop`.
    ///
    /// # Errors
    ///
    /// [`ReportError::Disagreement`] when others have taken over the namespace and count differently.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), ReportError> {
        let mut wait = HEARTBEAT_AGAIN;
        loop {
            let round = unless_disagreed(self.round().await)?;
            let pause = match &round {
                Ok(()) => self.until_next_end(),
                Err(_) => wait,
            };
            wait = if round.is_ok() { HEARTBEAT_AGAIN } else { (2 * wait).min(HEARTBEAT_EVERY) };
            self.say_how_it_went(round);
            if tokio::time::timeout(pause, stop.cancelled()).await.is_ok() {
                break;
            }
        }
        while let Err(error) = unless_disagreed(self.seal_everything().await)? {
            self.say_how_it_went(Err(error));
            tokio::time::sleep(HEARTBEAT_AGAIN).await;
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
        end.duration_since(self.clock.now()).unwrap_or_default().min(HEARTBEAT_EVERY)
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

    /// Seals one window after another, so that the oldest can be closed while later ones are sealed.
    async fn seal(&mut self, last: Window) -> Result<(), ReportError> {
        let first = *self.watermark.borrow();
        let before = self.counter.windows().into_iter().filter(|window| (first..last).contains(window));
        for window in before.chain([last]) {
            let counter = Arc::clone(&self.counter);
            self.while_reporting(async move { counter.seal(window).await }).await?;
            if *self.watermark.borrow() <= window {
                self.watermark.send_replace(window.next());
            }
        }
        Ok(())
    }

    /// Reports, and does what is due to what it is told.
    async fn report(&mut self) -> Result<(), ReportError> {
        let reported = loop {
            let reported = self.report_once().await?;
            if self.restoring.is_none() {
                break reported;
            }
            if !reported.lost {
                let (counter, losses) = (Arc::clone(&self.counter), self.losses);
                self.while_reporting(async move { counter.restore().await }).await?;
                // Once more if it was lost again meanwhile.
                self.restoring = self.restoring.filter(|_| self.losses != losses);
            }
        };
        if let Some(closed) = reported.closed
            && *self.watermark.borrow() <= closed
        {
            self.seal(closed).await?;
        }
        if let Some(closed) = reported.closed {
            self.counter.closed(closed).await;
        }
        if let Some(published) = reported.published {
            self.counter.forget(published).await;
        }
        reported.news.into_iter().for_each(|count| self.closed.advance(count));
        Ok(())
    }

    /// Windows that the others have closed while they thought that this instance had them open, or was gone.
    fn say_what_is_missed(&self, closed: Window) {
        let missed_ids =
            if self.told <= closed { self.counter.take_kept_apart(self.told, closed) } else { 0 };
        if missed_ids > 0 {
            self.metrics.missed_ids.increment(missed_ids);
            error!(
                missed_ids, first = %self.told, last = %closed,
                "windows were closed without this instance: what it accepted for them while Redis was away is \
                 not in their counts"
            );
        }
    }

    async fn report_once(&mut self) -> Result<Reported, ReportError> {
        let sealed = *self.watermark.borrow();
        let watermark = self.restoring.map_or(sealed, |restoring| restoring.min(sealed));
        let report = Report {
            watermark,
            newest: sealed.max(self.running()),
            // An instance whose clock is wrong is not there in the windows that it means.
            since: if *self.clock_is_wrong.borrow() { never() } else { self.presence.since() },
            interrupted: self.interrupted,
            kept_ids: self.counter.unacknowledged_ids(),
            knows: self.closed.last().map(|count| count.window),
        };
        let asked = self.clock.now();
        let reported = self.presence.while_doing(sealed, self.coordinator.report(&report)).await?;
        if let Some(time) = reported.time {
            self.note_offset(ClockOffset::new(time, asked, self.clock.now()));
        }
        if let Some(closed) = reported.closed {
            self.say_what_is_missed(closed);
        }
        if reported.lost {
            warn!("the store may have lost what it held: adding once more what this instance has");
            self.losses += 1;
            self.restoring = Some(self.counter.windows().first().copied().unwrap_or(sealed));
        } else {
            self.told = sealed;
        }
        Ok(reported)
    }

    /// Goes on reporting while something takes long.
    async fn while_reporting<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        tokio::select! {
            biased;
            done = &mut work => done,
            never = self.keep_reporting() => match never {},
        }
    }

    async fn keep_reporting(&mut self) -> Infallible {
        loop {
            tokio::time::sleep(HEARTBEAT_EVERY).await;
            self.presence.note(*self.watermark.borrow());
            if let Err(error) = self.report_once().await {
                debug!(%error, "cannot report");
            }
        }
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
        let watermark = *self.watermark.borrow();
        let is_wrong = offset.is_more_than_windows_bear(watermark.length());
        if is_wrong {
            self.presence.is_elsewhere(watermark);
        }
        if self.clock_is_wrong.send_replace(is_wrong) != is_wrong {
            if is_wrong {
                error!(
                    "this machine's clock is {offset} the store's, which is more than windows can bear: set it \
                     right (NTP). Until then /readyz says no, and the windows of this instance are incomplete"
                );
            } else {
                info!("this machine's clock is right again");
            }
        }
    }
}

/// Later than any report, and still exact in the numbers of the scripts: in the year 2255.
fn never() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(9_000_000_000)
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

    /// By the clock that all share this is another window: it is not this instance that was there in it.
    fn is_elsewhere(&mut self, watermark: Window) {
        self.since = self.since.max(watermark.start() + Duration::from_nanos(1));
    }

    /// Goes on looking while something takes long, which is not the same as being stopped.
    async fn while_doing<T>(&mut self, watermark: Window, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                () = tokio::time::sleep(HEARTBEAT_EVERY) => self.note(watermark),
            }
        }
    }
}
