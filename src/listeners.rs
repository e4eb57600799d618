//! The sockets that the service listens on.

use std::io;
use std::iter;
use std::net::SocketAddr;

use thiserror::Error;
use tokio::net::TcpListener;

use crate::http::ListenArgs;

/// Bound sockets.
pub struct Listeners {
    /// For the API.
    pub public: TcpListener,
    /// For operations, if they have one of their own.
    pub admin: Option<TcpListener>,
}

/// An address cannot be listened on.
#[derive(Debug, Error)]
#[error("cannot listen on {address}, choose another address with {flag}: {cause}")]
pub struct CannotListen {
    address: SocketAddr,
    flag: &'static str,
    cause: io::Error,
}

impl Listeners {
    /// Binds what the arguments ask for; port 0 is a free one.
    ///
    /// # Errors
    ///
    /// [`CannotListen`] when an address is taken or is not this machine's.
    pub async fn bind(addresses: &ListenArgs) -> Result<Self, CannotListen> {
        let public = bind(addresses.listen, "--listen").await?;
        let admin = match addresses.admin_listen {
            Some(address) => Some(bind(address, "--admin-listen").await?),
            None => None,
        };
        Ok(Self { public, admin })
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

async fn bind(address: SocketAddr, flag: &'static str) -> Result<TcpListener, CannotListen> {
    TcpListener::bind(address).await.map_err(|cause| CannotListen { address, flag, cause })
}
