//! `/api/verve/accept`: one id in the query of a GET, or many in the body of a POST.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderMap, Method, Uri};
use axum::response::{IntoResponse, Response};
use quanta::Instant;
use smallvec::SmallVec;

use super::bulk;
use super::in_flight::Place;
use super::query::{form_text, pairs, percent_decoded};
use super::schemas::{Ids, Lines};
use super::state::Routes;
use crate::callback::guard::{Endpoint, Guard};
use crate::http::error::{Failure, NO_STORE, TEXT};
use crate::model::counter::{CounterName, CounterNames};
use crate::model::id::{Id, IdKind, IntegerId, TextId};
use crate::model::id_list::{IdList, ListOf, ListedId, PIECE};
use crate::model::window::Window;
use crate::store::{AddError, Counting};

/// The methods of this route.
pub(super) const ONLY_ACCEPT: Failure = Failure::MethodNotAllowed { allow: "GET, POST" };

/// The answer to a request whose ids are counted.
struct Counted;

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
            // In a box: else every GET would carry the room that this takes.
            let result = Box::pin(accept_many(&routes, request)).await;
            routes.bulk.answer(started, result.map(|()| Counted))
        }
        _ => {
            let failure = routes.api.admit(request.headers()).err().unwrap_or(ONLY_ACCEPT);
            routes.accept.answer(started, Err::<&str, _>(failure))
        }
    }
}

/// Count one id
///
/// Answers `ok` once the id is counted. It is not safe, because it counts, but it may be repeated: within a window an id
/// counts once. A request that fails counts nothing; with a 503 it may have. Parameters that are not listed are ignored.
#[utoipa::path(
    get, path = "/api/verve/accept", operation_id = "acceptId", tag = "ids",
    params(
        ("id" = IntegerId, Query, description = "The id, in decimal, and only once. `007` is `7` and `-0` is `0`; `+5`, `1.5`, \
            `1e3` and white space are refused."),
        ("counter" = Option<Vec<String>>, Query, description = "Names of up to eight counters in which the id counts too. A \
            name has 1 to 128 bytes of `A-Z a-z 0-9 _ . : / @ -` and does not begin with `_`. A repeated name is one."),
        ("endpoint" = Option<String>, Query, format = "uri", pattern = "^[Hh][Tt][Tt][Pp][Ss]?://", max_length = 2048,
            description = "Where to send the count so far, once, after the answer. An http or https URL without user, \
            password or fragment, on port 80, 443 or from 1024 on, at a public address unless `--callback-allow` opens \
            more; only once, and only with `--callbacks on`.")
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
    let window = count(routes, window, &[id], &counters, &mut None).await?;
    if let Some(endpoint) = endpoint {
        callbacks.submit(endpoint, window);
    }
    Ok(())
}

/// Count many ids
///
/// Answers `ok` once all ids are counted. One bad id refuses the whole body. The ids are counted in the window in which
/// the request arrived; should that be closed before all are in, the rest goes to the next.
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
    let uri = request.uri().clone();
    let admitted = api.admit(request.headers()).and_then(|()| routes.in_flight.admit());
    let counters = match admitted.and_then(|()| counters_of(uri.query().unwrap_or_default(), &api.counting)) {
        Ok(counters) => counters,
        Err(failure) => {
            bulk::refuse(request).await;
            return Err(failure);
        }
    };
    let body = bulk::read(request, api.counting.ids, &api.settings, &routes.bulk_budget).await?;
    routes.in_flight.admit()?;
    match body.ids {
        IdList::Integers(ids) => count_all(routes, window, ids, &counters).await,
        IdList::Texts(ids) => count_all(routes, window, ids, &counters).await,
    }
}

/// Counts a list piece by piece, so that other requests do not wait for all of it.
async fn count_all<I: ListedId>(
    routes: &Routes,
    mut window: Window,
    mut ids: ListOf<I>,
    counters: &CounterNames<'_>,
) -> Result<(), Failure> {
    let (mut piece, mut place) = (Vec::new(), None);
    loop {
        ids.take(&mut piece);
        if piece.is_empty() {
            return Ok(());
        }
        window = count(routes, window, &piece, counters, &mut place).await?;
        if piece.len() == PIECE {
            // The store in memory never waits, so other requests get their turn here.
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
                "counter" => {
                    counting.may_count()?;
                    counters.add(CounterName::parse(form_text(value))?)?;
                }
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
fn counters_of<'a>(query: &'a str, counting: &Counting) -> Result<CounterNames<'a>, Failure> {
    let mut counters = CounterNames::default();
    for (_, value) in pairs(query).filter(|(key, _)| key == "counter") {
        counting.may_count()?;
        counters.add(CounterName::parse(form_text(value))?)?;
    }
    Ok(counters)
}

/// Counts ids, or with `--id-key` their hashes. Returns the window that they were counted in.
async fn count<'a, I: Id>(
    routes: &'a Routes,
    window: Window,
    ids: &[I],
    counters: &CounterNames<'_>,
    place: &mut Option<Place<'a>>,
) -> Result<Window, Failure> {
    let Some(key) = &routes.api.counting.id_key else {
        return add(routes, window, ids, counters, place).await;
    };
    let hashes: SmallVec<[IntegerId; 1]> = ids.iter().map(|id| key.apply(id)).collect();
    add(routes, window, &hashes, counters, place).await
}

/// Adds ids to `window`, the one they arrived in, and returns the window that they were counted in.
///
/// It may be sealed by the time they get there: the clock moved on in between, or it was set back. Then
/// they are stamped anew, with the oldest window that is open. Each further round takes another window
/// that ended meanwhile, so there are few.
///
/// Who has to wait takes a `place`, and keeps it for what else there is to count of the request.
async fn add<'a, I: Id>(
    routes: &'a Routes,
    mut window: Window,
    ids: &[I],
    counters: &CounterNames<'_>,
    place: &mut Option<Place<'a>>,
) -> Result<Window, Failure> {
    let api = &routes.api;
    let arrived_in = window;
    loop {
        let mut adding = pin!(api.store.add_to(window, ids, counters));
        let added = poll_fn(|context| {
            let added = adding.as_mut().poll(context);
            if added.is_pending() {
                place.get_or_insert_with(|| routes.in_flight.wait());
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
                return Ok(window);
            }
            Err(AddError::Sealed { open }) => window = open.max(api.window_now()),
            // Logged where it changes, not for every request.
            Err(AddError::Unavailable(_)) => return Err(Failure::StoreUnavailable),
        }
    }
}
