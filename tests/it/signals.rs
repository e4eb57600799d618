//! Signals stop the service in order in every phase, also when they come twice.

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use crate::support::http::get;
use crate::support::process::{Process, headcount};
use crate::support::proxy::{Fault, Proxy};
use crate::support::redis::Redis;
use crate::support::server::Server;
use crate::support::{free_port, wait_until};

/// Any stop signal, once or twice within a second, stops the service in order. The last window is published.
#[tokio::test(flavor = "multi_thread")]
async fn every_stop_signal_stops_in_order() {
    for signal in ["TERM", "INT", "HUP"] {
        for times in [1, 2, 5] {
            let mut server = Server::start(&["--window", "24h", "--drain-delay", "300ms"]).await;
            assert_eq!(server.get("/api/verve/accept?id=1").await.body, "ok");
            for _ in 0..times {
                server.process.signal(signal);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            assert_eq!(server.ended().await.code(), Some(0), "{signal}, {times} times");
            assert_eq!(
                server.closed().last().map(|closed| closed.unique),
                Some(1),
                "{signal}, {times} times"
            );
        }
    }
}

/// As GNU `timeout` does: to the process, and to the group that it is in.
#[tokio::test(flavor = "multi_thread")]
async fn a_signal_to_the_process_and_its_group_counts_once() {
    for signal in ["TERM", "HUP"] {
        let mut command = headcount();
        command.args(["--listen", "127.0.0.1:0", "--window", "24h"]).process_group(0);
        let mut server = Server::run(command).await;
        assert_eq!(server.get("/api/verve/accept?id=1").await.body, "ok");
        server.process.signal(signal);
        server.process.signal_group(signal);
        assert_eq!(server.ended().await.code(), Some(0), "{signal}");
        assert_eq!(server.closed().last().map(|closed| closed.unique), Some(1), "{signal}");
    }
}

/// A later second signal stops the service at once, whichever the two are.
#[tokio::test(flavor = "multi_thread")]
async fn a_later_signal_stops_at_once() {
    for (first, second) in [("TERM", "TERM"), ("INT", "TERM"), ("HUP", "INT"), ("TERM", "HUP")] {
        let mut server = Server::start(&["--drain-delay", "20s"]).await;
        server.process.signal(first);
        server.wait_for_log("stopping").await;
        // From here: the service may have seen the signal late.
        tokio::time::sleep(Duration::from_millis(1_200)).await;
        assert!(server.process.0.try_wait().unwrap().is_none(), "{first}: it drains for 20 s");
        server.process.signal(second);
        assert_eq!(server.ended().await.code(), Some(1), "{first}, {second}");
        assert!(server.log().iter().any(|event| event["level"] == "ERROR"));
    }
}

/// While it waits for Redis, nothing has been accepted: it ends at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_waits_for_redis_stops_at_once() {
    for signal in ["TERM", "INT", "HUP"] {
        let (address, nobody) = (format!("127.0.0.1:{}", free_port()), free_port());
        let url = format!("redis://127.0.0.1:{nobody}");
        let args = ["--listen", &address, "--redis-wait", "60s", "--redis-url", &url];
        let mut process = Process(headcount().args(args).spawn().unwrap());
        wait_until("the sockets to be there", async || {
            tokio::net::TcpStream::connect(&address).await.is_ok()
        })
        .await;
        process.signal(signal);
        assert_eq!(process.wait_for(Duration::from_secs(10)).code(), Some(0), "{signal}");
    }
}

/// While the service starts, it answers every request that it does.
#[tokio::test(flavor = "multi_thread")]
async fn a_starting_service_answers_that_it_starts() {
    let redis = Redis::start();
    let proxy = Proxy::start(redis.address()).await;
    proxy.set(Fault::Refuse);
    let (public, admin) = (format!("127.0.0.1:{}", free_port()), format!("127.0.0.1:{}", free_port()));
    let args =
        ["--listen", &public, "--admin-listen", &admin, "--redis-wait", "60s", "--redis-url", &proxy.url()];
    let mut process = Process(headcount().args(args).spawn().unwrap());
    let (public, admin) = (public.parse().unwrap(), admin.parse().unwrap());
    wait_until("the sockets to be there", async || tokio::net::TcpStream::connect(admin).await.is_ok()).await;
    let alive = get(admin, "/livez").await;
    assert_eq!((alive.status, &*alive.body), (200, "alive"));
    let ready = get(admin, "/readyz").await;
    assert_eq!((ready.status, &*ready.body), (503, "starting"));
    let refused = get(public, "/api/verve/accept?id=1").await;
    assert_eq!((refused.status, &*refused.body), (503, "failed"));
    assert_eq!(refused.header("failure-reason"), Some("store_unavailable"));
    proxy.set(Fault::None);
    wait_until("it to be ready", async || get(admin, "/readyz").await.status == 200).await;
    assert_eq!(get(public, "/api/verve/accept?id=1").await.body, "ok");
    process.signal("TERM");
    assert_eq!(process.wait_for(Duration::from_secs(20)).code(), Some(0));
}

/// The first heartbeat takes longer than `--redis-timeout`. The instance tries again until `--redis-wait`.
#[tokio::test(flavor = "multi_thread")]
async fn a_late_first_heartbeat_is_tried_again() {
    let redis = Redis::start();
    let proxy = Proxy::start(redis.address()).await;
    let address = format!("127.0.0.1:{}", free_port());
    let args = [
        ["--listen", &address],
        ["--redis-wait", "60s"],
        ["--redis-timeout", "200ms"],
        ["--redis-url", &proxy.url()],
    ];
    // Scripts are refused, as by a server that is busy with one; all else is answered.
    let pause = ["SETUSER", "default", "-evalsha", "-eval"];
    ::redis::cmd("ACL").arg(&pause).exec(&mut redis.connect()).unwrap();
    let mut process = Process(headcount().args(args.as_flattened()).spawn().unwrap());
    let address = address.parse().unwrap();
    wait_until("a first report to be refused", async || {
        let log: Vec<::redis::Value> = ::redis::cmd("ACL").arg("LOG").query(&mut redis.connect()).unwrap();
        !log.is_empty()
    })
    .await;
    assert!(process.0.try_wait().unwrap().is_none(), "it has not ended");
    assert_eq!(&*get(address, "/readyz").await.body, "starting");
    ::redis::cmd("ACL").arg(&["SETUSER", "default", "+@all"]).exec(&mut redis.connect()).unwrap();
    wait_until("it to be ready", async || get(address, "/readyz").await.status == 200).await;
    process.signal("TERM");
    assert_eq!(process.wait_for(Duration::from_secs(20)).code(), Some(0));
}

/// A service started with `nohup` survives its terminal.
#[tokio::test(flavor = "multi_thread")]
async fn a_service_under_nohup_goes_on() {
    let mut command = Command::new("nohup");
    command.arg(headcount().get_program()).args(["--listen", "127.0.0.1:0", "--window", "24h"]);
    let mut server = Server::run(command).await;
    server.process.signal("HUP");
    assert_eq!(server.get("/api/verve/accept?id=1").await.body, "ok");
    server.process.signal("TERM");
    assert_eq!(server.ended().await.code(), Some(0));
}
