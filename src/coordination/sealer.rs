//! The sealer: seals this instance's windows as they end, and sends heartbeats that say how far it has sealed.
//!
//! Every instance has one, whether it leads or not. In each round it seals what has ended, sends a heartbeat, and notes which
//! windows are closed. A round comes at the end of every window, and at least once a second, because the heartbeats show that
//! this instance lives.
//!
//! If this instance was away for too long, the leader closes a window without it. The sealer then seals that window too: ids
//! that come for it now are counted in the next one. Its count lacks the ids that this instance accepted while Redis was
//! away. The log and a metric say how many.
//!
//! # After an interruption
//!
//! The sealer sends a heartbeat before it seals, so that the leader waits until it has sealed. If the store lost data, the
//! sealer restores all windows that are not published. Until that is done, its heartbeats say that it has not sealed those that
//! are not closed.
//! Heartbeats go on during a long step, because an instance that sends millions of pending ids lives.

use std::convert::Infallible;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::closed::{ClosedCounters, ClosedWindows};
use super::coordinator::Coordinator;
use super::heartbeat::{Heartbeat, HeartbeatAnswer};
use super::presence::Presence;
use super::settings::HeartbeatError;
use crate::model::counter::CounterCounts;
use crate::model::timing::{HEARTBEAT_AGAIN, HEARTBEAT_EVERY};
use crate::model::window::{Clock, ClockOffset, Window, WindowLength};
use crate::platform::unavailable::Unavailable;
use crate::store::Store;
use crate::telemetry::metrics::Metrics;

/// Seals windows, and sends heartbeats.
pub struct Sealer {
    clock: Arc<dyn Clock>,
    store: Arc<Store>,
    coordinator: Arc<Coordinator>,
    metrics: Arc<Metrics>,
    closed: ClosedWindows,
    watermark: watch::Sender<Window>,
    presence: Presence,
    /// The store may lack ids that this instance added to windows from this one on. None of these is closed.
    restoring: Option<Window>,
    /// How often the store may have lost data.
    losses: u64,
    /// The watermark of the last heartbeat that was taken.
    reported: Window,
    /// The newest window of the last heartbeat that was taken.
    told: Window,
    /// The last round failed.
    interrupted: bool,
    clock_is_off: bool,
    /// Whether the clock is off by more than windows can bear.
    clock_is_wrong: watch::Sender<bool>,
}

impl Sealer {
    /// Sends the first heartbeat, which introduces this instance. From then on it may accept ids.
    ///
    /// # Errors
    ///
    /// [`HeartbeatError`] when other instances have other settings, or Redis does not answer.
    pub async fn introduce(
        clock: Arc<dyn Clock>,
        store: Arc<Store>,
        coordinator: Arc<Coordinator>,
        window: WindowLength,
        metrics: Arc<Metrics>,
        closed: ClosedWindows,
    ) -> Result<Self, HeartbeatError> {
        let presence = Presence::new(Arc::clone(&clock));
        let reported = window.window_at(clock.now());
        let watermark = watch::channel(reported).0;
        let mut sealer = Self {
            clock,
            store,
            coordinator,
            metrics,
            closed,
            watermark,
            presence,
            restoring: None,
            losses: 0,
            reported,
            told: reported,
            interrupted: false,
            clock_is_off: false,
            clock_is_wrong: watch::channel(false).0,
        };
        sealer.send_heartbeat().await?;
        Ok(sealer)
    }

    /// The oldest window that this instance has not sealed, as it moves.
    pub fn watermark(&self) -> watch::Receiver<Window> {
        self.watermark.subscribe()
    }

    /// True while the clock is off by more than windows can bear: other instances should get the requests.
    pub fn clock_is_wrong(&self) -> watch::Receiver<bool> {
        self.clock_is_wrong.subscribe()
    }

    /// Seals and sends heartbeats until `stop`. Then it seals everything, the running window too, and sends a last heartbeat.
    /// It tries until that is done. Callers must add nothing to the store after `stop`.
    ///
    /// # Errors
    ///
    /// [`HeartbeatError`] when instances with other settings have taken over the namespace.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), HeartbeatError> {
        let mut wait = HEARTBEAT_AGAIN;
        loop {
            let round = unless_disagreed(self.round().await)?;
            let pause = match &round {
                Ok(()) => self.until_end(*self.watermark.borrow()),
                Err(_) => wait,
            };
            wait = if round.is_ok() { HEARTBEAT_AGAIN } else { (2 * wait).min(HEARTBEAT_EVERY) };
            self.note_round(round);
            if tokio::time::timeout(pause, stop.cancelled()).await.is_ok() {
                break;
            }
        }
        while let Err(error) = unless_disagreed(self.seal_everything().await)? {
            self.note_round(Err(error));
            tokio::time::sleep(HEARTBEAT_AGAIN).await;
        }
        Ok(())
    }

    /// Logs one line when rounds begin to fail, and one when they succeed again.
    fn note_round(&mut self, round: Result<(), Unavailable>) {
        match round {
            Err(error) if !self.interrupted => {
                warn!(%error, "cannot seal or send heartbeats, trying again");
                self.interrupted = true;
            }
            Ok(()) if self.interrupted => {
                info!("sealing and sending heartbeats again");
                self.interrupted = false;
            }
            _ => {}
        }
    }

    /// Until a window ends, but at most [`HEARTBEAT_EVERY`].
    fn until_end(&self, window: Window) -> Duration {
        window.end().duration_since(self.clock.now()).unwrap_or_default().min(HEARTBEAT_EVERY)
    }

    fn running(&self) -> Window {
        self.watermark.borrow().length().window_at(self.clock.now())
    }

    async fn round(&mut self) -> Result<(), HeartbeatError> {
        self.presence.note(*self.watermark.borrow());
        self.come_back().await?;
        let running = self.running();
        // Before the seal, which may take seconds: if this instance dies meanwhile, the window that has begun lacks its ids.
        if self.told < running {
            self.send_once().await?;
        }
        if *self.watermark.borrow() < running {
            self.seal(running.previous()).await?;
        }
        self.send_heartbeat().await
    }

    /// After an interruption, sends a heartbeat before the sealer seals.
    async fn come_back(&mut self) -> Result<(), HeartbeatError> {
        if self.interrupted {
            self.send_heartbeat().await?;
        }
        Ok(())
    }

    async fn seal_everything(&mut self) -> Result<(), HeartbeatError> {
        self.come_back().await?;
        let newest = self.store.windows().last().copied();
        let last = newest.map_or(self.running(), |newest| newest.max(self.running()));
        self.seal(last).await?;
        self.send_heartbeat().await
    }

    /// Seals one window after another, so that the leader can close the oldest while this instance seals later ones.
    async fn seal(&mut self, last: Window) -> Result<(), HeartbeatError> {
        let first = *self.watermark.borrow();
        let before = self.store.windows().into_iter().filter(|window| (first..last).contains(window));
        let mut done = Ok(());
        for window in before.chain([last]) {
            let store = Arc::clone(&self.store);
            let sealed = self.while_it_lives(async move { store.seal(window).await }).await;
            done = done.and(sealed);
            match &done {
                Ok(()) if *self.watermark.borrow() <= window => {
                    self.watermark.send_replace(window.next());
                }
                // The other servers of a cluster get what they lack of later windows.
                Err(error) if !self.store.goes_on_without_some() => return Err(error.clone().into()),
                _ => {}
            }
        }
        Ok(done?)
    }

    /// Seals windows that the leader has closed without this instance. A server of a cluster that is away holds it up no longer.
    async fn seal_closed(&mut self, last: Window) -> Result<(), HeartbeatError> {
        let store = Arc::clone(&self.store);
        self.while_it_lives(async move { store.seal_closed(last).await }).await?;
        self.watermark.send_if_modified(|watermark| {
            let is_behind = *watermark <= last;
            if is_behind {
                *watermark = last.next();
            }
            is_behind
        });
        Ok(())
    }

    /// Sends a heartbeat, and acts on the answer.
    async fn send_heartbeat(&mut self) -> Result<(), HeartbeatError> {
        let (answer, restored) = loop {
            let answer = self.send_once().await?;
            if self.restoring.is_none() {
                break (answer, Ok(()));
            }
            if !answer.lost {
                let (store, losses) = (Arc::clone(&self.store), self.losses);
                match self.while_it_lives(async move { store.restore(losses).await }).await {
                    // Restores once more if the store lost data again meanwhile.
                    Ok(()) => self.restoring = self.restoring.filter(|_| self.losses != losses),
                    // This instance goes on learning which windows are closed, and evicts what is published. Only if nothing was
                    // lost meanwhile: the answer is of before.
                    Err(error) if self.store.goes_on_without_some() && self.losses == losses => {
                        break (answer, Err(error));
                    }
                    Err(error) => return Err(error.into()),
                }
            }
        };
        // First, because a primary of a Redis Cluster that is away may hold up the seal.
        answer.news.into_iter().for_each(|window| self.closed.advance(window));
        if let Some(closed) = answer.closed
            && *self.watermark.borrow() <= closed
        {
            self.seal_closed(closed).await?;
        }
        if let Some(closed) = answer.closed {
            // What is counted needs nothing back.
            self.restoring = self.restoring.map(|restoring| restoring.max(closed.next()));
        }
        let store = Arc::clone(&self.store);
        let (closed, published) = (answer.closed, answer.published);
        let cleaning = async move {
            if let Some(closed) = closed {
                store.closed(closed).await;
            }
            if let Some(published) = published {
                store.evict(published).await;
            }
        };
        self.while_it_lives(cleaning).await;
        self.learn_counters().await;
        Ok(restored?)
    }

    /// Reads the counts of the counters of the newest closed window, if another instance counted them.
    async fn learn_counters(&mut self) {
        let Some(window) = self.closed.lacking_counters() else { return };
        let coordinator = Arc::clone(&self.coordinator);
        match self.while_it_lives(async move { (coordinator.counters_of(&window).await, window) }).await {
            (Ok(Some(counters)), _) => self.closed.note_counters(&counters),
            (Ok(None), window) => {
                warn!(window = %window.count.window, "the counts of counters of the last closed window are lost");
                let none = CounterCounts::default().lacking_names(true);
                self.closed.note_counters(&Arc::new(ClosedCounters::new(window, Arc::new(none))));
            }
            (Err(error), _) => debug!(%error, "cannot read the counts of counters"),
        }
    }

    /// Logs ids of windows that the leader closed before this instance had sealed them.
    fn log_missed_ids(&self, closed: Window) {
        let missed_ids =
            if self.reported <= closed { self.store.take_missed(self.reported, closed) } else { 0 };
        if missed_ids > 0 {
            self.metrics.missed_ids.increment(missed_ids);
            error!(
                missed_ids, first = %self.reported, last = %closed,
                "windows were closed without this instance: their counts lack the ids that it accepted while Redis \
                 was away"
            );
        }
    }

    async fn send_once(&mut self) -> Result<HeartbeatAnswer, HeartbeatError> {
        let sealed = *self.watermark.borrow();
        let watermark = self.restoring.map_or(sealed, |restoring| restoring.min(sealed));
        let heartbeat = Heartbeat {
            watermark,
            newest: sealed.max(self.running()),
            // An instance whose clock is wrong cannot vouch for any window.
            since: if *self.clock_is_wrong.borrow() { never() } else { self.presence.since },
            interrupted: self.interrupted,
            // Both, because the leader waits for as long as they change.
            pending_ids: self.store.pending_ids() + self.store.counters_left(),
            knows: self.closed.last().map(|count| count.window),
        };
        let asked = self.clock.now();
        let answer = self.presence.while_doing(sealed, self.coordinator.heartbeat(&heartbeat)).await?;
        if let Some(time) = answer.time {
            self.note_offset(ClockOffset::new(time, asked, self.clock.now()));
        }
        if let Some(closed) = answer.closed {
            self.log_missed_ids(closed);
        }
        if answer.lost {
            warn!("the store may have lost ids: this instance restores all that it has");
            self.losses += 1;
            self.restoring = Some(self.store.windows().first().copied().unwrap_or(sealed));
        } else {
            self.reported = sealed;
            self.told = heartbeat.newest;
        }
        Ok(answer)
    }

    /// Sends heartbeats while `work` runs.
    async fn while_it_lives<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        tokio::select! {
            biased;
            done = &mut work => done,
            never = self.go_on_sending() => match never {},
        }
    }

    async fn go_on_sending(&mut self) -> Infallible {
        loop {
            tokio::time::sleep(self.until_end(self.running())).await;
            self.presence.note(*self.watermark.borrow());
            if let Err(error) = self.send_once().await {
                debug!(%error, "cannot send a heartbeat");
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
            self.presence.note_other_window(watermark);
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

/// The year 2255: later than any heartbeat, and still an exact number in Lua.
fn never() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(9_000_000_000)
}

/// An outage may end soon, so it is logged and tried again. A disagreement about settings is an error.
fn unless_disagreed(round: Result<(), HeartbeatError>) -> Result<Result<(), Unavailable>, HeartbeatError> {
    match round {
        Ok(()) => Ok(Ok(())),
        Err(HeartbeatError::Unavailable(error)) => Ok(Err(error)),
        Err(error) => Err(error),
    }
}
