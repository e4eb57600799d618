//! `headcount healthcheck`: asks a running service whether it lives, for images without curl.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{anyhow, bail};
use axum::body::Body;
use axum::http::header::HOST;
use axum::http::{Request, StatusCode};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// How long the answer may take.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Asks `/livez` of a service that listens on `address`.
pub(super) async fn run(address: SocketAddr) -> anyhow::Result<()> {
    let address = reachable(address);
    let status = tokio::time::timeout(TIMEOUT, ask(address))
        .await
        .map_err(|_| anyhow!("{address} does not answer within {TIMEOUT:?}"))?
        .map_err(|cause| {
            anyhow!("{address} cannot be reached, is the service up and is --listen the same? {cause}")
        })?;
    if status != StatusCode::OK {
        bail!("{address}/livez answers {status}, is that headcount?");
    }
    Ok(())
}

async fn ask(address: SocketAddr) -> anyhow::Result<StatusCode> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get("/livez").header(HOST, address.to_string()).body(Body::empty())?;
    // The connection does the sending and receiving; it ends when the answer has been read.
    let connection = tokio::spawn(connection);
    let status = sender.send_request(request).await?.status();
    connection.abort();
    Ok(status)
}

/// A service that listens on all addresses is reached over loopback.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}
