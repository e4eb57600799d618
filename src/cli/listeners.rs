//! The sockets that the service listens on.

use std::io;
use std::iter;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use tokio::net::{TcpListener, TcpSocket};

use crate::http;

/// What the kernel keeps for a client that does not read, in bytes (Linux takes twice that). Left alone it would
/// grow to megabytes a connection, for answers that are all smaller than this.
const SEND_BUFFER: u32 = 64 * 1024;
/// Connections that wait to be accepted; the system may allow fewer.
const BACKLOG: u32 = 1024;

/// Bound sockets.
pub struct Listeners {
    /// For the API.
    pub public: TcpListener,
    /// For operations, if they have one of their own.
    pub admin: Option<TcpListener>,
}

impl Listeners {
    /// Binds what the arguments ask for; port 0 is a free one.
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

    /// Where they are bound.
    ///
    /// # Errors
    ///
    /// When the system does not say.
    pub fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        iter::once(&self.public).chain(&self.admin).map(TcpListener::local_addr).collect()
    }
}

/// Connections have the options of their listener.
fn bind(address: SocketAddr, write_timeout: Duration) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // As the standard library does: so that a service that is started again need not wait.
    socket.set_reuseaddr(true)?;
    socket.set_send_buffer_size(SEND_BUFFER)?;
    // What the kernel holds of a connection that is closed has an end too.
    #[cfg(target_os = "linux")]
    socket2::SockRef::from(&socket).set_tcp_user_timeout(Some(write_timeout))?;
    #[cfg(not(target_os = "linux"))]
    let _ = write_timeout;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}
