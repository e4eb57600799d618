//! `/api/verve/accept`: a GET has one id in its query, a POST has many in its body.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::{Arc, OnceLock};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderMap, Method, Uri};
use axum::response::{IntoResponse, Response};
use futures_util::future::join_all;
use quanta::Instant;
use smallvec::SmallVec;

use super::bulk;
use super::in_flight::Permit;
use super::query::{form_text, pairs, percent_decoded};
use super::schemas::{Ids, Lines};
use super::state::Routes;
use crate::callback::guard::{Endpoint, Guard};
use crate::http::error::{Failure, NO_STORE, TEXT};
use crate::model::counter::{CounterName, CounterNames, InvalidCounter, OTHER};
use crate::model::element::ListCounters;
use crate::model::id::{Id, IdKind, IntegerId, TextId};
use crate::model::id_list::{IdList, ListOf, ListedId, PIECE, Piece};
use crate::model::window::Window;
use crate::store::{AddError, Counting};

pub(super) const ONLY_ACCEPT: Failure = Failure::MethodNotAllowed { allow: "GET, POST" };

/// The answer to what was counted.
pub(super) struct Counted;

impl IntoResponse for Counted {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::from("ok"));
        response.headers_mut().insert(CONTENT_TYPE, TEXT);
        response.headers_mut().insert(CACHE_CONTROL, NO_STORE);
        response
    }
}

pub(super) async fn accept(State(routes): State<Arc<Routes>>, request: Request) -> Response {
    let started = Instant::now();
    match *request.method() {
        Method::GET => {
            let result = accept_one(&routes, request.headers(), request.uri()).await;
            routes.accept.answer(started, result.map(|()| Counted))
        }
        Method::POST => {
            // Boxed: otherwise every GET would reserve memory for it.
            let result = Box::pin(accept_many(&routes, request)).await;
            routes.bulk.answer(started, result.map(|()| Counted))
        }
        _ => {
            let failure = routes.api.admit(request.headers()).err().unwrap_or(ONLY_ACCEPT);
            routes.accept.answer(started, Err::<&str, _>(failure))
        }
    }
}

/// Groups of ids with the same counters that are counted at a time.
const AT_ONCE: usize = 30;

/// Count one id
///
/// Answers `ok` once the id is counted. This GET changes something, but a client may repeat it: within a window an id
/// counts once. A request that fails counts nothing; after a 503 the id may have been counted all the same. Other
/// parameters are ignored.
#[utoipa::path(
    get, path = "/api/verve/accept", operation_id = "acceptId", tag = "ids",
    params(
        ("id" = IntegerId, Query, description = "The id, in decimal, exactly once. `007` is `7` and `-0` is `0`; `+5`, `1.5`, \
            `1e3` and white space are refused."),
        ("counter" = Option<Vec<String>>, Query, description = "Names of up to eight counters in which the id counts too. A \
            name has 1 to 128 bytes of `A-Z a-z 0-9 _ . : / @ -` and does not begin with `_`. A repeated name is one."),
        ("endpoint" = Option<String>, Query, format = "uri", pattern = "^[Hh][Tt][Tt][Pp][Ss]?://", max_length = 2048,
            description = "The service sends the count so far to this URL, once, after the answer. The URL has the \
            scheme http or https, no user, password or fragment, and port 80, 443 or 1024 and above. Its address is \
            public, unless `--callback-allow` allows more. At most once, and only with `--callbacks on`.")
    ),
    security((), ("token" = []))
)]
pub(super) async fn accept_one(routes: &Routes, headers: &HeaderMap, uri: &Uri) -> Result<(), Failure> {
    let api = &routes.api;
    api.admit(headers)?;
    routes.in_flight.admit()?;
    let window = api.window_now();
    let query = uri.query().unwrap_or_default();
    match api.counting.ids {
        IdKind::Integer => accept_id::<IntegerId>(routes, window, query).await,
        IdKind::Text => accept_id::<TextId>(routes, window, query).await,
    }
}

async fn accept_id<I: Id>(routes: &Routes, window: Window, query: &str) -> Result<(), Failure> {
    let callbacks = &routes.api.callbacks;
    let Query { id, counters, endpoint } = Query::<I>::parse(query, &routes.api.counting, callbacks.guard())?;
    let place = count(routes, window, &[id], &counters, &OnceLock::new()).await?;
    if let Some(endpoint) = endpoint {
        let counter = counters.only_one().map(|name| if place.overflow > 0 { OTHER } else { name });
        callbacks.submit(endpoint, place.window, counter);
    }
    Ok(())
}

/// Count many ids
///
/// Answers `ok` once all ids are counted. One bad id refuses the whole body. All ids are counted in the window in which
/// the request arrived. If that window closes before all ids are in, the rest goes to the next window.
#[utoipa::path(
    post, path = "/api/verve/accept", operation_id = "acceptIds", tag = "ids",
    params(("counter" = Option<Vec<String>>, Query, description = "Names of up to eight counters in which all ids count too.")),
    request_body(
        description = "The ids: up to `--body-limit` bytes, not compressed. Parameters of the media type, such as a \
            charset, are ignored.",
        content(
            (Lines = "text/plain", examples(("three" = (value = json!("1\n2\n2\n"))))),
            (Lines = "application/x-ndjson", examples(("three" = (value = json!("1\n2\n2\n"))))),
            (inline(Ids) = "application/json", examples(
                ("two" = (value = json!([3, 4]))),
                ("ends" = (value = json!([i64::MIN, u64::MAX])))
            ))
        )
    ),
    security((), ("token" = []))
)]
pub(super) async fn accept_many(routes: &Routes, request: Request) -> Result<(), Failure> {
    let api = &routes.api;
    let window = api.window_now();
    let query = request.uri().query().unwrap_or_default();
    let admitted = api.admit(request.headers()).and_then(|()| routes.in_flight.admit());
    let counters = admitted.and_then(|()| counters_of(query, &api.counting)).map(CounterNames::into_owned);
    let (request, counters) = bulk::go_on(request, counters).await?;
    let counters = ListCounters { of_all: counters, available: api.counting.may_count() };
    let body = bulk::read(request, api.counting.ids, counters, &api.settings, &routes.bulk_budget).await?;
    routes.in_flight.admit()?;
    match body.ids {
        IdList::Integers(ids) => count_all(routes, window, ids).await,
        IdList::Texts(ids) => count_all(routes, window, ids).await,
    }
}

/// Counts a list piece by piece, so that other requests do not wait for all of it. Ids that name counters of their own are counted
/// some groups at a time: one by one, each group would wait for Redis.
async fn count_all<I: ListedId>(
    routes: &Routes,
    mut window: Window,
    mut ids: ListOf<I>,
) -> Result<(), Failure> {
    let (mut piece, permit) = (Piece::default(), OnceLock::new());
    loop {
        ids.take(&mut piece);
        if piece.ids().is_empty() {
            return Ok(());
        }
        for groups in piece.groups().chunks(AT_ONCE) {
            let some = groups.iter().map(|(some, counters)| {
                count(routes, window, some, counters.unwrap_or(ids.counters()), &permit)
            });
            for counted in join_all(some).await {
                window = window.max(counted?.window);
            }
        }
        if piece.ids().len() == PIECE {
            // A store in memory never waits. So yield here, or this request would block its thread.
            tokio::task::yield_now().await;
        }
    }
}

/// What the query of a GET says.
struct Query<'a, I> {
    id: I,
    counters: CounterNames<'a>,
    endpoint: Option<Endpoint>,
}

impl<'a, I: Id> Query<'a, I> {
    /// Reads `id=<id>`, the optional `counter=<name>`, and the optional `endpoint=<url>`. Other parameters are ignored.
    ///
    /// Of an id only `%XX` is decoded, and bytes that are not UTF-8 are refused, not replaced. The other texts are decoded as
    /// forms are.
    fn parse(query: &'a str, counting: &Counting, guard: &Guard) -> Result<Self, Failure> {
        let (mut id, mut counters, mut endpoint) = (None, CounterNames::default(), None);
        for (key, value) in pairs(query) {
            match &*key {
                "id" if id.is_some() => return Err(Failure::RepeatedId),
                "id" => id = Some(I::parse(&percent_decoded(value))),
                "counter" => add_counter(&mut counters, value, counting)?,
                "endpoint" if endpoint.is_some() => return Err(Failure::InvalidEndpoint),
                "endpoint" => endpoint = Some(guard.admit(&form_text(value))?),
                _ => {}
            }
        }
        let id = id.ok_or(Failure::MissingId)?.map_err(|_| Failure::InvalidId { line: None })?;
        Ok(Self { id, counters, endpoint })
    }
}

/// The counters that the query of a POST names: they hold for all ids of the body.
pub(super) fn counters_of<'a>(query: &'a str, counting: &Counting) -> Result<CounterNames<'a>, Failure> {
    let mut counters = CounterNames::default();
    for (_, value) in pairs(query).filter(|(key, _)| key == "counter") {
        add_counter(&mut counters, value, counting)?;
    }
    Ok(counters)
}

/// Adds a counter as a query names it.
fn add_counter<'a>(
    counters: &mut CounterNames<'a>,
    value: &'a str,
    counting: &Counting,
) -> Result<(), InvalidCounter> {
    counting.may_count()?;
    counters.add(CounterName::parse(form_text(value))?)
}

/// Where ids were counted.
struct Place {
    window: Window,
    /// How many of them were counted in [`OTHER`].
    overflow: u64,
}

/// Counts ids, or with `--id-key` their hashes.
async fn count<'a, I: Id>(
    routes: &'a Routes,
    window: Window,
    ids: &[I],
    counters: &CounterNames<'_>,
    permit: &OnceLock<Permit<'a>>,
) -> Result<Place, Failure> {
    let Some(key) = &routes.api.counting.id_key else {
        return add(routes, window, ids, counters, permit).await;
    };
    let hashes: SmallVec<[IntegerId; 1]> = ids.iter().map(|id| key.apply(id)).collect();
    add(routes, window, &hashes, counters, permit).await
}

/// Adds ids to `window`, in which they arrived. Returns where they were counted.
///
/// The store may have sealed `window` since the ids arrived, because time passed or the clock was set back. Then they go
/// to the oldest open window. That repeats only if another window ends meanwhile.
///
/// A request that has to wait takes a `permit`, and keeps it for the rest of its ids.
async fn add<'a, I: Id>(
    routes: &'a Routes,
    mut window: Window,
    ids: &[I],
    counters: &CounterNames<'_>,
    permit: &OnceLock<Permit<'a>>,
) -> Result<Place, Failure> {
    let api = &routes.api;
    let arrived_in = window;
    loop {
        let mut adding = pin!(api.store.add_to(window, ids, counters));
        let added = poll_fn(|context| {
            let added = adding.as_mut().poll(context);
            if added.is_pending() {
                permit.get_or_init(|| routes.in_flight.wait());
            }
            added
        });
        match added.await {
            Ok(added) => {
                api.metrics.accepted_ids.increment(ids.len() as u64);
                api.metrics.changed_ids.increment(added.changed);
                if added.overflow > 0 {
                    api.metrics.counter_overflow_ids.increment(added.overflow);
                }
                if window != arrived_in {
                    api.metrics.late_ids.increment(ids.len() as u64);
                }
                return Ok(Place { window, overflow: added.overflow });
            }
            Err(AddError::Sealed { open }) => window = open.max(api.window_now()),
            // The store logs an outage once, not for every request.
            Err(AddError::Unavailable(_)) => return Err(Failure::StoreUnavailable),
        }
    }
}
