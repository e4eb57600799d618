//! Sends one callback, and records its outcome.

use std::collections::BTreeMap;
use std::error::Error;
use std::hash::{BuildHasher, RandomState};
use std::iter;
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, UNIX_EPOCH};

use ::metrics::Counter;
use bytes::Bytes;
use reqwest::header::{CONNECTION, CONTENT_TYPE};
use reqwest::redirect::Policy;
use reqwest::{Client, ClientBuilder, StatusCode};
use rustls::ClientConfig;
use tracing::{info, warn};

use super::guard::{Endpoint, Guard, Refused, Resolver};
use super::hosts::{KEPT_A_HOST, KEPT_FOR, TIMEOUT};
use super::outcomes::Outcomes;
use super::signature::SigningKey;
use crate::model::window::Clock;
use crate::platform::secret::Secret;
use crate::platform::tls;

/// How long a connection may take: DNS, TCP and TLS.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How often the file of the key is read again.
const KEY_READ_EVERY: Duration = Duration::from_secs(10);
const USER_AGENT: &str = concat!("headcount/", env!("CARGO_PKG_VERSION"));

/// The HTTP client cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("callbacks cannot be sent, switch them off with --callbacks off: {0}")]
pub struct NoClient(Box<dyn Error + Send + Sync>);

pub(super) struct Sender {
    client: Client,
    /// For URLs with a port that this service listens on.
    own_ports: BTreeMap<u16, Client>,
    key: Option<Secret<SigningKey>>,
    clock: Arc<dyn Clock>,
    outcomes: Outcomes,
    /// Message ids begin with it. It is random, so that no two instances send the same id.
    message_prefix: u64,
    messages: AtomicU64,
}

impl Sender {
    pub(super) fn new(
        guard: &Arc<Guard>,
        key: Option<Secret<SigningKey>>,
        clock: Arc<dyn Clock>,
        outcomes: Outcomes,
    ) -> Result<Self, NoClient> {
        let (tls, trusted) = tls::client_config().map_err(|error| NoClient(error.into()))?;
        if trusted == 0 {
            warn!("this system has no certificates: callbacks to https endpoints will fail");
        }
        let build = |resolver| client(&tls, resolver).map_err(|error| NoClient(error.into()));
        let resolver = Resolver::new(Arc::clone(guard));
        let mut own_ports = BTreeMap::new();
        for port in guard.own_ports() {
            own_ports.insert(port, build(resolver.for_own_port(port))?);
        }
        let message_prefix = RandomState::new().hash_one(process::id());
        let messages = AtomicU64::new(0);
        Ok(Self { client: build(resolver)?, own_ports, key, clock, outcomes, message_prefix, messages })
    }

    /// Sends a callback once. A callback that fails is not repeated.
    pub(super) async fn send(&self, endpoint: &Endpoint, body: Bytes, keep_alive: bool) {
        let started = Instant::now();
        let answer = self.post(endpoint, body, keep_alive).await;
        let took = started.elapsed();
        let (host, milliseconds) = (&endpoint.host, took.as_millis() as u64);
        let outcome = match answer {
            // The body is not read. If a short one came with the head, the connection can be used again all the same.
            Ok(status) if status.is_success() => {
                info!(%host, status = status.as_u16(), milliseconds, "callback answered");
                &self.outcomes.ok
            }
            Ok(status) => {
                warn!(%host, status = status.as_u16(), milliseconds, "callback refused");
                &self.outcomes.bad_status
            }
            Err(error) => {
                let (result, outcome) = self.outcome_of(&error);
                // Not the error itself: it contains the URL.
                let error = causes(&error).last().map_or_else(|| "no answer".to_owned(), ToString::to_string);
                warn!(%host, %error, milliseconds, result, "callback failed");
                outcome
            }
        };
        self.outcomes.duration.record(took);
        outcome.increment(1);
    }

    fn outcome_of(&self, error: &reqwest::Error) -> (&'static str, &Counter) {
        if causes(error).any(<dyn Error>::is::<Refused>) {
            ("forbidden", &self.outcomes.forbidden)
        } else if error.is_timeout() {
            ("timeout", &self.outcomes.timeout)
        } else {
            ("failed", &self.outcomes.failed)
        }
    }

    async fn post(&self, endpoint: &Endpoint, body: Bytes, keep_alive: bool) -> reqwest::Result<StatusCode> {
        let url = &endpoint.url;
        let own = url.port_or_known_default().and_then(|port| self.own_ports.get(&port));
        let message = self.messages.fetch_add(1, Ordering::Relaxed);
        let id = format!("msg_{:016x}{message:08x}", self.message_prefix);
        let timestamp = self.clock.now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut request = own
            .unwrap_or(&self.client)
            .post(url.clone())
            .header(CONTENT_TYPE, "application/json")
            .header("webhook-id", &id)
            .header("webhook-timestamp", timestamp);
        if let Some(key) = &self.key {
            key.read_again_after(KEY_READ_EVERY);
            request = request.header("webhook-signature", key.value().sign(&id, timestamp, &body));
        }
        if !keep_alive {
            request = request.header(CONNECTION, "close");
        }
        request.body(body).send().await.map(|response| response.status())
    }
}

fn client(tls: &ClientConfig, resolver: Resolver) -> reqwest::Result<Client> {
    ClientBuilder::new()
        .tls_backend_preconfigured(tls.clone())
        .dns_resolver(Arc::new(resolver))
        // No proxy from the environment: it would look up names itself, past the guard.
        .no_proxy()
        .redirect(Policy::none())
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(TIMEOUT)
        .pool_idle_timeout(KEPT_FOR)
        .pool_max_idle_per_host(KEPT_A_HOST)
        .user_agent(USER_AGENT)
        .build()
}

/// The causes of an error, nearest first.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    iter::successors(error.source(), |&cause| cause.source())
}
