//! The description at `/openapi.json` is complete, is served, and is true. schemathesis checks the last: it generates
//! requests from the description, and finds answers that the description does not allow.

use std::collections::BTreeSet;
use std::time::Duration;

use headcount::http::Failure;
use headcount::model::id::IdKind;
use serde_json::{Value, json};

use crate::support::http::{get, once};
use crate::support::redis::Redis;
use crate::support::server::Server;
use crate::support::soak;
use crate::support::tools::{in_repository, python_tool, run};

/// The operation that takes sketches.
const MERGE: &str = "mergeSketch";
/// No window ends during a test.
const LONG_WINDOW: [&str; 2] = ["--window", "24h"];
/// Arguments of schemathesis: only the routes that depend on the service's flags.
const API: [&str; 2] = ["--include-path-regex", "^/api/"];

fn description() -> Value {
    serde_json::from_slice(&headcount::http::description(IdKind::Integer)).expect("JSON")
}

/// Each path with a method, such as `GET /livez`.
fn operations() -> BTreeSet<String> {
    let description = description();
    let paths = description["paths"].as_object().unwrap();
    let of_path = |(path, methods): (&String, &Value)| {
        let methods = methods.as_object().unwrap().keys().map(|method| method.to_uppercase());
        methods.map(|method| format!("{method} {path}")).collect::<Vec<_>>()
    };
    paths.iter().flat_map(of_path).collect()
}

/// All objects in a JSON value, including the value itself.
fn objects(value: &Value) -> Vec<&serde_json::Map<String, Value>> {
    let (own, below): (_, Vec<_>) = match value {
        Value::Object(object) => (Some(object), object.values().collect()),
        Value::Array(elements) => (None, elements.iter().collect()),
        _ => (None, Vec::new()),
    };
    own.into_iter().chain(below.into_iter().flat_map(objects)).collect()
}

#[tokio::test]
async fn the_service_serves_the_description() {
    let text = headcount::http::description(IdKind::Integer);
    let server = Server::start(&LONG_WINDOW).await;
    assert_eq!(server.get("/openapi.json").await.body.as_bytes(), text);
    let server = Server::start(&["--admin-listen", "127.0.0.1:0"]).await;
    assert_eq!(get(server.admin.unwrap(), "/openapi.json").await.body.as_bytes(), text);
}

#[test]
fn the_description_has_the_version_of_the_crate() {
    assert_eq!(description()["info"]["version"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn every_reference_resolves_and_every_component_is_used() {
    let description = description();
    let references: BTreeSet<_> =
        objects(&description).iter().filter_map(|object| object.get("$ref")?.as_str()).collect();
    for reference in &references {
        let pointer = reference.strip_prefix('#').unwrap_or_else(|| panic!("{reference} is not in here"));
        assert!(description.pointer(pointer).is_some(), "{reference}");
    }
    for kind in ["schemas", "headers", "responses"] {
        for name in description["components"][kind].as_object().into_iter().flat_map(|named| named.keys()) {
            assert!(references.contains(&&*format!("#/components/{kind}/{name}")), "{name} is unused");
        }
    }
}

#[test]
fn the_description_has_exactly_the_failure_reasons() {
    let description = description();
    let headers = objects(&description).into_iter().filter_map(|object| object.get("failure-reason"));
    let described: BTreeSet<_> = headers
        .flat_map(|header| header["schema"]["enum"].as_array().unwrap())
        .map(|reason| reason.as_str().unwrap())
        .collect();
    assert_eq!(described, Failure::ALL.map(Failure::reason).into());
}

/// What schemathesis does not find: it does not know an `etag`, and most of the counters that it names are sound.
#[test]
fn the_description_has_what_a_client_seldom_sees() {
    let paths = &description()["paths"];
    let refused = &paths["/api/verve/series"]["get"]["responses"]["400"]["headers"]["failure-reason"];
    assert!(refused["schema"]["enum"].as_array().unwrap().contains(&json!("invalid_counter")), "{refused}");
    let answers = &paths["/api/verve/sketch"]["get"]["responses"];
    for status in ["200", "304"] {
        for header in ["etag", "headcount-complete", "headcount-key"] {
            assert!(answers[status]["headers"][header].is_object(), "{status} {header}");
        }
    }
}

#[test]
fn the_description_has_exactly_the_documented_routes() {
    let (readme, api) = (include_str!("../../README.md"), include_str!("../../docs/api.md"));
    let (_, in_readme) = readme.split_once("\n## API\n").unwrap();
    let (in_readme, _) = in_readme.split_once("\n## ").unwrap();
    // The documents do not list HEAD.
    let described: BTreeSet<_> =
        operations().into_iter().filter(|operation| !operation.starts_with("HEAD ")).collect();
    for document in [in_readme, api] {
        let titles = document
            .lines()
            .filter(|line| ["### `", "| `GET ", "| `POST "].iter().any(|start| line.starts_with(start)));
        let routes: BTreeSet<_> = titles
            .map(|line| line.split('`').nth(1).unwrap().split('?').next().unwrap().to_owned())
            .collect();
        assert_eq!(routes, described);
    }
}

/// The service knows exactly the described methods, and `allow` names only these.
#[tokio::test]
async fn the_service_has_exactly_the_described_methods() {
    let server = Server::start(&LONG_WINDOW).await;
    let operations = operations();
    let paths: BTreeSet<_> =
        operations.iter().map(|operation| operation.split_once(' ').unwrap().1).collect();
    for path in paths {
        for method in ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"] {
            let request = format!("{method} {path} HTTP/1.1\r\nhost: test\r\ncontent-length: 0\r\n\r\n");
            let answer = once(server.address, request.as_bytes()).await;
            let is_described = operations.contains(&format!("{method} {path}"));
            assert_ne!(answer.status, 404, "{method} {path}");
            assert_eq!(answer.status != 405, is_described, "{method} {path}: {}", answer.status);
            let allowed: BTreeSet<_> =
                answer.header("allow").into_iter().flat_map(|allow| allow.split(", ")).collect();
            for method in allowed {
                assert!(operations.contains(&format!("{method} {path}")), "{path} allows {method}");
            }
        }
    }
}

/// The value of the flag `--window`.
fn window_of(server: &Server) -> Duration {
    let command = std::fs::read(format!("/proc/{}/cmdline", server.process.0.id())).unwrap();
    let words: Vec<_> = command.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
    let flag = words.iter().position(|word| word == "--window").expect("the tests set it");
    humantime::parse_duration(&words[flag + 1]).unwrap()
}

/// Runs schemathesis with a description against a service. It does the same in every run.
fn findings(server: &Server, description: &str, args: &[&str]) -> Result<String, String> {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("http://{}", server.address);
    let mut command = python_tool("schemathesis");
    command
        .args(["--no-color", "run", description, "--url", &url, "--checks", "all", "--seed", "1"])
        // The machine may be busy. And earlier findings must not change the requests.
        .args(["--suppress-health-check", "all", "--generation-database", "none"])
        .args(["--max-examples", if soak() { "300" } else { "12" }])
        // A schema cannot say what a sketch is.
        .args(if args.contains(&MERGE) { &[][..] } else { &["--exclude-operation-id", MERGE] })
        .args(args)
        .env("SCHEMATHESIS_HOOKS", in_repository("tests/python/schemathesis_hooks.py"))
        .env("HEADCOUNT_TEST_WINDOW", window_of(server).as_secs().to_string())
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .current_dir(dir.path());
    let (status, said) = run(&mut command);
    if status.success() { Ok(said) } else { Err(said) }
}

/// Runs schemathesis with the service's own description. Returns the output, and panics on findings.
#[track_caller]
fn keeps_to_it(server: &Server, args: &[&str]) -> String {
    let url = format!("http://{}/openapi.json", server.address);
    findings(server, &url, args).unwrap_or_else(|said| panic!("{said}"))
}

/// Runs schemathesis with a description that has `lies` at some JSON pointers. Returns the findings.
#[track_caller]
fn is_found_to_differ(server: &Server, lies: &[(&str, Value)], args: &[&str]) -> String {
    let mut description = description();
    for (pointer, lie) in lies {
        *description.pointer_mut(pointer).expect("something to lie about") = lie.clone();
    }
    let file = tempfile::Builder::new().suffix(".json").tempfile().unwrap();
    std::fs::write(file.path(), description.to_string()).unwrap();
    findings(server, file.path().to_str().unwrap(), args).expect_err("lies")
}

/// Runs many requests from the service's own description.
#[track_caller]
fn assert_keeps_to_it(server: &Server, args: &[&str]) {
    let said = keeps_to_it(server, args);
    let requests = said.lines().find_map(|line| line.trim().split_once(" generated")?.0.parse::<u32>().ok());
    println!("{requests:?} requests");
    assert!(requests > Some(50), "{said}");
}

#[tokio::test]
async fn an_instance_in_memory_follows_the_description() {
    let server = Server::start(&LONG_WINDOW).await;
    assert_keeps_to_it(&server, &[]);
    let accepted = server.metric(r#"headcount_requests_total{route="bulk",result="ok"}"#).await;
    assert!(accepted > 10.0, "it does send bodies that are good");
}

#[tokio::test]
async fn an_instance_that_counts_texts_follows_its_description() {
    let server = Server::start(&[&LONG_WINDOW[..], &["--ids", "text"]].concat()).await;
    // A schema cannot say how many bytes a text may have.
    assert_keeps_to_it(&server, &[API, ["--exclude-checks", "positive_data_acceptance"]].concat());
    for route in ["accept", "bulk"] {
        let accepted =
            server.metric(&format!(r#"headcount_requests_total{{route="{route}",result="ok"}}"#)).await;
        assert!(accepted > 10.0, "{route}: it does send ids that are good");
    }
}

#[tokio::test]
async fn an_instance_with_redis_and_without_callbacks_follows_the_description() {
    let redis = Redis::start();
    let args = ["--mode", "exact", "--redis-url", &redis.url(), "--callbacks", "off"];
    let server = Server::start(&[&LONG_WINDOW[..], &args].concat()).await;
    // The service refuses every endpoint, even those that the description allows.
    assert_keeps_to_it(&server, &[API, ["--exclude-checks", "positive_data_acceptance"]].concat());
    let refused =
        server.metric(r#"headcount_requests_total{route="accept",result="forbidden_endpoint"}"#).await;
    assert!(refused > 0.0, "it does send endpoints");
}

#[tokio::test]
async fn an_instance_with_a_token_follows_the_description() {
    let token = "9f86d081884c7d659a2feaa0c55ad015";
    let server = Server::start(&[&LONG_WINDOW[..], &["--api-token", token]].concat()).await;
    let bearing = format!("authorization: Bearer {token}");
    assert_keeps_to_it(&server, &[API, ["--header", &bearing]].concat());
    let (ok, unauthorized) = (
        r#"headcount_requests_total{route="accept",result="ok"}"#,
        r#"headcount_requests_total{route="accept",result="unauthorized"}"#,
    );
    assert!(server.metric(ok).await > 10.0);
    let before = server.metric(unauthorized).await;
    assert_keeps_to_it(&server, &[API, ["--phases", "examples,coverage"]].concat());
    assert!(server.metric(unauthorized).await > before + 10.0);
}

#[tokio::test]
async fn an_instance_that_takes_sketches_follows_the_description() {
    let token = "9f86d081884c7d659a2feaa0c55ad015";
    let args = ["--api-token", token, "--allow-sketches"];
    let server = Server::start(&[&LONG_WINDOW[..], &args].concat()).await;
    let bearing = format!("authorization: Bearer {token}");
    let only = ["--include-operation-id", MERGE, "--exclude-checks", "positive_data_acceptance"];
    assert_keeps_to_it(&server, &[&only[..], &["--header", &bearing]].concat());
    let refused = r#"headcount_requests_total{route="merge",result="invalid_sketch"}"#;
    assert!(server.metric(refused).await > 0.0, "it does send what is no sketch");
}

/// Arguments of schemathesis: only the routes with counts.
const COUNTS: [&str; 4] =
    ["--include-path-regex", "^/(status|api/verve/unique)$", "--phases", "examples,coverage"];

#[tokio::test]
async fn counts_of_closed_windows_follow_the_description() {
    let server = Server::start(&["--window", "1s"]).await;
    server.wait_closed(2).await;
    keeps_to_it(&server, &COUNTS);

    let lies = ["WindowCount", "ClosedCount"]
        .map(|name| format!("/components/schemas/{name}/properties/complete/type"));
    let lies = lies.each_ref().map(|pointer| (&**pointer, json!("string")));
    let said = is_found_to_differ(&server, &lies, &COUNTS);
    assert!(said.contains("GET /status") && said.contains("GET /api/verve/unique"), "{said}");
}

#[tokio::test]
async fn an_instance_without_its_redis_follows_the_description() {
    let mut redis = Redis::start();
    let server = Server::start(&[&LONG_WINDOW[..], &["--redis-url", &redis.url()]].concat()).await;
    redis.kill();
    server.get("/api/verve/accept?id=1").await;
    server.wait_for_metric("headcount_degraded", 1.0).await;
    assert_eq!(server.get("/status").await.json()["current"], Value::Null);
    // A read of the count gets 503 during an outage, as the description says. Counters are refused with Redis.
    let unchecked = ["--exclude-checks", "not_a_server_error,positive_data_acceptance"];
    keeps_to_it(&server, &[&COUNTS[..], &unchecked].concat());
}

/// Proves that the other tests would find a wrong description.
#[tokio::test]
async fn schemathesis_finds_a_wrong_description() {
    let server = Server::start(&LONG_WINDOW).await;
    let lies = [
        ("/paths/~1livez/get/responses", json!({ "404": { "description": "Not there." } })),
        ("/paths/~1readyz/get/responses/200/content/text~1plain/schema/enum", json!(["set"])),
        ("/components/schemas/Unique/properties/mode/enum", json!(["bloom"])),
        (
            "/paths/~1api~1verve~1accept/get/responses/400/headers/failure-reason/schema/enum",
            json!(["invalid_id", "repeated_id", "invalid_counter", "invalid_endpoint", "forbidden_endpoint"]),
        ),
    ];
    let said = is_found_to_differ(&server, &lies, &["--phases", "coverage", "--include-method", "GET"]);
    for found in [
        "Received: 200",
        r#""ready" is not"#,
        "is not valid under any of the schemas",
        r#""missing_id" is not"#,
    ] {
        assert!(said.contains(found), "{found}: {said}");
    }
}
