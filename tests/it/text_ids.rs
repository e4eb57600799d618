//! `--ids text`: which texts are ids, and that each is counted byte for byte.

use std::collections::BTreeSet;

use headcount::hll::Sketch;
use headcount::model::id_key::IdKey;

use crate::support::http::Connection;
use crate::support::process::{headcount, output_of};
use crate::support::redis::Redis;
use crate::support::server::Server;

const UUID: &str = "0b3f9c1e-6a0d-4a51-9d0e-2f6b1c7d8e9f";

async fn serve(args: &[&str]) -> Server {
    Server::start(&[&["--ids", "text", "--window", "24h"], args].concat()).await
}

async fn unique(server: &Server) -> u64 {
    server.get("/api/verve/unique").await.json()["current"]["unique_request_count"].as_u64().unwrap()
}

/// Percent-encoded texts, and what they are.
fn sound() -> Vec<(String, String)> {
    let long = "x".repeat(256);
    let euros = "%E2%82%AC".repeat(85);
    let written = [
        ("7", "7"),
        ("007", "007"),
        ("-0", "-0"),
        ("a+b", "a+b"),
        ("a%20b", "a b"),
        ("%20", " "),
        ("%2500", "%00"),
        ("%26%3D%23", "&=#"),
        ("a=b", "a=b"),
        ("%F0%9F%98%80", "\u{1f600}"),
        ("e%CC%81", "e\u{301}"),
        ("%C3%A9", "\u{e9}"),
        ("100%", "100%"),
        ("%zz", "%zz"),
        ("A", "A"),
        ("a", "a"),
        (UUID, UUID),
        (&long, &long),
        (&euros, &"€".repeat(85)),
    ];
    written.map(|(written, id)| (written.to_owned(), id.to_owned())).into()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_get_counts_a_text_byte_for_byte() {
    let redis = Redis::start();
    let url = redis.url();
    let server = serve(&["--mode", "exact", "--redis-url", &url]).await;
    let mut connection = Connection::open(server.address).await.unwrap();
    for (written, _) in sound() {
        let answer = connection.get(&format!("/api/verve/accept?id={written}")).await.unwrap();
        assert_eq!((answer.status, answer.body.as_str()), (200, "ok"), "{written}");
    }
    // The same bytes again, written otherwise.
    for written in ["%37", "%61+b", "%41"] {
        assert_eq!(connection.get(&format!("/api/verve/accept?id={written}")).await.unwrap().body, "ok");
    }
    assert_eq!(unique(&server).await, sound().len() as u64);
    assert_eq!(stored_ids(&redis), sound().into_iter().map(|(_, id)| id).collect());
}

/// The members of the only set of exact ids.
fn stored_ids(redis: &Redis) -> BTreeSet<String> {
    let keys: Vec<String> = ::redis::cmd("KEYS").arg("*:exact:*").query(&mut redis.connect()).unwrap();
    assert_eq!(keys.len(), 1, "{keys:?}");
    ::redis::cmd("SMEMBERS").arg(&keys[0]).query(&mut redis.connect()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_get_refuses_what_is_no_text() {
    let server = serve(&[]).await;
    let mut connection = Connection::open(server.address).await.unwrap();
    let too_long = "x".repeat(257);
    let too_many_bytes = "%E2%82%AC".repeat(86);
    for (query, reason) in [
        ("id=", "invalid_id"),
        ("id", "invalid_id"),
        ("id=%00", "invalid_id"),
        ("id=a%0A", "invalid_id"),
        ("id=%7F", "invalid_id"),
        ("id=%C2%80", "invalid_id"),
        ("id=%FF", "invalid_id"),
        ("id=a%C3", "invalid_id"),
        ("id=%ED%A0%80", "invalid_id"),
        (&format!("id={too_long}"), "invalid_id"),
        (&format!("id={too_many_bytes}"), "invalid_id"),
        ("id=a&id=a", "repeated_id"),
        ("", "missing_id"),
        ("x=%69d", "missing_id"),
    ] {
        let answer = connection.get(&format!("/api/verve/accept?{query}")).await.unwrap();
        assert_eq!((answer.status, answer.header("failure-reason")), (400, Some(reason)), "{query}");
    }
    assert_eq!(unique(&server).await, 0);
    assert_eq!(
        connection.get("/api/verve/accept?x=1&%69d=a&").await.unwrap().body,
        "ok",
        "a key may be encoded"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn all_bodies_count_the_same_texts() {
    let redis = Redis::start();
    let ids = ["7", "007", "a b", " a", "a+b", "%41", "\u{1f600}", "\"", "\\", "18446744073709551615", UUID];
    for mode in ["hll", "exact"] {
        let url = redis.url();
        let server = serve(&["--mode", mode, "--redis-url", &url, "--namespace", mode]).await;
        let mut connection = Connection::open(server.address).await.unwrap();
        let json: Vec<_> = ids.iter().map(|id| serde_json::to_string(id).unwrap()).collect();
        for (content_type, body) in [
            ("text/plain", ids.join("\n")),
            ("text/plain", ids.join("\r\n") + "\r\n"),
            ("application/x-ndjson", json.join("\n") + "\n7\r\n 18446744073709551615 \n"),
            ("application/json", format!("[ {} ,7]", json.join(", "))),
            ("application/json", r#"["\u0061 b", "\ud83d\ude00"]"#.to_owned()),
        ] {
            let answer = connection.post(content_type, body.as_bytes()).await.unwrap();
            assert_eq!((answer.status, answer.body.as_str()), (200, "ok"), "{content_type}: {body}");
            assert_eq!(unique(&server).await, ids.len() as u64, "{content_type}: {body}");
        }
    }
    assert_eq!(stored_ids(&redis), ids.map(str::to_owned).into());
    let key: Vec<String> = ::redis::cmd("KEYS").arg("*:hll:*").query(&mut redis.connect()).unwrap();
    let sketch: Vec<u8> = ::redis::cmd("GET").arg(&key[0]).query(&mut redis.connect()).unwrap();
    let expected = Sketch::new();
    for id in ids {
        expected.add(id.as_bytes());
    }
    assert_eq!(Sketch::from_bytes(&sketch).unwrap(), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_with_one_bad_text_counts_nothing() {
    let server = serve(&[]).await;
    let mut connection = Connection::open(server.address).await.unwrap();
    let too_long = "x".repeat(257);
    let (long_line, long_json) = (format!("a\n{too_long}"), format!("[\"a\",\"{too_long}\"]"));
    for (content_type, body, reason, line) in [
        ("text/plain", &b"a\n\nb"[..], "invalid_id", Some("2")),
        ("text/plain", b"a\nb\xff\n", "invalid_id", Some("2")),
        ("text/plain", b"a\tb", "invalid_id", Some("1")),
        ("text/plain", long_line.as_bytes(), "invalid_id", Some("2")),
        ("text/plain", b"", "missing_id", None),
        ("application/x-ndjson", b"\"a\"\nb", "invalid_id", Some("2")),
        ("application/x-ndjson", b"007", "invalid_id", Some("1")),
        ("application/x-ndjson", b"1.0", "invalid_id", Some("1")),
        ("application/x-ndjson", b"18446744073709551616", "invalid_id", Some("1")),
        ("application/x-ndjson", b"-9223372036854775809", "invalid_id", Some("1")),
        ("application/x-ndjson", b"\"\\u0000\"", "invalid_id", Some("1")),
        ("application/x-ndjson", b"\"\\ud800\"", "invalid_id", Some("1")),
        ("application/json", b"[\"a\",\"\"]", "invalid_id", Some("2")),
        ("application/json", b"[\"a\",null]", "invalid_id", Some("2")),
        ("application/json", long_json.as_bytes(), "invalid_id", Some("2")),
        ("application/json", b"[\"a\\x\"]", "invalid_body", None),
        ("application/json", b"[\"\xff\"]", "invalid_body", None),
        ("application/json", b"\"a\"", "invalid_body", None),
    ] {
        let answer = connection.post(content_type, body).await.unwrap();
        let refused = (answer.status, answer.header("failure-reason"), answer.header("failure-line"));
        assert_eq!(refused, (400, Some(reason), line), "{content_type}: {}", body.escape_ascii());
    }
    assert_eq!(unique(&server).await, 0);
    let body = br#"["-9223372036854775808", -9223372036854775808, 18446744073709551615, -0]"#;
    assert_eq!(connection.post("application/json", body).await.unwrap().body, "ok", "integers at the limits");
    assert_eq!(unique(&server).await, 3);
}

/// Longer than a piece of a list, so that it is read twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_body_of_texts_is_counted_whole() {
    let server = serve(&["--mode", "exact"]).await;
    let mut connection = Connection::open(server.address).await.unwrap();
    let ids: Vec<_> = (0..5_000).map(|n| format!("{n},\"{UUID}")).collect();
    for (content_type, body) in [
        ("text/plain", ids.join("\n")),
        ("application/json", serde_json::to_string(&ids).unwrap()),
        ("application/x-ndjson", ids.iter().map(|id| serde_json::to_string(id).unwrap() + "\n").collect()),
    ] {
        assert_eq!(
            connection.post(content_type, body.as_bytes()).await.unwrap().body,
            "ok",
            "{content_type}"
        );
        assert_eq!(unique(&server).await, 5_000, "{content_type}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_with_other_ids_is_refused() {
    let redis = Redis::start();
    let url = redis.url();
    let _first = serve(&["--redis-url", &url]).await;
    let said =
        "--ids is integer here, but text for the other instances of --namespace headcount: set it to text";
    for command in ["serve", "check"] {
        let args = [command, "--listen", "127.0.0.1:0", "--redis-url", &url, "--window", "24h"];
        let output = output_of(headcount().args(args));
        assert_eq!(output.status.code(), Some(1), "{command}");
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert!(text.contains(said), "{command}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_key_hashes_texts() {
    const KEY: &str = "00112233445566778899aabbccddeeff";
    let redis = Redis::start();
    let url = redis.url();
    let server = serve(&["--mode", "exact", "--redis-url", &url, "--id-key", KEY]).await;
    let mut connection = Connection::open(server.address).await.unwrap();
    for id in ["7", "007", UUID] {
        assert_eq!(connection.get(&format!("/api/verve/accept?id={id}")).await.unwrap().body, "ok");
    }
    assert_eq!(connection.post("text/plain", UUID.as_bytes()).await.unwrap().body, "ok");
    let key = IdKey::parse(KEY).unwrap();
    let hashes = ["7", "007", UUID].map(|id| key.apply(id));
    assert_eq!(stored_ids(&redis), hashes.map(|hash| hash.to_string()).into());
}
