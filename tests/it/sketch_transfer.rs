//! `/api/verve/sketch`: sketches go out to any Redis and other services, and come in from there.

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::{Either, select};
use headcount::hll::Sketch;
use headcount::model::id_key::IdKey;
use headcount::model::shard::Shards;
use redis::cmd;
use serde_json::{Value, json};

use crate::support::fleet::{estimate, next_window, sketch_of, wait_for_room};
use crate::support::http::{Answer, Connection};
use crate::support::proxy::Proxy;
use crate::support::redis::Redis;
use crate::support::server::Server;
use crate::support::{SplitMix, lines, soak, wait_until};

const PATH: &str = "/api/verve/sketch";
const TOKEN: &str = "a-token-of-this-test";
const OCTETS: &str = "application/octet-stream";
const KEY: &str = "000102030405060708090a0b0c0d0e0f";

/// Takes sketches, in a window that does not end.
async fn taker(args: &[&str]) -> Server {
    let common = ["--window", "24h", "--allow-sketches", "--api-token", TOKEN];
    Server::start(&[&common[..], args].concat()).await
}

async fn request(address: SocketAddr, head: &str, body: &[u8]) -> Answer {
    let head = format!(
        "{head}host: test\r\nauthorization: Bearer {TOKEN}\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    Connection::open(address).await.unwrap().request(&[head.as_bytes(), body].concat()).await.unwrap()
}

async fn export(server: &Server, query: &str, headers: &str) -> Answer {
    request(server.address, &format!("GET {PATH}?{query} HTTP/1.1\r\n{headers}"), b"").await
}

async fn document(server: &Server, query: &str) -> Value {
    let answer = export(server, query, "accept: application/json\r\n").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

async fn import(server: &Server, query: &str, kind: &str, body: &[u8]) -> Answer {
    request(server.address, &format!("POST {PATH}?{query} HTTP/1.1\r\ncontent-type: {kind}\r\n"), body).await
}

async fn accept(server: &Server, query: &str, ids: Range<u64>) {
    let head = format!("POST /api/verve/accept?{query} HTTP/1.1\r\ncontent-type: text/plain\r\n");
    let answer = request(server.address, &head, lines(ids).as_bytes()).await;
    assert_eq!(answer.body, "ok", "{answer:?}");
}

/// The sketches of a document.
fn sketches(document: &Value) -> Vec<Sketch> {
    let sketch =
        |text: &Value| Sketch::from_bytes(&STANDARD.decode(text.as_str().unwrap()).unwrap()).unwrap();
    document["sketches"].as_array().unwrap().iter().map(sketch).collect()
}

/// Few ids make a sparse string, and many a dense one.
#[tokio::test(flavor = "multi_thread")]
async fn redis_counts_an_exported_sketch_as_the_service_does() {
    let redis = Redis::start();
    let server = taker(&[]).await;
    for ids in [0..100, 100..50_000] {
        accept(&server, "counter=a", ids.clone()).await;
        for query in ["", "counter=a"] {
            let answer = export(&server, query, "").await;
            assert_eq!((answer.status, answer.header("content-type")), (200, Some(OCTETS)), "{answer:?}");
            assert_eq!(answer.header("headcount-complete"), Some("false"));
            let mut connection = redis.connect();
            cmd("SET").arg("k").arg(&answer.bytes[..]).exec(&mut connection).unwrap();
            let count: u64 = cmd("PFCOUNT").arg("k").query(&mut connection).unwrap();
            assert_eq!(count, estimate(0..ids.end));
            assert!(answer.bytes.len() <= 12_304);
            let found = document(&server, query).await;
            assert_eq!(found["unique_request_count"], count);
            assert!(sketches(&found)[0] == sketch_of(0..ids.end));
            let kind = [&found["precision"], &found["hash"], &found["seed"]];
            assert_eq!(kind, [&json!(14), &json!("MurmurHash64A"), &json!(0xadc8_3b19_u64)]);

            let tag = answer.header("etag").unwrap();
            let again = export(&server, query, &format!("if-none-match: {tag}\r\n")).await;
            assert_eq!((again.status, again.header("etag")), (304, Some(tag)), "{again:?}");
            let other = export(&server, query, "if-none-match: \"0\"\r\n").await;
            assert_eq!(other.bytes, answer.bytes);
        }
    }
}

/// `--body-limit` is about lists of ids.
#[tokio::test(flavor = "multi_thread")]
async fn sketches_fit_a_service_that_takes_only_short_lists() {
    for (shards, ids) in [("1", 0..50_000), ("64", 0..3_000_000)] {
        let from = taker(&["--shards", shards]).await;
        for first in ids.clone().step_by(100_000) {
            accept(&from, "", first..ids.end.min(first + 100_000)).await;
        }
        let exported = export(&from, "", "accept: application/json\r\n").await;
        let to = taker(&["--shards", shards, "--body-limit", "300"]).await;
        let answer = import(&to, "", "application/json", &exported.bytes).await;
        assert_eq!(answer.body, "ok", "{shards}: {answer:?}");
        assert!(sketches(&document(&to, "").await) == sketches(&exported.json()));
    }
}

/// What Redis wrote by PFADD comes in: sparse and dense.
#[tokio::test(flavor = "multi_thread")]
async fn an_imported_string_of_redis_is_merged_as_pfmerge_does() {
    let redis = Redis::start();
    let mut connection = redis.connect();
    for (number, args) in [&[][..], &["--redis-url", &redis.url()]].into_iter().enumerate() {
        let server = taker(args).await;
        accept(&server, "counter=a", 0..1_000).await;
        let (mut all, mut of_b) = (sketch_of(0..1_000), Sketch::new());
        for ids in [900..960, 5_000..60_000] {
            let key = format!("from-{number}-{}", ids.start);
            for some in ids.clone().collect::<Vec<_>>().chunks(1_000) {
                cmd("PFADD").arg(&key).arg(some).exec(&mut connection).unwrap();
            }
            for sketch in [&mut all, &mut of_b] {
                sketch.absorb(&sketch_of(ids.clone()));
            }
            let string: Vec<u8> = cmd("GET").arg(&key).query(&mut connection).unwrap();
            for _ in 0..2 {
                let answer = import(&server, "counter=a&counter=b", OCTETS, &string).await;
                assert_eq!((answer.status, &*answer.body), (200, "ok"), "{answer:?}");
            }
            for query in ["", "counter=a"] {
                assert!(sketches(&document(&server, query).await)[0] == all, "{query}");
            }
            assert!(sketches(&document(&server, "counter=b").await)[0] == of_b);
        }
        assert_eq!(server.metric("headcount_imported_sketches_total").await, 4.0);
    }
}

/// Two services take different ids, one of them by an import of the other's sketches.
#[tokio::test(flavor = "multi_thread")]
async fn an_export_can_be_imported_as_it_is() {
    let redis = Redis::start();
    for shards in ["1", "4"] {
        let (from, to) =
            (taker(&["--shards", shards]).await, ["--shards", shards, "--redis-url", &redis.url()]);
        let to = taker(&[&to[..], &["--namespace", shards]].concat()).await;
        accept(&from, "counter=a", 0..30_000).await;
        accept(&to, "counter=a", 20_000..50_000).await;
        let total = document(&from, "").await.to_string();
        let answer = import(&to, "counter=a", "application/json; charset=utf-8", total.as_bytes()).await;
        assert_eq!((answer.status, &*answer.body), (200, "ok"), "{answer:?}");
        let shards = Shards::new(shards.parse().unwrap()).unwrap();
        for (shard, sketch) in sketches(&document(&to, "").await).iter().enumerate() {
            let ids = (0..50_000_u64).filter(|id| shards.of(id.to_string().as_bytes()) == shard);
            assert!(*sketch == sketch_of(ids), "{shard}");
        }
        assert!(sketches(&document(&to, "counter=a").await)[0] == sketch_of(0..50_000));
        // The sketches of a total with several shards are no single string.
        let answer = export(&from, "", "").await;
        let expected = if shards == Shards::ONE { None } else { Some("not_available") };
        assert_eq!(answer.header("failure-reason"), expected, "{answer:?}");
    }
}

/// A service at the edge hands on each closed window, and its counter so far, while both take ids. A request that began at the end of
/// a window may still add ids when that window is handed on. So each is handed on twice.
#[tokio::test(flavor = "multi_thread")]
async fn windows_are_handed_on_while_both_services_count() {
    const STEP: u64 = 200;
    wait_for_room(Duration::from_secs(100)).await;
    let redis = Redis::start();
    let edge = Server::start(&["--window", "2s", "--api-token", TOKEN]).await;
    let centre = taker(&["--redis-url", &redis.url(), "--namespace", "centre"]).await;
    let first = next_window(Duration::ZERO).await;
    let is_over = AtomicBool::new(false);
    let load = async {
        let mut sent = 0;
        while !is_over.load(Ordering::Relaxed) {
            accept(&edge, "counter=a", sent..sent + STEP).await;
            accept(&edge, "", sent + STEP..sent + 2 * STEP).await;
            // Both services take some of the ids.
            accept(&centre, "counter=a", sent + 2 * STEP - 50..sent + 3 * STEP).await;
            sent += 3 * STEP;
        }
        sent
    };
    let hour = first / 3_600 * 3_600;
    let hand_on = async |from: u64, to: u64| {
        let total = export(&edge, &format!("from={from}&to={to}"), "").await;
        let counter = export(&edge, &format!("counter=a&from={hour}&to={}", hour + 3_600), "").await;
        assert_eq!(total.status, 200, "{total:?}");
        assert_eq!(import(&centre, "", OCTETS, &total.bytes).await.body, "ok");
        // Before the first window is in the hour, nothing is kept of the counter.
        if counter.status == 200 {
            assert_eq!(import(&centre, "counter=a", OCTETS, &counter.bytes).await.body, "ok");
        }
    };
    let hand_on_all = async {
        let (mut before, mut start) = (first, first);
        for _ in 0..if soak() { 30 } else { 6 } {
            let next = next_window(Duration::ZERO).await;
            hand_on(before, next).await;
            (before, start) = (start, next);
        }
        is_over.store(true, Ordering::Relaxed);
        before
    };
    let (sent, start) = tokio::join!(load, hand_on_all);
    // With the window in which the load ended.
    let end = next_window(Duration::ZERO).await;
    let is_of_a = |id: &u64| id / STEP % 3 != 1 || id % STEP >= STEP - 50;
    let of_a = sketch_of((0..sent).filter(is_of_a).collect::<Vec<_>>());
    wait_until("the counter of the edge to be handed on", async || {
        hand_on(start, end).await;
        sketches(&document(&centre, "counter=a").await)[0] == of_a
    })
    .await;
    assert!(sketches(&document(&centre, "").await)[0] == sketch_of(0..sent), "{sent} ids");
}

/// A sketch of few bytes takes 16 KB in memory. So only some are merged at a time.
#[tokio::test(flavor = "multi_thread")]
async fn no_more_than_max_queries_are_merged_at_a_time() {
    let redis = Redis::start();
    let proxy = Proxy::start(redis.address()).await;
    let server = taker(&["--max-queries", "1", "--redis-timeout", "1min", "--redis-url", &proxy.url()]).await;
    let sketches_of = [0..10, 10..20].map(|ids: Range<u64>| sketch_of(ids).to_bytes());
    proxy.hold("PFMERGE");
    let [one, other] = sketches_of.each_ref().map(|sketch| Box::pin(import(&server, "", OCTETS, sketch)));
    let (Either::Left((refused, waiting)) | Either::Right((refused, waiting))) = select(one, other).await;
    assert_eq!((refused.status, refused.header("failure-reason")), (503, Some("overloaded")), "{refused:?}");
    proxy.release();
    assert_eq!(waiting.await.body, "ok");
    for sketch in &sketches_of {
        assert_eq!(import(&server, "", OCTETS, sketch).await.body, "ok", "the place is given back");
    }
    assert!(sketches(&document(&server, "").await)[0] == sketch_of(0..20));
}

/// A window with imports does not know how many ids were accepted: the log and the answers say so.
#[tokio::test(flavor = "multi_thread")]
async fn accepted_ids_of_a_window_with_imports_are_a_lower_bound() {
    let redis = Redis::start();
    for args in [&[][..], &["--redis-url", &redis.url()]] {
        let args = [&["--window", "2s", "--allow-sketches", "--api-token", TOKEN], args].concat();
        let mut server = Server::start(&args).await;
        let answer = import(&server, "", OCTETS, &sketch_of(0..500).to_bytes()).await;
        assert_eq!(answer.body, "ok", "{answer:?}");
        wait_until("the window to be closed", async || {
            server.closed().iter().any(|closed| closed.unique == estimate(0..500))
        })
        .await;
        let log = server.log();
        let closed: Vec<_> =
            log.iter().map(|event| &event["fields"]).filter(|of| of["message"] == "window closed").collect();
        for of in closed {
            let has_import = of["unique_request_count"] != 0;
            let expected = if has_import { (json!(1), json!(true)) } else { (json!(0), Value::Null) };
            assert_eq!(
                (of["accepted_ids"].clone(), of["accepted_ids_is_lower_bound"].clone()),
                expected,
                "{of}"
            );
        }
        // Of the window that was closed last the answer says it, too. It may be another one by now.
        let last = get_last(&server).await;
        let expected = if last["unique_request_count"] == 0 { Value::Null } else { json!(true) };
        assert_eq!(last["accepted_ids_is_lower_bound"], expected, "{last}");
        server.stop().await;
    }
}

async fn get_last(server: &Server) -> Value {
    let answer = request(server.address, "GET /api/verve/unique HTTP/1.1\r\n", b"").await;
    answer.json()["last"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_sketch_of_this_service_is_refused() {
    let (server, four) = (taker(&[]).await, taker(&["--shards", "4"]).await);
    let good = sketch_of(0..2_000).to_bytes();
    let with = |change: fn(&mut Vec<u8>)| {
        let mut changed = good.clone();
        change(&mut changed);
        changed
    };
    let dense = sketch_of(0..50_000).to_bytes();
    let impossible = [&dense[..16], &[0xff; 12_288]].concat();
    let in_base64 = STANDARD.encode(&good);
    let twice = json!({ "sketches": [in_base64, in_base64] }).to_string();
    for (server, kind, body, reason) in [
        (&server, OCTETS, Vec::new(), "invalid_sketch"),
        (&server, OCTETS, b"HYLL".to_vec(), "invalid_sketch"),
        (&server, OCTETS, with(|bytes| bytes[0] = b'h'), "invalid_sketch"),
        (&server, OCTETS, with(|bytes| bytes[4] = 2), "invalid_sketch"),
        (&server, OCTETS, with(|bytes| bytes.truncate(100)), "invalid_sketch"),
        (&server, OCTETS, with(|bytes| bytes.push(0)), "invalid_sketch"),
        (&server, OCTETS, dense[..12_303].to_vec(), "invalid_sketch"),
        (&server, OCTETS, impossible, "invalid_sketch"),
        (&server, OCTETS, vec![0; 16_401], "body_too_large"),
        (&server, "text/plain", good.clone(), "unsupported_media_type"),
        (&server, "application/json", good.clone(), "invalid_sketch"),
        (&server, "application/json", b"{}".to_vec(), "invalid_sketch"),
        (&server, "application/json", br#"{"sketches":[]}"#.to_vec(), "invalid_sketch"),
        (&server, "application/json", br#"{"sketches":["SFlMTA="]}"#.to_vec(), "invalid_sketch"),
        (&server, "application/json", twice.clone().into_bytes(), "invalid_sketch"),
        (
            &server,
            "application/json",
            json!({ "sketches": [in_base64], "precision": 12 }).to_string().into_bytes(),
            "invalid_sketch",
        ),
        (
            &server,
            "application/json",
            json!({ "sketches": [in_base64], "seed": 0 }).to_string().into_bytes(),
            "invalid_sketch",
        ),
        // The sketch of all ids cannot be split.
        (&four, OCTETS, good.clone(), "invalid_sketch"),
        (&four, "application/json", twice.into_bytes(), "invalid_sketch"),
    ] {
        let answer = import(server, "", kind, &body).await;
        assert_eq!(answer.header("failure-reason"), Some(reason), "{kind} {} bytes: {answer:?}", body.len());
    }
    for (query, reason) in [("counter=_other", "invalid_counter"), ("counter=", "invalid_counter")] {
        let answer = import(&server, query, OCTETS, &good).await;
        assert_eq!(answer.header("failure-reason"), Some(reason), "{answer:?}");
    }
    assert!(sketches(&document(&server, "").await)[0] == Sketch::new());
    let empty = import(&server, "counter=a", OCTETS, &Sketch::new().to_bytes()).await;
    assert_eq!(empty.body, "ok", "nobody is added");
    let put = request(server.address, &format!("PUT {PATH} HTTP/1.1\r\n"), b"").await;
    assert_eq!((put.status, put.header("allow")), (405, Some("GET, HEAD, POST")));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_who_may_set_any_count_may_send_sketches() {
    let good = sketch_of(0..10).to_bytes();
    let closed = Server::start(&["--window", "24h", "--api-token", TOKEN]).await;
    let exact = taker(&["--mode", "exact"]).await;
    for server in [&closed, &exact] {
        let answer = import(server, "", OCTETS, &good).await;
        assert_eq!(
            (answer.status, answer.header("failure-reason")),
            (400, Some("not_available")),
            "{answer:?}"
        );
    }
    let reader = taker(&["--read-token", "another-token-of-it"]).await;
    for token in ["another-token-of-it", "no-token-of-this-at-all"] {
        let head = format!(
            "POST {PATH} HTTP/1.1\r\nhost: test\r\nauthorization: Bearer {token}\r\ncontent-type: {OCTETS}\r\n\
             content-length: {}\r\n\r\n",
            good.len()
        );
        let request = [head.as_bytes(), &good].concat();
        let answer = Connection::open(reader.address).await.unwrap().request(&request).await.unwrap();
        assert_eq!(
            (answer.status, answer.header("failure-reason")),
            (401, Some("unauthorized")),
            "{answer:?}"
        );
    }
}

/// Sketches of hashes under different keys have nothing in common.
#[tokio::test(flavor = "multi_thread")]
async fn a_sketch_under_another_key_is_refused() {
    let fingerprint = IdKey::parse(KEY).unwrap().fingerprint();
    let (keyed, plain) = (taker(&["--id-key", KEY]).await, taker(&[]).await);
    accept(&keyed, "", 0..1_000).await;
    let exported = export(&keyed, "", "").await;
    assert_eq!(exported.header("headcount-key"), Some(&*fingerprint));
    assert_eq!(export(&plain, "", "").await.header("headcount-key"), None);
    let send = async |server: &Server, keys: &[&str]| {
        let keys = keys.iter().map(|key| format!("headcount-key: {key}\r\n")).collect::<Vec<_>>().concat();
        let head = format!("POST {PATH} HTTP/1.1\r\ncontent-type: {OCTETS}\r\n{keys}");
        request(server.address, &head, &exported.bytes).await
    };
    let (own, other) = (&*fingerprint, "0000000000000000");
    for (server, keys, is_taken) in [
        (&keyed, &[own][..], true),
        (&keyed, &[], false),
        (&keyed, &[other], false),
        (&keyed, &[own, own], false),
        (&plain, &[], true),
        (&plain, &[own], false),
    ] {
        let answer = send(server, keys).await;
        let expected = if is_taken { None } else { Some("invalid_sketch") };
        assert_eq!(answer.header("failure-reason"), expected, "{keys:?}: {answer:?}");
    }
}

/// Whatever comes as a sketch is an error, or a sketch that Redis could have written.
#[test]
fn fuzzed_sketches_are_errors_or_sketches() {
    let mut random = SplitMix(25);
    let mut next = move |below: usize| random.next().unwrap() as usize % below;
    let seeds: Vec<_> =
        [0, 1, 50, 3_000, 50_000_u64].map(|ids| sketch_of(0..ids).to_bytes()).into_iter().collect();
    let cases = if soak() { 1_000_000 } else { 100_000 };
    let (mut sketches, mut errors) = (0, 0);
    for number in 0..cases {
        // Dense strings take long, so they are a few.
        let mut bytes = seeds[if number % 50 == 0 { 4 } else { next(4) }].clone();
        for _ in 0..=next(4) {
            let length = bytes.len();
            // Half of the time in the header.
            let within = if next(2) == 0 { length.min(20) } else { length };
            let place = next(within);
            match next(4) {
                0 => bytes.truncate(place + 1),
                1 => bytes.insert(place, next(256) as u8),
                2 => bytes[place] ^= 1 << next(8),
                _ => bytes.extend((0..next(20)).map(|_| next(256) as u8)),
            }
        }
        match Sketch::from_bytes(&bytes) {
            Ok(sketch) => {
                let kept = sketch.to_bytes();
                assert!(kept.len() <= 12_304, "{} bytes", kept.len());
                assert!(Sketch::from_bytes(&kept).unwrap() == sketch);
                sketches += 1;
            }
            Err(_) => errors += 1,
        }
    }
    println!("{sketches} sketches, {errors} errors");
    assert!(sketches > 1_000 && errors > 10_000, "{sketches} sketches, {errors} errors");
}
