//! `/openapi.json`: the description of the API in `OpenAPI` 3.1.
//!
//! utoipa derives the schemas from the types of the answers, and the operations from the handlers. The refusals come
//! from the answer that each [`Failure`] makes. The rest is what utoipa 6 cannot express.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};

use axum::body::Bytes;
use axum::extract::State;
use axum::http::HeaderValue;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};
use utoipa::openapi::schema::{AdditionalProperties, Schema};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{Object, RefOr};
use utoipa::{Modify, OpenApi as _, ToSchema};

use super::accept;
use super::counters;
use super::ops;
use super::overlap;
use super::paths::{COUNTERS, OVERLAP, RETENTION, SERIES, SKETCH, UNIQUE};
use super::retention;
use super::schemas;
use super::series;
use super::sketch;
use super::state::Routes;
use super::status;
use super::ui;
use super::unique;
use crate::http::api::ONLY_READ;
use crate::http::error::{Failure, NO_STORE, RefusedSketch};
use crate::model::counter::InvalidCounter;
use crate::model::id::IdKind;
use crate::model::parts::NotKept;
use crate::model::range::InvalidRange;

/// The description of a service that counts such ids, as JSON. Each is made once, for the first client that asks.
pub fn description(ids: IdKind) -> Bytes {
    static OF_INTEGERS: LazyLock<Bytes> = LazyLock::new(|| describe(IdKind::Integer));
    static OF_TEXTS: LazyLock<Bytes> = LazyLock::new(|| describe(IdKind::Text));
    match ids {
        IdKind::Integer => OF_INTEGERS.clone(),
        IdKind::Text => OF_TEXTS.clone(),
    }
}

fn describe(ids: IdKind) -> Bytes {
    let mut description = json!(Derived::openapi());
    complete(&mut description);
    if ids == IdKind::Text {
        schemas::describe_texts(&mut description);
    }
    format!("{description:#}").into()
}

#[derive(ToSchema)]
#[expect(dead_code, reason = "for its schema")]
pub(super) struct OpenApi {
    #[schema(pattern = r"^3\.1\.")]
    openapi: String,
    info: Object,
    paths: Object,
}

/// This description
#[utoipa::path(
    get, path = "/openapi.json", operation_id = "describe", tag = "operations",
    responses((status = 200, description = "An OpenAPI 3.1 description.", body = inline(OpenApi)))
)]
// Not cached, because another version may answer the next request.
pub(super) async fn openapi(State(routes): State<Arc<Routes>>) -> Response {
    let headers = [(CONTENT_TYPE, HeaderValue::from_static("application/json")), (CACHE_CONTROL, NO_STORE)];
    (headers, description(routes.api.counting.ids)).into_response()
}

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "headcount",
        description = "Clients send ids. The service counts how many different ids arrived in each window, by default \
            a minute. Counts are estimates with a stated standard error, or exact.\n\n\
            Every refusal says why in the header `failure-reason`, and its body is `failed`. Two answers have no such \
            header, and no operation lists them: a request that is not HTTP/1 gets a bare 400, and a head of more than \
            32 KB or a hundred headers gets a bare 431. Do not cache answers.",
        license(name = "MIT", identifier = "MIT")
    ),
    servers((url = "/")),
    tags(
        (name = "ids", description = "Sending ids. With `--api-token` a request needs the token."),
        (name = "counts", description = "Reading counts. With `--api-token` a request needs the token, except for the page."),
        (name = "operations", description = "For operators. `--admin-listen` moves these to another address; at \
            `--listen` they are 404 then. None needs the token.")
    ),
    paths(
        ui::page, status::status, accept::accept_one, accept::accept_many, unique::unique,
        counters::counters, series::series, overlap::overlap, retention::retention,
        sketch::read, sketch::merge,
        ops::livez, ops::readyz, ops::metrics, openapi
    ),
    modifiers(&Shared)
)]
struct Derived;

/// Adds what all schemas and operations share.
struct Shared;

impl Modify for Shared {
    fn modify(&self, description: &mut utoipa::openapi::OpenApi) {
        let Some(components) = &mut description.components else { return };
        let token = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some(
            "The token of `--api-token`. Without that flag no request needs one. The service checks it before everything \
             but `host` and `transfer-encoding`.",
        ));
        components.add_security_scheme("token", SecurityScheme::Http(token.build()));
        for schema in components.schemas.values_mut() {
            if let RefOr::T(Schema::Object(object)) = schema
                && !object.properties.is_empty()
            {
                object.additional_properties = Some(Box::new(AdditionalProperties::FreeForm(false)));
            }
        }
    }
}

/// Adds the refusals, the answers of one word, HEAD, and what utoipa cannot express.
fn complete(description: &mut Value) {
    description["info"]["summary"] = json!("Counts how many different ids arrive in each window of time.");
    let Some(paths) = description["paths"].as_object_mut() else { return };
    for (path, operations) in paths.iter_mut() {
        let Some(operations) = operations.as_object_mut() else { continue };
        for (method, operation) in operations.iter_mut() {
            complete_operation(path, method, operation);
        }
        if path != "/api/verve/accept"
            && let Some(mut head) = operations.get("get").cloned()
        {
            let id = head["operationId"].as_str().unwrap_or_default();
            let (first, rest) = id.split_at_checked(1).unwrap_or_default();
            head["operationId"] = json!(format!("head{}{rest}", first.to_uppercase()));
            head["summary"] = json!("The same without the body");
            if let Some(head) = head.as_object_mut() {
                head.remove("description");
            }
            operations.insert("head".to_owned(), head);
        }
    }
    let bodies = &mut paths["/api/verve/accept"]["post"]["requestBody"]["content"];
    schemas::describe_elements(&mut bodies["application/json"]["schema"]);
    let accept = &mut paths["/api/verve/accept"]["get"];
    for (name, examples) in [
        (
            "id",
            json!({
                "small": { "value": 42 },
                "negative": { "value": -7 },
                "lowest": { "value": i64::MIN },
                "highest": { "value": u64::MAX },
            }),
        ),
        ("endpoint", json!({ "hook": { "value": "https://hooks.invalid/headcount" } })),
    ] {
        for parameter in accept["parameters"].as_array_mut().into_iter().flatten() {
            if parameter["name"] == name {
                parameter["examples"] = examples.clone();
            }
        }
    }
    accept["callbacks"] = json!({ "count": { "{$request.query.endpoint}": { "post": callback() } } });
}

/// Seconds since 1970, or a time after RFC 3339.
const TIME: &str = r"^([0-9]{1,11}|[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?(Z|[+-][0-9]{2}:[0-9]{2}))$";

fn complete_operation(path: &str, method: &str, operation: &mut Value) {
    let parameters = operation.get_mut("parameters").and_then(Value::as_array_mut);
    for parameter in parameters.into_iter().flatten() {
        // It may be left out, but not be null.
        if let Some(types) = parameter["schema"]["type"].as_array().filter(|types| types.len() == 2) {
            parameter["schema"]["type"] = types[0].clone();
        }
        if parameter["name"] == "counter" {
            schemas::describe_counter(&mut parameter["schema"]);
        }
        if parameter["name"] == "from" || parameter["name"] == "to" {
            parameter["schema"]["pattern"] = json!(TIME);
        }
    }
    if operation["security"].is_null() {
        operation["security"] = json!([]);
    }
    let responses = &mut operation["responses"];
    let ok = match path {
        "/api/verve/accept" => Some(words("All ids of the request are counted.", &["ok"])),
        SKETCH if method == "post" => Some(words("The sketch is merged.", &["ok"])),
        ops::LIVEZ => Some(words("The process is alive.", &["alive"])),
        "/readyz" => Some(words("Yes; `degraded` while Redis is away.", &["ready", "degraded"])),
        _ => None,
    };
    if let Some(ok) = ok {
        responses["200"] = ok;
    }
    responses["200"]["headers"] =
        json!({ "cache-control": header("cache-control", &["no-store".to_owned()].into(), true) });
    responses["404"] = words("The path is not served at this address.", &["not found"]);
    responses["404"]["headers"] = responses["200"]["headers"].clone();
    if path == SKETCH && method == "get" {
        for (name, is_always_there) in
            [("etag", true), ("headcount-complete", true), ("headcount-key", false)]
        {
            responses["200"]["headers"][name] = header(name, &BTreeSet::new(), is_always_there);
        }
        responses["304"] = json!({
            "description": "The sketch is the one whose `etag` the client sent in `if-none-match`.",
            "headers": responses["200"]["headers"],
        });
    }
    for (status, response) in refusals(path, method) {
        responses[status] = response;
    }
    if path == "/readyz" {
        let full = responses["503"].take();
        let states = ["starting", "clock", "draining", "failed"];
        responses["503"] = words(
            "No. `starting` or `draining`: the service starts or stops. `clock`: this machine's clock differs too much \
             from Redis's. `failed`: the service has reached `--max-connections` or `--max-connections-per-address`.",
            &states,
        );
        responses["503"]["headers"] = full["headers"].clone();
        for name in ["failure-reason", "retry-after"] {
            let header = &mut responses["503"]["headers"][name];
            header["required"] = json!(false);
            header["description"] =
                json!(format!("Only if the body is `failed`. {}", meaning_of_header(name)));
        }
    }
}

/// What can be wrong with a range.
const OF_RANGES: [Failure; 3] = [
    Failure::InvalidRange { why: InvalidRange::Empty },
    Failure::RangeNotKept { at: NotKept { at: 0, level: None, oldest: 0 } },
    Failure::NotAvailable { why: "mode exact keeps no sketches" },
];

/// The failures that an operation can answer.
fn failures(path: &str, method: &str) -> Vec<Failure> {
    let (is_accept, is_of_api) = (path == "/api/verve/accept", path.starts_with("/api/"));
    let mut failures = vec![
        match path {
            _ if is_accept => accept::ONLY_ACCEPT,
            SKETCH => sketch::BOTH,
            _ => ONLY_READ,
        },
        // The server checks every head for these, before any route.
        Failure::InvalidHost,
        Failure::InvalidBody { line: (method == "post").then_some(1) },
        Failure::UnsupportedTransferEncoding,
    ];
    if path != ops::LIVEZ {
        failures.push(Failure::Overloaded);
    }
    if ![ops::LIVEZ, "/readyz"].contains(&path) {
        failures.push(Failure::StoreUnavailable);
    }
    if is_of_api || path == "/status" {
        failures.push(Failure::Unauthorized);
    }
    if is_of_api && !is_accept {
        failures.extend([
            Failure::InvalidCounter { why: InvalidCounter::Name, line: None },
            Failure::InvalidParameter { detail: "" },
        ]);
    }
    if path == SKETCH && method == "post" {
        failures.extend([
            Failure::NotAvailable { why: "sketches are taken only with --allow-sketches" },
            Failure::InvalidSketch { why: RefusedSketch::Key },
            Failure::BodyTooLarge,
            Failure::UnsupportedMediaType,
        ]);
        return failures;
    }
    if [UNIQUE, SERIES, OVERLAP, RETENTION, SKETCH].contains(&path) {
        failures.extend(OF_RANGES);
    }
    match method {
        "get" if is_accept => failures.extend([
            Failure::MissingId,
            Failure::InvalidId { line: None },
            Failure::RepeatedId,
            Failure::InvalidCounter { why: InvalidCounter::Name, line: None },
            Failure::InvalidEndpoint,
            Failure::ForbiddenEndpoint,
        ]),
        "post" => failures.extend([
            Failure::MissingId,
            Failure::InvalidId { line: Some(1) },
            Failure::InvalidCounter { why: InvalidCounter::Name, line: Some(1) },
            Failure::BodyTooLarge,
            Failure::UnsupportedMediaType,
        ]),
        _ => {}
    }
    failures
}

/// The meaning of a failure on an operation: some operations have fewer causes than others.
fn meaning(failure: Failure, path: &str, method: &str) -> &'static str {
    let is_of_api = path.starts_with("/api/");
    match failure {
        Failure::InvalidBody { .. } if method != "post" => "the body is chunked twice.",
        Failure::Overloaded if method == "post" => {
            "the service has reached `--max-connections`, `--max-connections-per-address`, `--max-in-flight`, or its \
             limit for bulk bodies."
        }
        Failure::Overloaded if [COUNTERS, SERIES, UNIQUE, OVERLAP, RETENTION, SKETCH].contains(&path) => {
            "the service has reached `--max-connections`, `--max-connections-per-address`, `--max-in-flight` or \
             `--max-queries`, or the answer took longer than 2 s."
        }
        Failure::Overloaded if is_of_api => {
            "the service has reached `--max-connections`, `--max-connections-per-address` or `--max-in-flight`."
        }
        Failure::Overloaded => {
            "the service has reached `--max-connections` or `--max-connections-per-address`."
        }
        Failure::StoreUnavailable if !is_of_api => "the service is still starting.",
        _ => failure.parts().2,
    }
}

/// The answers to an operation's failures, by status, with their headers.
fn refusals(path: &str, method: &str) -> BTreeMap<String, Value> {
    let mut by_status = BTreeMap::<String, Vec<Failure>>::new();
    for failure in failures(path, method) {
        by_status.entry(failure.parts().0.as_str().to_owned()).or_default().push(failure);
    }
    let describe = |(status, failures): (String, Vec<Failure>)| {
        let mut headers = BTreeMap::<String, (usize, BTreeSet<String>)>::new();
        for failure in &failures {
            for (name, value) in failure.into_response().headers() {
                let (times, values) = headers.entry(name.to_string()).or_default();
                *times += 1;
                values.extend(value.to_str().map(str::to_owned));
            }
        }
        headers.remove(CONTENT_TYPE.as_str());
        let headers: Map<_, _> = headers
            .into_iter()
            .map(|(name, (times, values))| (name.clone(), header(&name, &values, times == failures.len())))
            .collect();
        let meanings = failures
            .iter()
            .map(|failure| format!("`{}`: {}", failure.reason(), meaning(*failure, path, method)));
        let mut response = words(&meanings.collect::<Vec<_>>().join(" "), &["failed"]);
        response["headers"] = json!(headers);
        (status, response)
    };
    by_status.into_iter().map(describe).collect()
}

/// An answer whose body is one of `words`.
fn words(description: &str, words: &[&str]) -> Value {
    json!({
        "description": description,
        "content": { "text/plain": { "schema": { "type": "string", "enum": words } } },
    })
}

fn header(name: &str, values: &BTreeSet<String>, required: bool) -> Value {
    let mut header = json!({ "description": meaning_of_header(name), "required": required });
    match name {
        "failure-line" | "retry-after" => {
            header["schema"] = json!({ "type": "integer", "minimum": 1 });
            header["example"] = json!(if name == "failure-line" { 6777 } else { 1 });
        }
        "failure-detail" | "etag" | "headcount-key" => header["schema"] = json!({ "type": "string" }),
        "headcount-complete" => header["schema"] = json!({ "type": "string", "enum": ["false", "true"] }),
        _ => header["schema"] = json!({ "type": "string", "enum": values }),
    }
    header
}

fn meaning_of_header(name: &str) -> &'static str {
    match name {
        "allow" => "The methods that this path has.",
        "cache-control" => "Neither counts nor refusals may be cached.",
        "etag" => "The same for the same sketch.",
        "failure-detail" => "What exactly, for people.",
        "failure-line" => {
            "With `invalid_id`: the line, or in JSON the element, of the bad id, counted from 1."
        }
        "failure-reason" => "What is wrong.",
        "headcount-complete" => "Whether all ids of the range are in the sketch.",
        "headcount-key" => "The fingerprint of `--id-key`, if the service has one.",
        "retry-after" => "The client should wait this many seconds before it tries again.",
        "www-authenticate" => "The request needs a bearer token.",
        _ => "",
    }
}

/// The POST that the service sends to a request's `endpoint`.
fn callback() -> Value {
    let parameter = |name: &str, required: bool, description: &str, schema: Value, example: Value| {
        json!({
            "name": name, "in": "header", "required": required, "description": description, "schema": schema,
            "example": example,
        })
    };
    json!({
        "operationId": "receiveCount",
        "summary": "The count so far, including this request's id",
        "description": "The service sends it once, and never again. It allows one second to connect and five seconds in \
            all. It does not follow redirects, and does not read the body of the answer.",
        "parameters": [
            parameter("user-agent", true, "The service and its version.",
                json!({ "type": "string", "pattern": "^headcount/" }),
                json!(concat!("headcount/", env!("CARGO_PKG_VERSION")))),
            parameter("webhook-id", true, "Unique, so that the receiver can detect a repeat.",
                json!({ "type": "string", "pattern": "^msg_[0-9a-f]{24}$" }), json!("msg_9f86d081884c7d650000002a")),
            parameter("webhook-timestamp", true, "When the service sent it, in seconds since 1970.",
                json!({ "type": "integer", "minimum": 0 }), json!(1_795_453_448)),
            parameter("webhook-signature", false, "With `--callback-secret`, as Standard Webhooks defines it: `v1,` and the \
                HMAC-SHA256 of `<webhook-id>.<webhook-timestamp>.<body>` in Base64.",
                json!({ "type": "string", "pattern": "^v1,[0-9A-Za-z+/]{43}=$" }),
                json!("v1,K5oZfzN95Z9UVu1EsfQmfVNQhnkZ2pj9o9NDN/H/pI4=")),
        ],
        "requestBody": {
            "required": true,
            "content": { "application/json": { "schema": {
                "allOf": [{ "$ref": "#/components/schemas/UniqueCount" }],
                "description": "For a request that named one counter, the count is that of the counter, and a third \
                    field `counter` has its name: `_other` if the name found no place.",
            } } },
        },
        "responses": {
            "2XX": { "description": "The receiver accepted it." },
            "default": { "description": "The service logs and counts a failure. It does not try again." },
        },
    })
}
