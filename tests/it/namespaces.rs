//! Namespaces: which keys they have in Redis, how long these live, and which instances may use them.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use headcount::redis::keys::Keys;

use crate::support::fleet::{Fleet, next_window};
use crate::support::process::{headcount, output_of};
use crate::support::redis::{Flavour, Redis};
use crate::support::server::Server;
use crate::support::wait_for;

fn keys(redis: &Redis) -> BTreeSet<String> {
    ::redis::cmd("KEYS").arg("*").query(&mut redis.connect()).unwrap()
}

/// The time to live in milliseconds. None for a key that never expires.
fn time_to_live(redis: &Redis, key: &str) -> Option<u64> {
    let left: i64 = ::redis::cmd("PTTL").arg(key).query(&mut redis.connect()).unwrap();
    u64::try_from(left).ok()
}

/// An instance with other settings exits at once. Its message has both values, and says what to do.
#[tokio::test(flavor = "multi_thread")]
async fn an_instance_with_other_settings_is_refused() {
    let redis = Redis::start();
    let _first = Server::start(&["--redis-url", &redis.url(), "--window", "2s"]).await;
    for (flag, theirs, ours) in [("mode", "hll", "exact"), ("window", "2s", "10s"), ("shards", "1", "4")] {
        let mut args = vec!["--listen", "127.0.0.1:0", "--window", "2s"];
        args.retain(|arg| flag != "window" || !["--window", "2s"].contains(arg));
        let flag = format!("--{flag}");
        let url = redis.url();
        let output = output_of(headcount().args(args).args(["--redis-url", &url, &flag, ours]));
        assert_eq!(output.status.code(), Some(1), "{flag}");
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(error.lines().count(), 1, "{error}");
        let said =
            format!("{flag} is {ours} here, but {theirs} for the other instances of --namespace headcount");
        assert!(error.contains(&said) && error.contains("another --namespace"), "{error}");
    }
    // In another namespace it starts.
    let other = ["--redis-url", &redis.url(), "--mode", "exact", "--namespace", "other"];
    let mut other = Server::start(&other).await;
    assert!(other.stop().await.success());
}

/// Unpublished counts of another window length are not published as those of the new length.
#[tokio::test(flavor = "multi_thread")]
async fn another_window_length_publishes_no_old_counts() {
    let redis = Redis::start();
    let mut first = Fleet::start(1, &redis, "length", &[]).await;
    first.wait_published(0).await;
    assert!(first.servers[0].stop().await.success());
    // The state that a dead leader left, after a minute without instances.
    let keys = Keys::new("length");
    let mut connection = redis.connect();
    let mut last = ::redis::cmd("HGET");
    let published: u64 = last.arg(keys.published()).arg("last").query(&mut connection).unwrap();
    let aligned = published - published % 4 + 4;
    let count = r#"{"unique_request_count":77,"accepted_ids":77,"complete":true}"#;
    ::redis::cmd("HSET").arg(keys.counts()).arg(aligned).arg(count).exec(&mut connection).unwrap();
    ::redis::cmd("DEL").arg(keys.config()).exec(&mut connection).unwrap();

    let url = redis.url();
    let second = Server::start(&["--redis-url", &url, "--namespace", "length", "--window", "4s"]).await;
    let before = SystemTime::now();
    assert_eq!(second.get("/api/verve/accept?id=1").await.body, "ok");
    let after = SystemTime::now();
    assert_eq!(second.get("/api/verve/unique").await.status, 200);
    let closed = second.wait_closed(3).await;
    let with_id: Vec<_> = closed.iter().filter(|closed| closed.unique > 0).collect();
    assert_eq!(with_id.len(), 1, "{closed:?}");
    assert_eq!(with_id[0].unique, 1);
    let start = with_id[0].start();
    assert!(
        start <= after && before < start + Duration::from_secs(4),
        "in the window that it came in: {closed:?}"
    );
}

/// Other instances took over the namespace while this one was silent. It exits, because its counts would be lost.
#[tokio::test(flavor = "multi_thread")]
async fn an_instance_whose_namespace_was_taken_over_exits() {
    let redis = Redis::start();
    let url = redis.url();
    let mut first = Server::start(&["--redis-url", &url, "--window", "2s"]).await;
    first.process.signal("STOP");
    ::redis::cmd("DEL").arg(Keys::new("headcount").config()).exec(&mut redis.connect()).unwrap();
    let _second = Server::start(&["--redis-url", &url, "--window", "2s", "--mode", "exact"]).await;
    first.process.signal("CONT");
    assert_eq!(first.ended().await.code(), Some(1));
    let log = first.log();
    let said = log.last().unwrap()["fields"]["message"].as_str().unwrap();
    assert!(said.contains("--mode is hll here, but exact for the other instances"), "{said}");
}

/// All instances stop before a window is published. The next instance publishes it.
#[tokio::test(flavor = "multi_thread")]
async fn the_stream_begins_where_the_namespace_was_first_used() {
    let redis = Redis::start();
    let mut fleet = Fleet::start(1, &redis, "first", &[]).await;
    let start = next_window(Duration::from_millis(100)).await;
    assert_eq!(fleet.servers[0].get("/api/verve/accept?id=1").await.body, "ok");
    assert!(fleet.servers[0].stop().await.success());
    assert_eq!(fleet.servers[0].closed(), [], "it is too early");
    let keys = Keys::new("first");
    ::redis::cmd("DEL").arg(keys.config()).arg(keys.instances()).exec(&mut redis.connect()).unwrap();
    fleet.add().await;
    let published = fleet.wait_published(start + 2).await;
    assert_eq!(published[&start][0].1.unique, 1, "{published:?}");
}

/// Every key expires, except two that must survive a time without instances. Without history, that is soon.
#[tokio::test(flavor = "multi_thread")]
async fn a_silent_namespace_leaves_two_keys() {
    let redis = Redis::start();
    let mut fleets = Vec::new();
    for mode in ["hll", "exact"] {
        let args =
            ["--mode", mode, "--retention", "8s", "--shards", "2", "--keep-days", "0s", "--keep-hours", "0s"];
        fleets.push(Fleet::start(2, &redis, mode, &args).await);
    }
    let stay = |namespace| {
        let keys = Keys::new(namespace);
        [keys.token(), keys.published()]
    };
    let stay: BTreeSet<_> = [stay("hll"), stay("exact")].concat().into_iter().collect();
    let start = next_window(Duration::from_millis(100)).await;
    for server in fleets.iter().flat_map(|fleet| &fleet.servers) {
        for id in 0..50 {
            assert_eq!(server.get(&format!("/api/verve/accept?id={id}")).await.body, "ok");
        }
    }
    for fleet in &fleets {
        fleet.wait_published(start).await;
    }
    let there = keys(&redis);
    assert!(there.len() >= 10 && there.is_superset(&stay), "{there:?}");
    for key in there.difference(&stay) {
        let left = time_to_live(&redis, key);
        if key.contains(":merge:") {
            // The leader deletes it right after it merged it.
            continue;
        }
        // Two windows of 2 s, and the retention.
        assert!(left.is_some_and(|left| left <= 12_000), "{key}: {left:?}");
    }
    for server in fleets.iter_mut().flat_map(|fleet| &mut fleet.servers) {
        assert!(server.stop().await.success());
    }
    wait_for("all else to expire", || (keys(&redis) == stay).then_some(())).await;
    assert!(stay.iter().all(|key| time_to_live(&redis, key).is_none()));
}

/// URLs with TLS, a socket, a user with a password, and a database.
#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_redis_url_connects() {
    let user = ["--user", "counter", "on", ">se cret/", "~*", "+@all"];
    let redis = Redis::start_with(Flavour::Debian, &user);
    let with_user = redis.url().replace("redis://", "redis://counter:se%20cret%2F@") + "/3";
    for url in [redis.unix_url(), with_user.clone()] {
        let mut server = Server::start(&["--redis-url", &url]).await;
        assert_eq!(server.get("/api/verve/accept?id=1").await.body, "ok");
        assert!(server.stop().await.success());
    }
    let third: usize = {
        let mut connection = redis.connect();
        ::redis::cmd("SELECT").arg(3).exec(&mut connection).unwrap();
        ::redis::cmd("DBSIZE").query(&mut connection).unwrap()
    };
    assert!(third > 0 && !keys(&redis).is_empty(), "one in database 3, one in database 0");

    // From a file that ends in a line end.
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, format!("{with_user}\n")).unwrap();
    let url = format!("file:{}", file.path().display());
    let mut server = Server::start(&["--redis-url", &url]).await;
    assert!(server.stop().await.success());

    let tls = Redis::start_tls();
    let mut command = headcount();
    command.env("SSL_CERT_FILE", tls.ca_file()).args(["--listen", "127.0.0.1:0", "--redis-url", &tls.url()]);
    let mut server = Server::run(command).await;
    assert_eq!(server.get("/api/verve/accept?id=1").await.body, "ok");
    assert!(server.stop().await.success());
}

/// A server with only some keys, or none, is refused at once. The message names its kind.
#[test]
fn unsuitable_servers_are_refused_by_name() {
    let node = Redis::start_with(Flavour::Debian, &["--cluster-enabled", "yes"]);
    // It lacks the last slots, as a node of a larger cluster does.
    ::redis::cmd("CLUSTER").arg(&["ADDSLOTSRANGE", "0", "16000"]).exec(&mut node.connect()).unwrap();
    let url = node.url();
    let checked = output_of(headcount().args(["check", "--redis-url", &url]));
    let found = String::from_utf8(checked.stdout).unwrap();
    assert_eq!(checked.status.code(), Some(1), "{found}");
    assert!(
        found.lines().any(|line| line.starts_with("FAIL reachable") && line.contains("Redis Cluster")),
        "{found}"
    );
    let served = output_of(headcount().args(["--listen", "127.0.0.1:0", "--redis-url", &url]));
    let error = String::from_utf8(served.stderr).unwrap();
    assert_eq!((served.status.code(), error.lines().count()), (Some(1), 1), "{error}");
    assert!(error.contains("a node of a Redis Cluster") && error.contains("--redis-url"), "{error}");
}

/// The server explains itself before it closes the connection. check reports that reason.
#[test]
fn check_reports_the_reason_of_a_server_that_hangs_up() {
    let full = Redis::start_with(Flavour::Debian, &["--maxclients", "1"]);
    let _only = full.connect();
    let output = output_of(headcount().args(["check", "--redis-wait", "300ms", "--redis-url", &full.url()]));
    let found = String::from_utf8(output.stdout).unwrap();
    assert!(found.contains("max number of clients reached"), "{found}");
}

/// An operator changes the password in Redis and in the file. An instance that reconnects reads the file again, and no id
/// is lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_changed_password_is_read_again() {
    let mut redis = Redis::start();
    let file = tempfile::NamedTempFile::new().unwrap();
    let with = |password: &str| redis.url().replace("redis://", &format!("redis://:{password}@"));
    let (first, second) = (with("f1rst"), with("sec0nd"));
    let require = |redis: &Redis, password: Option<&str>, new: &str| {
        let url = password.map_or_else(|| redis.url(), with);
        let mut connection = ::redis::Client::open(url).unwrap().get_connection().unwrap();
        ::redis::cmd("CONFIG").arg(&["SET", "requirepass", new]).exec(&mut connection).unwrap();
    };
    require(&redis, None, "f1rst");
    std::fs::write(file.path(), &first).unwrap();
    let url = format!("file:{}", file.path().display());
    let mut server = Server::start(&["--mode", "exact", "--window", "24h", "--redis-url", &url]).await;
    assert_eq!(server.get("/api/verve/accept?id=1").await.body, "ok");
    require(&redis, Some("f1rst"), "sec0nd");
    ::redis::cmd("CLIENT")
        .arg(&["KILL", "TYPE", "normal", "SKIPME", "yes"])
        .exec(&mut ::redis::Client::open(&*second).unwrap().get_connection().unwrap())
        .unwrap();
    for id in 2..12 {
        assert_eq!(server.get(&format!("/api/verve/accept?id={id}")).await.body, "ok");
    }
    server.wait_for_metric("headcount_degraded", 1.0).await;
    std::fs::write(file.path(), &second).unwrap();
    server.wait_until_replayed().await;
    let unique = server.get("/api/verve/unique").await.json()["current"]["unique_request_count"].as_u64();
    assert_eq!(unique, Some(11));
    let log = server.log();
    let said = |event: &serde_json::Value| event["fields"]["message"].as_str().unwrap().contains("password");
    assert!(log.iter().any(said));
    assert!(
        log.iter().all(|event| !event.to_string().contains("f1rst") && !event.to_string().contains("sec0nd"))
    );
    assert!(server.stop().await.success());
    redis.kill();
}

/// Unknown parts of a URL are refused. The message does not show them.
#[test]
fn unknown_parts_of_the_url_are_refused() {
    for (url, said) in [
        ("redis://:pa55w0rd@h:6379?db=1", "redis://host:6379/1"),
        ("redis://:pa55w0rd@h:6379/?timeout=5", "'timeout' is not known"),
        ("rediss://:pa55w0rd@h:6379/0?insecure=true", "'insecure' is not known"),
        ("redis://:pa55w0rd@h:6379/0#insecure", "fragment"),
        ("redis://h:6379/0?pa55w0rd!=", "'…' is not known"),
        ("redis://:pa55w0rd@h:6379/0?protocol=resp3&protocol=resp2", "more than once"),
        ("redis://:pa55w0rd@h:6379/0/1", "expected redis://"),
        ("redis://:pa55w0rd@h:6379/one", "expected redis://"),
        ("unix:///run/redis.sock?pass=pa55w0rd&database=1", "'database' is not known"),
    ] {
        let output = output_of(headcount().args(["check", "--redis-url", url]));
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), error.lines().count()), (Some(2), 1), "{url}: {error}");
        assert!(error.contains(said) && !error.contains("pa55w0rd"), "{url}: {error}");
    }
}

/// After `--redis-wait` one line says what is wrong, without the password.
#[test]
fn an_unusable_redis_is_reported() {
    let redis = Redis::start_with(Flavour::Debian, &["--requirepass", "right"]);
    let wrong = redis.url().replace("redis://", "redis://:wr0ng@");
    let nobody = format!("redis://:wr0ng@127.0.0.1:{}", crate::support::free_port());
    for (url, said) in
        [(&wrong, "authentication"), (&redis.url(), "uthentication"), (&nobody, "Connection refused")]
    {
        let output = output_of(headcount().args([
            "--listen",
            "127.0.0.1:0",
            "--redis-wait",
            "300ms",
            "--redis-url",
            url,
        ]));
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), error.lines().count()), (Some(1), 1), "{error}");
        assert!(
            error.contains("cannot use Redis at redis://127.0.0.1:")
                || error.contains("cannot use Redis at 127"),
            "{error}"
        );
        assert!(error.contains(said) && error.contains("--redis-url"), "{error}");
        let log = String::from_utf8(output.stdout).unwrap();
        assert!(!error.contains("wr0ng") && !log.contains("wr0ng"), "{error}{log}");
    }
}
