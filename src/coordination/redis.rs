//! Coordination through Redis.
//!
//! Redis's clock decides which instances live, because all share it. Watermarks name windows, not times. So the clocks of the
//! instances may differ.
//!
//! # After an outage of Redis, or a loss
//!
//! At first the stored heartbeats say little. Other instances may only just be coming back, with a window open that no
//! heartbeat names any more. So a leader waits for [`GRACE`] before it trusts the heartbeats, in three cases:
//!
//! - it was cut off itself;
//! - its own heartbeat is gone, or its connection leads to another server;
//! - it is new, and no instance is known to have been there without a break.
//!
//! After a plain change of leader it trusts the heartbeats at once.
//!
//! While no instance can send a heartbeat, instances still accept ids, and one of them may vanish. So an instance that comes
//! back after an interruption assumes the worst: the others had all windows open that ended meanwhile. Their next heartbeats
//! correct this.
//!
//! Every heartbeat also says where the stream begins and how far it is published. A server that lost this learns it from the
//! first instance that comes back. That instance also restores the last known heartbeats of the others. So the leader
//! notices an instance that vanished together with its heartbeat.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::time::Instant;

use super::closed::{self, CloseError, REMEMBERED, Resume, StoredWindow};
use super::heartbeat::{
    Answer, Heartbeat, HeartbeatAnswer, StoredHeartbeat, StoredHeartbeats, Taken, from_micros,
};
use super::membership::{Members, MembershipView};
use super::rolled::{self, Rolled, RolledWindow};
use super::scripts;
use super::series::{self, KeptSeries, PastCount, day_of};
use super::settings::{HeartbeatError, Settings};
use super::staged::{Staging, StoredCounters};
use super::term::Term;
use crate::model::counter::CounterCounts;
use crate::model::period::Period;
use crate::model::range::Range;
use crate::model::shard::Shards;
use crate::model::timing::{A_YEAR, FRESH, GRACE, SHORTEST_SILENCE, SILENCE, closed_keys_live};
use crate::model::window::{Window, WindowCount, WindowLength};
use crate::platform::unavailable::Unavailable;
use crate::redis::damage;
use crate::redis::keys::Keys;
use crate::redis::{Call, Redis, Text, Texts};

/// What a coordinator through Redis is made of.
pub struct RedisCoordinatorConfig {
    /// The names of the keys.
    pub keys: Keys,
    /// The instance id, unlike any other.
    pub instance_id: String,
    /// The length of windows.
    pub window: WindowLength,
    /// How long after its end a window may still be published.
    pub retention: Duration,
    /// The same for the counts of its counters.
    pub counter_retention: Duration,
    /// How long the series is kept.
    pub series: KeptSeries,
    /// Sketches that the ids of a window are split over.
    pub shards: Shards,
    /// How long it is kept what was rolled up.
    pub keep_rolled: Duration,
    /// What all instances have to agree on.
    pub settings: Settings,
}

/// Coordinates all instances of a namespace.
pub struct RedisCoordinator {
    config: RedisCoordinatorConfig,
    redis: Redis,
    /// For requests, so that no heartbeat waits for one.
    reader: Redis,
    staging: Staging,
    memory: Mutex<Memory>,
}

/// What this instance remembers from the answers to its heartbeats.
#[derive(Default)]
struct Memory {
    /// When Redis took the last heartbeat, in µs of its clock; none before the first, and after a loss.
    acknowledged: Option<u64>,
    /// The same, but a loss does not clear it.
    heard_at: Option<u64>,
    /// The others' heartbeats at that time.
    others: StoredHeartbeats,
    /// The [`Redis::generation`] at the last heartbeat.
    generation: u64,
    heard: Option<Instant>,
    /// Until then this instance does not trust the heartbeats.
    grace: Option<Instant>,
    /// The window that the stream begins with.
    first: Option<Window>,
    published: Option<Window>,
}

/// What is stored for a namespace.
pub struct Survey {
    /// How its settings differ from this instance's.
    pub disagreements: Vec<HeartbeatError>,
    /// Instances that live.
    pub instances: usize,
    /// The time by Redis's clock.
    pub time: SystemTime,
}

impl Memory {
    /// Whether the last heartbeat went to another server than that of this generation.
    fn is_of_another_server(&self, generation: u64) -> bool {
        self.acknowledged.is_some() && self.generation != generation
    }

    /// Other instances may be coming back: this one does not trust the heartbeats for [`GRACE`].
    fn expect_others(&mut self) {
        self.grace = Some(Instant::now() + GRACE);
    }

    /// Redis took a heartbeat. After the first one, it may be unsure which other instances are there.
    fn heard(&mut self, taken: Taken, first: Window, published: Option<Window>) {
        let last = self.heard.replace(Instant::now());
        if last.map_or(taken.unsure, |last| last.elapsed() > FRESH) {
            self.expect_others();
        }
        self.acknowledged = Some(taken.now);
        self.heard_at = Some(taken.now);
        self.others = taken.others;
        self.first = Some(first);
        self.published = self.published.max(published);
    }
}

impl RedisCoordinator {
    /// Sends nothing yet: the first heartbeat introduces the instance.
    pub fn new(config: RedisCoordinatorConfig, redis: &Redis) -> Self {
        let staging = Staging::new(redis, config.keys.clone());
        Self { config, redis: redis.another(), reader: redis.another(), staging, memory: Mutex::default() }
    }

    /// Whether this instance must not trust the heartbeats. After a pause it knows only once its next one is taken.
    fn is_in_grace(&self) -> bool {
        let memory = self.memory.lock();
        // The next heartbeat notes another server, and ends what this instance knows of the others.
        memory.is_of_another_server(self.redis.generation())
            || memory.heard.is_none_or(|heard| heard.elapsed() > FRESH)
            || memory.grace.is_some_and(|until| Instant::now() < until)
    }

    /// Notes which server has the heartbeats. Whether a connection has led to another one since the last of them.
    fn note_server(&self) -> bool {
        let (mut memory, generation) = (self.memory.lock(), self.redis.generation());
        let is_other = memory.is_of_another_server(generation);
        if is_other {
            memory.expect_others();
        }
        memory.generation = generation;
        is_other
    }

    /// [`super::Coordinator::heartbeat`].
    ///
    /// # Errors
    ///
    /// [`HeartbeatError`].
    pub async fn heartbeat(&self, heartbeat: &Heartbeat) -> Result<HeartbeatAnswer, HeartbeatError> {
        let lost = HeartbeatAnswer { lost: true, ..HeartbeatAnswer::default() };
        if self.note_server() {
            return Ok(lost);
        }
        let answer = self.send(&self.ask(heartbeat)).await?;
        match from_json(&answer)? {
            Answer::Taken(taken) => Ok(self.take_note(taken)),
            Answer::Lost {} => {
                let mut memory = self.memory.lock();
                memory.acknowledged = None;
                memory.expect_others();
                Ok(lost)
            }
            Answer::Differs { setting, theirs } => {
                let RedisCoordinatorConfig { settings, keys, .. } = &self.config;
                Err(settings.disagreement(&setting, &theirs, keys.namespace()))
            }
        }
    }

    fn ask(&self, heartbeat: &Heartbeat) -> String {
        let RedisCoordinatorConfig { instance_id, window, retention, settings, .. } = &self.config;
        let Memory { acknowledged, heard_at, others, first, published, .. } = &*self.memory.lock();
        let is_lost = acknowledged.is_none();
        let start = |window: Option<Window>| window.map(Window::unix_seconds);
        let ask = json!({
            "instance_id": instance_id,
            "settings": settings.stored(),
            "heartbeat": StoredHeartbeat::of(heartbeat),
            "acknowledged": acknowledged,
            "heard_at": heard_at.filter(|_| heartbeat.interrupted || is_lost),
            "others": is_lost.then_some(others),
            "first": start(*first),
            "published": start(*published),
            "knows": start(heartbeat.knows),
            "remembered": REMEMBERED,
            "window_seconds": window.seconds(),
            "keep_for": SILENCE.min(*retention).max(SHORTEST_SILENCE).as_millis() as u64,
        });
        ask.to_string()
    }

    async fn send(&self, ask: &str) -> Result<String, Unavailable> {
        let keys = &self.config.keys;
        let hashes = [keys.config(), keys.instances(), keys.counts(), keys.published()];
        let mut call = scripts::HEARTBEAT.prepare_invoke();
        for key in &hashes {
            call.key(key);
        }
        call.arg(ask);
        damage::invoke_mending(&self.redis, Call::Heartbeat, &hashes, &call).await
    }

    fn take_note(&self, taken: Taken) -> HeartbeatAnswer {
        let window = |start| self.config.window.starting_at(start);
        let (first, published) = (window(taken.first), taken.published.map(window));
        let answer = HeartbeatAnswer {
            // No leader closes windows before the first one. An instance whose clock is behind has to know that.
            closed: taken.closed.map(window).max(published).max(Some(first.previous())),
            news: self.read_counts(taken.news.iter()),
            published,
            lost: false,
            time: Some(from_micros(taken.now)),
        };
        self.memory.lock().heard(taken, first, published);
        answer
    }

    /// Reads which instances live and which settings they have, without joining them.
    ///
    /// # Errors
    ///
    /// [`Unavailable`].
    pub async fn survey(&self) -> Result<Survey, Unavailable> {
        let members = self.members(Call::Ask).await?;
        let RedisCoordinatorConfig { keys, settings, .. } = &self.config;
        Ok(Survey {
            disagreements: settings.disagreements(&members.settings, keys.namespace()),
            instances: members.living(),
            time: members.now(),
        })
    }

    async fn members(&self, purpose: Call) -> Result<Members, Unavailable> {
        let keys = &self.config.keys;
        let mut call = scripts::MEMBERSHIP.prepare_invoke();
        call.key(keys.config()).key(keys.instances());
        let answer: String = self
            .redis
            .run(purpose, &keys.config(), async |connection| call.invoke_async(connection).await)
            .await?;
        from_json(&answer)
    }

    pub(super) async fn leave(&self) -> Result<(), Unavailable> {
        let mut call = scripts::LEAVE.prepare_invoke();
        call.key(self.config.keys.instances()).arg(&self.config.instance_id);
        self.redis
            .run(Call::Heartbeat, &self.config.keys.instances(), async |connection| {
                call.invoke_async(connection).await
            })
            .await
    }

    /// [`super::Coordinator::resume`].
    ///
    /// # Errors
    ///
    /// [`Unavailable`].
    pub async fn resume(&self) -> Result<Option<Resume>, Unavailable> {
        if self.is_in_grace() {
            return Ok(None);
        }
        let keys = &self.config.keys;
        let mut ask = ::redis::Pipeline::new();
        ask.cmd("TIME");
        ask.cmd("HMGET").arg(keys.published()).arg("first").arg("last");
        ask.cmd("HGETALL").arg(keys.counts());
        let ((now, _), (Text(first), Text(published)), Texts(counts)): ((u64, u64), (Text, Text), Texts) =
            self.redis
                .run(Call::Close, &keys.counts(), async |connection| ask.query_async(connection).await)
                .await?;
        // A window that is a year ahead is not headcount's.
        let is_ours = |window: &Window| window.unix_seconds() < now + A_YEAR.as_secs();
        let window = |text: Option<String>| text.and_then(|text| self.window(&text)).filter(is_ours);
        let (first, published) = (window(first), window(published));
        let Some(next) = published.map(Window::next).or(first) else { return Ok(None) };
        let stored = self.read_counts(counts.iter()).into_iter();
        let stored = stored.filter(|window| next <= window.count.window);
        let stored = stored.map(|window| (window.count.window, window));
        Ok(Some(Resume { next, stored: stored.collect() }))
    }

    /// [`super::Coordinator::membership_view`].
    ///
    /// # Errors
    ///
    /// [`Unavailable`].
    pub async fn membership_view(&self, window: Window) -> Result<Option<MembershipView>, Unavailable> {
        if self.is_in_grace() {
            return Ok(None);
        }
        Ok(Some(self.members(Call::Close).await?.view_of(window)))
    }

    /// [`super::Coordinator::close`].
    ///
    /// # Errors
    ///
    /// [`CloseError`].
    pub async fn close(
        &self,
        term: &Term,
        count: &WindowCount,
        counters: &CounterCounts,
        view: &MembershipView,
    ) -> Result<(StoredWindow, bool), CloseError> {
        let staged = self.staging.write(term, count.window, counters).await?;
        let ours = StoredWindow { count: *count, counters: staged };
        let stored = self.store(term, &ours, view).await;
        let is_ours = stored.as_ref().is_ok_and(|stored| *stored == ours);
        let staged = ours.counters.as_ref();
        match (staged, &stored) {
            (Some(staged), Err(CloseError::Unavailable(_))) => self.staging.note_doubt(count.window, staged),
            (Some(staged), _) if !is_ours => self.staging.delete(count.window, staged).await,
            _ => {}
        }
        if let Ok(stored) = &stored {
            self.staging.note_stored(count.window, stored.counters.as_ref()).await;
        }
        stored.map(|stored| (stored, is_ours))
    }

    /// Stores the count of a window, with the list of its counters' counts. Returns what is stored.
    async fn store(
        &self,
        term: &Term,
        ours: &StoredWindow,
        view: &MembershipView,
    ) -> Result<StoredWindow, CloseError> {
        if self.is_in_grace() {
            return Err(CloseError::Open);
        }
        let count = &ours.count;
        let RedisCoordinatorConfig {
            keys, instance_id, window, retention, counter_retention, series, ..
        } = &self.config;
        let of_day = keys.series(day_of(count.window));
        let ask = json!({
            "instance_id": instance_id,
            "token": term.token(),
            "window": count.window.unix_seconds(),
            "window_end": count.window.next().unix_seconds(),
            "count": closed::to_stored(ours),
            "despite_open": view.open,
            "joined": view.joined,
            "keep_for": (*retention + window.duration()).as_millis() as u64,
            "keep_counters_for": (*counter_retention + window.duration()).as_millis() as u64,
            "past": PastCount::from(*count).to_stored(count.window),
            "keep_series_until": series.until(count.window).map_or(0, |until| until * 1000),
        });
        let mut call = scripts::CLOSE.prepare_invoke();
        call.key(keys.token()).key(keys.counts()).key(keys.instances()).key(keys.config()).key(&of_day);
        if let Some(staged) = ours.counters.as_ref().filter(|staged| staged.number() > 0) {
            call.key(&staged.key);
        }
        call.arg(ask.to_string());
        let answer: Vec<String> = damage::invoke_mending(&self.redis, Call::Close, &[of_day], &call).await?;
        let answer: Vec<&str> = answer.iter().map(String::as_str).collect();
        match *answer {
            ["stored", stored] => {
                closed::from_stored(count.window, stored).ok_or_else(|| unexpected("count", stored).into())
            }
            ["fenced"] => Err(CloseError::Fenced),
            ["open"] => Err(CloseError::Open),
            _ => Err(unexpected("close", &answer.join(" ")).into()),
        }
    }

    /// [`super::Coordinator::series`].
    ///
    /// # Errors
    ///
    /// [`Unavailable`].
    pub(super) async fn series(&self, range: Range) -> Result<BTreeMap<Window, PastCount>, Unavailable> {
        series::read(&self.reader, &self.config.keys, range).await
    }

    pub(super) async fn stored(&self, window: Window) -> Result<Option<StoredWindow>, Unavailable> {
        let mut read = ::redis::cmd("HGET");
        read.arg(self.config.keys.counts()).arg(window.unix_seconds());
        let stored: Option<Vec<u8>> = self
            .redis
            .run(Call::Close, &self.config.keys.counts(), async |connection| {
                read.query_async(connection).await
            })
            .await?;
        let text = stored.and_then(|stored| String::from_utf8(stored).ok());
        Ok(text.and_then(|text| closed::from_stored(window, &text)))
    }

    pub(super) async fn note_rolled(&self, term: &Term, rolled: &RolledWindow) -> Result<(), CloseError> {
        let RedisCoordinatorConfig { keys, keep_rolled, .. } = &self.config;
        rolled::note(&self.redis, keys, term, rolled, *keep_rolled).await
    }

    pub(super) async fn rolled(&self, periods: &[Period]) -> Result<Rolled, Unavailable> {
        {
            let RedisCoordinatorConfig { keys, window, shards, .. } = &self.config;
            rolled::read(&self.reader, keys, *window, *shards, periods).await
        }
    }

    /// The counts of counters. None if Redis does not have them any more.
    pub(super) async fn counters_of(
        &self,
        stored: &StoredCounters,
    ) -> Result<Option<CounterCounts>, Unavailable> {
        self.staging.read(stored).await
    }

    pub(super) async fn let_lists_expire(&self, windows: &[StoredWindow]) {
        let lists = windows.iter().filter_map(|window| window.counters.as_ref());
        self.staging.let_expire(lists, closed_keys_live(self.config.window)).await;
    }

    /// [`super::Coordinator::commit_published`].
    ///
    /// # Errors
    ///
    /// [`CloseError::Fenced`] or [`CloseError::Unavailable`].
    pub async fn commit_published(&self, term: &Term, window: Window) -> Result<(), CloseError> {
        let keys = &self.config.keys;
        let mut call = scripts::COMMIT_PUBLISHED.prepare_invoke();
        call.key(keys.token()).key(keys.published()).key(keys.counts());
        let remembered = REMEMBERED as u64 * u64::from(window.length().seconds());
        call.arg(term.token()).arg(window.unix_seconds()).arg(remembered);
        let answer: String = self
            .redis
            .run(Call::Close, &keys.token(), async |connection| call.invoke_async(connection).await)
            .await?;
        match &*answer {
            "committed" => {
                let mut memory = self.memory.lock();
                memory.published = memory.published.max(Some(window));
                Ok(())
            }
            "fenced" => Err(CloseError::Fenced),
            _ => Err(unexpected("commit", &answer).into()),
        }
    }

    /// Parses counts, and sorts them by window. It skips other fields.
    fn read_counts<'a>(&self, stored: impl Iterator<Item = (&'a String, &'a String)>) -> Vec<StoredWindow> {
        let counts = stored.filter_map(|(window, count)| closed::from_stored(self.window(window)?, count));
        let mut counts: Vec<_> = counts.collect();
        counts.sort_by_key(|window| window.count.window);
        counts
    }

    /// Parses a window by the rules of the scripts; none for any other text.
    fn window(&self, text: &str) -> Option<Window> {
        let is_number = text.len() <= 16 && text.bytes().all(|byte| byte.is_ascii_digit());
        let start = text.parse().ok().filter(|_| is_number)?;
        Some(self.config.window.starting_at(start))
    }
}

fn from_json<T: DeserializeOwned>(answer: &str) -> Result<T, Unavailable> {
    serde_json::from_str(answer).map_err(|_| unexpected("a script", answer))
}

fn unexpected(what: &str, answer: &str) -> Unavailable {
    Unavailable::because(format_args!("Redis: an unexpected answer to {what}: {answer:?}"))
}
