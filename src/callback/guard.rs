//! The guard: which URLs a callback may go to.
//!
//! Clients name the endpoints, and this service reaches hosts that clients cannot reach. So a URL is checked twice.
//!
//! *On arrival*, for what can be seen without DNS: [`Guard::admit`]. Every spelling of an address (`0x7f.1`,
//! `2130706433`, `[::ffff:127.0.0.1]`, full-width digits) is an address by then, because the parser of URLs is the one
//! that browsers have (WHATWG).
//!
//! *While connecting*, for names: a [`Resolver`] stands between the client and DNS. It checks the very addresses that
//! are dialled, so a name cannot have one address for the check and another for the connection. All addresses of a
//! name must be allowed: if one of them is forbidden, none is dialled.
//!
//! There is no third check, because redirects are not followed.
//!
//! Allowed are global addresses (see [`special_purpose`]), and what `--callback-allow` names. Our own listeners are
//! never allowed. A request to them would do no harm, because a POST never causes a callback. But no client wants one.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::str::FromStr;
use std::sync::Arc;

use ipnet::IpNet;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use thiserror::Error;
use tokio::sync::Semaphore;
use url::{Host, Url};

use super::hosts::Origin;
use super::special_purpose;

/// Longest URL, in bytes, as it is sent. It bounds the memory of a full queue.
pub const MAX_URL_LEN: usize = 2048;
/// Name lookups at a time. The system's resolver occupies a thread for each, even after the callback has timed out.
/// Other work needs threads too.
const LOOKUPS: usize = 128;

/// A URL that was admitted on arrival.
#[derive(Debug, Clone)]
pub struct Endpoint {
    pub(super) url: Url,
    /// Without the port, and in one spelling: limits are kept for it, and the log shows it.
    pub(super) host: Arc<str>,
}

impl Endpoint {
    pub(super) fn origin(&self) -> Origin {
        (self.url.scheme() == "https", self.url.port_or_known_default().unwrap_or_default())
    }
}

/// A callback must not go to a URL.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Refused {
    /// No absolute http or https URL of up to [`MAX_URL_LEN`] bytes.
    #[error("not a http or https URL of up to {MAX_URL_LEN} bytes")]
    Invalid,
    /// A rule forbids it; the text names the rule.
    #[error("{0}")]
    Forbidden(String),
}

fn forbidden(why: impl Into<String>) -> Refused {
    Refused::Forbidden(why.into())
}

/// What `--callback-allow` opens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Allow {
    /// All addresses of a block.
    Block(IpNet),
    /// All addresses of a name.
    Name(String),
    /// All addresses of the names below this one.
    Below(String),
}

impl FromStr for Allow {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
        if let Ok(block) = text.parse::<IpNet>() {
            Ok(Self::Block(block.trunc()))
        } else if let Ok(address) = bare.parse::<IpAddr>() {
            Ok(Self::Block(address.to_canonical().into()))
        } else if let Some(suffix) = text.strip_prefix("*.") {
            read_name(suffix).map(Self::Below)
        } else {
            read_name(text).map(Self::Name)
        }
    }
}

/// A name as a parsed URL has it.
fn read_name(text: &str) -> Result<String, &'static str> {
    match Host::parse(text) {
        Ok(Host::Domain(name)) if !text.contains('*') && !without_dot(&name).is_empty() => {
            Ok(without_dot(&name).to_owned())
        }
        _ => Err(
            "expected a block of addresses such as 10.0.0.0/8, a host name such as hooks.internal, or *.internal",
        ),
    }
}

/// `example.com.` is `example.com`.
fn without_dot(name: &str) -> &str {
    name.strip_suffix('.').unwrap_or(name)
}

impl Allow {
    fn has_name(&self, name: &str) -> bool {
        match self {
            Self::Block(_) => false,
            Self::Name(allowed) => name == allowed,
            Self::Below(suffix) => {
                name.strip_suffix(&**suffix).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
            }
        }
    }

    fn has_address(&self, address: IpAddr) -> bool {
        matches!(self, Self::Block(block) if block.contains(&address))
    }
}

/// Decides which URLs a callback may go to.
#[derive(Debug)]
pub struct Guard {
    is_on: bool,
    allow: Vec<Allow>,
    own: Vec<SocketAddr>,
}

impl Guard {
    /// A guard that opens `allow` and closes `own`, the addresses that this service listens on.
    pub fn new(is_on: bool, allow: Vec<Allow>, own: Vec<SocketAddr>) -> Self {
        Self { is_on, allow, own }
    }

    /// Checks a URL as far as that can be done without DNS.
    ///
    /// # Errors
    ///
    /// Why it is refused.
    pub fn admit(&self, text: &str) -> Result<Endpoint, Refused> {
        // Checked before and after parsing: a URL keeps the memory of its text, and escapes may lengthen it.
        if text.len() > MAX_URL_LEN {
            return Err(Refused::Invalid);
        }
        let url = Url::parse(text).map_err(|_| Refused::Invalid)?;
        let (Some(host), Some(port)) = (url.host(), url.port_or_known_default()) else {
            return Err(Refused::Invalid);
        };
        if !matches!(url.scheme(), "http" | "https") || url.as_str().len() > MAX_URL_LEN {
            return Err(Refused::Invalid);
        }
        if !self.is_on {
            return Err(forbidden("callbacks are off"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(forbidden("the URL has a user or a password"));
        }
        if url.fragment().is_some() {
            return Err(forbidden("the URL has a fragment"));
        }
        if !matches!(port, 80 | 443 | 1024..) {
            return Err(forbidden(format!("port {port} is neither 80, 443 nor above 1023")));
        }
        let host = match host {
            Host::Domain(name) => self.judge_name(without_dot(name))?,
            Host::Ipv4(address) => self.judge_literal(address.into(), port)?,
            Host::Ipv6(address) => self.judge_literal(address.into(), port)?,
        };
        Ok(Endpoint { url, host: host.into() })
    }

    /// Refuses only names that RFC 6761 defines as this machine. The [`Resolver`] checks the addresses of all others.
    fn judge_name(&self, name: &str) -> Result<String, Refused> {
        if name.is_empty() {
            return Err(Refused::Invalid);
        }
        let is_this_machine = name == "localhost" || name.ends_with(".localhost");
        if is_this_machine && !self.allows_name(name) && self.judge(Ipv4Addr::LOCALHOST.into()).is_err() {
            return Err(forbidden(format!("{name} is this machine")));
        }
        Ok(name.to_owned())
    }

    fn judge_literal(&self, address: IpAddr, port: u16) -> Result<String, Refused> {
        self.judge(address)?;
        if self.is_own(address, port) {
            return Err(forbidden("this service listens there"));
        }
        Ok(address.to_canonical().to_string())
    }

    /// Checks an address against the rules, but not against our own listeners.
    fn judge(&self, address: IpAddr) -> Result<(), Refused> {
        let address = address.to_canonical();
        if special_purpose::is_global(address) || self.allow.iter().any(|allow| allow.has_address(address)) {
            return Ok(());
        }
        Err(forbidden(format!("{address} is not a public address")))
    }

    fn allows_name(&self, name: &str) -> bool {
        self.allow.iter().any(|allow| allow.has_name(name))
    }

    pub(super) fn own_ports(&self) -> BTreeSet<u16> {
        self.own.iter().map(SocketAddr::port).collect()
    }

    fn is_own(&self, address: IpAddr, port: u16) -> bool {
        let address = address.to_canonical();
        self.own.iter().filter(|own| own.port() == port).any(|own| {
            // Dialling the unspecified address reaches this machine.
            address.is_unspecified()
                || own.ip().to_canonical() == address
                || own.ip().is_unspecified() && is_this_machines(address)
        })
    }
}

/// Only addresses of this machine can be bound.
fn is_this_machines(address: IpAddr) -> bool {
    !UdpSocket::bind((address, 0)).is_err_and(|error| error.kind() == io::ErrorKind::AddrNotAvailable)
}

/// Looks up names. A name with a forbidden address fails.
#[derive(Clone)]
pub(super) struct Resolver {
    guard: Arc<Guard>,
    /// The port that the client will dial, if one of our listeners has it. The client passes only the name to DNS.
    own_port: Option<u16>,
    lookups: Arc<Semaphore>,
}

impl Resolver {
    pub(super) fn new(guard: Arc<Guard>) -> Self {
        Self { guard, own_port: None, lookups: Arc::new(Semaphore::new(LOOKUPS)) }
    }

    pub(super) fn for_own_port(&self, port: u16) -> Self {
        Self { own_port: Some(port), ..self.clone() }
    }

    fn judge(&self, name: &str, addresses: &[SocketAddr]) -> Result<(), Refused> {
        let guard = &self.guard;
        let is_allowed = guard.allows_name(without_dot(name));
        for address in addresses.iter().map(SocketAddr::ip) {
            if !is_allowed {
                guard.judge(address)?;
            }
            if self.own_port.is_some_and(|port| guard.is_own(address, port)) {
                return Err(forbidden("this service listens there"));
            }
        }
        Ok(())
    }
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let resolver = self.clone();
        Box::pin(async move {
            // The client's time-out to connect bounds this wait.
            let permit = Arc::clone(&resolver.lookups).acquire_owned().await?;
            let asked = name.as_str().to_owned();
            let lookup = tokio::task::spawn_blocking(move || {
                let _permit = permit;
                (asked, 0).to_socket_addrs().map(Iterator::collect::<Vec<_>>)
            });
            let addresses = lookup.await??;
            resolver.judge(name.as_str(), &addresses)?;
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}
