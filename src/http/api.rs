//! What the routes share.

use std::sync::Arc;

use axum::extract::Request;
use axum::http::{HeaderMap, Method};
use tokio::sync::watch;

use super::error::Failure;
use super::settings::Settings;
use crate::callback::Callbacks;
use crate::coordination::ClosedWindows;
use crate::model::window::{Clock, Window};
use crate::store::{Counting, Store};
use crate::telemetry::metrics::Metrics;

/// What the routes work with.
pub struct Api {
    /// Remembers the ids.
    pub store: Arc<Store>,
    /// Takes the endpoints that requests name.
    pub callbacks: Callbacks,
    /// Stamps requests.
    pub clock: Arc<dyn Clock>,
    /// The windows that are closed.
    pub closed: ClosedWindows,
    /// This process, unlike any other.
    pub instance: String,
    /// Which process leads, as far as is known here.
    pub leader: watch::Receiver<Option<String>>,
    /// True while this machine's clock is off by more than windows can bear.
    pub clock_is_wrong: watch::Receiver<bool>,
    /// Whether the service should be sent requests.
    pub phase: watch::Receiver<Phase>,
    /// What is counted, and how.
    pub counting: Counting,
    /// Limits of a request.
    pub settings: Settings,
    /// Told about every request.
    pub metrics: Arc<Metrics>,
}

impl Api {
    /// Admits requests that bear the token.
    ///
    /// # Errors
    ///
    /// [`Failure::Unauthorized`] for the others.
    pub(super) fn admit(&self, headers: &HeaderMap) -> Result<(), Failure> {
        match &self.settings.token {
            Some(token) if !token.is_borne_by(headers) => Err(Failure::Unauthorized),
            _ => Ok(()),
        }
    }

    /// Admits requests that bear the token and only read.
    ///
    /// # Errors
    ///
    /// [`Failure::Unauthorized`], and then [`Failure::MethodNotAllowed`].
    pub(super) fn admit_reader(&self, request: &Request) -> Result<(), Failure> {
        self.admit(request.headers())?;
        match *request.method() {
            Method::GET | Method::HEAD => Ok(()),
            _ => Err(ONLY_READ),
        }
    }

    /// The window that a request which arrives now is stamped with.
    pub(super) fn window_now(&self) -> Window {
        self.counting.window.window_at(self.clock.now())
    }

    /// The window that is counted now: a later one while the clock is behind what is closed.
    pub(super) fn running_window(&self) -> Window {
        let closed = self.closed.last();
        closed.map_or(self.window_now(), |closed| self.window_now().max(closed.window.next()))
    }
}

/// Of routes that only read; those that are made with `get` answer HEAD too.
pub(super) const ONLY_READ: Failure = Failure::MethodNotAllowed { allow: "GET, HEAD" };

/// Whether the service should be sent requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Not yet listening.
    Starting,
    /// Accepting requests.
    Ready,
    /// Going down: still accepting, but to be taken out of the load balancer.
    Draining,
}
