//! `/api/verve/accept`: a GET has one id in its query, a POST has many in its body.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderMap, Method, Uri};
use axum::response::{IntoResponse, Response};
use quanta::Instant;
use url::form_urlencoded;

use super::bulk;
use super::in_flight::Permit;
use super::schemas::{Ids, Lines};
use super::state::Routes;
use crate::callback::guard::{Endpoint, Guard};
use crate::http::error::{Failure, NO_STORE, TEXT};
use crate::model::id::Id;
use crate::model::id_list::IdList;
use crate::model::window::Window;
use crate::store::AddError;

pub(super) const ONLY_ACCEPT: Failure = Failure::MethodNotAllowed { allow: "GET, POST" };

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

/// Count one id
///
/// Answers `ok` once the id is counted. This GET changes something, but a client may repeat it: within a window an id
/// counts once. A request that fails counts nothing; after a 503 the id may have been counted all the same. Other
/// parameters are ignored.
#[utoipa::path(
    get, path = "/api/verve/accept", operation_id = "acceptId", tag = "ids",
    params(
        ("id" = Id, Query, description = "The id, in decimal, exactly once. `007` is `7` and `-0` is `0`; `+5`, `1.5`, \
            `1e3` and white space are refused."),
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
    let (id, endpoint) = parse_query(uri.query().unwrap_or_default(), api.callbacks.guard())?;
    let window = count(routes, window, &[api.element(id)], &mut None).await?;
    if let Some(endpoint) = endpoint {
        api.callbacks.submit(endpoint, window);
    }
    Ok(())
}

/// Count many ids
///
/// Answers `ok` once all ids are counted. One bad id refuses the whole body. All ids are counted in the window in which
/// the request arrived. If that window closes before all ids are in, the rest goes to the next window.
#[utoipa::path(
    post, path = "/api/verve/accept", operation_id = "acceptIds", tag = "ids",
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
    let mut window = api.window_now();
    if let Err(failure) = api.admit(request.headers()).and_then(|()| routes.in_flight.admit()) {
        bulk::refuse(request).await;
        return Err(failure);
    }
    let mut body = bulk::read(request, &api.settings, &routes.bulk_budget).await?;
    routes.in_flight.admit()?;
    // In pieces, so that a large body does not delay other requests.
    let (mut piece, mut permit) = (Vec::new(), None);
    loop {
        body.ids.take(&mut piece);
        if piece.is_empty() {
            return Ok(());
        }
        for id in &mut piece {
            *id = api.element(*id);
        }
        window = count(routes, window, &piece, &mut permit).await?;
        if piece.len() == IdList::PIECE {
            // A store in memory never waits. So yield here, or this request would block its thread.
            tokio::task::yield_now().await;
        }
    }
}

/// Reads `id=<integer>` and the optional `endpoint=<url>`; other parameters are ignored.
fn parse_query(query: &str, guard: &Guard) -> Result<(Id, Option<Endpoint>), Failure> {
    let mut id = None;
    let mut endpoint = None;
    for (key, value) in form_urlencoded::parse(query.as_bytes()) {
        match &*key {
            "id" if id.is_some() => return Err(Failure::RepeatedId),
            "id" => id = Some(Id::parse(value.as_bytes())),
            "endpoint" if endpoint.is_some() => return Err(Failure::InvalidEndpoint),
            "endpoint" => endpoint = Some(guard.admit(&value)?),
            _ => {}
        }
    }
    let id = id.ok_or(Failure::MissingId)?.map_err(|_| Failure::InvalidId { line: None })?;
    Ok((id, endpoint))
}

/// Adds ids to `window`, in which they arrived. Returns the window in which they were counted.
///
/// The store may have sealed `window` since the ids arrived, because time passed or the clock was set back. Then they go
/// to the oldest open window. That repeats only if another window ends meanwhile.
///
/// A request that has to wait takes a `permit`, and keeps it for the rest of its ids.
async fn count<'a>(
    routes: &'a Routes,
    mut window: Window,
    ids: &[Id],
    permit: &mut Option<Permit<'a>>,
) -> Result<Window, Failure> {
    let api = &routes.api;
    let arrived_in = window;
    loop {
        let mut adding = pin!(api.store.add(window, ids));
        let added = poll_fn(|context| {
            let added = adding.as_mut().poll(context);
            if added.is_pending() {
                permit.get_or_insert_with(|| routes.in_flight.wait());
            }
            added
        });
        match added.await {
            Ok(added) => {
                api.metrics.accepted_ids.increment(ids.len() as u64);
                api.metrics.changed_ids.increment(added.changed);
                if window != arrived_in {
                    api.metrics.late_ids.increment(ids.len() as u64);
                }
                return Ok(window);
            }
            Err(AddError::Sealed { open }) => window = open.max(api.window_now()),
            // The store logs an outage once, not for every request.
            Err(AddError::Unavailable(_)) => return Err(Failure::StoreUnavailable),
        }
    }
}
