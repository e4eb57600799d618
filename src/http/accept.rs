//! `/api/verve/accept`: one id in the query of a GET, or many in the body of a POST.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderName, HeaderValue, Method, Uri};
use axum::response::Response;
use url::{Url, form_urlencoded};

use super::error::{Failure, NO_STORE, TEXT};
use super::{Api, Routes, bulk};
use crate::counter::Sealed;
use crate::id::Id;

/// Ids that are handed to the counter at a time. A bulk body goes in piece by piece, so that it
/// holds up nobody else.
const PIECE: usize = 1024;

/// The answer to a request whose ids are counted.
const OK: ([(HeaderName, HeaderValue); 2], &str) = ([(CONTENT_TYPE, TEXT), (CACHE_CONTROL, NO_STORE)], "ok");

pub(super) async fn accept(State(routes): State<Arc<Routes>>, request: Request) -> Response {
    let started = Instant::now();
    match *request.method() {
        Method::GET => {
            let result = accept_one(&routes.api, request.uri()).await;
            routes.accept.answer(started, result.map(|()| OK))
        }
        Method::POST => {
            let result = accept_many(&routes.api, request).await;
            routes.bulk.answer(started, result.map(|()| OK))
        }
        _ => {
            let failure = Failure::MethodNotAllowed { allow: "GET, POST" };
            routes.accept.answer(started, Err::<&str, _>(failure))
        }
    }
}

async fn accept_one(api: &Api, uri: &Uri) -> Result<(), Failure> {
    let id = parse_query(uri.query().unwrap_or_default())?;
    count(api, &[id]).await;
    Ok(())
}

async fn accept_many(api: &Api, request: Request) -> Result<(), Failure> {
    let ids = bulk::read(request, &api.limits).await?;
    for piece in ids.chunks(PIECE) {
        count(api, piece).await;
        // A counter in memory never waits, so this is where others get their turn.
        tokio::task::yield_now().await;
    }
    Ok(())
}

/// Reads `id=<integer>` and the optional `endpoint=<url>`; other parameters are ignored.
///
/// The endpoint is only checked: nothing is sent to it yet.
fn parse_query(query: &str) -> Result<Id, Failure> {
    let mut id = None;
    let mut endpoint = None;
    for (key, value) in form_urlencoded::parse(query.as_bytes()) {
        match &*key {
            "id" if id.is_some() => return Err(Failure::RepeatedId),
            "id" => id = Some(Id::parse(value.as_bytes())),
            "endpoint" if endpoint.is_some() => return Err(Failure::InvalidEndpoint),
            "endpoint" => endpoint = Some(parse_endpoint(&value)?),
            _ => {}
        }
    }
    id.ok_or(Failure::MissingId)?.map_err(|_| Failure::InvalidId { line: None })
}

fn parse_endpoint(text: &str) -> Result<Url, Failure> {
    match Url::parse(text) {
        Ok(url) if matches!(url.scheme(), "http" | "https") => Ok(url),
        _ => Err(Failure::InvalidEndpoint),
    }
}

/// Stamps ids with the window they arrive in and adds them to it.
///
/// That window may be sealed by the time they get there: the clock moved on in between, or it was
/// set back. Then they are stamped anew, with the oldest window that is open. Each further round
/// takes another window that ended meanwhile, so there are few.
async fn count(api: &Api, ids: &[Id]) {
    let mut window = api.counting.window.window_at(api.clock.now());
    loop {
        match api.counter.add(window, ids).await {
            Ok(added) => {
                api.metrics.accepted_ids.increment(ids.len() as u64);
                api.metrics.changed_ids.increment(added.changed);
                return;
            }
            Err(Sealed { open }) => {
                api.metrics.late_ids.increment(ids.len() as u64);
                window = open.max(api.counting.window.window_at(api.clock.now()));
            }
        }
    }
}
