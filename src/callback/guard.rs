//! The guard: which URLs a callback may go to.
//!
//! Whoever may send a request may name an endpoint, and this service stands where clients do not: inside. So a
//! URL is looked at twice.
//!
//! *On arrival*, for what can be seen without asking anybody: [`Guard::admit`]. Every spelling of an address
//! (`0x7f.1`, `2130706433`, `[::ffff:127.0.0.1]`, full-width digits) has become an address by then, because the
//! parser of URLs is the one that every browser has (WHATWG).
//!
//! *While connecting*, for names: a [`Resolver`] stands between the client and DNS. It looks at the very
//! addresses that are dialled then, so that a name cannot have one address for a check and another for the
//! connection. All of a name's addresses have to be allowed: of a name that has one inside, nothing is dialled.
//!
//! There is no third time, because redirects are not followed.
//!
//! Allowed is what is global (see [`special_purpose`]), and what `--callback-allow` names. Never allowed are our
//! own listeners. A request to them would do no harm, as no POST calls anybody back, but nobody can mean it.

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

/// Longest URL, in bytes, as it is sent. It bounds what a full queue takes.
pub const MAX_URL_LEN: usize = 2048;
/// Names that are looked up at a time. The system's resolver takes a thread for each, for as long as it likes,
/// also when nobody waits any more; other work needs threads too.
const LOOKUPS: usize = 128;

/// A URL that was admitted on arrival.
#[derive(Debug, Clone)]
pub struct Endpoint {
    url: Url,
    /// Of whom limits are kept, and what the log says.
    host: Arc<str>,
}

impl Endpoint {
    pub(super) fn url(&self) -> &Url {
        &self.url
    }

    /// The host without the port, in the one spelling that it has.
    pub(super) fn host(&self) -> &Arc<str> {
        &self.host
    }

    /// What connections to the host are told apart by.
    pub(super) fn origin(&self) -> Origin {
        (self.url.scheme() == "https", self.url.port_or_known_default().unwrap_or_default())
    }
}

/// A URL that is not admitted.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Refused {
    /// No absolute http or https URL of up to [`MAX_URL_LEN`] bytes.
    #[error("not a http or https URL of up to {MAX_URL_LEN} bytes")]
    Invalid,
    /// One that callbacks must not go to.
    #[error(transparent)]
    Forbidden(#[from] Forbidden),
}

/// Why a callback must not go there.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Forbidden {
    /// `--callbacks off`.
    #[error("callbacks are off")]
    Off,
    /// A user or a password in the URL.
    #[error("the URL has a user or a password")]
    UserInfo,
    /// A fragment, which cannot be sent.
    #[error("the URL has a fragment")]
    Fragment,
    /// A port below 1024 that is neither 80 nor 443.
    #[error("port {0} is not for HTTP")]
    Port(u16),
    /// An address inside.
    #[error("{0} is not a public address")]
    Address(IpAddr),
    /// A name that stands for this machine.
    #[error("{0} is this machine")]
    ThisMachine(String),
    /// This service.
    #[error("it is where this service listens")]
    OwnListener,
}

/// What `--callback-allow` opens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Allow {
    /// All addresses of a block.
    Block(IpNet),
    /// Whatever a name stands for.
    Name(String),
    /// Whatever the names below this one stand for.
    Below(String),
}

/// Neither a block, nor a name, nor a suffix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error(
    "expected a block of addresses such as 10.0.0.0/8, a host name such as hooks.internal, or *.internal"
)]
pub struct InvalidAllow;

impl FromStr for Allow {
    type Err = InvalidAllow;

    fn from_str(text: &str) -> Result<Self, InvalidAllow> {
        if let Ok(block) = text.parse::<IpNet>() {
            return Ok(Self::Block(block.trunc()));
        }
        let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
        if let Ok(address) = bare.parse::<IpAddr>() {
            return Ok(Self::Block(address.to_canonical().into()));
        }
        match text.strip_prefix("*.") {
            Some(suffix) => read_name(suffix).map(Self::Below),
            None => read_name(text).map(Self::Name),
        }
    }
}

/// A name as it stands in a URL after it has been read.
fn read_name(text: &str) -> Result<String, InvalidAllow> {
    match Host::parse(text) {
        Ok(Host::Domain(name)) if !text.contains('*') => {
            Some(without_dot(&name).to_owned()).filter(|name| !name.is_empty()).ok_or(InvalidAllow)
        }
        _ => Err(InvalidAllow),
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

/// Says which URLs a callback may go to.
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

    /// Looks at a URL as far as that can be done without DNS.
    ///
    /// # Errors
    ///
    /// [`Refused`].
    pub fn admit(&self, text: &str) -> Result<Endpoint, Refused> {
        // Before and after: a URL keeps the room of the text that it was read from, and may grow by escapes.
        if text.len() > MAX_URL_LEN {
            return Err(Refused::Invalid);
        }
        let url = Url::parse(text).map_err(|_| Refused::Invalid)?;
        if !matches!(url.scheme(), "http" | "https") || url.as_str().len() > MAX_URL_LEN {
            return Err(Refused::Invalid);
        }
        let (Some(host), Some(port)) = (url.host(), url.port_or_known_default()) else {
            return Err(Refused::Invalid);
        };
        if !self.is_on {
            return Err(Forbidden::Off.into());
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(Forbidden::UserInfo.into());
        }
        if url.fragment().is_some() {
            return Err(Forbidden::Fragment.into());
        }
        if !matches!(port, 80 | 443 | 1024..) {
            return Err(Forbidden::Port(port).into());
        }
        let host: Arc<str> = match host {
            Host::Domain(name) => {
                let name = without_dot(name);
                if name.is_empty() {
                    return Err(Refused::Invalid);
                }
                self.judge_name(name)?;
                name.into()
            }
            Host::Ipv4(address) => self.judge_literal(address.into(), port)?,
            Host::Ipv6(address) => self.judge_literal(address.into(), port)?,
        };
        Ok(Endpoint { url, host })
    }

    /// Of a name only what it is by definition (RFC 6761): the rest is for the [`Resolver`].
    fn judge_name(&self, name: &str) -> Result<(), Forbidden> {
        let is_this_machine = name == "localhost" || name.ends_with(".localhost");
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        if is_this_machine && !self.allows_name(name) && self.judge(loopback).is_err() {
            return Err(Forbidden::ThisMachine(name.to_owned()));
        }
        Ok(())
    }

    fn judge_literal(&self, address: IpAddr, port: u16) -> Result<Arc<str>, Forbidden> {
        self.judge(address)?;
        if self.is_own(address, port) {
            return Err(Forbidden::OwnListener);
        }
        Ok(address.to_canonical().to_string().into())
    }

    /// Whether an address may be dialled.
    ///
    /// # Errors
    ///
    /// [`Forbidden::Address`].
    pub fn judge(&self, address: IpAddr) -> Result<(), Forbidden> {
        let address = address.to_canonical();
        if special_purpose::is_global(address) || self.allow.iter().any(|allow| allow.has_address(address)) {
            return Ok(());
        }
        Err(Forbidden::Address(address))
    }

    fn allows_name(&self, name: &str) -> bool {
        self.allow.iter().any(|allow| allow.has_name(name))
    }

    /// The ports that our listeners have.
    pub(super) fn own_ports(&self) -> BTreeSet<u16> {
        self.own.iter().map(SocketAddr::port).collect()
    }

    fn is_own(&self, address: IpAddr, port: u16) -> bool {
        let address = address.to_canonical();
        self.own.iter().filter(|own| own.port() == port).any(|own| {
            let listens_on_all = own.ip().is_unspecified();
            // Who dials no address in particular reaches this machine.
            address.is_unspecified()
                || own.ip().to_canonical() == address
                || listens_on_all && is_this_machines(address)
        })
    }
}

/// Whether an address is one of this machine's: those and no others can be bound.
fn is_this_machines(address: IpAddr) -> bool {
    match UdpSocket::bind((address, 0)) {
        Ok(_) => true,
        Err(error) => error.kind() != io::ErrorKind::AddrNotAvailable,
    }
}

/// Looks up names, and lets only those through of which every address may be dialled.
#[derive(Clone)]
pub(super) struct Resolver {
    guard: Arc<Guard>,
    /// The port that is to be dialled, if one of our listeners has it: what is asked for here is a name without
    /// a port.
    own_port: Option<u16>,
    lookups: Arc<Semaphore>,
}

impl Resolver {
    pub(super) fn new(guard: Arc<Guard>) -> Self {
        Self { guard, own_port: None, lookups: Arc::new(Semaphore::new(LOOKUPS)) }
    }

    /// The same for one of our own ports.
    pub(super) fn for_own_port(&self, port: u16) -> Self {
        Self { own_port: Some(port), ..self.clone() }
    }

    fn judge(&self, name: &str, addresses: &[SocketAddr]) -> Result<(), Forbidden> {
        let guard = &self.guard;
        let is_allowed = guard.allows_name(without_dot(name));
        for address in addresses.iter().map(SocketAddr::ip) {
            if !is_allowed {
                guard.judge(address)?;
            }
            if self.own_port.is_some_and(|port| guard.is_own(address, port)) {
                return Err(Forbidden::OwnListener);
            }
        }
        Ok(())
    }
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let resolver = self.clone();
        Box::pin(async move {
            // Whoever calls has a deadline.
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
