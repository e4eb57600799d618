//! Coordination through Redis.
//!
//! Who lives is said by Redis's clock, the only one that all share; which window is meant, by watermarks. So
//! instances need not have the same time.
//!
//! # After Redis was away, or has lost everything
//!
//! Then the reports say little: the others may only just be coming back, with a window open that nobody
//! knows of any more. So a leader that has come back itself, has found its own report gone or its connection
//! leading to another server, or is new where nobody is known to be there without a break, gives them [`GRACE`] to
//! report before it believes what it reads. On a plain change of leader the reports are there, and are believed at
//! once.
//!
//! While nobody can report, instances go on taking ids, and one of them may vanish before it can say for which
//! windows. So whoever reports again after an interruption takes it for the others too: until they report
//! themselves, they may have had all windows open that ended meanwhile.
//!
//! Every report says what its instance knows of the stream, where it begins and how far it is published; so a
//! server that has lost that is told again, whoever comes first. The same goes for the others' reports as they
//! were last known: an instance that vanished together with the reports is missed all the same.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{CloseError, Coordinator, REMEMBERED, Report, ReportError, Reported, Resume, Standing};
use crate::coordination::completeness::Attendance;
use crate::coordination::grant::Grant;
use crate::coordination::scripts;
use crate::model::timing::{A_YEAR, FRESH, GRACE, LIVES, SHORTEST_SILENCE, SILENCE};
use crate::model::window::{Window, WindowCount, WindowLength};
use crate::platform::unavailable::Unavailable;
use crate::redis::damage::{self, Holds, is_damage};
use crate::redis::keys::Keys;
use crate::redis::{Call, Redis, Text, Texts};

/// How the name of an instance begins under which its report stays after it has said goodbye.
const LEFT: char = '~';
/// As JSON.
const NO_REPORTS: &str = "{}";

/// What a coordinator through Redis is made of.
pub struct RedisCoordinatorConfig {
    /// The names of the keys.
    pub keys: Keys,
    /// This process, unlike any other.
    pub process: String,
    /// The length of windows.
    pub window: WindowLength,
    /// How long after its end a window may still be published.
    pub retention: Duration,
    /// Flags that all instances have to agree on, and their values.
    pub settings: Vec<(&'static str, String)>,
}

/// Coordinates all instances of a namespace.
pub struct RedisCoordinator {
    config: RedisCoordinatorConfig,
    redis: Redis,
    memory: Mutex<Memory>,
}

/// What this process remembers of what it was told.
#[derive(Default)]
struct Memory {
    /// When the last report was taken, in µs of Redis's time; none before the first, and after a loss.
    acknowledged: Option<u64>,
    /// The same, and a loss does not matter.
    heard_at: Option<u64>,
    /// What the others had reported then, as JSON.
    others: Option<String>,
    /// The [`Redis::generation`] that it was taken in.
    generation: u64,
    heard: Option<Instant>,
    /// Until then the reports are not believed.
    grace: Option<Instant>,
    /// The window that the stream begins with.
    first: Option<Window>,
    published: Option<Window>,
}

/// What there is in a namespace.
pub struct Survey {
    /// How its settings differ from this instance's.
    pub disagreements: Vec<ReportError>,
    /// Instances that live.
    pub instances: usize,
    /// What time it is there.
    pub time: SystemTime,
}

/// A count as it is stored.
#[derive(Serialize, Deserialize)]
struct Stored {
    unique_request_count: u64,
    accepted_ids: u64,
    complete: bool,
}

/// A report as it is stored: `<watermark> <newest window> <since, µs> <kept ids> <reported at, µs>`.
struct StoredReport {
    watermark: u64,
    newest: u64,
    since: SystemTime,
    kept_ids: u64,
    reported: SystemTime,
}

impl Memory {
    /// After this the reports are not believed for a while.
    fn expect_others(&mut self) {
        self.grace = Some(Instant::now() + GRACE);
    }

    /// A report was taken. If it was the first one, it may be `unsure` who else is there.
    fn heard(&mut self, now: Option<u64>, first: Option<Window>, published: Option<Window>, unsure: bool) {
        let last = self.heard.replace(Instant::now());
        if last.map_or(unsure, |last| last.elapsed() > FRESH) {
            self.expect_others();
        }
        self.acknowledged = now;
        self.heard_at = now;
        self.first = first;
        self.published = self.published.max(published);
    }
}

impl RedisCoordinator {
    /// Known to nobody yet.
    pub fn new(config: RedisCoordinatorConfig, redis: &Redis) -> Self {
        Self { config, redis: redis.another(), memory: Mutex::default() }
    }

    /// Whether the reports are not to be believed, also because it will be known only with the next own report.
    fn is_in_grace(&self) -> bool {
        let Memory { heard, grace, .. } = &*self.memory.lock();
        heard.is_none_or(|heard| heard.elapsed() > FRESH) || grace.is_some_and(|until| Instant::now() < until)
    }

    /// Whether a connection has led to another server since the last report.
    fn is_elsewhere(&self) -> bool {
        let (mut memory, generation) = (self.memory.lock(), self.redis.generation());
        let elsewhere = memory.acknowledged.is_some() && memory.generation != generation;
        if elsewhere {
            memory.expect_others();
        }
        memory.generation = generation;
        elsewhere
    }

    async fn send_report(&self, report: &Report) -> Result<Vec<String>, Unavailable> {
        let RedisCoordinatorConfig { keys, process, retention, settings, .. } = &self.config;
        let silence = SILENCE.min(*retention).max(SHORTEST_SILENCE);
        let mut call = scripts::REPORT.prepare_invoke();
        call.key(keys.config()).key(keys.instances()).key(keys.counts()).key(keys.published());
        let known = |window: Option<Window>| window.map(|window| window.unix_seconds().to_string());
        {
            let Memory { acknowledged, heard_at, others, first, published, .. } = &*self.memory.lock();
            let time = |at: Option<u64>| at.map(|at| at.to_string()).unwrap_or_default();
            call.arg(process).arg(time(*acknowledged));
            call.arg(report.watermark.unix_seconds()).arg(report.newest.unix_seconds());
            call.arg(micros(report.since)).arg(report.kept_ids);
            call.arg(known(*first).unwrap_or_default()).arg(known(*published).unwrap_or_default());
            let is_lost = acknowledged.is_none();
            call.arg(time(heard_at.filter(|_| report.interrupted || is_lost)));
            call.arg(others.as_deref().filter(|_| is_lost).unwrap_or(NO_REPORTS));
            call.arg(known(report.knows).unwrap_or_default());
            call.arg(REMEMBERED).arg(self.config.window.seconds());
        }
        for duration in [FRESH, LIVES, GRACE, silence, A_YEAR] {
            call.arg(duration.as_millis() as u64);
        }
        for (setting, value) in settings {
            call.arg(*setting).arg(value);
        }
        let answer =
            self.redis.run(Call::Report, async |connection| match call.invoke_async(connection).await {
                Err(error) if is_damage(&error) => Ok(None),
                answer => answer.map(Some),
            });
        if let Some(answer) = answer.await? {
            return Ok(answer);
        }
        let hashes = [keys.config(), keys.instances(), keys.counts(), keys.published()];
        damage::put_aside(&self.redis, Call::Report, Holds::Hash, &hashes).await?;
        self.redis.run(Call::Report, async |connection| call.invoke_async(connection).await).await
    }

    /// Who is there and how they are set up, without taking part.
    ///
    /// # Errors
    ///
    /// [`Unavailable`].
    pub async fn survey(&self) -> Result<Survey, Unavailable> {
        let keys = &self.config.keys;
        let mut ask = ::redis::Pipeline::new();
        ask.cmd("TIME");
        ask.cmd("HGETALL").arg(keys.config());
        ask.cmd("HGETALL").arg(keys.instances());
        let ((seconds, micros), Texts(theirs), Texts(reports)): ((u64, u64), Texts, Texts) =
            self.redis.run(Call::Ask, async |connection| ask.query_async(connection).await).await?;
        let now = from_micros(seconds * 1_000_000 + micros);
        let disagreements = self.config.settings.iter().filter_map(|(setting, ours)| {
            let theirs = theirs.get(*setting).filter(|theirs| *theirs != ours)?;
            Some(self.disagreement(setting, theirs))
        });
        let reports = reports.iter().filter(|(name, _)| !name.starts_with(LEFT));
        let reports = reports.filter_map(|(_, report)| StoredReport::read(report));
        Ok(Survey {
            disagreements: disagreements.collect(),
            instances: reports.filter(|report| report.lives(now)).count(),
            time: now,
        })
    }

    fn disagreement(&self, setting: &str, theirs: &str) -> ReportError {
        let ours = self.config.settings.iter().find(|(name, _)| *name == setting);
        ReportError::Disagreement {
            setting: setting.to_owned(),
            ours: ours.map(|(_, value)| value.clone()).unwrap_or_default(),
            theirs: theirs.to_owned(),
            namespace: self.config.keys.namespace().to_owned(),
        }
    }

    /// Of the hash of counts, in order; it has other things too.
    fn read_counts(&self, stored: &BTreeMap<String, String>) -> Vec<WindowCount> {
        let counts = stored.iter().filter_map(|(window, count)| read_count(self.window(window)?, count));
        let mut counts: Vec<_> = counts.collect();
        counts.sort_by_key(|count| count.window);
        counts
    }

    fn window(&self, text: &str) -> Option<Window> {
        number(text).map(|seconds| self.config.window.starting_at(seconds))
    }
}

#[async_trait]
impl Coordinator for RedisCoordinator {
    async fn report(&self, report: &Report) -> Result<Reported, ReportError> {
        let lost = Reported { lost: true, ..Reported::default() };
        if self.is_elsewhere() {
            return Ok(lost);
        }
        let answer = self.send_report(report).await?;
        let answer: Vec<&str> = answer.iter().map(String::as_str).collect();
        match *answer {
            ["ok", now, first, closed, published, unsure, others, news] => {
                let now = now.parse().ok();
                let (first, closed, published) =
                    (self.window(first), self.window(closed), self.window(published));
                {
                    let mut memory = self.memory.lock();
                    memory.heard(now, first, published, unsure == "unsure");
                    memory.others = Some(others.to_owned());
                }
                Ok(Reported {
                    // Nobody closes what is before the first: an instance whose clock is behind has to know.
                    closed: closed.max(published).max(first.map(Window::previous)),
                    news: self.read_counts(&serde_json::from_str(news).map_err(Unavailable::because)?),
                    published,
                    lost: false,
                    time: now.map(from_micros),
                })
            }
            ["lost"] => {
                let mut memory = self.memory.lock();
                memory.acknowledged = None;
                memory.expect_others();
                Ok(lost)
            }
            ["differs", setting, theirs] => Err(self.disagreement(setting, theirs)),
            _ => Err(unexpected("report", &answer).into()),
        }
    }

    async fn leave(&self) -> Result<(), Unavailable> {
        let mut call = scripts::LEAVE.prepare_invoke();
        call.key(self.config.keys.instances()).arg(&self.config.process);
        self.redis.run(Call::Report, async |connection| call.invoke_async(connection).await).await
    }

    async fn resume(&self) -> Result<Option<Resume>, Unavailable> {
        if self.is_in_grace() {
            return Ok(None);
        }
        let keys = &self.config.keys;
        let mut ask = ::redis::Pipeline::new();
        ask.cmd("TIME");
        ask.cmd("HMGET").arg(keys.published()).arg("first").arg("last");
        ask.cmd("HGETALL").arg(keys.counts());
        let ((now, _), (Text(first), Text(published)), Texts(counts)): ((u64, u64), (Text, Text), Texts) =
            self.redis.run(Call::Close, async |connection| ask.query_async(connection).await).await?;
        // What is a year ahead is none of ours.
        let is_ours = |window: &Window| window.unix_seconds() < now + A_YEAR.as_secs();
        let window = |text: Option<String>| text.and_then(|text| self.window(&text)).filter(is_ours);
        let (first, published) = (window(first), window(published));
        let Some(next) = published.map(Window::next).or(first) else { return Ok(None) };
        let stored = self.read_counts(&counts).into_iter();
        let stored = stored.filter(|count| next <= count.window).map(|count| (count.window, count));
        Ok(Some(Resume { next, stored: stored.collect() }))
    }

    async fn standing(&self, window: Window) -> Result<Option<Standing>, Unavailable> {
        if self.is_in_grace() {
            return Ok(None);
        }
        let keys = &self.config.keys;
        let mut ask = ::redis::Pipeline::new();
        ask.cmd("TIME");
        ask.cmd("HGETALL").arg(keys.instances());
        ask.cmd("HMGET").arg(keys.config()).arg("since").arg("joined");
        let ((seconds, micros), Texts(reports), (Text(since), Text(joined))): (
            (u64, u64),
            Texts,
            (Text, Text),
        ) = self.redis.run(Call::Close, async |connection| ask.query_async(connection).await).await?;
        let now = from_micros(seconds * 1_000_000 + micros);
        let number_of = |text: Option<String>| text.and_then(|text| number(&text));
        let (since, joined) = (number_of(since), number_of(joined));
        let start = window.unix_seconds();
        let all = reports.iter().filter_map(|(name, report)| Some((name, StoredReport::read(report)?)));
        let attended = all
            .clone()
            .filter(|(_, report)| start <= report.newest)
            .map(|(_, report)| window.max(window.length().window_at(report.since)))
            .min();
        let parties = all
            .filter(|(_, report)| start < report.watermark && start <= report.newest)
            .filter(|(_, report)| report.since < window.end())
            .map(|(name, _)| name.trim_start_matches(LEFT).to_owned())
            .collect();
        // Those who said goodbye have sealed all that they had.
        let reports = reports.iter().filter(|(name, _)| !name.starts_with(LEFT));
        let reports: Vec<_> = reports.filter_map(|(_, report)| StoredReport::read(report)).collect();
        let (living, gone): (Vec<_>, Vec<_>) = reports.iter().partition(|report| report.lives(now));
        let have_it_open = living.iter().filter(|report| report.watermark <= start);
        let left: BTreeSet<_> = have_it_open.map(|report| (report.watermark, report.kept_ids)).collect();
        let open = !left.is_empty();
        let vanished = gone.iter().any(|report| report.watermark <= start && start <= report.newest);
        // Nobody knew yet that it was gone, so whoever came then did not begin anew.
        let in_doubt = gone
            .iter()
            .any(|report| report.reported < window.end() && window.start() < report.reported + LIVES);
        let in_doubt = in_doubt && !living.iter().any(|report| report.since <= window.start());
        let throughout = since.is_some_and(|since| from_micros(since) <= window.start());
        let misdated = living.iter().any(|report| report.is_misdated());
        let attendance = Attendance { throughout, in_doubt, vanished, misdated };
        let joined = joined.unwrap_or_default();
        Ok(Some(Standing { open, left, attendance, parties, attended, joined, time: Some(now) }))
    }

    async fn close(
        &self,
        grant: &Grant,
        count: &WindowCount,
        standing: &Standing,
    ) -> Result<WindowCount, CloseError> {
        if self.is_in_grace() {
            return Err(CloseError::Open);
        }
        let RedisCoordinatorConfig { keys, process, window, retention, .. } = &self.config;
        let &WindowCount { window: closed, unique_request_count, accepted_ids, complete } = count;
        let stored = serde_json::to_string(&Stored { unique_request_count, accepted_ids, complete })
            .map_err(Unavailable::because)?;
        let mut call = scripts::CLOSE.prepare_invoke();
        call.key(keys.token()).key(keys.counts()).key(keys.instances()).key(keys.config());
        call.arg(grant.token()).arg(process);
        call.arg(closed.unix_seconds()).arg(closed.next().unix_seconds()).arg(stored);
        call.arg(u8::from(standing.open)).arg(standing.joined);
        call.arg(LIVES.as_millis() as u64).arg((*retention + window.duration()).as_millis() as u64);
        call.arg(A_YEAR.as_secs());
        let answer: Vec<String> =
            self.redis.run(Call::Close, async |connection| call.invoke_async(connection).await).await?;
        let answer: Vec<&str> = answer.iter().map(String::as_str).collect();
        match *answer {
            ["stored", stored] => {
                read_count(closed, stored).ok_or_else(|| unexpected("count", &[stored]).into())
            }
            ["fenced"] => Err(CloseError::Fenced),
            ["open"] => Err(CloseError::Open),
            _ => Err(unexpected("close", &answer).into()),
        }
    }

    async fn mark_published(&self, grant: &Grant, window: Window) -> Result<(), CloseError> {
        let keys = &self.config.keys;
        let mut call = scripts::MARK_PUBLISHED.prepare_invoke();
        call.key(keys.token()).key(keys.published()).key(keys.counts());
        let remembered = REMEMBERED as u64 * u64::from(window.length().seconds());
        call.arg(grant.token()).arg(window.unix_seconds()).arg(remembered).arg(A_YEAR.as_secs());
        let answer: String =
            self.redis.run(Call::Close, async |connection| call.invoke_async(connection).await).await?;
        match &*answer {
            "marked" => {
                let mut memory = self.memory.lock();
                memory.published = memory.published.max(Some(window));
                Ok(())
            }
            "fenced" => Err(CloseError::Fenced),
            _ => Err(unexpected("mark", &[&answer]).into()),
        }
    }

    fn outlives_process(&self) -> bool {
        true
    }
}

impl StoredReport {
    fn read(text: &str) -> Option<Self> {
        let mut fields = text.split(' ').map(number);
        let [watermark, newest, since, kept_ids, reported] =
            [fields.next()??, fields.next()??, fields.next()??, fields.next()??, fields.next()??];
        let (since, reported) = (from_micros(since), from_micros(reported));
        Some(Self { watermark, newest, since, kept_ids, reported })
    }

    fn lives(&self, now: SystemTime) -> bool {
        now < self.reported + LIVES
    }

    /// Whether its clock is wrong: it says itself that it has not been there yet.
    fn is_misdated(&self) -> bool {
        self.since > self.reported + LIVES
    }
}

/// What the scripts take for a number, too. Anything else that stands in its place says nothing.
fn number(text: &str) -> Option<u64> {
    let is_number = text.len() <= 16 && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| is_number)
}

/// As it stands among the settings.
pub fn window_setting(window: WindowLength) -> String {
    format!("{}s", window.seconds())
}

fn read_count(window: Window, text: &str) -> Option<WindowCount> {
    let Stored { unique_request_count, accepted_ids, complete } = serde_json::from_str(text).ok()?;
    Some(WindowCount { window, unique_request_count, accepted_ids, complete })
}

fn unexpected(what: &str, answer: &[&str]) -> Unavailable {
    Unavailable::because(format_args!("Redis: an unexpected answer to {what}: {answer:?}"))
}

/// Rounded up, so that nobody is there from earlier on than he was.
fn micros(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos().div_ceil(1000) as u64
}

fn from_micros(micros: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_micros(micros)
}
