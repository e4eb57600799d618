//! Compares hours and days with the windows that are still in Redis.
//!
//! The service may go on meanwhile. So the order matters: first how far windows are rolled up and the records of hours and days, then
//! their sketches, then the windows. A sketch only grows. So one of an hour has at least what its record says, and at most what its
//! windows have.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::time::SystemTime;

use ::redis::Pipeline;

use crate::cli::backend::{Coordination, instance_id, kept_series};
use crate::cli::findings::{Findings, Verdict, some};
use crate::cli::settings::Settings;
use crate::coordination::{Coordinator, PastCount, RolledPeriod};
use crate::hll::Sketch;
use crate::model::mode::Mode;
use crate::model::period::{Level, Period};
use crate::model::range::Range;
use crate::model::window::{Window, WindowLength};
use crate::platform::unavailable::Unavailable;
use crate::publish::sinks::kafka::ledger::Entry;
use crate::redis::keys::Keys;
use crate::redis::{Call, Redis, Routed};

const SUBJECT: &str = "hours and days";
/// Sketches that are read by one pipeline.
const READ_AT_ONCE: usize = 16;
/// Windows whose counts are read at once.
const COUNTS_AT_ONCE: usize = 1_000;

/// Reads hours and days, and their windows.
pub(super) struct Periods<'a> {
    settings: &'a Settings,
    redis: &'a Redis,
    keys: &'a Keys,
    coordinator: Coordinator,
}

/// What is wrong.
#[derive(Default)]
struct Found {
    compared: usize,
    wrong: Vec<String>,
    /// The same of periods that do not say they are complete.
    incomplete: Vec<String>,
    /// Windows with ids that came after their close.
    late: BTreeSet<u64>,
}

/// The windows that are looked at.
struct Span {
    now: SystemTime,
    /// The first whose count is still in the series.
    counted: Window,
    /// The first whose sketches may still be there.
    kept: Window,
    /// The first that has not begun.
    end: Window,
}

impl<'a> Periods<'a> {
    pub(super) fn new(settings: &'a Settings, redis: &'a Redis, keys: &'a Keys) -> Self {
        let coordinator = Coordinator::Redis(Coordination::new(settings, redis, &instance_id()).coordinator);
        Self { settings, redis, keys, coordinator }
    }

    /// Compares every hour and day of which there are still windows.
    pub(super) async fn compare(
        &self,
        entries: &[Entry],
        findings: &mut Findings<impl Write>,
    ) -> io::Result<()> {
        let counting = &self.settings.counting;
        if counting.mode == Mode::Exact || !counting.keep.total.any() {
            return Ok(());
        }
        match self.look(entries).await {
            Ok(found) => found.report(counting.window, findings),
            Err(error) => findings.add(Verdict::Fail, SUBJECT, error),
        }
    }

    async fn look(&self, entries: &[Entry]) -> Result<Found, Unavailable> {
        let (counting, now) = (&self.settings.counting, SystemTime::now());
        let mut found = Found::default();
        let Some(last) = self.coordinator.rolled(&[]).await?.last else { return Ok(found) };
        let retained = now.checked_sub(counting.retention).unwrap_or(SystemTime::UNIX_EPOCH);
        let counted = kept_series(counting).oldest(now);
        let kept = counting.window.window_at(retained).max(counted);
        let span = Span { now, counted, kept, end: counting.window.window_at(now).next() };
        let others = of_another_length(entries, counting.window);
        let mut day = Level::Day.at(kept.unix_seconds());
        while day.start <= last.unix_seconds() {
            self.look_at_day(day, &span, &others, &mut found).await?;
            day = Level::Day.at(day.end());
        }
        Ok(found)
    }

    /// Hours of a day, and the day.
    async fn look_at_day(
        &self,
        day: Period,
        span: &Span,
        others: &BTreeSet<Period>,
        found: &mut Found,
    ) -> Result<(), Unavailable> {
        let counting = &self.settings.counting;
        let periods: Vec<_> = periods_of(day)
            .filter(|period| period.level.takes(counting.window) && !others.contains(period))
            .filter(|period| {
                let oldest = counting.keep.total.oldest(period.level, span.now);
                oldest.is_some_and(|oldest| oldest <= period.start)
            })
            .filter(|period| period.end() > span.kept.unix_seconds())
            .collect();
        let rolled = self.coordinator.rolled(&periods).await?;
        let mut looked_at = Vec::with_capacity(periods.len());
        let is_begun = |period: &Period| rolled.last.is_some_and(|last| period.start <= last.unix_seconds());
        for period in periods.into_iter().filter(is_begun) {
            let has = self.read(&[|shard| self.keys.period(shard, counting.shards, period)]).await?;
            let record = rolled.periods.get(&period).cloned();
            looked_at.push(Compared::new(period, record, has.into_iter().next().flatten(), span));
        }
        self.look_at_windows(day, span, rolled.last, &mut looked_at, found).await?;
        for compared in looked_at {
            compared.judge(found);
        }
        Ok(())
    }

    async fn look_at_windows(
        &self,
        day: Period,
        span: &Span,
        rolled_up: Option<Window>,
        periods: &mut [Compared],
        found: &mut Found,
    ) -> Result<(), Unavailable> {
        let shards = self.settings.counting.shards;
        let first = span.counted.max(span.counted.length().starting_at(day.start));
        let of_day = std::iter::successors(Some(first), |window| Some(window.next()));
        let of_day = of_day.take_while(|window| window.unix_seconds() < day.end() && *window < span.end);
        let of_day: Vec<_> = of_day.collect();
        for some in of_day.chunks(COUNTS_AT_ONCE) {
            let counts = self.coordinator.series(range_of(some)).await?;
            for some in some.chunks((READ_AT_ONCE / usize::from(shards.count())).max(1)) {
                let keys: Vec<_> = some
                    .iter()
                    .map(|window| move |shard| self.keys.ids(Mode::Hll, shard, shards, *window))
                    .collect();
                let sketches = match some.last() {
                    Some(last) if *last >= span.kept => self.read(&keys).await?,
                    _ => some.iter().map(|_| None).collect(),
                };
                for (window, sketches) in some.iter().zip(sketches) {
                    let known = OfWindow {
                        window: *window,
                        count: counts.get(window).copied(),
                        is_rolled_up: Some(*window) <= rolled_up,
                        sketches,
                    };
                    let its = periods.iter_mut().filter(|compared| compared.has(*window));
                    its.for_each(|compared| compared.add(&known, found));
                }
            }
        }
        Ok(())
    }

    /// Reads sketches, a list of all shards for each function that names keys. None where no key is there.
    async fn read(&self, keys: &[impl Fn(usize) -> String]) -> Result<Vec<Option<Vec<Sketch>>>, Unavailable> {
        let shards = usize::from(self.settings.counting.shards.count());
        let keys: Vec<_> = keys.iter().flat_map(|key| (0..shards).map(key)).collect();
        let mut stored = Vec::with_capacity(keys.len());
        for some in self.redis.groups(&keys, String::as_str, READ_AT_ONCE) {
            let mut read = Pipeline::with_capacity(some.len());
            for key in some {
                read.cmd("GET").arg(key);
            }
            let read = async |connection: &mut Routed| read.query_async(connection).await;
            let found: Vec<Option<Vec<u8>>> = self.redis.run(Call::Ask, &some[0], read).await?;
            // What another program wrote counts as nothing, as for the service.
            stored.extend(found.into_iter().map(|found| Sketch::from_bytes(&found?).ok()));
        }
        let mut stored = stored.into_iter();
        let of_one = (0..keys.len() / shards).map(|_| {
            let of_one: Vec<_> = stored.by_ref().take(shards).collect();
            let is_there = of_one.iter().any(Option::is_some);
            is_there.then(|| of_one.into_iter().map(Option::unwrap_or_default).collect())
        });
        Ok(of_one.collect())
    }
}

/// Periods with windows from before `--window` was changed: their records count these, too.
fn of_another_length(entries: &[Entry], length: WindowLength) -> BTreeSet<Period> {
    let others = entries.iter().filter(|entry| entry.seconds != u64::from(length.seconds()));
    others.flat_map(|entry| Level::ALL.map(|level| level.at(entry.start))).collect()
}

/// In the order of their records.
fn periods_of(day: Period) -> impl Iterator<Item = Period> {
    let hours = (day.start..day.end()).step_by(Level::Hour.seconds() as usize);
    hours.map(|start| Level::Hour.at(start)).chain([day])
}

fn range_of(windows: &[Window]) -> Range {
    Range { from: windows[0], to: windows[windows.len() - 1].next() }
}

/// What is known of a window.
struct OfWindow {
    window: Window,
    count: Option<PastCount>,
    is_rolled_up: bool,
    sketches: Option<Vec<Sketch>>,
}

/// An hour or a day beside its windows.
struct Compared {
    period: Period,
    record: Option<RolledPeriod>,
    has: Option<Vec<Sketch>>,
    /// The union of the windows that are there.
    of_windows: Vec<Sketch>,
    /// Whether that is the union of all of its windows that were closed.
    are_all_there: bool,
    /// Whether the series has all windows that were closed.
    has_series: bool,
    /// Seconds of the closed windows: those that were rolled up when the record was read, and with those that were closed since.
    least: u64,
    most: u64,
    /// Windows with ids that it lacks.
    lacks: u64,
}

impl Compared {
    fn new(period: Period, record: Option<RolledPeriod>, has: Option<Vec<Sketch>>, span: &Span) -> Self {
        let has_series = span.counted.unix_seconds() <= period.start;
        Self {
            period,
            record,
            has,
            of_windows: Vec::new(),
            are_all_there: has_series,
            has_series,
            least: 0,
            most: 0,
            lacks: 0,
        }
    }

    fn has(&self, window: Window) -> bool {
        self.period.level.at(window.unix_seconds()) == self.period
    }

    fn add(&mut self, known: &OfWindow, found: &mut Found) {
        let there = known.sketches.as_deref().unwrap_or_default();
        self.of_windows.resize_with(self.of_windows.len().max(there.len()), Sketch::new);
        self.of_windows.iter().zip(there).for_each(|(union, sketch)| union.merge(sketch));
        let Some(PastCount { unique_request_count: counted, .. }) = known.count else { return };
        let seconds = u64::from(known.window.length().seconds());
        self.most += seconds;
        if !known.is_rolled_up {
            return;
        }
        self.least += seconds;
        if estimate(there) < counted {
            // It expired, or Redis lost ids of it. So it says nothing.
            self.are_all_there = false;
        } else if self.common(there) < counted {
            self.lacks += 1;
        } else if !is_within(there, self.sketches()) {
            found.late.insert(known.window.unix_seconds());
        }
    }

    fn sketches(&self) -> &[Sketch] {
        self.has.as_deref().unwrap_or_default()
    }

    /// How many ids of a window it has.
    fn common(&self, window: &[Sketch]) -> u64 {
        window.iter().zip(self.sketches()).map(|(one, other)| one.common(other).estimate()).sum()
    }

    fn judge(&self, found: &mut Found) {
        if self.least == 0 {
            // No window of it was closed.
            return;
        }
        found.compared += 1;
        let Some(wrong) = self.what_is_wrong() else { return };
        let (name, start) = (self.period.level.as_str(), WindowLength::SECOND.starting_at(self.period.start));
        // One that lacks windows never says that it has all ids.
        let is_complete =
            self.record.as_ref().is_some_and(|record| record.complete && record.seconds >= self.least);
        let list = if is_complete { &mut found.wrong } else { &mut found.incomplete };
        list.push(format!("{name} {start} {wrong}"));
    }

    fn what_is_wrong(&self) -> Option<String> {
        let Some(record) = &self.record else { return Some("has no record".to_owned()) };
        let is_short = estimate(self.sketches()) < record.unique_request_count;
        if self.has.is_none() && (is_short || self.lacks > 0) {
            return Some("is missing".to_owned());
        }
        if self.lacks > 0 {
            return Some(format!("lacks ids of {} windows", self.lacks));
        }
        if is_short {
            return Some("has fewer ids than its record says".to_owned());
        }
        if self.are_all_there && !is_within(self.sketches(), &self.of_windows) {
            return Some("has ids of no window".to_owned());
        }
        let is_right = !self.has_series || (self.least..=self.most).contains(&record.seconds);
        (!is_right).then(|| format!("has {} s of windows, and {} s were closed", record.seconds, self.least))
    }
}

fn estimate(sketches: &[Sketch]) -> u64 {
    sketches.iter().map(Sketch::estimate).sum()
}

/// Whether sketches of some shards have nothing that the others lack.
fn is_within(some: &[Sketch], others: &[Sketch]) -> bool {
    let none = Sketch::new();
    some.iter().zip(others.iter().chain(std::iter::repeat(&none))).all(|(some, other)| some.is_within(other))
}

impl Found {
    fn report(&self, length: WindowLength, findings: &mut Findings<impl Write>) -> io::Result<()> {
        let Self { compared, wrong, incomplete, late } = self;
        if !incomplete.is_empty() {
            let text = format_args!("{}: {}", incomplete.len(), some(incomplete.iter().cloned()));
            findings.add(Verdict::Warn, "incomplete hours and days", text)?;
        }
        if wrong.is_empty() {
            let sound = compared - incomplete.len();
            let text =
                format_args!("{sound} have all ids of their windows, as far as these are still in Redis");
            findings.add(Verdict::Ok, SUBJECT, text)?;
        } else {
            let text =
                format_args!("{} of {compared} are wrong: {}", wrong.len(), some(wrong.iter().cloned()));
            findings.add(Verdict::Fail, SUBJECT, text)?;
        }
        let late: Vec<_> = late.iter().copied().collect();
        findings.windows(Verdict::Warn, "ids after the close, in no hour or day", length, &late)
    }
}
