//! Unusable servers and secrets: the messages of `check`, of the start and of the log.

use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::process::Output;

use crate::support::process::{headcount, output_of, run};
use crate::support::redis::{Flavour, Redis};
use crate::support::server::Server;
use crate::support::wait_until;

/// One line on standard error.
#[track_caller]
fn refused(output: &Output, code: i32) -> String {
    let error = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!((output.status.code(), error.lines().count()), (Some(code), 1), "{error}");
    error
}

/// The message of `check` about a server that fails it.
#[track_caller]
fn check_fails(url: &str) -> String {
    let output = run(&["check", "--redis-url", url, "--redis-wait", "300ms"]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    said
}

#[track_caller]
fn start_fails(url: &str) -> String {
    refused(&run(&["--listen", "127.0.0.1:0", "--redis-url", url, "--redis-wait", "300ms"]), 1)
}

/// Also where the shard that is tried lives there.
#[test]
fn a_node_of_a_cluster_is_refused() {
    for flavour in Flavour::at_hand() {
        let redis = Redis::start_with(flavour, &["--cluster-enabled", "yes"]);
        let mut connection = redis.connect();
        let slots = ["CLUSTER", "ADDSLOTSRANGE", "0", "16000"];
        if flavour != Flavour::Redis62 {
            ::redis::cmd(slots[0]).arg(&slots[1..]).exec(&mut connection).unwrap();
        }
        for said in [check_fails(&redis.url()), start_fails(&redis.url())] {
            assert!(said.contains("Redis Cluster") && said.contains("--redis-url"), "{flavour:?}: {said}");
        }
    }
}

#[test]
fn a_sentinel_is_refused() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let redis = Redis::start_sentinel(file.path());
    for said in [check_fails(&redis.url()), start_fails(&redis.url())] {
        assert!(said.contains("a Sentinel") && said.contains("--redis-url redis-sentinel://"), "{said}");
    }
}

/// Redis gives the reason and closes, so that later commands get a reset.
#[test]
fn check_and_start_report_the_reason_of_a_redis_that_hangs_up() {
    let redis = Redis::start_with(Flavour::Debian, &["--maxclients", "1"]);
    let held = redis.connect();
    for said in [check_fails(&redis.url()), start_fails(&redis.url())] {
        assert!(said.contains("max number of clients reached"), "{said}");
    }
    drop(held);

    let Some(own) = own_address() else { return };
    let redis = Redis::start_with(Flavour::Debian, &["--bind", "0.0.0.0", "--protected-mode", "yes"]);
    let url = format!("redis://{}", SocketAddr::new(own, redis.address().port()));
    for said in [check_fails(&url), start_fails(&url)] {
        assert!(said.contains("protected mode"), "{said}");
        assert!(said.lines().all(|line| line.len() < 500), "{said}");
    }
}

/// The address that this machine has for others, if it has one: protected mode lets loopback in.
fn own_address() -> Option<std::net::IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_loopback()).then_some(address)
}

#[test]
fn unknown_parts_of_other_addresses_are_refused() {
    for (flag, value) in [
        ("--kafka-brokers", "kafka://:s3cret@b:1"),
        ("--kafka-brokers", "b:1?x=1"),
        ("--kafka-brokers", "b:1/topic"),
        ("--kafka-brokers", "b:1#x"),
        ("--kafka-brokers", "b:port"),
        ("--kafka-brokers", "b:1,user@c:2"),
        ("--callback-allow", "10.0.0.0/8?x"),
        ("--callback-allow", "example.org:80"),
        ("--callback-allow", "example.org/x"),
        ("--listen", "127.0.0.1:1?x"),
        ("--listen", "127.0.0.1:1/x"),
        ("--admin-listen", "http://127.0.0.1:1"),
    ] {
        let line = refused(&run(&[flag, value]), 2);
        assert!(line.contains(flag), "{line}");
    }
}

/// No restart is needed. The service refuses the old token once a request had the new one.
#[tokio::test]
async fn an_api_token_that_was_changed_is_read_again() {
    use crate::support::http::once;
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), "first-0123456789abcdef\n").unwrap();
    let token = format!("file:{}", file.path().display());
    let server = Server::start(&["--window", "24h", "--api-token", &token]).await;
    let ask = async |token: &str| {
        let request = format!(
            "GET /api/verve/unique HTTP/1.1\r\nhost: test\r\nauthorization: Bearer {token}\r\ncontent-length: 0\r\n\r\n"
        );
        once(server.address, request.as_bytes()).await.status
    };
    assert_eq!((ask("first-0123456789abcdef").await, ask("second-0123456789abcdef").await), (200, 401));
    // An invalid token in the file changes nothing.
    fs::write(file.path(), "short").unwrap();
    wait_until("the file to be looked at", async || {
        ask("third-0123456789abcdef").await;
        format!("{:?}", server.log()).contains("the secret stays as it was")
    })
    .await;
    fs::write(file.path(), "second-0123456789abcdef\n").unwrap();
    wait_until("the new token to be taken", async || ask("second-0123456789abcdef").await == 200).await;
    assert_eq!(ask("first-0123456789abcdef").await, 401);
    let log = server.log();
    assert!(format!("{log:?}").contains("read again"), "{log:?}");
    assert!(!format!("{log:?}").contains("0123456789abcdef"), "{log:?}");
}

#[test]
fn an_unreadable_secret_file_is_reported() {
    let line = refused(&output_of(headcount().args(["--redis-url", "file:/nowhere"])), 2);
    assert!(line.contains("'/nowhere'") && line.contains("--redis-url"), "{line}");
}
