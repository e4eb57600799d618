//! Callbacks: what a receiver gets, and what happens when it is silent.

use std::time::{Duration, Instant};

use axum::http::{HeaderMap, HeaderName};
use standardwebhooks::Webhook;
use tokio::task::JoinSet;

use crate::support::certificates::make_certificates;
use crate::support::http::Connection;
use crate::support::process::headcount;
use crate::support::receiver::{Answering, Received, Receiver, callbacks_with};
use crate::support::redis::Redis;
use crate::support::server::{Server, value_of};
use crate::support::{PATIENCE, free_port, wait_for};

const ACCEPT: &str = "/api/verve/accept";
/// No window ends during a test.
const LOOPBACK: [&str; 4] = ["--window", "24h", "--callback-allow", "127.0.0.0/8"];
/// The secret part of every receiver's URL. The log must not show it.
const TOKEN: &str = "not-to-be-logged";

fn target(id: u64, receiver: &Receiver) -> String {
    format!("{ACCEPT}?id={id}&endpoint={}", receiver.url().replace('?', "%3F").replace('=', "%3D"))
}

async fn accept(server: &Server, id: u64, receiver: &Receiver) {
    let answer = server.get(&target(id, receiver)).await;
    assert_eq!((answer.status, &*answer.body), (200, "ok"));
}

/// Waits until this many callbacks are queued or have one of `results`. Returns how many have a result.
async fn wait_for_sum(server: &Server, results: &[&str], callbacks: f64) -> f64 {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let metrics = server.get("/metrics").await.body;
        let value = |series: &str| value_of(&metrics, series).unwrap();
        let settled: f64 = results.iter().map(|name| value(&callbacks_with(name))).sum();
        let sum = settled + value("headcount_callback_queue_length");
        if sum == callbacks {
            return settled;
        }
        assert!(Instant::now() < deadline, "{sum} callbacks instead of {callbacks}:\n{metrics}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Both stores, in both modes: name, arguments, and the Redis, if there is one.
fn counters() -> Vec<(String, Vec<String>, Option<Redis>)> {
    let mut counters = Vec::new();
    for mode in ["hll", "exact"] {
        let args = |more: &[&str]| {
            ["--mode", mode].iter().chain(&LOOPBACK).chain(more).map(|arg| (*arg).to_owned()).collect()
        };
        counters.push((format!("memory {mode}"), args(&[]), None));
        let redis = Redis::start();
        counters.push((format!("redis {mode}"), args(&["--redis-url", &redis.url()]), Some(redis)));
    }
    counters
}

async fn start(args: &[String], more: &[&str]) -> Server {
    Server::start(&args.iter().map(String::as_str).chain(more.iter().copied()).collect::<Vec<_>>()).await
}

#[tokio::test]
async fn the_count_so_far_is_posted() {
    for (counter, args, _redis) in counters() {
        let receiver = Receiver::start(Answering::Status(204)).await;
        let server = start(&args, &[]).await;
        for (request, (id, unique)) in [(7, 1), (7, 1), (8, 2)].into_iter().enumerate() {
            accept(&server, id, &receiver).await;
            let posts = receiver.wait_received(request + 1).await;
            let Received { line, headers, body } = posts.last().unwrap();
            let timestamp = &server.get("/api/verve/unique").await.json()["current"]["timestamp"];
            assert_eq!(
                *body,
                format!(r#"{{"timestamp":{timestamp},"unique_request_count":{unique}}}"#),
                "{counter}"
            );
            assert_eq!(line, &format!("POST /hook?token={TOKEN} HTTP/1.1"));
            assert_eq!(headers["content-type"], "application/json");
            assert_eq!(headers["user-agent"], format!("headcount/{}", env!("CARGO_PKG_VERSION")));
            assert_eq!(headers["host"], receiver.address.to_string());
            assert!(headers["webhook-id"].starts_with("msg_") && headers["webhook-timestamp"].len() == 10);
            assert!(!headers.contains_key("webhook-signature"), "there is no key");
        }
        let posts = receiver.received();
        let ids: std::collections::BTreeSet<_> =
            posts.iter().map(|request| &request.headers["webhook-id"]).collect();
        assert_eq!((posts.len(), ids.len(), receiver.connections()), (3, 3, 1), "{counter}");
        server.wait_for_metric(&callbacks_with("ok"), 3.0).await;
        assert_eq!(server.metric("headcount_callback_duration_seconds_count").await, 3.0);
    }
}

#[tokio::test]
async fn a_request_with_one_counter_gets_its_count() {
    let receiver = Receiver::start(Answering::Status(204)).await;
    let args: Vec<_> = LOOPBACK.iter().copied().chain(["--max-counters", "2"]).collect();
    let server = Server::start(&args).await;
    // The bound is two names, so the third one counts in _other.
    for (sent, (id, names, unique, counter)) in [
        (1, "&counter=a", 1, r#","counter":"a""#),
        (2, "&counter=a&counter=a", 2, r#","counter":"a""#),
        (3, "&counter=b", 1, r#","counter":"b""#),
        (4, "&counter=c", 1, r#","counter":"_other""#),
        (5, "&counter=a&counter=b", 5, ""),
        (6, "", 6, ""),
    ]
    .into_iter()
    .enumerate()
    {
        let answer = server.get(&format!("{}{names}", target(id, &receiver))).await;
        assert_eq!((answer.status, &*answer.body), (200, "ok"), "{names}");
        let body = receiver.wait_received(sent + 1).await.pop().unwrap().body;
        let timestamp = &server.get("/api/verve/unique").await.json()["current"]["timestamp"];
        assert_eq!(
            body,
            format!(r#"{{"timestamp":{timestamp},"unique_request_count":{unique}{counter}}}"#),
            "{names}"
        );
    }
}

/// More different counters than are counted at a time.
#[tokio::test]
async fn callbacks_of_many_counters_are_all_sent() {
    let receiver = Receiver::start(Answering::Status(204)).await;
    let server = Server::start(&[&LOOPBACK[..], &["--callback-host-rate", "1000"]].concat()).await;
    let mut connection = Connection::open(server.address).await.unwrap();
    for id in 0..350 {
        let target = format!("{}&counter=n{id}", target(id, &receiver));
        assert_eq!(connection.get(&target).await.unwrap().body, "ok");
    }
    let posts = receiver.wait_received(350).await;
    assert!(posts.iter().all(|post| post.count() == 1));
}

/// A window may close, and be evicted, between a request and its callback.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_in_the_last_moment_of_a_window_gets_its_count() {
    for (counter, args, _redis) in counters() {
        let target_of = Receiver::start(Answering::Status(200)).await;
        let more = ["--window", "1s", "--callback-host-rate", "5000"];
        let args: Vec<_> = args.into_iter().filter(|arg| arg != "--window" && arg != "24h").collect();
        let server = start(&args, &more).await;
        let mut connection = Connection::open(server.address).await.unwrap();
        let mut sent = 0;
        while server.closed().len() < 5 {
            for id in 0..20 {
                assert_eq!(connection.get(&target(id, &target_of)).await.unwrap().body, "ok");
                sent += 1;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let posts = target_of.wait_received(sent).await;
        assert!(posts.iter().all(|post| (1..=20).contains(&post.count())), "{counter}: {posts:?}");
    }
}

/// How often Redis was asked to count.
fn counts(redis: &Redis) -> u64 {
    let stats: String =
        redis::cmd("INFO").arg("commandstats").query(&mut redis.connect()).expect("an answer");
    let calls = |command: &str| {
        let line = stats.lines().find(|line| line.starts_with(&format!("cmdstat_{command}:")))?;
        line.split(['=', ',']).nth(1)?.parse::<u64>().ok()
    };
    calls("pfcount").unwrap_or(0) + calls("scard").unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_requests_a_second_share_few_counts() {
    const CONNECTIONS: u64 = 10;
    const REQUESTS: u64 = 300;
    for (counter, args, redis) in counters() {
        let receiver = Receiver::start(Answering::Status(200)).await;
        let server = start(&args, &["--callback-host-rate", "5000"]).await;
        let (counted, started) = (redis.as_ref().map(counts), Instant::now());
        let mut senders = JoinSet::new();
        for first in 0..CONNECTIONS {
            let targets: Vec<_> =
                (0..REQUESTS).map(|request| target(first + request * CONNECTIONS, &receiver)).collect();
            let address = server.address;
            senders.spawn(async move {
                let mut connection = Connection::open(address).await.unwrap();
                let mut pace = tokio::time::interval(Duration::from_millis(10));
                for target in targets {
                    pace.tick().await;
                    assert_eq!(connection.get(&target).await.unwrap().body, "ok");
                }
            });
        }
        senders.join_all().await;
        let posts = receiver.wait_received((CONNECTIONS * REQUESTS) as usize).await;
        if let Some((before, redis)) = counted.zip(redis.as_ref()) {
            let (counts, seconds) = (counts(redis) - before, started.elapsed().as_secs_f64());
            let rate = counts as f64 / seconds;
            println!("{counter}: {} requests, {counts} counts, {rate:.0} a second", posts.len());
            assert!(rate <= 110.0, "{rate} counts a second");
        }
        server.wait_for_metric(&callbacks_with("ok"), (CONNECTIONS * REQUESTS) as f64).await;
        assert_eq!(posts.len() as u64, CONNECTIONS * REQUESTS, "{counter}: one each, and no more");
        let last = posts.iter().map(Received::count).max().unwrap();
        assert!(last.abs_diff(CONNECTIONS * REQUESTS) <= 100, "{counter}: {last}");
        assert_eq!(server.metric("headcount_callback_queue_length").await, 0.0);
    }
}

/// The receiver verifies as the specification's own library does.
#[tokio::test]
async fn signatures_are_those_of_standard_webhooks() {
    let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("{secret}\n")).unwrap();
    let from_file = format!("file:{}", file.path().display());
    for given in [secret, secret.trim_start_matches("whsec_"), &from_file] {
        let receiver = Receiver::start(Answering::Status(200)).await;
        let mut command = headcount();
        command.args(["--listen", "127.0.0.1:0"]).args(LOOPBACK).env("HEADCOUNT_CALLBACK_SECRET", given);
        let server = Server::run(command).await;
        accept(&server, 1, &receiver).await;
        let mut post = receiver.wait_received(1).await.remove(0);
        assert!(is_signed_with(secret, &post), "the signature holds");
        post.body = post.body.replace('1', "2");
        assert!(!is_signed_with(secret, &post));
    }
}

fn is_signed_with(secret: &str, Received { headers, body, .. }: &Received) -> bool {
    let header =
        |(name, value): (&String, &String)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
    let headers: HeaderMap = headers.iter().map(header).collect();
    Webhook::new(secret).unwrap().verify(body.as_bytes(), &headers).is_ok()
}

/// No restart is needed. An invalid secret changes nothing.
#[tokio::test]
async fn a_changed_signing_secret_is_read_again() {
    let [first, second] =
        ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"];
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), first).unwrap();
    let receiver = Receiver::start(Answering::Status(200)).await;
    let secret = format!("file:{}", file.path().display());
    let server = Server::start(&[&LOOPBACK[..], &["--callback-secret", &secret]].concat()).await;
    let mut sent = 0;
    let mut next = async || {
        accept(&server, sent, &receiver).await;
        sent += 1;
        receiver.wait_received(sent as usize).await.pop().unwrap()
    };
    assert!(is_signed_with(first, &next().await));
    std::fs::write(file.path(), "whsec_short").unwrap();
    while !format!("{:?}", server.log()).contains("the secret stays as it was") {
        assert!(is_signed_with(first, &next().await));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    std::fs::write(file.path(), second).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while !is_signed_with(second, &next().await) {
        assert!(Instant::now() < deadline, "the new key is not taken");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(!format!("{:?}", server.log()).contains(&second[6..]));
}

#[tokio::test]
async fn outcomes_are_logged_without_private_parts_of_the_url() {
    let ok = Receiver::start(Answering::Status(204)).await;
    let failing = Receiver::start(Answering::Status(503)).await;
    let elsewhere = Receiver::start(Answering::Status(200)).await;
    let redirecting = Receiver::start(Answering::Redirect(elsewhere.url())).await;
    let metadata =
        Receiver::start(Answering::Redirect("http://169.254.169.254/latest/meta-data/".into())).await;
    let server = Server::start(&LOOPBACK).await;
    let gone = format!("{ACCEPT}?id=1&endpoint=http://127.0.0.1:{}/{TOKEN}", free_port());
    for receiver in [&ok, &failing, &redirecting, &metadata] {
        accept(&server, 1, receiver).await;
    }
    assert_eq!(server.get(&gone).await.body, "ok");
    for (name, callbacks) in [("ok", 1.0), ("bad_status", 3.0), ("failed", 1.0)] {
        server.wait_for_metric(&callbacks_with(name), callbacks).await;
    }
    assert_eq!(elsewhere.connections(), 0, "redirects are not followed");

    let lines = || -> Vec<_> {
        let log = server.log();
        log.into_iter().filter(|line| line["fields"].get("host").is_some()).collect()
    };
    let lines = wait_for("five lines", || Some(lines()).filter(|lines| lines.len() == 5)).await;
    let mut statuses: Vec<_> = lines
        .iter()
        .map(|line| (line["level"].as_str().unwrap(), line["fields"]["status"].as_u64()))
        .collect();
    statuses.sort_unstable();
    assert_eq!(
        statuses,
        [("INFO", Some(204)), ("WARN", None), ("WARN", Some(307)), ("WARN", Some(307)), ("WARN", Some(503))]
    );
    for line in &lines {
        assert_eq!(line["fields"]["host"], "127.0.0.1");
        assert!(line["fields"]["milliseconds"].is_u64(), "{line}");
        assert!(!line.to_string().contains(TOKEN) && !line.to_string().contains("hook"), "{line}");
    }
    let failed = lines.iter().find(|line| line["fields"]["result"] == "failed").unwrap();
    assert!(failed["fields"]["error"].as_str().unwrap().contains("refused"), "{failed}");
}

#[tokio::test]
async fn callbacks_are_sent_over_tls() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for dir in [&dir, &other] {
        make_certificates(dir.path());
    }
    let trusted = Receiver::start_tls(dir.path()).await;
    let untrusted = Receiver::start_tls(other.path()).await;
    let mut command = headcount();
    command.args(["--listen", "127.0.0.1:0"]).args(LOOPBACK).env("SSL_CERT_FILE", dir.path().join("ca.pem"));
    let server = Server::run(command).await;
    for receiver in [&trusted, &untrusted] {
        let url = target(1, receiver).replace("endpoint=http:", "endpoint=https:");
        assert_eq!(server.get(&url).await.body, "ok");
    }
    assert_eq!(trusted.wait_received(1).await[0].count(), 1);
    server.wait_for_metric(&callbacks_with("failed"), 1.0).await;
    assert_eq!(untrusted.requests(), 0);
}

/// Without the system's certificates the service still starts, and logs that.
#[tokio::test]
async fn without_certificates_callbacks_over_http_work() {
    let (empty, receiver) = (tempfile::tempdir().unwrap(), Receiver::start(Answering::Status(200)).await);
    let mut command = headcount();
    command.args(["--listen", "127.0.0.1:0"]).args(LOOPBACK);
    command.env("SSL_CERT_DIR", empty.path()).env("SSL_CERT_FILE", empty.path().join("none.pem"));
    let server = Server::run(command).await;
    accept(&server, 1, &receiver).await;
    receiver.wait_received(1).await;
    let said = |line: &serde_json::Value| line.to_string().contains("certificates");
    assert_eq!(server.log().iter().filter(|line| said(line)).count(), 1);
}

/// At most 32 callbacks to a host are under way. One that has timed out is not, though its connection may still be closing: on a
/// busy machine the next one comes before it is closed. So the open connections say nothing exact.
async fn assert_few_under_way(server: &Server, silent: &Receiver) {
    // Each has a connection of its own. In this order, because more may time out meanwhile.
    let sent = f64::from(silent.connections());
    let under_way = sent - server.metric(&callbacks_with("timeout")).await;
    assert!(under_way <= 32.0, "{under_way} callbacks to one host at a time");
}

/// Receivers do not answer. The service still accepts ids, its queue is bounded, and it counts dropped callbacks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_receivers_delay_no_request() {
    const REQUESTS: u64 = 5_000;
    let endless = Receiver::start_on("127.0.0.2:0", Answering::Endless).await;
    // No receiver listens there any more.
    let refusing = Receiver::start_on("127.0.0.3:0", Answering::Status(200)).await.address;
    for answering in [Answering::Never, Answering::Trickle(Duration::from_secs(1))] {
        let silent = Receiver::start(answering.clone()).await;
        let args = ["--callback-queue", "1000", "--callback-host-rate", "100000"];
        let server = Server::start(&[&LOOPBACK[..], &args].concat()).await;
        let mut connection = Connection::open(server.address).await.unwrap();
        let before = server.process.resident();
        let targets =
            [target(1, &silent), target(1, &endless), format!("{ACCEPT}?id=1&endpoint=http://{refusing}/")];
        for request in 0..REQUESTS {
            let answer = connection.get(&targets[(request % 3) as usize]).await.unwrap();
            assert_eq!(answer.body, "ok", "{answering:?}");
            if request % 500 == 0 {
                let waiting = server.metric("headcount_callback_queue_length").await;
                assert!(waiting <= 1_000.0, "{waiting} wait");
                assert_few_under_way(&server, &silent).await;
            }
        }
        assert_few_under_way(&server, &silent).await;
        let grown = server.process.resident().saturating_sub(before);
        assert!(grown < 64 << 20, "{grown} bytes more");
        assert!(server.metric(&callbacks_with("queue_full")).await > 0.0);
        // In the end every callback has a result, except 32 that are under way.
        let results = ["ok", "bad_status", "timeout", "failed", "queue_full", "host_limit"];
        let settled = wait_for_sum(&server, &results, REQUESTS as f64 - 32.0).await;
        println!("{answering:?}: {settled} settled, {grown} bytes more");
        assert_given_up_after(&server, Duration::from_secs(5)).await;
    }
}

/// A host that does not answer has its own bounded queue.
#[tokio::test]
async fn hosts_do_not_delay_each_other() {
    let silent = Receiver::start(Answering::Never).await;
    let quick = Receiver::start_on("127.0.0.2:0", Answering::Status(200)).await;
    let server = Server::start(&LOOPBACK).await;
    for _ in 0..300 {
        accept(&server, 1, &silent).await;
    }
    // 32 are under way, the callbacks of one second wait, and the others are dropped.
    silent.wait_received(32).await;
    let dropped = wait_for_sum(&server, &["host_limit"], 300.0 - 32.0).await;
    assert!((100.0..=267.0).contains(&dropped), "{dropped} dropped");
    for id in 0..10 {
        accept(&server, id, &quick).await;
        quick.wait_received(id as usize + 1).await;
    }
    assert_eq!(silent.most_open(), 32);
}

/// Waits for a callback that timed out, and measures the time.
async fn assert_given_up_after(server: &Server, time_out: Duration) {
    let given_up = || {
        let log = server.log();
        log.iter()
            .find(|line| line["fields"]["result"] == "timeout")
            .and_then(|line| line["fields"]["milliseconds"].as_u64())
    };
    let given_up = Duration::from_millis(wait_for("a callback to be given up", given_up).await);
    assert!(given_up >= time_out && given_up < time_out + Duration::from_secs(3), "after {given_up:?}");
}

/// The deadline for connecting includes TLS.
#[tokio::test]
async fn connecting_to_a_receiver_has_a_deadline() {
    let silent = Receiver::start(Answering::Never).await;
    let server = Server::start(&LOOPBACK).await;
    let url = target(1, &silent).replace("endpoint=http:", "endpoint=https:");
    assert_eq!(server.get(&url).await.body, "ok");
    assert_given_up_after(&server, Duration::from_secs(1)).await;
}

/// The number of idle connections is bounded, however many ports of a host clients name.
#[tokio::test]
async fn idle_connections_to_many_ports_are_closed() {
    let mut receivers = Vec::new();
    for _ in 0..60 {
        receivers.push(Receiver::start(Answering::Status(200)).await);
    }
    let server = Server::start(&LOOPBACK).await;
    let descriptors = || {
        std::fs::read_dir(format!("/proc/{}/fd", server.process.0.id())).expect("a living process").count()
    };
    let before = descriptors();
    for receiver in &receivers {
        accept(&server, 1, receiver).await;
        receiver.wait_received(1).await;
    }
    server.wait_for_metric(&callbacks_with("ok"), 60.0).await;
    wait_for("connections to be closed", || (descriptors() <= before + 3).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queued_callbacks_are_sent_before_the_process_ends() {
    for args in [&[][..], &["--shutdown-timeout", "8s"]] {
        let receiver = Receiver::start(Answering::Closing).await;
        let silent = Receiver::start_on("127.0.0.2:0", Answering::Never).await;
        let more = ["--mode", "exact", "--callback-host-rate", "1000", "--callback-concurrency", "1"];
        let mut server = Server::start(&[&LOOPBACK[..], &more, args].concat()).await;
        let mut connection = Connection::open(server.address).await.unwrap();
        for id in 0..500 {
            assert_eq!(connection.get(&target(id, &receiver)).await.unwrap().body, "ok");
        }
        if !args.is_empty() {
            // Twice the time-out of a callback.
            accept(&server, 1, &silent).await;
            accept(&server, 1, &silent).await;
        }
        assert!(server.stop().await.success());
        let posts = receiver.received();
        let log = server.log();
        let unsent = log.iter().find_map(|line| line["fields"]["unsent"].as_u64());
        if args.is_empty() {
            assert_eq!((posts.len(), unsent), (500, None));
            assert_eq!(posts.last().unwrap().count(), 500, "before the window was forgotten");
        } else {
            let timed_out = log.iter().filter(|line| line["fields"]["result"] == "timeout").count();
            assert_eq!(posts.len() + timed_out + unsent.expect("no time for all") as usize, 502);
        }
    }
}

#[tokio::test]
async fn callbacks_can_be_switched_off() {
    let receiver = Receiver::start(Answering::Status(200)).await;
    let server = Server::start(&[&LOOPBACK[..], &["--callbacks", "off"]].concat()).await;
    let answer = server.get(&target(1, &receiver)).await;
    assert_eq!((answer.status, answer.header("failure-reason")), (400, Some("forbidden_endpoint")));
    let unique = server.get("/api/verve/unique").await.json();
    assert_eq!(unique["current"]["unique_request_count"], 0, "what is refused is not counted");
    assert_eq!(server.get(&format!("{ACCEPT}?id=1")).await.body, "ok");
    assert_eq!(receiver.connections(), 0);
}

/// Without Redis an instance keeps ids, but has no count of all instances.
#[tokio::test]
async fn no_count_is_posted_while_redis_is_away() {
    let (mut redis, receiver) = (Redis::start(), Receiver::start(Answering::Status(200)).await);
    let server = Server::start(&[&LOOPBACK[..], &["--redis-url", &redis.url()]].concat()).await;
    redis.kill();
    for id in 0..20 {
        accept(&server, id, &receiver).await;
    }
    server.wait_for_metric(&callbacks_with("no_count"), 20.0).await;
    assert_eq!(receiver.connections(), 0);
    redis.restart();
    server.wait_for_metric("headcount_degraded", 0.0).await;
    accept(&server, 20, &receiver).await;
    assert_eq!(receiver.wait_received(1).await[0].count(), 21);
}

/// Redis refuses writes and answers questions. The instance keeps the ids that it accepts then, so no count has them.
#[tokio::test(flavor = "multi_thread")]
async fn no_count_of_a_counter_is_posted_while_the_instance_keeps_ids() {
    let (redis, receiver) = (Redis::start(), Receiver::start(Answering::Status(200)).await);
    let server = Server::start(&[&LOOPBACK[..], &["--redis-url", &redis.url()]].concat()).await;
    redis.set_max_memory(1);
    for id in 0..20 {
        assert_eq!(server.get(&format!("{}&counter=a", target(id, &receiver))).await.body, "ok");
    }
    server.wait_for_metric(&callbacks_with("no_count"), 20.0).await;
    assert_eq!(receiver.connections(), 0);
    redis.set_max_memory(0);
    server.wait_for_metric("headcount_degraded", 0.0).await;
    assert_eq!(server.get(&format!("{}&counter=a", target(20, &receiver))).await.body, "ok");
    assert_eq!(receiver.wait_received(1).await[0].count(), 21);
}
