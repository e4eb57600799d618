//! `/api/verve/overlap`: how many ids counters have in common.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::header::CACHE_CONTROL;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tokio::runtime::Handle;
use utoipa::ToSchema;

use super::counters::NamedCount;
use super::range::{self, Counted, Counting, Permit, RangeQuery};
use super::state::{QUERY_PATIENCE, Routes};
use crate::hll::{self, Sketch};
use crate::http::error::{Failure, NO_STORE};
use crate::model::counter::Subject;
use crate::model::mode::Mode;
use crate::model::range::Range;
use crate::model::window::Window;
use crate::platform::unavailable::Unavailable;
use crate::store::{self, Compared};

/// Counters of a question, at most.
const MOST: usize = 8;

/// What counters have in common.
#[derive(Serialize, ToSchema)]
#[schema(examples(json!({
    "mode": "hll", "from": "2026-11-23T04:00:00Z", "to": "2026-11-23T05:00:00Z",
    "counters": [
        { "counter": "campaign-7", "unique_request_count": 100_280 },
        { "counter": "campaign-8", "unique_request_count": 99_410 }
    ],
    "union": 181_370, "intersection": 18_020, "intersection_standard_error": 561.2, "jaccard": 0.099_355,
    "complete": true
})))]
pub(super) struct Overlap {
    #[schema(inline)]
    mode: Mode,
    /// The start of the first window.
    from: Window,
    /// The end of the last one.
    to: Window,
    /// In the order of the question.
    #[schema(inline, min_items = 2, max_items = 8)]
    counters: Vec<NamedCount>,
    /// How many different ids all of them have together.
    union: u64,
    /// Of two counters: how many different ids both have. Never more than the smaller one has.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = u64)]
    intersection: Option<u64>,
    /// In ids. Two of three intersections are within one standard error, 95 of 100 within two. It is 0 in mode `exact`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = f64, minimum = 0)]
    intersection_standard_error: Option<f64>,
    /// The intersection, divided by the union; 0 if that is empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = f64, minimum = 0, maximum = 1)]
    jaccard: Option<f64>,
    /// Of three counters and more: each with each.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(inline, value_type = Vec<Pair>, max_items = 28)]
    pairs: Option<Vec<Pair>>,
    /// Whether every window of the range is complete and in all the counts.
    complete: bool,
}

/// Two of more than two counters, and what they have in common, as of two counters alone.
#[derive(Serialize, ToSchema)]
struct Pair {
    /// Their names.
    #[schema(min_items = 2, max_items = 2)]
    counters: [String; 2],
    intersection: u64,
    #[schema(minimum = 0)]
    intersection_standard_error: f64,
    #[schema(minimum = 0, maximum = 1)]
    jaccard: f64,
}

/// What counters have in common
#[utoipa::path(
    get, path = "/api/verve/overlap", operation_id = "overlap", tag = "counts",
    params(
        ("counter" = Vec<String>, Query, min_items = 2, max_items = 8, description = "Two to eight counters. Of more than two, each \
            is compared with each: there is no intersection of more than two."),
        ("from" = Option<String>, Query, description = "With `to`: the start of a range, as that of `/api/verve/unique`. Without \
            a range, the running window is compared.", example = "2026-11-23T04:00:00Z"),
        ("to" = Option<String>, Query, description = "With `from`: its end.", example = "2026-11-23T05:00:00Z"),
    ),
    responses((status = 200, description = "The counts.", body = Overlap)),
    security((), ("token" = []))
)]
pub(super) async fn overlap(State(routes): State<Arc<Routes>>, request: Request) -> Response {
    let admitted = routes.api.admit_reader(&request);
    let query = request.uri().query().unwrap_or_default();
    routes.overlap.answer_reader(admitted, read(&routes, query)).await
}

async fn read(routes: &Routes, query: &str) -> Result<impl IntoResponse + use<>, Failure> {
    let query = RangeQuery::parse(query)?;
    let names = names(&query, &routes.api.counting)?;
    let range = query.range_or_running(routes.api.running_window())?;
    let exactly = routes.api.counting.mode == Mode::Exact;
    let permit = if exactly { range::admit_exact(routes)? } else { range::admit(routes)? };
    let comparing = async {
        if exactly {
            compare_exactly(routes, names, range, permit).await
        } else {
            compare(routes, names, range, permit).await
        }
    };
    let compared = tokio::time::timeout(QUERY_PATIENCE, comparing).await;
    let overlap = compared.map_err(|_| Failure::Overloaded)??;
    Ok(([(CACHE_CONTROL, NO_STORE)], Json(overlap)))
}

/// The counters of a question. One that is named twice is one.
fn names(query: &RangeQuery<'_>, counting: &store::Counting) -> Result<Vec<Box<str>>, Failure> {
    let mut names = Vec::with_capacity(MOST);
    for name in query.counters(counting)? {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    if (2..=MOST).contains(&names.len()) {
        Ok(names)
    } else {
        Err(Failure::InvalidParameter { detail: "name two to eight different counters: counter=A&counter=B" })
    }
}

async fn compare(
    routes: &Routes,
    names: Vec<Box<str>>,
    range: Range,
    permit: Permit,
) -> Result<Overlap, Failure> {
    let (mut all, mut complete) = (Vec::with_capacity(names.len()), true);
    for name in names {
        let of = Subject::Counter(name.clone());
        let counted = Counting { routes, of: &of }.sketches(range, Arc::clone(&permit)).await?;
        let Counted { sketches, complete: is_complete } = counted;
        all.push((name, sketches.into_iter().next().unwrap_or_default()));
        complete &= is_complete;
    }
    let mode = routes.api.counting.mode;
    let work = tokio::task::spawn_blocking(move || {
        // Held until the work ends, even if the client does not wait for it.
        let _permit = permit;
        answer(mode, range, &all, complete)
    });
    work.await.map_err(|error| range::unavailable(Unavailable::because(error)))
}

/// In the running window or the last closed one: of others there are no sets.
async fn compare_exactly(
    routes: &Routes,
    names: Vec<Box<str>>,
    range: Range,
    permit: Permit,
) -> Result<Overlap, Failure> {
    let (api, window) = (&routes.api, range.from);
    let closed = api.closed.counters().filter(|closed| closed.window() == window);
    if window.next() != range.to || (window != api.running_window() && closed.is_none()) {
        let why = "mode exact has ids only of the running window and of the last closed one";
        return Err(Failure::NotAvailable { why });
    }
    let (store, asked, runtime) = (Arc::clone(&api.store), names.clone(), Handle::current());
    let work = tokio::task::spawn_blocking(move || {
        // Held until the work ends, even if the client does not wait for it.
        let _permit = permit;
        runtime.block_on(store.compare(window, &asked.iter().map(|name| &**name).collect::<Vec<_>>()))
    });
    let compared = work.await.map_err(|error| range::unavailable(Unavailable::because(error)))?;
    let (counts, union, common) =
        match compared.map_err(|error| range::unavailable(Unavailable::because(error)))? {
            Compared::Sets { counts, union, common } => (counts, union, common),
            Compared::Not(why) => return Err(Failure::NotAvailable { why }),
        };
    let pair = |((one, other), common): ((usize, usize), u64)| {
        let of_both = counts[one] + counts[other] - common;
        let jaccard = if of_both == 0 { 0.0 } else { common as f64 / of_both as f64 };
        Pair::new([&names[one], &names[other]], common, 0.0, jaccard)
    };
    let pairs = store::pairs(names.len()).zip(common).map(pair).collect();
    // With fewer ids than were counted at the close, Redis has lost some since.
    let complete = closed.is_some_and(|closed| {
        let mut counts = names.iter().zip(&counts);
        counts.all(|(name, count)| closed.is_complete(name) && *count >= closed.counts.get(name))
    });
    let counts = names.iter().map(|name| &**name).zip(counts);
    Ok(Overlap::new(Mode::Exact, range, counts, union, pairs, complete))
}

fn answer(mode: Mode, range: Range, all: &[(Box<str>, Sketch)], complete: bool) -> Overlap {
    let mut union = Sketch::new();
    for (_, sketch) in all {
        union.absorb(sketch);
    }
    let pair = |(one, other): (usize, usize)| {
        let ((name, sketch), (other, other_sketch)) = (&all[one], &all[other]);
        let found = hll::Overlap::of(sketch, other_sketch);
        Pair::new([name, other], found.intersection, found.standard_error, found.jaccard)
    };
    let pairs = store::pairs(all.len()).map(pair).collect();
    let counts = all.iter().map(|(name, sketch)| (&**name, sketch.estimate()));
    Overlap::new(mode, range, counts, union.estimate(), pairs, complete)
}

impl Overlap {
    fn new<'a>(
        mode: Mode,
        range: Range,
        counts: impl Iterator<Item = (&'a str, u64)>,
        union: u64,
        mut pairs: Vec<Pair>,
        complete: bool,
    ) -> Self {
        let named = |(counter, unique_request_count): (&str, u64)| NamedCount {
            counter: counter.to_owned(),
            unique_request_count,
        };
        let counters: Vec<_> = counts.map(named).collect();
        let of_two = if counters.len() == 2 { pairs.pop() } else { None };
        Self {
            mode,
            from: range.from,
            to: range.to,
            counters,
            union,
            intersection: of_two.as_ref().map(|of_two| of_two.intersection),
            intersection_standard_error: of_two.as_ref().map(|of_two| of_two.intersection_standard_error),
            jaccard: of_two.as_ref().map(|of_two| of_two.jaccard),
            pairs: of_two.is_none().then_some(pairs),
            complete,
        }
    }
}

impl Pair {
    fn new(counters: [&str; 2], intersection: u64, standard_error: f64, jaccard: f64) -> Self {
        Self {
            counters: counters.map(str::to_owned),
            intersection,
            intersection_standard_error: rounded(standard_error, 10.0),
            jaccard: rounded(jaccard, 1e6),
        }
    }
}

/// A figure without digits that say nothing.
pub(super) fn rounded(figure: f64, parts: f64) -> f64 {
    (figure * parts).round() / parts
}
