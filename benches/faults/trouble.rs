//! What can fail: Redis, and the endpoints of callbacks.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::support::free_port;
use crate::support::outage::{Outage, Site};
use crate::support::receiver::{Answering, Receiver};

#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// Redis is away, while counting in this mode.
    Redis(&'static str, Outage),
    /// Every request names an endpoint that does not answer.
    Endpoint(Silence),
}

/// How an endpoint does not answer.
#[derive(Debug, Clone, Copy)]
pub enum Silence {
    Never,
    AByteASecond,
    Refuses,
}

impl Kind {
    pub fn all() -> Vec<Self> {
        let redis =
            ["hll", "exact"].into_iter().flat_map(|mode| Outage::ALL.map(|outage| Self::Redis(mode, outage)));
        let endpoints = [Silence::Never, Silence::AByteASecond, Silence::Refuses].map(Self::Endpoint);
        redis.chain(endpoints).collect()
    }

    /// How many times as high the p99 may be during the trouble.
    pub fn times(self) -> f64 {
        match self {
            Self::Redis(..) => 1.5,
            Self::Endpoint(_) => 1.3,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Redis(mode, outage) => write!(f, "Redis, {mode}: {outage:?}"),
            Self::Endpoint(silence) => write!(f, "endpoint: {silence:?}"),
        }
    }
}

/// One trouble, which can begin and end.
pub struct Trouble {
    cause: Cause,
    endpoint: Endpoint,
}

enum Cause {
    Redis { site: Box<Site>, url: String, mode: &'static str, outage: Outage },
    Endpoint { _receiver: Option<Receiver> },
}

/// The endpoint that requests name during the trouble.
#[derive(Clone, Default)]
pub struct Endpoint {
    url: Arc<str>,
    is_named: Arc<AtomicBool>,
}

impl Endpoint {
    pub fn parameter(&self) -> String {
        if self.is_named.load(Ordering::Relaxed) { format!("&endpoint={}", self.url) } else { String::new() }
    }
}

impl Trouble {
    pub async fn prepare(kind: Kind) -> Self {
        match kind {
            Kind::Redis(mode, outage) => {
                let site = Box::new(Site::start().await);
                let url = site.url();
                Self { cause: Cause::Redis { site, url, mode, outage }, endpoint: Endpoint::default() }
            }
            Kind::Endpoint(silence) => {
                let receiver = match silence {
                    Silence::Never => Some(Receiver::start(Answering::Never).await),
                    Silence::AByteASecond => {
                        Some(Receiver::start(Answering::Trickle(Duration::from_secs(1))).await)
                    }
                    Silence::Refuses => None,
                };
                let port = receiver.as_ref().map_or_else(free_port, |receiver| receiver.address.port());
                let url = format!("http://127.0.0.1:{port}/").into();
                let endpoint = Endpoint { url, is_named: Arc::default() };
                Self { cause: Cause::Endpoint { _receiver: receiver }, endpoint }
            }
        }
    }

    /// The arguments of the service.
    pub fn args(&self) -> Vec<&str> {
        match &self.cause {
            Cause::Redis { url, mode, .. } => vec!["--redis-url", url, "--mode", mode],
            Cause::Endpoint { .. } => vec!["--callback-allow", "127.0.0.1", "--callback-host-rate", "100000"],
        }
    }

    pub fn endpoint(&self) -> Endpoint {
        self.endpoint.clone()
    }

    pub fn begin(&mut self) {
        match &mut self.cause {
            Cause::Redis { site, outage, .. } => site.begin(*outage),
            Cause::Endpoint { .. } => self.endpoint.is_named.store(true, Ordering::Relaxed),
        }
    }

    pub fn end(&mut self) {
        match &mut self.cause {
            Cause::Redis { site, outage, .. } => site.end(*outage),
            Cause::Endpoint { .. } => self.endpoint.is_named.store(false, Ordering::Relaxed),
        }
    }
}
