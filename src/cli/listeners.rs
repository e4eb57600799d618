//! The sockets that the service listens on.

use std::io;
use std::iter;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use tokio::net::{TcpListener, TcpSocket};

use crate::http;

/// How much the kernel buffers for a client that does not read, in bytes (Linux doubles it). Without a limit this grows
/// to megabytes a connection, though every answer is smaller than the limit.
const SEND_BUFFER: u32 = 64 * 1024;
/// Connections that wait to be accepted; the system may allow fewer.
const BACKLOG: u32 = 1024;

/// Bound sockets.
pub struct Listeners {
    /// For the API.
    pub public: TcpListener,
    /// For operations, with `--admin-listen`.
    pub admin: Option<TcpListener>,
}

impl Listeners {
    /// Binds the addresses of the settings. Port 0 means any free port.
    ///
    /// # Errors
    ///
    /// A line for the user when an address is taken or is not this machine's.
    pub fn bind(settings: &http::Settings) -> anyhow::Result<Self> {
        let bind = |address, flag| {
            bind(address, settings.write_timeout)
                .with_context(|| format!("cannot listen on {address}, choose another address with {flag}"))
        };
        let admin = settings.admin_listen.map(|address| bind(address, "--admin-listen")).transpose();
        Ok(Self { public: bind(settings.listen, "--listen")?, admin: admin? })
    }

    pub(super) fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        iter::once(&self.public).chain(&self.admin).map(TcpListener::local_addr).collect()
    }
}

/// Connections inherit the options of their listener.
fn bind(address: SocketAddr, write_timeout: Duration) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // As the standard library does: a service that is started again need not wait for old connections.
    socket.set_reuseaddr(true)?;
    socket.set_send_buffer_size(SEND_BUFFER)?;
    // After this time the kernel also drops what it still holds for a closed connection.
    #[cfg(target_os = "linux")]
    socket2::SockRef::from(&socket).set_tcp_user_timeout(Some(write_timeout))?;
    #[cfg(not(target_os = "linux"))]
    let _ = write_timeout;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}
