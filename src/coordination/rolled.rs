//! What was rolled up: how much of each hour and day, and whether all ids are in it.
//!
//! The leader merges each closed window into its hour and its day, in order, and then notes it here. After a crash the next
//! leader goes on after the last window that was noted. To merge a window twice changes nothing, and a window is noted once.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::closed::CloseError;
use super::scripts;
use super::series::day_of;
use super::term::Term;
use crate::model::period::{Level, Period};
use crate::model::shard::Shards;
use crate::model::window::{Window, WindowLength};
use crate::platform::unavailable::Unavailable;
use crate::redis::damage;
use crate::redis::keys::Keys;
use crate::redis::{Call, Redis};
use crate::store::Grown;

/// The buckets that have counters, and the start of the first window of each. The records of the bucket name that window too. Records
/// that were lost and made anew name a later one.
pub type Buckets = BTreeMap<usize, u64>;

/// What was rolled up into an hour or a day.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolledPeriod {
    /// The length of its windows together, in seconds. They do not overlap.
    pub seconds: u64,
    /// How many different ids they have together.
    pub unique_request_count: u64,
    /// Whether all of these windows were complete, and all their ids are in it.
    pub complete: bool,
    /// How many sketches it has.
    pub shards: u16,
    /// Whether all counters of these windows are in it, as far as they are whole, and every id found a place in its counter.
    pub has_all_counters: bool,
    /// The buckets whose counters have ids in it.
    pub buckets: Buckets,
}

/// A window that was merged into its hour and day.
#[derive(Debug, Clone)]
pub struct RolledWindow {
    /// The window.
    pub window: Window,
    /// How many sketches it is split over.
    pub shards: Shards,
    /// Whether all ids of the window are in its hour and day.
    pub complete: bool,
    /// The buckets of its counters.
    pub buckets: BTreeSet<usize>,
    /// Its hour and day.
    pub periods: Vec<RolledInto>,
}

/// An hour or a day that a window was merged into.
#[derive(Debug, Clone, Copy)]
pub struct RolledInto {
    /// The hour or day.
    pub period: Period,
    /// How it has grown. None if the window has no ids, and if such periods of the total are not kept.
    pub grown: Option<Grown>,
    /// Whether all counters of the window are in it, as far as they are whole, and every id found a place in its counter.
    pub has_all_counters: bool,
}

/// What was rolled up so far.
#[derive(Debug, Clone, Default)]
pub struct Rolled {
    /// The last window.
    pub last: Option<Window>,
    /// The periods that were asked for, as far as there are any.
    pub periods: BTreeMap<Period, RolledPeriod>,
}

impl RolledPeriod {
    /// Whether it has so many seconds, with all their ids.
    pub fn has_all_of(&self, seconds: u64) -> bool {
        self.complete && self.seconds == seconds
    }

    fn add(&mut self, rolled: &RolledWindow, into: &RolledInto) {
        self.seconds += u64::from(rolled.window.length().seconds());
        self.complete &= rolled.complete;
        self.has_all_counters &= into.has_all_counters;
        for bucket in &rolled.buckets {
            self.buckets.entry(*bucket).or_insert(rolled.window.unix_seconds());
        }
        if let Some(Grown { before, after }) = into.grown {
            // A sketch only grows. One that had fewer ids than were noted had lost some.
            self.complete &= before >= self.unique_request_count;
            self.unique_request_count = after;
        }
    }
}

/// Notes a window in Redis, if its term is the newest.
pub(super) async fn note(
    redis: &Redis,
    keys: &Keys,
    term: &Term,
    rolled: &RolledWindow,
    keep_for: Duration,
) -> Result<(), CloseError> {
    let periods = rolled.periods.iter().map(|RolledInto { period, grown, has_all_counters }| {
        let mut period = json!({ "field": period.to_string(), "has_all_counters": has_all_counters });
        if let Some(Grown { before, after }) = grown {
            period["before"] = json!(before);
            period["after"] = json!(after);
        }
        period
    });
    let ask = json!({
        "token": term.token(),
        "window": rolled.window.unix_seconds(),
        "seconds": rolled.window.length().seconds(),
        "shards": rolled.shards.count(),
        "complete": rolled.complete,
        "buckets": rolled.buckets.iter().map(usize::to_string).collect::<Vec<_>>(),
        "periods": periods.collect::<Vec<_>>(),
        "keep_for": keep_for.as_millis() as u64,
    });
    let hashes = [keys.rolled(), keys.rolled_periods(day_of(rolled.window))];
    let mut call = scripts::ROLL_UP.prepare_invoke();
    call.key(keys.token()).key(&hashes[0]).key(&hashes[1]).arg(ask.to_string());
    let answer: String = damage::invoke_mending(redis, Call::Close, &hashes, &call).await?;
    match &*answer {
        "noted" => Ok(()),
        "fenced" => Err(CloseError::Fenced),
        _ => {
            Err(Unavailable::because(format_args!("Redis: an unexpected answer to a roll-up: {answer:?}"))
                .into())
        }
    }
}

/// Reads from Redis what was rolled up into some periods, which are in order.
pub(super) async fn read(
    redis: &Redis,
    keys: &Keys,
    length: WindowLength,
    shards: Shards,
    periods: &[Period],
) -> Result<Rolled, Unavailable> {
    let day = |period: &Period| Level::Day.at(period.start).start;
    let mut ask = ::redis::pipe();
    ask.cmd("HMGET").arg(keys.rolled()).arg("window").arg("shards");
    for of_day in periods.chunk_by(|one, next| day(one) == day(next)) {
        ask.cmd("HMGET").arg(keys.rolled_periods(day(&of_day[0])));
        ask.arg(of_day.iter().map(Period::to_string).collect::<Vec<_>>());
    }
    let stored: Vec<Vec<Option<Vec<u8>>>> =
        redis.run(Call::Count, &keys.rolled(), async |connection| ask.query_async(connection).await).await?;
    let mut stored = stored.into_iter();
    let position = stored.next().unwrap_or_default();
    let number = |place: usize| -> Option<u64> {
        std::str::from_utf8(position.get(place)?.as_deref()?).ok()?.parse().ok()
    };
    // The sketches of other shards have other keys.
    let last = number(0).filter(|_| number(1) == Some(shards.count().into()));
    // Another program may have written something else.
    let found = stored.flatten().map(|stored| serde_json::from_slice(stored.as_deref()?).ok());
    let known = periods.iter().copied().zip(found).filter_map(|(period, found)| Some((period, found?)));
    Ok(Rolled { last: last.map(|start| length.starting_at(start)), periods: known.collect() })
}

/// What a standalone instance rolled up.
#[derive(Default)]
pub(super) struct LocalRolled {
    last: Option<Window>,
    periods: BTreeMap<Period, RolledPeriod>,
}

impl LocalRolled {
    /// Notes a window. Periods that begin before `oldest` go.
    pub(super) fn note(&mut self, rolled: &RolledWindow, oldest: u64) {
        if self.last >= Some(rolled.window) {
            return;
        }
        self.last = Some(rolled.window);
        for into in &rolled.periods {
            let none = RolledPeriod {
                seconds: 0,
                unique_request_count: 0,
                complete: true,
                shards: rolled.shards.count(),
                has_all_counters: true,
                buckets: Buckets::new(),
            };
            self.periods.entry(into.period).or_insert(none).add(rolled, into);
        }
        self.periods.retain(|period, _| period.end() > oldest);
    }

    pub(super) fn get(&self, periods: &[Period]) -> Rolled {
        let known = periods.iter().filter_map(|period| Some((*period, self.periods.get(period)?.clone())));
        Rolled { last: self.last, periods: known.collect() }
    }
}
