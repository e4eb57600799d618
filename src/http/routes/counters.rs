//! `/api/verve/counters`: the counters of the last closed window.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::header::CACHE_CONTROL;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tracing::error;
use utoipa::ToSchema;

use super::query::{form_text, pairs};
use super::state::{QUERY_PATIENCE, Routes};
use crate::coordination::ClosedCounters;
use crate::http::error::{Failure, NO_STORE};
use crate::model::counter::{CounterCount, CounterName};
use crate::model::window::Window;

/// Counters of an answer, at most, and without `limit`.
const MOST: usize = 1000;
const DEFAULT: usize = 100;

/// Counters of the last closed window.
#[derive(Serialize, ToSchema)]
#[schema(examples(json!({
    "timestamp": "2026-11-23T04:12:00Z", "window_seconds": 60, "complete": true,
    "counters": [{ "counter": "campaign-7", "unique_request_count": 1201 }], "total_counters": 1
})))]
pub(super) struct CounterList {
    /// Null before the first window is closed.
    #[schema(required)]
    timestamp: Option<Window>,
    /// Length of the window.
    #[schema(minimum = 1, maximum = 86_400)]
    window_seconds: u32,
    /// False if any of the counts may lack ids.
    complete: bool,
    #[schema(inline, max_items = 1000)]
    counters: Vec<NamedCount>,
    /// How many counters match `prefix`.
    total_counters: usize,
}

/// A counter, and how many different ids it has.
#[derive(Serialize, ToSchema)]
pub(super) struct NamedCount {
    /// Its name.
    pub(super) counter: String,
    pub(super) unique_request_count: u64,
}

/// What a client asks for.
struct Ask {
    by_name: bool,
    limit: usize,
    prefix: String,
    after: Option<String>,
}

/// The counters of the last closed window
#[utoipa::path(
    get, path = "/api/verve/counters", operation_id = "listCounters", tag = "counts",
    params(
        ("order" = Option<String>, Query, pattern = "^(count|name)$",
            description = "`count`: most ids first, and equal ones by name. `name`: by the bytes of the name."),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 1000, description = "How many counters; 100 without it."),
        ("prefix" = Option<String>, Query, max_length = 128, description = "Only names that begin with it."),
        ("after" = Option<String>, Query, max_length = 128,
            description = "With `order=name`: only names after this one. The last name of an answer gets the next.")
    ),
    responses((status = 200, description = "The counters.", body = CounterList)),
    security((), ("token" = []))
)]
pub(super) async fn counters(State(routes): State<Arc<Routes>>, request: Request) -> Response {
    let admitted = routes.api.admit_reader(&request);
    let query = request.uri().query().unwrap_or_default();
    routes.counters.answer_reader(admitted, read(&routes, query)).await
}

async fn read(routes: &Routes, query: &str) -> Result<impl IntoResponse + use<>, Failure> {
    routes.api.counting.may_count()?;
    let ask = Ask::parse(query)?;
    let window_seconds = routes.api.counting.window.seconds();
    let closed = routes.api.closed.counters();
    let permit = Arc::clone(&routes.queries).try_acquire_owned().map_err(|_| Failure::Overloaded)?;
    // A list of many counters takes longer than other requests should wait.
    let make = tokio::task::spawn_blocking(move || {
        // Held until the work ends, even if the client does not wait for it.
        let _permit = permit;
        list(closed.as_deref(), window_seconds, &ask)
    });
    let list = match tokio::time::timeout(QUERY_PATIENCE, make).await {
        Ok(Ok(list)) => list,
        Ok(Err(error)) => {
            error!(%error, "the list of counters could not be made");
            return Err(Failure::StoreUnavailable);
        }
        Err(_) => return Err(Failure::Overloaded),
    };
    Ok(([(CACHE_CONTROL, NO_STORE)], Json(list)))
}

impl Ask {
    fn parse(query: &str) -> Result<Self, Failure> {
        let mut ask = Self { by_name: false, limit: DEFAULT, prefix: String::new(), after: None };
        let mut seen = Vec::new();
        for (key, value) in pairs(query) {
            let value = form_text(value);
            match (&*key, &*value) {
                ("order", "count") => ask.by_name = false,
                ("order", "name") => ask.by_name = true,
                ("order", _) => return Err(invalid("order is count or name")),
                ("limit", number) => {
                    let is_plain = number.bytes().all(|byte| byte.is_ascii_digit());
                    let limit = number.parse().ok().filter(|limit| is_plain && (1..=MOST).contains(limit));
                    ask.limit = limit.ok_or(invalid("limit is a whole number from 1 to 1000"))?;
                }
                ("prefix", prefix) if prefix.len() > CounterName::MAX_LEN => {
                    return Err(invalid("prefix has at most 128 bytes"));
                }
                ("prefix", _) => ask.prefix = value.into_owned(),
                ("after", name) if name.len() > CounterName::MAX_LEN => {
                    return Err(invalid("after has at most 128 bytes"));
                }
                ("after", _) => ask.after = Some(value.into_owned()),
                _ => continue,
            }
            if seen.contains(&key) {
                return Err(invalid("a parameter is given twice"));
            }
            seen.push(key);
        }
        if ask.after.is_some() && !ask.by_name {
            return Err(invalid("after needs order=name"));
        }
        Ok(ask)
    }
}

fn invalid(detail: &'static str) -> Failure {
    Failure::InvalidParameter { detail }
}

fn list(closed: Option<&ClosedCounters>, window_seconds: u32, ask: &Ask) -> CounterList {
    let Some(closed) = closed else {
        let (counters, total_counters) = (Vec::new(), 0);
        return CounterList { timestamp: None, window_seconds, complete: false, counters, total_counters };
    };
    let all = closed.counts.all();
    // They are sorted by name, so those with the prefix are together.
    let first = all.partition_point(|count| *count.name < *ask.prefix);
    let with_prefix = all[first..].iter().take_while(|count| count.name.starts_with(&ask.prefix)).count();
    let matching = &all[first..first + with_prefix];
    let some: Vec<&CounterCount> = if ask.by_name {
        let after = ask.after.as_deref().unwrap_or_default();
        let next = matching.partition_point(|count| *count.name <= *after);
        matching[next..].iter().take(ask.limit).collect()
    } else {
        let mut some: Vec<_> = matching.iter().collect();
        let most_first = |a: &&CounterCount, b: &&CounterCount| {
            b.unique_ids.cmp(&a.unique_ids).then_with(|| a.name.cmp(&b.name))
        };
        if some.len() > ask.limit {
            some.select_nth_unstable_by(ask.limit, most_first);
            some.truncate(ask.limit);
        }
        some.sort_unstable_by(most_first);
        some
    };
    let counters = some
        .into_iter()
        .map(|count| NamedCount { counter: count.name.to_string(), unique_request_count: count.unique_ids })
        .collect();
    CounterList {
        timestamp: Some(closed.window()),
        window_seconds,
        complete: closed.complete,
        counters,
        total_counters: with_prefix,
    }
}
