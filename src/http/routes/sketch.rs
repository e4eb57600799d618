//! `/api/verve/sketch`: a sketch out, and a sketch in.
//!
//! A sketch goes out as the string that Redis would keep, so `SET` and `PFCOUNT` of any Redis take it. It comes in the same way,
//! and is checked as any other program's file would be. A client that may send sketches may set any count, so that takes a flag and a token.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use quanta::Instant;
use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};
use tracing::error;
use utoipa::ToSchema;

use super::accept::{self, counters_of};
use super::bulk;
use super::range::{self, Counted, Counting, RangeQuery};
use super::schemas::Octets;
use super::state::{QUERY_PATIENCE, Routes};
use crate::hll::Sketch;
use crate::http::error::{Failure, NO_STORE, RefusedSketch};
use crate::model::counter::{CounterNames, Subject};
use crate::model::mode::Mode;
use crate::model::shard::Shards;
use crate::model::window::Window;
use crate::platform::unavailable::Unavailable;
use crate::store::{AddError, Import, WrongShards};

/// The methods of this path.
pub(super) const BOTH: Failure = Failure::MethodNotAllowed { allow: "GET, HEAD, POST" };
/// The fingerprint of `--id-key`.
const KEY: HeaderName = HeaderName::from_static("headcount-key");
/// Whether all ids of the range are in a sketch.
const COMPLETE: HeaderName = HeaderName::from_static("headcount-complete");
const OCTETS: &str = "application/octet-stream";

/// Sketches, and how they were made.
#[derive(Serialize, ToSchema)]
#[schema(examples(json!({
    "from": "2026-11-23T04:00:00Z", "to": "2026-11-23T05:00:00Z", "unique_request_count": 1, "standard_error": 0.008_125,
    "complete": true, "precision": 14, "hash": "MurmurHash64A", "seed": 2_915_580_697_u64, "sketches": ["SFlMTAEAAAAAAAAAAAAAgH//"]
})))]
pub(super) struct Export {
    /// The counter, if one was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String)]
    counter: Option<Box<str>>,
    /// The start of the first window.
    from: Window,
    /// The end of the last one.
    to: Window,
    /// How many different ids the sketches have.
    unique_request_count: u64,
    /// Relative to the true count.
    #[schema(minimum = 0, maximum = 1)]
    standard_error: f64,
    /// Whether every window of the range is complete and in the sketches.
    complete: bool,
    /// Bits of the hash that choose a register.
    #[schema(minimum = 14, maximum = 14)]
    precision: u32,
    /// The hash of an id's bytes.
    #[schema(pattern = "^MurmurHash64A$")]
    hash: &'static str,
    /// The seed of the hash.
    seed: u64,
    /// A string of Redis for each of `--shards`, in Base64. Together they have all ids, each id in one of them.
    #[schema(min_items = 1, max_items = 1024)]
    sketches: Vec<String>,
}

/// Sketches to merge, and how they were made, which is optional. A document may have other fields.
#[derive(Deserialize, ToSchema)]
struct Document {
    /// A string of Redis for each of `--shards`, in their order, in Base64.
    #[schema(min_items = 1, max_items = 1024)]
    sketches: Vec<String>,
    #[schema(value_type = u32, minimum = 14, maximum = 14, required = false)]
    precision: Option<u32>,
    #[schema(value_type = String, pattern = "^MurmurHash64A$", required = false)]
    hash: Option<String>,
    #[schema(value_type = u64, required = false)]
    seed: Option<u64>,
}

pub(super) async fn sketch(State(routes): State<Arc<Routes>>, request: Request) -> Response {
    let started = Instant::now();
    if request.method() == Method::POST {
        let merged = merge(&routes, request).await;
        return routes.merge.answer(started, merged.map(|()| accept::Counted));
    }
    let admitted = routes.api.admit_reader(&request).map_err(|failure| match failure {
        Failure::MethodNotAllowed { .. } => BOTH,
        failure => failure,
    });
    let query = request.uri().query().unwrap_or_default();
    routes.sketch.answer_reader(admitted, read(&routes, query, request.headers())).await
}

/// The sketch of a range
///
/// With `accept: application/json` as a document, else as a string of Redis, which needs `--shards` of 1 or a counter.
#[utoipa::path(
    get, path = "/api/verve/sketch", operation_id = "readSketch", tag = "counts",
    params(
        ("counter" = Option<String>, Query, description = "The counter instead of the total."),
        ("from" = Option<String>, Query, description = "With `to`: the start of a range, as that of `/api/verve/unique`. Without \
            a range, it is the running window.", example = "2026-11-23T04:00:00Z"),
        ("to" = Option<String>, Query, description = "With `from`: its end.", example = "2026-11-23T05:00:00Z"),
    ),
    responses((status = 200, description = "The sketch.", content(
        (Export = "application/json"), (Octets = "application/octet-stream")
    ))),
    security((), ("token" = []))
)]
pub(super) async fn read(routes: &Routes, query: &str, headers: &HeaderMap) -> Result<Response, Failure> {
    let (api, query) = (&routes.api, RangeQuery::parse(query)?);
    let of = query.subject(&api.counting)?;
    let range = query.range_or_running(api.running_window())?;
    let as_json = wants_json(headers);
    if !as_json && of == Subject::Total && api.counting.shards.count() > 1 {
        return Err(Failure::NotAvailable {
            why: "the total has a sketch for each of --shards: ask with 'accept: application/json', or for a counter",
        });
    }
    let permit = range::admit(routes)?;
    let counting = Counting { routes, of: &of };
    let counted = tokio::time::timeout(QUERY_PATIENCE, counting.sketches(range, Arc::clone(&permit))).await;
    let Counted { sketches, complete } = counted.map_err(|_| Failure::Overloaded)??;
    let mut export = Export {
        from: range.from,
        to: range.to,
        unique_request_count: 0,
        standard_error: range::error_of(routes, &of),
        counter: range::name_of(of),
        complete,
        precision: Sketch::PRECISION,
        hash: Sketch::HASH,
        seed: Sketch::SEED,
        sketches: Vec::new(),
    };
    let known = headers.get(IF_NONE_MATCH).cloned();
    let writing = tokio::task::spawn_blocking(move || {
        // Held until the work ends, even if the client does not wait for it.
        let _permit = permit;
        let strings: Vec<_> = sketches.iter().map(Sketch::to_bytes).collect();
        let tag = tag_of(&strings);
        let response = if known.is_some_and(|known| known == tag) {
            StatusCode::NOT_MODIFIED.into_response()
        } else if as_json {
            export.unique_request_count = sketches.iter().map(Sketch::estimate).sum();
            export.sketches = strings.iter().map(|string| STANDARD.encode(string)).collect();
            Json(export).into_response()
        } else {
            let string = strings.into_iter().next().unwrap_or_default();
            ([(CONTENT_TYPE, HeaderValue::from_static(OCTETS))], string).into_response()
        };
        (response, tag)
    });
    let (mut response, tag) =
        writing.await.map_err(|error| range::unavailable(Unavailable::because(error)))?;
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, NO_STORE);
    headers.insert(ETAG, tag);
    headers.insert(COMPLETE, HeaderValue::from_static(if complete { "true" } else { "false" }));
    if let Some(key) = &api.counting.id_key
        && let Ok(key) = HeaderValue::try_from(key.fingerprint())
    {
        headers.insert(KEY, key);
    }
    Ok(response)
}

fn wants_json(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accepted.flat_map(|value| value.split(',')).any(|kind| bulk::media_type(kind) == "application/json")
}

/// The same for the same sketches.
fn tag_of(strings: &[Vec<u8>]) -> HeaderValue {
    let mut digest = Context::new(&SHA256);
    for string in strings {
        digest.update(string);
    }
    let tag = STANDARD.encode(&digest.finish().as_ref()[..18]);
    HeaderValue::try_from(format!("\"{tag}\"")).unwrap_or_else(|_| HeaderValue::from_static("\"\""))
}

/// Merge a sketch into the running window
///
/// Answers `ok` once it is merged. To send it again changes nothing. The service must be started with `--allow-sketches`.
#[utoipa::path(
    post, path = "/api/verve/sketch", operation_id = "mergeSketch", tag = "ids",
    params(
        ("counter" = Option<Vec<String>>, Query, description = "Names of up to eight counters into which it is merged, too. Of several \
            sketches they get the union."),
        ("headcount-key" = Option<String>, Header, description = "The fingerprint of `--id-key`, as an export has it: without it, a \
            service with a key refuses the sketch."),
    ),
    request_body(
        description = "A string of Redis, or a document with one for each of `--shards`: an export with the sketches of a total can be \
            sent as it is.",
        content((Octets = "application/octet-stream"), (inline(Document) = "application/json"))
    ),
    security((), ("token" = []))
)]
pub(super) async fn merge(routes: &Routes, request: Request) -> Result<(), Failure> {
    let api = &routes.api;
    let window = api.window_now();
    let query = request.uri().query().unwrap_or_default();
    let admitted = may_merge(routes, request.headers());
    let counters = admitted.and_then(|()| counters_of(query, &api.counting)).map(CounterNames::into_owned);
    let (request, counters) = bulk::go_on(request, counters).await?;
    let kind = request.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let as_json = match &*bulk::media_type(kind.unwrap_or_default()) {
        OCTETS => false,
        "application/json" => true,
        _ => {
            bulk::refuse(request).await;
            return Err(Failure::UnsupportedMediaType);
        }
    };
    let shards = api.counting.shards;
    let longest = if as_json { bulk::longest_document(shards) } else { Sketch::LONGEST_STRING as u32 };
    let (body, budget) =
        bulk::read_whole(request, longest, api.settings.body_read_timeout, &routes.bulk_budget).await?;
    // A client does not choose how many sketches are in memory. Only now: a slow sender keeps nobody out.
    let permit = Arc::clone(&routes.merges).try_acquire_owned().map_err(|_| Failure::Overloaded)?;
    routes.in_flight.admit()?;
    let parse = tokio::task::spawn_blocking(move || {
        let _budget = budget;
        Ok::<_, RefusedSketch>((parse(&body, as_json, shards)?, permit))
    });
    // The merge is not on that thread: nothing waits for it when the service stops.
    let (import, _permit) = parse.await.map_err(|error| {
        error!(%error, "a panic ended the check of a sketch");
        Failure::StoreUnavailable
    })??;
    if import.is_empty() {
        return Ok(());
    }
    import_into(routes, window, &import, &counters).await
}

fn may_merge(routes: &Routes, headers: &HeaderMap) -> Result<(), Failure> {
    let (api, counting) = (&routes.api, &routes.api.counting);
    api.admit(headers)?;
    if !api.settings.allow_sketches {
        return Err(Failure::NotAvailable { why: "sketches are taken only with --allow-sketches" });
    }
    if counting.mode == Mode::Exact {
        return Err(Failure::NotAvailable { why: "mode exact counts ids, not sketches" });
    }
    let mut keys = headers.get_all(KEY).iter();
    match (&counting.id_key, keys.next(), keys.next()) {
        (None, None, _) => {}
        (None, ..) => return Err(RefusedSketch::NoKey.into()),
        (Some(own), Some(key), None) if key.as_bytes() == own.fingerprint().as_bytes() => {}
        (Some(_), ..) => return Err(RefusedSketch::Key.into()),
    }
    routes.in_flight.admit()
}

fn parse(body: &Bytes, as_json: bool, shards: Shards) -> Result<Import, RefusedSketch> {
    let sketches = if as_json { of_document(body, shards)? } else { vec![Sketch::from_bytes(body)?] };
    Ok(Import::new(sketches, shards)?)
}

fn of_document(body: &Bytes, shards: Shards) -> Result<Vec<Sketch>, RefusedSketch> {
    let document: Document = serde_json::from_slice(body).map_err(|_| RefusedSketch::Body)?;
    // Before any is decoded: in memory, a sketch may take a thousand times as much as in the document.
    WrongShards::check(document.sketches.len(), shards)?;
    let is_ours = document.precision.is_none_or(|precision| precision == Sketch::PRECISION)
        && document.hash.as_deref().is_none_or(|hash| hash == Sketch::HASH)
        && document.seed.is_none_or(|seed| seed == Sketch::SEED);
    if !is_ours {
        return Err(RefusedSketch::Kind);
    }
    let sketch = |text: &String| {
        let string = STANDARD.decode(text).map_err(|_| RefusedSketch::Body)?;
        Sketch::from_bytes(&string).map_err(RefusedSketch::from)
    };
    document.sketches.iter().map(sketch).collect()
}

/// Merges into `window`, in which the request arrived, or into the oldest open one if that is sealed meanwhile.
async fn import_into(
    routes: &Routes,
    mut window: Window,
    import: &Import,
    counters: &CounterNames<'_>,
) -> Result<(), Failure> {
    let api = &routes.api;
    let _waiting = routes.in_flight.wait();
    loop {
        match api.store.import(window, import, counters).await {
            Ok(added) => {
                api.metrics.imported_sketches.increment(1);
                api.metrics.counter_overflow_ids.increment(added.overflow);
                return Ok(());
            }
            Err(AddError::Sealed { open }) => window = open.max(api.window_now()),
            Err(AddError::Unavailable(_)) => return Err(Failure::StoreUnavailable),
        }
    }
}
