//! Ranges of time in a query, and the count of one.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

use serde::Serialize;
use tokio::runtime::Handle;
use tokio::sync::OwnedSemaphorePermit;
use tracing::warn;
use utoipa::ToSchema;

use super::query::{pairs, percent_decoded};
use super::state::{QUERY_PATIENCE, Routes};
use crate::coordination::{PastCount, Rolled};
use crate::hll::Sketch;
use crate::http::error::Failure;
use crate::model::counter::{CounterName, Subject, bucket_of};
use crate::model::mode::Mode;
use crate::model::parts::{Kept, NotKept, Part};
use crate::model::period::{Level, Period};
use crate::model::range::{InvalidRange, Moment, Range};
use crate::model::shard::Shards;
use crate::model::window::Window;
use crate::platform::unavailable::Unavailable;
use crate::store::{self, CounterRecord, Union, standard_error};

/// What a query says of a range, as it is written.
#[derive(Default)]
pub(super) struct RangeQuery<'a> {
    from: Option<Cow<'a, [u8]>>,
    to: Option<Cow<'a, [u8]>>,
    pub(super) step: Option<Cow<'a, [u8]>>,
    steps: Option<Cow<'a, [u8]>>,
    counters: Vec<Cow<'a, [u8]>>,
}

impl<'a> RangeQuery<'a> {
    pub(super) fn parse(query: &'a str) -> Result<Self, InvalidRange> {
        let mut parsed = Self::default();
        for (key, value) in pairs(query) {
            let (name, place) = match &*key {
                "from" => ("from", &mut parsed.from),
                "to" => ("to", &mut parsed.to),
                "step" => ("step", &mut parsed.step),
                "steps" => ("steps", &mut parsed.steps),
                "counter" => {
                    parsed.counters.push(percent_decoded(value));
                    continue;
                }
                _ => continue,
            };
            // In a time, a `+` is a plus.
            if place.replace(percent_decoded(value)).is_some() {
                return Err(InvalidRange::Repeated(name));
            }
        }
        Ok(parsed)
    }

    /// What to count: a counter if one is named.
    pub(super) fn subject(&self, counting: &store::Counting) -> Result<Subject, Failure> {
        match &*self.counters(counting)? {
            [] => Ok(Subject::Total),
            [name] => Ok(Subject::Counter(name.clone())),
            _ => Err(Failure::InvalidParameter { detail: "counter is given twice" }),
        }
    }

    /// The counters that are named, as often as they are.
    pub(super) fn counters(&self, counting: &store::Counting) -> Result<Vec<Box<str>>, Failure> {
        let name = |name: &Cow<'_, [u8]>| {
            counting.may_count()?;
            Ok(CounterName::parse_for_reading(String::from_utf8_lossy(name))?.as_str().into())
        };
        self.counters.iter().map(name).collect()
    }

    pub(super) fn names_counters(&self) -> bool {
        !self.counters.is_empty()
    }

    /// The range of windows that is given. Without any end, it is the running window.
    pub(super) fn range_or_running(&self, running: Window) -> Result<Range, InvalidRange> {
        if self.from.is_none() && self.to.is_none() {
            return Ok(Range { from: running, to: running.next() });
        }
        self.range(running)
    }

    /// The range of windows, or of hours or days if `running` is one.
    pub(super) fn range(&self, running: Window) -> Result<Range, InvalidRange> {
        Range::new(moment(self.from.as_deref(), "from")?, moment(self.to.as_deref(), "to")?, running)
    }

    /// The range of so many hours or days as `steps` says, up to the running one.
    pub(super) fn steps(&self, running: Window, may_be: RangeInclusive<u64>) -> Result<Range, Failure> {
        let steps = self.steps.as_deref().filter(|steps| steps.iter().all(u8::is_ascii_digit));
        let number = steps.and_then(|steps| std::str::from_utf8(steps).ok()?.parse().ok());
        let number = number
            .filter(|number| may_be.contains(number))
            .ok_or(Failure::InvalidParameter { detail: "steps is a whole number from 2 to 35" })?;
        if self.to.is_some() {
            return Err(Failure::InvalidParameter {
                detail: "a retention has no to: steps says where it ends",
            });
        }
        Ok(Range::of_steps(moment(self.from.as_deref(), "from")?, number, running)?)
    }
}

fn moment(text: Option<&[u8]>, name: &'static str) -> Result<Moment, InvalidRange> {
    let text = std::str::from_utf8(text.ok_or(InvalidRange::Missing(name))?);
    text.ok().and_then(Moment::parse).ok_or(InvalidRange::NotATime(name))
}

/// How many different ids a range of time has.
#[derive(Serialize, ToSchema)]
#[schema(examples(json!({
    "mode": "hll", "standard_error": 0.008_125, "from": "2026-11-23T00:00:00Z", "to": "2026-11-24T00:00:00Z",
    "unique_request_count": 1_860_211, "complete": true
})))]
pub(super) struct RangeCount {
    /// The counter, if one was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String)]
    counter: Option<Box<str>>,
    #[schema(inline)]
    mode: Mode,
    /// Relative to the true count.
    #[schema(minimum = 0, maximum = 1)]
    standard_error: f64,
    /// The start of the first window.
    from: Window,
    /// The end of the last one.
    to: Window,
    /// How many different ids: one that came in several windows is one.
    unique_request_count: u64,
    /// Whether every window of the range is complete and in the count.
    complete: bool,
}

/// Counts a range.
pub(super) async fn count(routes: &Routes, of: Subject, range: Range) -> Result<RangeCount, Failure> {
    let permit = admit(routes)?;
    let counting = Counting { routes, of: &of };
    let counted = tokio::time::timeout(QUERY_PATIENCE, counting.count(range, permit)).await;
    let PastCount { unique_request_count, complete } = counted.map_err(|_| Failure::Overloaded)??;
    Ok(RangeCount {
        mode: routes.api.counting.mode,
        standard_error: error_of(routes, &of),
        counter: name_of(of),
        from: range.from,
        to: range.to,
        unique_request_count,
        complete,
    })
}

/// Only `--max-queries` are counted at a time.
pub(super) fn admit(routes: &Routes) -> Result<Permit, Failure> {
    if routes.api.counting.mode == Mode::Exact {
        return Err(Failure::NotAvailable {
            why: "mode exact keeps no sketches: only mode hll counts ranges, hours and days",
        });
    }
    admit_exact(routes)
}

/// The same also in mode `exact`.
pub(super) fn admit_exact(routes: &Routes) -> Result<Permit, Failure> {
    let permit = Arc::clone(&routes.queries).try_acquire_owned().map_err(|_| Failure::Overloaded)?;
    if routes.api.store.is_degraded() {
        return Err(Failure::StoreUnavailable);
    }
    Ok(Arc::new(permit))
}

/// The right to count. It ends with the last clone.
pub(super) type Permit = Arc<OwnedSemaphorePermit>;

/// The standard error of counts of a total or a counter.
pub(super) fn error_of(routes: &Routes, of: &Subject) -> f64 {
    match of {
        Subject::Total => routes.api.counting.standard_error(),
        Subject::Counter(_) => standard_error(routes.api.counting.mode, Shards::ONE),
    }
}

pub(super) fn name_of(subject: Subject) -> Option<Box<str>> {
    match subject {
        Subject::Total => None,
        Subject::Counter(name) => Some(name),
    }
}

/// The sketches of a range.
pub(super) struct Counted {
    /// One for each shard.
    pub(super) sketches: Vec<Sketch>,
    /// Whether every window of the range is complete and in them.
    pub(super) complete: bool,
}

/// A count of ranges.
pub(super) struct Counting<'a> {
    pub(super) routes: &'a Routes,
    pub(super) of: &'a Subject,
}

impl Counting<'_> {
    pub(super) async fn count(&self, range: Range, permit: Permit) -> Result<PastCount, Failure> {
        if range.from.next() == range.to
            && let Some(count) = self.closed(range).await?
        {
            return Ok(count);
        }
        let Counted { sketches, complete } = self.sketches(range, permit).await?;
        let unique_request_count = sketches.iter().map(Sketch::estimate).sum();
        Ok(PastCount { unique_request_count, complete })
    }

    /// The sketches of a range.
    pub(super) async fn sketches(&self, range: Range, permit: Permit) -> Result<Counted, Failure> {
        let parts = self.parts(range).await?;
        let counted = self.sketches_of(&parts, Arc::clone(&permit)).await?;
        let is_running = |part: &Part| period_of(*part).is_some_and(|period| part.end() < period.end());
        // Only windows that are over are rolled up.
        let next_is_over = self.routes.api.running_window() > range.to;
        if !parts.iter().any(is_running) || !next_is_over || self.rolled_up().await? < Some(range.to) {
            return Ok(counted);
        }
        // The running hour or day may have the window after the range, too. So its windows are counted one by one. If these are
        // gone, the count stays, and is not called complete.
        match self.parts(range).await {
            Ok(parts) => self.sketches_of(&parts, permit).await,
            Err(Failure::RangeNotKept { .. } | Failure::InvalidRange { .. }) => {
                Ok(Counted { complete: false, ..counted })
            }
            Err(failure) => Err(failure),
        }
    }

    /// The end of the last window that was rolled up.
    async fn rolled_up(&self) -> Result<Option<Window>, Failure> {
        let rolled = self.routes.api.coordinator.rolled(&[]).await.map_err(unavailable)?;
        Ok(rolled.last.map(Window::next))
    }

    async fn parts(&self, range: Range) -> Result<Vec<Part>, Failure> {
        let rolled_up = self.rolled_up().await?;
        let parts = self.kept(rolled_up).parts(range).map_err(|at| Failure::RangeNotKept { at })?;
        if parts.len() as u64 > Range::MOST_STEPS {
            return Err(InvalidRange::TooManySteps { steps: parts.len() as u64 }.into());
        }
        Ok(parts)
    }

    async fn sketches_of(&self, parts: &[Part], permit: Permit) -> Result<Counted, Failure> {
        let periods: Vec<_> = parts.iter().filter_map(|part| period_of(*part)).collect();
        let noted = self.noted(parts, &periods).await?;
        // Last: an id that was rolled up meanwhile is in a sketch then.
        let Union { sketches, of_parts } = self.union(parts.to_vec(), permit).await?;
        let complete = parts.iter().zip(&of_parts).all(|(part, count)| noted.is_complete(*part, *count));
        Ok(Counted { sketches, complete })
    }

    /// The stored count of a closed window. Those of counters are remembered only for the last one.
    async fn closed(&self, range: Range) -> Result<Option<PastCount>, Failure> {
        let api = &self.routes.api;
        match self.of {
            Subject::Total => {
                let series = api.coordinator.series(range).await.map_err(unavailable)?;
                Ok(series.get(&range.from).copied())
            }
            Subject::Counter(name) => {
                let counters = api.closed.counters().filter(|counters| counters.window() == range.from);
                Ok(counters.map(|counters| PastCount {
                    unique_request_count: counters.counts.get(name),
                    complete: counters.is_complete(name),
                }))
            }
        }
    }

    /// What is noted of the parts of a range, among them these periods.
    async fn noted(&self, parts: &[Part], periods: &[Period]) -> Result<Noted, Failure> {
        let api = &self.routes.api;
        let rolled = api.coordinator.rolled(periods).await.map_err(unavailable)?;
        let mut noted = Noted { rolled, windows: BTreeMap::new(), counters: BTreeMap::new() };
        match self.of {
            Subject::Total => {
                self.check_shards(&noted.rolled)?;
                noted.windows = self.series(parts).await.map_err(unavailable)?;
            }
            Subject::Counter(name) => {
                let records = api.store.counter_records(name, periods).await.map_err(unavailable)?;
                let bucket = bucket_of(name);
                noted.counters =
                    periods.iter().copied().zip(records.into_iter().map(|of| (bucket, of))).collect();
            }
        }
        Ok(noted)
    }

    /// After a change of `--shards`, the sketches before it have other keys.
    fn check_shards(&self, rolled: &Rolled) -> Result<(), Failure> {
        let shards = self.routes.api.counting.shards.count();
        match rolled.periods.iter().find(|(_, rolled)| rolled.shards != shards) {
            None => Ok(()),
            Some((period, _)) => {
                let oldest = rolled.last.map_or(0, Window::unix_seconds);
                Err(Failure::RangeNotKept { at: NotKept { at: period.start, level: None, oldest } })
            }
        }
    }

    /// On a thread that may be busy for a while. It holds the permit until the end, also if nobody waits any more.
    async fn union(&self, parts: Vec<Part>, permit: Permit) -> Result<Union, Failure> {
        let (store, of, runtime) = (Arc::clone(&self.routes.api.store), self.of.clone(), Handle::current());
        let work = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            runtime.block_on(store.union(&of, &parts))
        });
        work.await.map_err(Unavailable::because).and_then(|union| union).map_err(unavailable)
    }

    fn kept(&self, rolled_up: Option<Window>) -> Kept {
        let (api, rolled_up) = (&self.routes.api, rolled_up.map(Window::unix_seconds));
        let (now, counting) = (api.clock.now(), &api.counting);
        let windows = match (self.of, rolled_up) {
            (Subject::Total, _) => {
                api.store.oldest_window(now, counting.retention, counting.window).unix_seconds()
            }
            // Windows of counters are kept until they are rolled up.
            (Subject::Counter(_), Some(rolled_up)) if counting.keep.counters.any() => rolled_up,
            (Subject::Counter(_), _) => api.running_window().unix_seconds(),
        };
        let oldest = |level| self.oldest(level);
        Kept {
            windows,
            hours: oldest(Level::Hour),
            days: oldest(Level::Day),
            rolled_up: rolled_up.unwrap_or(0),
        }
    }

    /// The start of the oldest hour or day whose sketch is kept; none if none are.
    pub(super) fn oldest(&self, level: Level) -> Option<u64> {
        let (api, counting) = (&self.routes.api, &self.routes.api.counting);
        let oldest = api.store.oldest_period(self.of, level, &counting.keep, api.clock.now());
        oldest.filter(|_| level.takes(counting.window))
    }

    /// The counts of the windows among some parts.
    async fn series(&self, parts: &[Part]) -> Result<BTreeMap<Window, PastCount>, Unavailable> {
        let mut series = BTreeMap::new();
        let are_windows = |part: &Part| matches!(part, Part::Window(_));
        for of_a_kind in parts.chunk_by(|one, next| are_windows(one) && are_windows(next)) {
            if let [Part::Window(from), ..] = of_a_kind
                && let [.., Part::Window(last)] = of_a_kind
            {
                let range = Range { from: *from, to: last.next() };
                series.extend(self.routes.api.coordinator.series(range).await?);
            }
        }
        Ok(series)
    }

    /// The counts of the counter in hours or days, which are over and rolled up.
    pub(super) async fn counts_of(
        &self,
        periods: &[Period],
        permit: Permit,
    ) -> Result<Vec<PastCount>, Failure> {
        let part = |period: &Period| Part::Period { period: *period, end: period.end() };
        let parts: Vec<_> = periods.iter().map(part).collect();
        let noted = self.noted(&parts, periods).await?;
        let Union { of_parts, .. } = self.union(parts.clone(), permit).await?;
        let count = |(part, count): (&Part, &u64)| PastCount {
            unique_request_count: *count,
            complete: noted.is_complete(*part, *count),
        };
        Ok(parts.iter().zip(&of_parts).map(count).collect())
    }
}

/// What was noted of parts when they were counted and rolled up.
struct Noted {
    rolled: Rolled,
    /// Of closed windows, of the total.
    windows: BTreeMap<Window, PastCount>,
    /// Of a counter: its bucket and its record.
    counters: BTreeMap<Period, (usize, Option<CounterRecord>)>,
}

impl Noted {
    /// Whether a part is complete of which so many ids were counted now. With fewer than were noted, Redis lost some.
    fn is_complete(&self, part: Part, count: u64) -> bool {
        let noted = self.of(part);
        noted.complete && noted.unique_request_count <= count
    }

    /// How many ids a part had, and whether it is complete. What is not known is not complete.
    fn of(&self, part: Part) -> PastCount {
        let nothing = PastCount { unique_request_count: 0, complete: false };
        let (period, end) = match part {
            Part::Window(window) => return self.windows.get(&window).copied().unwrap_or(nothing),
            Part::Period { period, end } => (period, end),
        };
        let Some(rolled) = self.rolled.periods.get(&period) else { return nothing };
        let complete = rolled.has_all_of(end - period.start);
        match self.counters.get(&period) {
            None => PastCount { unique_request_count: rolled.unique_request_count, complete },
            Some((bucket, record)) => {
                let complete = complete && rolled.has_all_counters;
                let since = rolled.buckets.get(bucket).copied();
                // Without a record no counter of its bucket has ids, or the records are lost.
                let Some(record) = record else {
                    return PastCount { complete: complete && since.is_none(), ..nothing };
                };
                // Records that were lost and made anew begin later.
                let is_whole = record.is_whole && (record.since.is_none() || record.since == since);
                PastCount { unique_request_count: record.unique_ids, complete: complete && is_whole }
            }
        }
    }
}

fn period_of(part: Part) -> Option<Period> {
    match part {
        Part::Window(_) => None,
        Part::Period { period, .. } => Some(period),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
pub(super) fn unavailable(error: Unavailable) -> Failure {
    warn!(%error, "a range cannot be counted");
    Failure::StoreUnavailable
}
