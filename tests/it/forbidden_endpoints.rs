//! Callbacks connect to no forbidden address, whatever the endpoint: listeners there see no connection.
//!
//! Loopback stands for the internet: 127.0.0.2 is allowed here and plays a public address. 127.0.0.1 is an internal one.

use std::net::SocketAddr;

use crate::support::free_port;
use crate::support::http::Connection;
use crate::support::names::Names;
use crate::support::process::headcount;
use crate::support::receiver::{Answering, Receiver, callbacks_with};
use crate::support::server::Server;

const ACCEPT: &str = "/api/verve/accept";

async fn start(names: &Names, args: &[&str]) -> Server {
    let mut command = names.headcount();
    command.args(["--listen", "127.0.0.1:0", "--window", "24h"]).args(args);
    Server::run(command).await
}

async fn accept(server: &Server, endpoint: &str) {
    let answer = server.get(&format!("{ACCEPT}?id=1&endpoint={endpoint}")).await;
    assert_eq!((answer.status, &*answer.body), (200, "ok"), "{endpoint}");
}

/// Receivers on the same port of the public and of the internal address.
async fn outside_and_inside(answering: Answering) -> (Receiver, Receiver) {
    let port = free_port();
    let outside = Receiver::start_on(&format!("127.0.0.2:{port}"), answering).await;
    let inside = Receiver::start_on(&format!("127.0.0.1:{port}"), Answering::Status(200)).await;
    (outside, inside)
}

/// DNS rebinding: the service connects only to the address that it checked, each time.
#[tokio::test]
async fn a_name_that_changes_its_address_is_checked_again() {
    let names = Names::start(&[("rebind.example", &[&["127.0.0.2"], &["127.0.0.1"]])]);
    let (outside, inside) = outside_and_inside(Answering::Closing).await;
    let server = start(&names, &["--callback-allow", "127.0.0.2"]).await;
    let endpoint = format!("http://rebind.example:{}/", outside.address.port());

    accept(&server, &endpoint).await;
    server.wait_for_metric(&callbacks_with("ok"), 1.0).await;
    assert_eq!((outside.requests(), names.asked("rebind.example")), (1, 1), "asked once for a connection");
    for callbacks in 1..=3 {
        accept(&server, &endpoint).await;
        server.wait_for_metric(&callbacks_with("forbidden"), f64::from(callbacks)).await;
    }
    assert_eq!((outside.connections(), inside.connections()), (1, 0));
    let log = server.log();
    let line = log.iter().find(|line| line["fields"]["result"] == "forbidden").expect("a line");
    assert_eq!(
        (&line["level"], &line["fields"]["host"], &line["fields"]["error"]),
        (&"WARN".into(), &"rebind.example".into(), &"127.0.0.1 is not a public address".into())
    );
    let unique = server.get("/api/verve/unique").await.json();
    assert_eq!(unique["current"]["unique_request_count"], 1, "the id is counted");
}

/// If a name has an internal address, the service connects to none of its addresses.
#[tokio::test]
async fn a_name_with_a_forbidden_address_is_not_connected_to() {
    let names = Names::start(&[
        ("outside-first.example", &[&["127.0.0.2", "127.0.0.1"]]),
        ("inside-first.example", &[&["127.0.0.1", "127.0.0.2"]]),
        ("both-outside.example", &[&["127.0.0.2", "127.0.0.2"]]),
    ]);
    let (outside, inside) = outside_and_inside(Answering::Status(200)).await;
    let server = start(&names, &["--callback-allow", "127.0.0.2"]).await;
    for (name, callbacks) in [("outside-first", 1.0), ("inside-first", 2.0)] {
        accept(&server, &format!("http://{name}.example:{}/", outside.address.port())).await;
        server.wait_for_metric(&callbacks_with("forbidden"), callbacks).await;
    }
    assert_eq!((outside.connections(), inside.connections()), (0, 0));
    accept(&server, &format!("http://both-outside.example:{}/", outside.address.port())).await;
    outside.wait_received(1).await;
}

#[tokio::test]
async fn names_of_internal_addresses_are_forbidden() {
    let inside = ["127.0.0.1", "10.0.0.1", "169.254.169.254", "192.168.1.1", "0.0.0.0", "100.64.0.1"];
    let answers: Vec<_> = inside.iter().map(|address| vec![*address]).collect();
    let answers: Vec<_> = answers.iter().map(Vec::as_slice).collect();
    let names = Names::start(&[("inside.example", &answers), ("allowed.example", &[&["127.0.0.1"]])]);
    let receiver = Receiver::start(Answering::Status(200)).await;
    let server = start(&names, &["--callback-allow", "allowed.example"]).await;
    for callbacks in 1..=inside.len() {
        accept(&server, &format!("http://inside.example:{}/", receiver.address.port())).await;
        server.wait_for_metric(&callbacks_with("forbidden"), callbacks as f64).await;
    }
    assert_eq!((names.asked("inside.example"), receiver.connections()), (inside.len(), 0));
    // The operator allowed the name, whatever its addresses.
    accept(&server, &format!("http://allowed.example.:{}/", receiver.address.port())).await;
    receiver.wait_received(1).await;
    accept(&server, &format!("http://nobody.example:{}/", receiver.address.port())).await;
    server.wait_for_metric(&callbacks_with("failed"), 1.0).await;
}

/// A public server redirects to an internal address.
#[tokio::test]
async fn a_redirect_to_an_internal_address_is_not_followed() {
    let inside = Receiver::start(Answering::Status(200)).await;
    let names = Names::start(&[("public.example", &[&["127.0.0.2"]])]);
    let outside = Receiver::start_on("127.0.0.2:0", Answering::Redirect(inside.url())).await;
    let server = start(&names, &["--callback-allow", "127.0.0.2"]).await;
    accept(&server, &format!("http://public.example:{}/", outside.address.port())).await;
    server.wait_for_metric(&callbacks_with("bad_status"), 1.0).await;
    assert_eq!((outside.requests(), inside.connections()), (1, 0));
}

/// The service's own listeners are forbidden under any name.
#[tokio::test]
async fn an_endpoint_of_the_service_itself_is_refused() {
    let names = Names::start(&[("own.example", &[&["127.0.0.1"]]), ("also-own.example", &[&["127.0.0.3"]])]);
    for listen in ["127.0.0.1:0", "0.0.0.0:0"] {
        let mut command = names.headcount();
        command.args(["--window", "24h", "--listen", listen, "--admin-listen", "127.0.0.1:0"]).args([
            "--callback-allow",
            "0.0.0.0/0,*.example,localhost",
            "--mode",
            "exact",
        ]);
        let server = Server::run(command).await;
        let port = server.address.port();
        let literals = ["127.0.0.1", "127.1", "[::ffff:127.0.0.1]"];
        for host in literals {
            for port in [port, server.admin.unwrap().port()] {
                let endpoint = format!("http://{host}:{port}{ACCEPT}%3Fid%3D2");
                let target = format!("{ACCEPT}?id=1&endpoint={endpoint}");
                let address = SocketAddr::new("127.0.0.1".parse().unwrap(), server.address.port());
                let answer = crate::support::http::get(address, &target).await;
                assert_eq!(answer.header("failure-reason"), Some("forbidden_endpoint"), "{endpoint}");
            }
        }
        let mut forbidden = 0.0;
        let other = if listen.starts_with('0') { &["also-own.example"][..] } else { &[] };
        for host in ["own.example", "localhost"].iter().chain(other) {
            accept(&server, &format!("http://{host}:{port}{ACCEPT}%3Fid%3D2")).await;
            forbidden += 1.0;
            server.wait_for_metric(&callbacks_with("forbidden"), forbidden).await;
        }
        for outcome in ["ok", "invalid_body", "unsupported_media_type", "method_not_allowed"] {
            let bulk = format!(r#"headcount_requests_total{{route="bulk",result="{outcome}"}}"#);
            assert_eq!(server.metric(&bulk).await, 0.0, "no test has posted anything");
        }
        let unique = server.get("/api/verve/unique").await.json();
        assert_eq!(unique["current"]["unique_request_count"], 1);
    }
}

/// Proxies of the environment are for other programs.
#[tokio::test]
async fn proxies_are_not_used() {
    let (proxy, receiver) =
        (Receiver::start(Answering::Status(200)).await, Receiver::start(Answering::Status(200)).await);
    let mut command = headcount();
    command.args(["--listen", "127.0.0.1:0", "--window", "24h", "--callback-allow", "127.0.0.1"]);
    for name in ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"] {
        command.env(name, format!("http://{}", proxy.address));
    }
    let server = Server::run(command).await;
    accept(&server, &format!("http://{}/", receiver.address)).await;
    receiver.wait_received(1).await;
    assert_eq!(proxy.connections(), 0);
}

/// A name server that does not answer delays only the callbacks that need it.
#[tokio::test]
async fn a_silent_name_server_delays_only_its_own_callbacks() {
    const NAMES: usize = 100;
    let (names, receiver) = (Names::silent(), Receiver::start(Answering::Status(200)).await);
    let server = start(&names, &["--callback-allow", "127.0.0.1"]).await;
    let endpoints = (0..NAMES).map(|number| format!("host{number}.example"));
    // Over one connection: the first name is waited for only for a second.
    let mut connection = Connection::open(server.address).await.unwrap();
    for endpoint in endpoints.chain([receiver.address.to_string()]) {
        let answer = connection.get(&format!("{ACCEPT}?id=1&endpoint=http://{endpoint}/")).await.unwrap();
        assert_eq!((answer.status, &*answer.body), (200, "ok"), "{endpoint}");
    }
    receiver.wait_received(1).await;
    assert_eq!(server.metric(&callbacks_with("timeout")).await, 0.0, "no callback has waited for the names");
    server.wait_for_metric(&callbacks_with("timeout"), NAMES as f64).await;
}
