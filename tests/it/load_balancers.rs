//! Load balancers in front of two instances: nginx with docker/nginx.conf, HAProxy and Envoy with deploy/load-balancers.

use std::net::SocketAddr;
use std::sync::Arc;

use serde_json::Value;
use tokio::sync::Barrier;

use crate::support::balancers::{Balancer, envoy, haproxy};
use crate::support::disk::SmallDisk;
use crate::support::fleet::{Fleet, LATE_IS_NOT_AWAY};
use crate::support::http::Connection;
use crate::support::load::Load;
use crate::support::nginx::Nginx;
use crate::support::redis::Redis;
use crate::support::server::{Server, value_of};
use crate::support::tools::{in_repository, replaced};
use crate::support::{free_port, lines, wait_until};

/// The default of --body-limit.
const LIMIT: usize = 8_388_608;

/// nginx with docker/nginx.conf. The test replaces the instances' names by addresses, because Debian's nginx does not look
/// names up again.
fn nginx(instances: &[SocketAddr]) -> Nginx {
    Nginx::start_with(|dir, address| {
        let text = std::fs::read_to_string(in_repository("docker/nginx.conf")).expect("its file");
        let server = text.lines().find(|line| line.contains("headcount:8080 resolve")).expect("instances");
        let servers = instances.iter().map(|to| server.replace("headcount:8080 resolve", &to.to_string()));
        let text = replaced(&text, server, &servers.collect::<Vec<_>>().join("\n"));
        let text = replaced(&text, "listen 8080 ", &format!("listen {address} "));
        let text = replaced(&text, "/tmp/", &format!("{}/", dir.display()));
        replaced(&text, "error_log stderr", &format!("error_log {}/errors", dir.display()))
    })
}

/// The load balancer's disk for bodies is tiny, and an instance is down. Clients get the service's answers, and no id gets
/// into a log.
#[tokio::test(flavor = "multi_thread")]
async fn requests_over_the_limits_of_the_load_balancer_are_refused_as_by_the_service() {
    let mut server = Server::start(&["--window", "24h"]).await;
    let nginx = nginx(&[server.address]);
    let disk = SmallDisk::mount(&nginx.dir().join("body"));
    let large = lines(10_u64.pow(17)..10_u64.pow(17) + 100_000);
    let refused = async |body: &str| {
        let mut connection = Connection::open(nginx.address).await.unwrap();
        let answer = connection.post("text/plain", body.as_bytes()).await.unwrap();
        assert_eq!((answer.status, answer.body.as_str()), (503, "failed"));
        assert_eq!(answer.header("failure-reason"), Some("overloaded"));
        assert_eq!(answer.header("retry-after"), Some("1"));
    };
    for _ in 0..3 {
        refused(&large).await;
    }
    let mut connection = Connection::open(nginx.address).await.unwrap();
    let answer = connection.post("text/plain", b"1\n2\n").await.unwrap();
    assert_eq!((answer.status, answer.body.as_str()), (200, "ok"), "what is small needs no disk");
    // The load balancer passes the instance's own answers unchanged.
    let answer = connection.post("text/plain", b"x").await.unwrap();
    assert_eq!((answer.status, answer.header("failure-reason")), (400, Some("invalid_id")));
    assert_eq!(server.stop().await.code(), Some(0));
    refused("100000000000000007\n").await;
    let mut connection = Connection::open(nginx.address).await.unwrap();
    let answer = connection.get("/api/verve/accept?id=100000000000000007").await.unwrap();
    assert_eq!((answer.status, answer.body.as_str()), (503, "failed"));
    let logged = std::fs::read_to_string(nginx.dir().join("errors")).unwrap_or_default() + &nginx.errors();
    assert!(!logged.contains("10000000000000"), "{logged}");
    drop(disk);
}

/// More bodies of 8 MB at once than fit into the 256 MB of docker-compose.yml. Each client gets `ok` or the service's
/// refusal, and every id with `ok` is counted.
#[tokio::test(flavor = "multi_thread")]
async fn many_large_bodies_at_once_are_taken_or_refused_as_by_the_service() {
    const CLIENTS: usize = 60;
    let server = Server::start(&["--window", "24h"]).await;
    let nginx = nginx(&[server.address]);
    let disk = SmallDisk::mount_of("256m", &nginx.dir().join("body"));
    let ids: Arc<str> = lines(10_u64.pow(17)..10_u64.pow(17) + LIMIT as u64 / 19).into();
    let (mut clients, all_wait) = (tokio::task::JoinSet::new(), Arc::new(Barrier::new(CLIENTS)));
    for _ in 0..CLIENTS {
        let (address, ids, all_wait) = (nginx.address, Arc::clone(&ids), Arc::clone(&all_wait));
        clients.spawn(async move {
            let mut connection = Connection::open(address).await.unwrap();
            let (most, last) = ids.as_bytes().split_at(ids.len() - 1);
            let head = "POST /api/verve/accept HTTP/1.1\r\nhost: x\r\ncontent-type: text/plain\r\n";
            let head = format!("{head}content-length: {}\r\n\r\n", ids.len());
            // No body is whole before the others are there. Sending fails if the answer comes first.
            let sent = connection.send(&[head.as_bytes(), most].concat()).await;
            all_wait.wait().await;
            if sent.is_ok() {
                let _ = connection.send(last).await;
            }
            connection.answer(false).await.unwrap()
        });
    }
    let (mut taken, mut refused) = (0, 0);
    for answer in clients.join_all().await {
        if answer.status == 200 {
            taken += 1;
            continue;
        }
        refused += 1;
        assert_eq!((answer.status, answer.body.as_str()), (503, "failed"));
        assert_eq!(answer.header("failure-reason"), Some("overloaded"));
        assert_eq!(answer.header("retry-after"), Some("1"));
    }
    println!("{taken} taken, {refused} refused");
    assert!(refused > 0, "{taken} taken");
    let mut connection = Connection::open(nginx.address).await.unwrap();
    assert_eq!(
        connection.post("text/plain", ids.as_bytes()).await.unwrap().body,
        "ok",
        "there is room again"
    );
    taken += 1;
    let accepted = server.metric("headcount_accepted_ids_total").await as usize;
    // Whole bodies. nginx may have given up on a slow answer to one that was taken.
    assert_eq!(accepted % (LIMIT / 19), 0);
    assert!((taken..=CLIENTS + 1).contains(&(accepted / (LIMIT / 19))), "{taken} taken, {accepted} ids");
    let logged = std::fs::read_to_string(nginx.dir().join("errors")).unwrap_or_default() + &nginx.errors();
    assert!(!logged.contains("10000000000000"), "{logged}");
    drop(disk);
}

/// Two instances that count together.
async fn two_instances(redis: &Redis) -> Fleet {
    let url = redis.url();
    let args = [["--window", "24h"], ["--mode", "exact"], ["--redis-url", &url], LATE_IS_NOT_AWAY];
    Fleet::start_with(2, args.as_flattened()).await
}

/// The running window's count, through the load balancer.
async fn unique(balancer: SocketAddr) -> Value {
    let answer = Connection::open(balancer).await.unwrap().get("/api/verve/unique").await.unwrap();
    answer.json()["current"]["unique_request_count"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_load_balancer_needs_few_connections() {
    const CLIENTS: u64 = 8;
    let redis = Redis::start();
    let fleet = two_instances(&redis).await;
    let nginx = nginx(&fleet.addresses());
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..CLIENTS {
        let address = nginx.address;
        clients.spawn(async move {
            let mut connection = Connection::open(address).await.unwrap();
            for id in client * 1_000..client * 1_000 + 250 {
                let answer = connection.get(&format!("/api/verve/accept?id={id}")).await.unwrap();
                assert_eq!(answer.body, "ok");
            }
        });
    }
    clients.join_all().await;

    // Before any other client comes, who may need one connection more.
    for server in &fleet.servers {
        let text = server.get("/metrics").await.body;
        let accepted = value_of(&text, "headcount_accepted_ids_total").unwrap();
        // This request has its own connection. The others were kept, and no unneeded one was opened.
        let connections = value_of(&text, "headcount_connections").unwrap() - 1.0;
        println!("{accepted} ids over {connections} connections");
        assert!(accepted > 500.0, "{accepted}");
        assert!((1.0..=CLIENTS as f64).contains(&connections), "{connections}");
    }
    assert_eq!(unique(nginx.address).await, CLIENTS * 250);
}

/// A body of exactly the limit passes, and an instance refuses one that is slightly larger.
async fn bodies_pass_up_to_the_limit(server: &Server, balancer: SocketAddr) {
    // Each id has 18 digits.
    let ids = lines(10_u64.pow(17)..10_u64.pow(17) + LIMIT as u64 / 19);
    assert!((LIMIT - 18..=LIMIT).contains(&ids.len()));
    let mut connection = Connection::open(balancer).await.unwrap();
    let answer = connection.post("text/plain", ids.as_bytes()).await.unwrap();
    assert_eq!((answer.status, answer.body.as_str()), (200, "ok"));
    assert_eq!(server.metric("headcount_accepted_ids_total").await, (LIMIT / 19) as f64);
    let larger = format!("{ids}{}", &ids[..38]);
    let mut connection = Connection::open(balancer).await.unwrap();
    let answer = connection.post("text/plain", larger.as_bytes()).await.unwrap();
    assert_eq!((answer.status, answer.header("failure-reason")), (413, Some("body_too_large")));
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_pass_nginx_up_to_the_limit() {
    let server = Server::start(&["--window", "24h"]).await;
    let nginx = nginx(&[server.address]);
    bodies_pass_up_to_the_limit(&server, nginx.address).await;
    // nginx itself refuses a body that is much larger.
    let ids = lines(10_u64.pow(17)..10_u64.pow(17) + 2 * LIMIT as u64 / 19 + 3);
    let mut connection = Connection::open(nginx.address).await.unwrap();
    let answer = connection.post("text/plain", ids.as_bytes()).await.unwrap();
    assert_eq!((answer.status, answer.header("failure-reason")), (413, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_pass_haproxy_up_to_the_limit() {
    let server = Server::start(&["--window", "24h"]).await;
    bodies_pass_up_to_the_limit(&server, haproxy(&[server.address; 2]).address).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_pass_envoy_up_to_the_limit() {
    let server = Server::start(&["--window", "24h"]).await;
    bodies_pass_up_to_the_limit(&server, envoy(&[server.address; 2]).address).await;
}

/// A client is told that no instance answers, in the words of the service. No id gets into a log.
async fn refused_without_an_instance(balancer: &Balancer) {
    let mut connection = Connection::open(balancer.address).await.unwrap();
    let answer = connection.get("/api/verve/accept?id=100000000000000007").await.unwrap();
    assert_eq!((answer.status, answer.body.as_str()), (503, "failed"), "{}", balancer.said());
    assert_eq!(answer.header("failure-reason"), Some("overloaded"));
    assert_eq!(answer.header("retry-after"), Some("1"));
    assert!(!balancer.said().contains("100000000000000007"), "{}", balancer.said());
}

fn nowhere() -> [SocketAddr; 2] {
    [(); 2].map(|()| SocketAddr::from(([127, 0, 0, 1], free_port())))
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_instance_haproxy_refuses_as_the_service_does() {
    let haproxy = haproxy(&nowhere());
    refused_without_an_instance(&haproxy).await;
    wait_until("the health checks to fail", async || haproxy.said().contains("has no server available"))
        .await;
    refused_without_an_instance(&haproxy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_instance_envoy_refuses_as_the_service_does() {
    refused_without_an_instance(&envoy(&nowhere())).await;
}

/// Waits until an instance has accepted this many more ids.
async fn wait_for_more(server: &Server, ids: f64) {
    let accepted = async || server.metric("headcount_accepted_ids_total").await;
    let before = accepted().await;
    wait_until("an instance to get ids", async || accepted().await >= before + ids).await;
}

/// One instance is stopped and comes back, then the other is killed, while clients send single ids and bulk bodies.
async fn clients_notice_no_stopping_instance(fleet: &mut Fleet, balancer: SocketAddr) {
    const BULK: u64 = 100;
    let load = Load::start(balancer, 16, 0);
    let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
    let bulk = tokio::spawn(async move {
        let mut connection = Connection::open(balancer).await.unwrap();
        let mut sent = 0;
        while stopped.try_recv().is_err() {
            let first = (1 << 40) + sent;
            let answer = connection.post("text/plain", lines(first..first + BULK).as_bytes()).await.unwrap();
            assert_eq!((answer.status, answer.body.as_str()), (200, "ok"));
            sent += BULK;
        }
        sent
    });

    wait_for_more(&fleet.servers[0], 500.0).await;
    assert_eq!(fleet.servers[0].stop().await.code(), Some(0));
    wait_for_more(&fleet.servers[1], 2_000.0).await;
    let first = fleet.servers[0].address;
    let back = fleet.add_on(first).await;
    wait_for_more(back, 2_000.0).await;
    fleet.servers[1].process.signal("KILL");
    wait_for_more(&fleet.servers[2], 2_000.0).await;

    let _ = stop.send(());
    let bulk = bulk.await.unwrap();
    let outcome = load.stop().await;
    assert!(outcome.broken.is_empty(), "{:?}", outcome.broken.first());
    assert_eq!(outcome.unanswered, 0);
    println!("{} ids singly, {bulk} in bodies, all ok", outcome.ok.len());
    assert_eq!(unique(balancer).await, outcome.ok.len() as u64 + bulk);
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_nginx_notice_no_stopping_instance() {
    let redis = Redis::start();
    let mut fleet = two_instances(&redis).await;
    let nginx = nginx(&fleet.addresses());
    clients_notice_no_stopping_instance(&mut fleet, nginx.address).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_haproxy_notice_no_stopping_instance() {
    let redis = Redis::start();
    let mut fleet = two_instances(&redis).await;
    let haproxy = haproxy(&fleet.addresses());
    clients_notice_no_stopping_instance(&mut fleet, haproxy.address).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_envoy_notice_no_stopping_instance() {
    let redis = Redis::start();
    let mut fleet = two_instances(&redis).await;
    let envoy = envoy(&fleet.addresses());
    clients_notice_no_stopping_instance(&mut fleet, envoy.address).await;
}
