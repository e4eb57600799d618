//! Ranges of time in a query, and the count of one.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;
use tokio::runtime::Handle;
use tokio::sync::OwnedSemaphorePermit;
use tracing::warn;
use utoipa::ToSchema;

use super::query::{pairs, percent_decoded};
use super::state::{QUERY_PATIENCE, Routes};
use crate::coordination::{PastCount, Rolled, RolledPeriod};
use crate::hll::Sketch;
use crate::http::error::Failure;
use crate::model::mode::Mode;
use crate::model::parts::{Kept, NotKept, Part};
use crate::model::period::{Level, Period};
use crate::model::range::{InvalidRange, Moment, Range};
use crate::model::window::Window;
use crate::platform::unavailable::Unavailable;
use crate::store::Union;

/// What a query says of a range, as it is written.
#[derive(Default)]
pub(super) struct RangeQuery<'a> {
    from: Option<Cow<'a, [u8]>>,
    to: Option<Cow<'a, [u8]>>,
    pub(super) step: Option<Cow<'a, [u8]>>,
    pub(super) counter: Option<Cow<'a, [u8]>>,
}

impl<'a> RangeQuery<'a> {
    pub(super) fn parse(query: &'a str) -> Result<Self, InvalidRange> {
        let mut parsed = Self::default();
        for (key, value) in pairs(query) {
            let (name, place) = match &*key {
                "from" => ("from", &mut parsed.from),
                "to" => ("to", &mut parsed.to),
                "step" => ("step", &mut parsed.step),
                "counter" => ("counter", &mut parsed.counter),
                _ => continue,
            };
            // In a time, a `+` is a plus.
            if place.replace(percent_decoded(value)).is_some() {
                return Err(InvalidRange::Repeated(name));
            }
        }
        Ok(parsed)
    }

    pub(super) fn range(&self, running: Window) -> Result<Range, InvalidRange> {
        let moment = |text: &Option<Cow<'_, [u8]>>, name| {
            let text = text.as_deref().ok_or(InvalidRange::Missing(name))?;
            let text = std::str::from_utf8(text).map_err(|_| InvalidRange::NotATime(name))?;
            Moment::parse(text).ok_or(InvalidRange::NotATime(name))
        };
        Range::new(moment(&self.from, "from")?, moment(&self.to, "to")?, running)
    }
}

/// How many different ids a range of time has.
#[derive(Serialize, ToSchema)]
#[schema(examples(json!({
    "mode": "hll", "standard_error": 0.008_125, "from": "2026-11-23T00:00:00Z", "to": "2026-11-24T00:00:00Z",
    "unique_request_count": 1_860_211, "complete": true
})))]
pub(super) struct RangeCount {
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

/// Counts a range. Only `--max-queries` are counted at a time.
pub(super) async fn count(routes: &Routes, range: Range) -> Result<RangeCount, Failure> {
    let api = &routes.api;
    if api.counting.mode == Mode::Exact {
        return Err(Failure::NotAvailable {
            why: "mode exact keeps no sketches: only mode hll counts ranges",
        });
    }
    let permit = Arc::clone(&routes.queries).try_acquire_owned().map_err(|_| Failure::Overloaded)?;
    if api.store.is_degraded() {
        return Err(Failure::StoreUnavailable);
    }
    let counting = Counting { routes, range };
    let counted = tokio::time::timeout(QUERY_PATIENCE, counting.count(permit)).await;
    let (unique_request_count, complete) = counted.map_err(|_| Failure::Overloaded)??;
    Ok(RangeCount {
        mode: api.counting.mode,
        standard_error: api.counting.standard_error(),
        from: range.from,
        to: range.to,
        unique_request_count,
        complete,
    })
}

struct Counting<'a> {
    routes: &'a Routes,
    range: Range,
}

impl Counting<'_> {
    async fn count(&self, permit: OwnedSemaphorePermit) -> Result<(u64, bool), Failure> {
        let coordinator = &self.routes.api.coordinator;
        if self.range.from.next() == self.range.to {
            let series = coordinator.series(self.range).await.map_err(unavailable)?;
            if let Some(count) = series.get(&self.range.from) {
                return Ok((count.unique_request_count, count.complete));
            }
        }
        let rolled_up = coordinator.rolled(&[]).await.map_err(unavailable)?.last;
        let parts = self.kept(rolled_up).parts(self.range).map_err(|at| Failure::RangeNotKept { at })?;
        if parts.len() as u64 > Range::MOST_STEPS {
            return Err(InvalidRange::TooManySteps { steps: parts.len() as u64 }.into());
        }
        let periods: Vec<_> = parts.iter().filter_map(|part| period_of(*part)).collect();
        let rolled = coordinator.rolled(&periods).await.map_err(unavailable)?;
        let of_others =
            |(_, rolled): &(&Period, &RolledPeriod)| rolled.shards != self.routes.api.counting.shards.count();
        if let Some((period, _)) = rolled.periods.iter().find(of_others) {
            // Before `--shards` was changed.
            let at =
                NotKept { at: period.start, level: None, oldest: rolled_up.map_or(0, Window::unix_seconds) };
            return Err(Failure::RangeNotKept { at });
        }
        let series = self.series(&parts).await.map_err(unavailable)?;
        // Last: an id that was rolled up meanwhile is in a sketch then.
        let Union { sketches, of_parts } = self.union(parts.clone(), permit).await.map_err(unavailable)?;
        let are_complete = parts.iter().zip(&of_parts).all(|(part, count)| {
            let (expected, is_complete) = noted(*part, &rolled, &series);
            // Otherwise Redis lost ids of it.
            is_complete && expected <= *count
        });
        Ok((sketches.iter().map(Sketch::estimate).sum(), are_complete))
    }

    /// On a thread that may be busy for a while. It holds the permit until the end, also if nobody waits any more.
    async fn union(&self, parts: Vec<Part>, permit: OwnedSemaphorePermit) -> Result<Union, Unavailable> {
        let (store, runtime) = (Arc::clone(&self.routes.api.store), Handle::current());
        let work = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            runtime.block_on(store.union(&parts))
        });
        work.await.map_err(Unavailable::because)?
    }

    fn kept(&self, rolled_up: Option<Window>) -> Kept {
        let api = &self.routes.api;
        let (now, counting) = (api.clock.now(), &api.counting);
        let oldest = |level: Level| {
            let oldest = api.store.oldest_period(level, counting.keep, now);
            oldest.filter(|_| level.takes(counting.window))
        };
        Kept {
            windows: api.store.oldest_window(now, counting.retention, counting.window).unix_seconds(),
            hours: oldest(Level::Hour),
            days: oldest(Level::Day),
            rolled_up: rolled_up.map_or(0, |last| last.next().unix_seconds()),
        }
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
}

/// How many ids a part had when it was counted, and whether it is complete.
fn noted(part: Part, rolled: &Rolled, series: &BTreeMap<Window, PastCount>) -> (u64, bool) {
    match part {
        Part::Window(window) => {
            series.get(&window).map_or((0, false), |count| (count.unique_request_count, count.complete))
        }
        Part::Period { period, end } => rolled.periods.get(&period).map_or((0, false), |rolled| {
            (rolled.unique_request_count, rolled.has_all_of(end - period.start))
        }),
    }
}

fn period_of(part: Part) -> Option<Period> {
    match part {
        Part::Window(_) => None,
        Part::Period { period, .. } => Some(period),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn unavailable(error: Unavailable) -> Failure {
    warn!(%error, "a range cannot be counted");
    Failure::StoreUnavailable
}
