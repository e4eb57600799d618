//! Tests of the tests' helpers: each kind of Redis, the load balancer, the failing network.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;

use crate::support::http::Connection;
use crate::support::nginx::Nginx;
use crate::support::process::output_of;
use crate::support::proxy::{Fault, Proxy};
use crate::support::redis::{Flavour, Redis};
use crate::support::{PATIENCE, free_port};

fn ping(connection: &mut redis::Connection) -> redis::RedisResult<String> {
    redis::cmd("PING").query(connection)
}

#[test]
fn every_flavour_of_redis_answers() {
    const REMEMBER_THE_TIME: &str =
        "local time = redis.call('TIME') redis.call('SET', KEYS[1], time[1]) return time[1]";
    for flavour in Flavour::at_hand() {
        let server = Redis::start_with(flavour, &[]);
        let mut redis = server.connect();
        assert_eq!(ping(&mut redis).unwrap(), "PONG", "{flavour:?}");

        for (key, ids) in [("a", [1, 2]), ("b", [2, 3])] {
            let changed: u8 = redis::cmd("PFADD").arg(key).arg(&ids).query(&mut redis).unwrap();
            assert_eq!(changed, 1, "{flavour:?}");
        }
        redis::cmd("PFMERGE").arg(&["both", "a", "b"]).exec(&mut redis).unwrap();
        let count: u64 = redis::cmd("PFCOUNT").arg("both").query(&mut redis).unwrap();
        assert_eq!(count, 3, "{flavour:?}");

        let time: u64 =
            redis::cmd("EVAL").arg(REMEMBER_THE_TIME).arg(1).arg("time").query(&mut redis).unwrap();
        assert!(time > 1_700_000_000, "{flavour:?}: {time}");

        let info: String = redis::cmd("INFO").arg("server").query(&mut redis).unwrap();
        let version = match flavour {
            Flavour::Debian => "redis_version:",
            Flavour::Redis62 => "redis_version:6.2.",
            Flavour::Redis8 => "redis_version:8.",
            Flavour::Valkey9 => "valkey_version:9.",
        };
        let shown = info.lines().find(|line| line.starts_with(version));
        println!("{flavour:?}: {}", shown.unwrap_or_else(|| panic!("{flavour:?}: {info}")));
    }
}

#[test]
fn redis_takes_arguments_and_listens_on_a_socket_too() {
    let user = ["--user", "reader", "on", "nopass", "~*", "-@all", "+ping"];
    let server = Redis::start_with(Flavour::Debian, &[&["--requirepass", "secret"], &user[..]].concat());
    assert!(ping(&mut server.connect()).is_err(), "it wants a password");
    for credentials in [":secret", "reader:any"] {
        let client = redis::Client::open(format!("redis://{credentials}@{}", server.address())).unwrap();
        assert_eq!(ping(&mut client.get_connection().unwrap()).unwrap(), "PONG", "{credentials}");
    }
    let client = redis::Client::open(format!("{}?pass=secret", server.unix_url())).unwrap();
    assert_eq!(ping(&mut client.get_connection().unwrap()).unwrap(), "PONG");
}

#[test]
fn redis_hangs_and_comes_back_empty() {
    let mut server = Redis::start();
    let mut redis = server.connect();
    redis::cmd("SET").arg(&["key", "value"]).exec(&mut redis).unwrap();

    server.signal("STOP");
    redis.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    assert!(ping(&mut redis).unwrap_err().is_timeout());
    server.signal("CONT");
    let value: Option<String> = redis::cmd("GET").arg("key").query(&mut server.connect()).unwrap();
    assert_eq!(value.as_deref(), Some("value"));

    server.kill();
    assert!(redis::Client::open(server.url()).unwrap().get_connection().is_err());
    // Once after a kill, once while it runs.
    for _ in 0..2 {
        server.restart();
        let keys: u64 = redis::cmd("DBSIZE").query(&mut server.connect()).unwrap();
        assert_eq!(keys, 0);
        redis::cmd("SET").arg(&["key", "value"]).exec(&mut server.connect()).unwrap();
    }
}

#[test]
fn redis_speaks_tls() {
    let server = Redis::start_tls();
    let ping = |host: &str, ca_file: &Path| {
        let port = server.address().port().to_string();
        let args = ["--tls", "-h", host, "-p", &port, "--cacert"];
        output_of(Command::new("redis-cli").args(args).arg(ca_file).arg("PING"))
    };
    for host in ["127.0.0.1", "localhost"] {
        let output = ping(host, &server.ca_file());
        assert_eq!(output.stdout, b"PONG\n", "{host}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let other = Redis::start_tls();
    assert_ne!(ping("127.0.0.1", &other.ca_file()).stdout, b"PONG\n", "another authority vouches for it");

    let certificates = redis::TlsCertificates {
        client_tls: None,
        root_cert: Some(std::fs::read(server.ca_file()).unwrap()),
    };
    let client = redis::Client::build_with_tls(server.url(), certificates).unwrap();
    let answer: String = redis::cmd("PING").query(&mut client.get_connection().unwrap()).unwrap();
    assert_eq!(answer, "PONG", "to rustls, which is stricter");
}

/// A server that answers with its name, or with 503.
async fn upstream(answer: Result<&'static str, StatusCode>) -> (SocketAddr, AbortOnDropHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new().route("/", get(async move || answer));
    let serving = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    (address, AbortOnDropHandle::new(serving))
}

/// The bodies of ten answers on one connection.
async fn ten_answers(address: SocketAddr) -> Vec<String> {
    let mut connection = Connection::open(address).await.unwrap();
    let mut bodies = Vec::new();
    for _ in 0..10 {
        let answer = connection.get("/").await.unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
        bodies.push(answer.body);
    }
    bodies
}

#[tokio::test]
async fn nginx_skips_instances_that_are_away() {
    let (one, _serving_one) = upstream(Ok("one")).await;
    let (two, _serving_two) = upstream(Ok("two")).await;
    let (unready, _serving_unready) = upstream(Err(StatusCode::SERVICE_UNAVAILABLE)).await;
    let away = SocketAddr::from(([127, 0, 0, 1], free_port()));
    // The kernel accepts connections to this port, but no program answers.
    let hanging = std::net::TcpListener::bind("127.0.0.1:0").unwrap();

    let nginx = Nginx::start(&[one, two]);
    let bodies = ten_answers(nginx.address).await;
    assert!(bodies.windows(2).all(|pair| pair[0] != pair[1]), "one after the other: {bodies:?}");

    nginx.reload(&[away, two, unready]);
    assert_eq!(ten_answers(nginx.address).await, ["two"; 10]);
    nginx.reload(&[one, hanging.local_addr().unwrap()]);
    let mut connection = Connection::open(nginx.address).await.unwrap();
    for _ in 0..2 {
        assert_eq!(connection.get("/").await.unwrap().body, "one");
    }

    let workers = nginx.workers();
    assert_eq!(workers.len(), 1);
    drop(nginx);
    assert!(!Path::new(&format!("/proc/{}", workers[0])).exists(), "its worker is left behind");
}

/// A server that sends back what it gets.
async fn echo() -> (SocketAddr, AbortOnDropHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut from, mut to) = stream.split();
                let _ = tokio::io::copy(&mut from, &mut to).await;
            });
        }
    });
    (address, AbortOnDropHandle::new(serving))
}

/// Sends something and waits for it to come back.
async fn passes(stream: &mut TcpStream) -> std::io::Result<()> {
    let mut back = [0; 4];
    stream.write_all(b"ping").await?;
    tokio::time::timeout(PATIENCE, stream.read_exact(&mut back)).await.expect("an answer or an end")?;
    assert_eq!(&back, b"ping");
    Ok(())
}

#[tokio::test]
async fn the_proxy_can_show_every_fault() {
    const A_WHILE: Duration = Duration::from_millis(100);
    let (target, _serving) = echo().await;
    let proxy = Proxy::start(target).await;
    let connect = async || TcpStream::connect(proxy.address()).await.unwrap();

    let mut old = connect().await;
    passes(&mut old).await.unwrap();

    proxy.set(Fault::Cut);
    let reset = passes(&mut old).await.unwrap_err();
    assert_eq!(reset.kind(), std::io::ErrorKind::ConnectionReset);
    let mut old = connect().await;
    passes(&mut old).await.unwrap();

    proxy.set(Fault::Stall);
    let mut new = connect().await;
    for stream in [&mut old, &mut new] {
        stream.write_all(b"held").await.unwrap();
        let nothing = tokio::time::timeout(A_WHILE, stream.read_u8()).await;
        assert!(nothing.is_err(), "{nothing:?} while it stalls");
    }
    proxy.set(Fault::None);
    for stream in [&mut old, &mut new] {
        let mut held = [0; 4];
        tokio::time::timeout(PATIENCE, stream.read_exact(&mut held)).await.unwrap().unwrap();
        assert_eq!(&held, b"held", "nothing is lost");
        passes(stream).await.unwrap();
    }

    proxy.set(Fault::Refuse);
    assert!(passes(&mut old).await.is_err());
    // The handshake is the kernel's: what is refused is reset right after it.
    if let Ok(mut refused) = TcpStream::connect(proxy.address()).await {
        assert!(passes(&mut refused).await.is_err());
    }
    proxy.set(Fault::None);
    let mut old = connect().await;
    passes(&mut old).await.unwrap();

    proxy.set(Fault::Swallow);
    let mut new = connect().await;
    for stream in [&mut old, &mut new] {
        stream.write_all(b"lost").await.unwrap();
        let nothing = tokio::time::timeout(A_WHILE, stream.read_u8()).await;
        assert!(nothing.is_err(), "{nothing:?} while it swallows");
    }
    proxy.set(Fault::None);
    old.write_all(b"lost too").await.unwrap();
    let nothing = tokio::time::timeout(A_WHILE, old.read_u8()).await;
    assert!(nothing.is_err(), "{nothing:?} on a connection that has lost something");

    proxy.set(Fault::Trickle);
    let mut slow = connect().await;
    let begun = Instant::now();
    slow.write_all(&[0; 50]).await.unwrap();
    tokio::time::timeout(PATIENCE, slow.read_exact(&mut [0; 50])).await.unwrap().unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(50), "{:?} for 50 bytes", begun.elapsed());

    proxy.set(Fault::MidReply);
    let mut torn = connect().await;
    torn.write_all(b"ping").await.unwrap();
    let mut half = [0; 2];
    tokio::time::timeout(PATIENCE, torn.read_exact(&mut half)).await.unwrap().unwrap();
    assert_eq!(&half, b"pi");
    let reset = tokio::time::timeout(PATIENCE, torn.read_u8()).await.unwrap().unwrap_err();
    assert_eq!(reset.kind(), std::io::ErrorKind::ConnectionReset);

    proxy.set(Fault::None);
    let (elsewhere, _serving) = echo().await;
    proxy.lead_to(elsewhere);
    passes(&mut connect().await).await.unwrap();
}

/// A test with a window of a day does not start two minutes before midnight.
#[test]
fn no_long_window_ends_during_a_test() {
    let (day, hour, minute) = (86_400, 3_600, 60);
    let wait = |window, at| {
        let at = std::time::UNIX_EPOCH + Duration::from_secs(at);
        crate::support::until_there_is_room(Duration::from_secs(window), at).as_secs()
    };
    assert_eq!((wait(day, 10 * day), wait(day, 10 * day + day / 2)), (0, 0));
    assert_eq!((wait(day, 11 * day - 121), wait(day, 11 * day - 100), wait(day, 11 * day - 1)), (0, 100, 1));
    assert_eq!((wait(hour, 5 * hour - 30), wait(minute, 5 * hour - 1)), (30, 0));
}
