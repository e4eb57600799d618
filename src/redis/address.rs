//! Where Redis is.

use std::fmt;

use ::redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo};
use thiserror::Error;
use tracing::warn;
use url::Url;

use crate::platform::secret::SecretArg;
use crate::platform::unavailable::Unavailable;

/// As error messages show it.
const FLAG: &str = "--redis-url <URL>";

/// The error for a part of the URL that redis-rs would ignore. It quotes only names of parameters, because the URL may
/// contain a password.
fn unknown_part(url: &Url) -> Option<String> {
    let is_unix = url.scheme().ends_with("unix");
    let known: &[&str] = if is_unix { &["db", "user", "pass", "protocol"] } else { &["protocol"] };
    let mut seen = Vec::new();
    for (name, _) in url.query_pairs() {
        if name == "db" && !is_unix {
            return Some(
                "'?db' is only for unix:// URLs; write the database as the path: redis://host:6379/1"
                    .to_owned(),
            );
        }
        if !known.contains(&&*name) {
            let is_a_name = name.len() <= 32 && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
            let name = if is_a_name { &*name } else { "…" };
            return Some(format!("the parameter '{name}' is not known; expected {}", known.join(", ")));
        }
        if seen.contains(&name) {
            return Some(format!("the parameter '{name}' appears more than once"));
        }
        seen.push(name);
    }
    match url.fragment() {
        Some("insecure") if matches!(url.scheme(), "rediss" | "valkeys") => None,
        Some(_) => Some("a fragment ('#…') is not known; write %23 for a '#' in a password".to_owned()),
        None => None,
    }
}

/// Where Redis is, and the user and password for it. It is shown without the password.
#[derive(Clone)]
pub struct Address {
    pub(super) info: ConnectionInfo,
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
        let info = text.into_connection_info().map_err(|_| {
            format!(
                "invalid value for '{FLAG}': expected redis://, rediss:// or unix://, such as \
                 redis://user:password@host:6379/0"
            )
        })?;
        if let Some(unknown) = Url::parse(text).ok().as_ref().and_then(unknown_part) {
            return Err(format!("invalid value for '{FLAG}': {unknown}"));
        }
        let tcp = info.tcp_settings().clone().set_nodelay(true);
        Ok(Self { info: info.set_tcp_settings(tcp), file: None })
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

    /// Whether it contains a password.
    pub fn has_password(&self) -> bool {
        self.info.redis_settings().password().is_some()
    }

    /// The user that headcount logs in as.
    pub fn user(&self) -> &str {
        self.info.redis_settings().username().unwrap_or("default")
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.info.addr() {
            ConnectionAddr::TcpTls { host, port, .. } => write!(f, "rediss://{host}:{port}"),
            other => write!(f, "{other}"),
        }?;
        write!(f, ", database {}", self.info.redis_settings().db())
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
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
        what: &'static str,
    },
    /// The client cannot connect to such an address.
    #[error("cannot use --redis-url: {0}")]
    Address(Unavailable),
}
