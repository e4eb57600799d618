//! Where Redis is.

use std::fmt;

use ::redis::{ConnectionAddr, ConnectionInfo};
use parking_lot::Mutex;
use thiserror::Error;
use tracing::warn;

use super::urls::{self, Kind};
use crate::platform::secret::SecretArg;
use crate::platform::unavailable::Unavailable;

/// As error messages show it.
const FLAG: &str = "--redis-url <URL>";

/// Where Redis is, and the user and password for it. It is shown without the password.
#[derive(Clone)]
pub struct Address {
    pub(super) info: ConnectionInfo,
    pub(super) kind: Kind,
    /// The file that the URL was read from, if it was: the password may change there.
    file: Option<SecretArg>,
}

impl Address {
    /// Reads a URL.
    ///
    /// # Errors
    ///
    /// A line for the user, without the password.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (info, kind) =
            urls::read(text).map_err(|problem| format!("invalid value for '{FLAG}': {problem}"))?;
        let tcp = info.tcp_settings().clone().set_nodelay(true);
        Ok(Self { info: info.set_tcp_settings(tcp), kind, file: None })
    }

    /// Reads the value of the flag: a URL, or a file that contains it.
    ///
    /// # Errors
    ///
    /// A line for the user, without the password.
    pub fn read(url: &SecretArg) -> Result<Self, String> {
        let address = Self::parse(&url.read(FLAG)?)?;
        Ok(Self { file: url.is_file().then(|| url.clone()), ..address })
    }

    /// Reads the file again. Returns the address if the user or the password changed, and nothing else did: other changes
    /// need a restart.
    pub(super) fn read_again(&self) -> Option<Self> {
        let file = self.file.as_ref()?;
        let read = file.read(FLAG).and_then(|url| Self::parse(&url));
        let new = read.inspect_err(|error| warn!("{error}")).ok()?;
        let login = |address: &Self| {
            let settings = address.info.redis_settings();
            (settings.username().map(str::to_owned), settings.password().map(str::to_owned))
        };
        (login(&new) != login(self) && new.to_string() == self.to_string())
            .then(|| Self { file: Some(file.clone()), ..new })
    }

    /// The scheme of a single server.
    pub(super) fn scheme(&self) -> &'static str {
        scheme_of(self.info.addr())
    }

    /// Whether its URL shows a password, of the servers or of the Sentinels.
    pub fn shows_password(&self) -> bool {
        let of_sentinels = matches!(&self.kind, Kind::Sentinel(watched) if watched.shows_password);
        of_sentinels || self.info.redis_settings().password().is_some()
    }

    /// The user that headcount logs in as.
    pub fn user(&self) -> &str {
        self.info.redis_settings().username().unwrap_or("default")
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, database) = (self.scheme(), self.info.redis_settings().db());
        let all = |hosts: &[ConnectionAddr]| hosts.iter().map(host_and_port).collect::<Vec<_>>().join(",");
        match &self.kind {
            Kind::Cluster(nodes) => write!(f, "{scheme}-cluster://{}", all(nodes)),
            Kind::Sentinel(watched) => {
                let (sentinels, master) = (all(&watched.sentinels), &watched.master);
                write!(f, "{scheme}-sentinel://{sentinels}, master {master}, database {database}")
            }
            Kind::Server if scheme == "rediss" => {
                write!(f, "rediss://{}, database {database}", self.info.addr())
            }
            Kind::Server => write!(f, "{}, database {database}", self.info.addr()),
        }
    }
}

/// The scheme of the URL of a single server at this address.
pub(super) fn scheme_of(address: &ConnectionAddr) -> &'static str {
    if matches!(address, ConnectionAddr::TcpTls { .. }) { "rediss" } else { "redis" }
}

/// A host and its port, as in a URL.
pub(super) fn host_and_port(address: &ConnectionAddr) -> String {
    match address {
        ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } if host.contains(':') => {
            format!("[{host}]:{port}")
        }
        ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
            format!("{host}:{port}")
        }
        other => other.to_string(),
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The address in use, shared by all connections: its user and password may change.
pub(super) struct Access(Mutex<Address>);

impl Access {
    pub(super) fn new(address: Address) -> Self {
        Self(Mutex::new(address))
    }

    /// The current user and password, and the settings of connections.
    pub(super) fn info(&self) -> ConnectionInfo {
        self.0.lock().info.clone()
    }

    pub(super) fn kind(&self) -> Kind {
        self.0.lock().kind.clone()
    }

    /// Reads the file of `--redis-url` again, after Redis refused the password. True if it has another password now.
    pub(super) fn has_another_password(&self) -> bool {
        let mut address = self.0.lock();
        let Some(new) = address.read_again() else { return false };
        *address = new;
        true
    }
}

/// Why Redis cannot be used.
#[derive(Debug, Error)]
pub enum CannotConnect {
    /// It does not answer, or it refuses.
    #[error("cannot use Redis at {address}, is --redis-url right? {cause}")]
    Refused {
        /// The address, without the password.
        address: String,
        /// The error of the server or of the system.
        cause: Unavailable,
    },
    /// The server speaks the protocol, but headcount cannot work with it.
    #[error("cannot use Redis at {address}: it is {what}")]
    Unsuitable {
        /// The address, without the password.
        address: String,
        /// What the server is, and what the user can do.
        what: String,
    },
}
