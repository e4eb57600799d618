//! What the routes share.

use std::sync::Arc;

use axum::extract::Request;
use axum::http::{HeaderMap, Method};
use tokio::sync::watch;

use super::error::Failure;
use super::settings::Settings;
use super::token::ApiToken;
use crate::callback::Callbacks;
use crate::coordination::{ClosedWindows, Coordinator, KeptSeries};
use crate::model::window::{Clock, Window};
use crate::store::{Counting, Store};
use crate::telemetry::metrics::Metrics;

/// The state that the routes share.
pub struct Api {
    /// Remembers the ids.
    pub store: Arc<Store>,
    /// Has the series of past counts.
    pub coordinator: Arc<Coordinator>,
    /// How long the series is kept.
    pub series: KeptSeries,
    /// Sends counts to the endpoints that requests name.
    pub callbacks: Callbacks,
    /// Tells in which window a request arrived.
    pub clock: Arc<dyn Clock>,
    /// The last closed windows.
    pub closed: ClosedWindows,
    /// This instance's id.
    pub instance: String,
    /// The instance id of the leader, if this instance knows it.
    pub leader: watch::Receiver<Option<String>>,
    /// True while this machine's clock differs too much from Redis's.
    pub clock_is_wrong: watch::Receiver<bool>,
    /// Whether load balancers should send requests.
    pub phase: watch::Receiver<Phase>,
    /// What is counted, and how.
    pub counting: Counting,
    /// The token, and the limits of a request.
    pub settings: Settings,
    /// Counts every request.
    pub metrics: Arc<Metrics>,
}

impl Api {
    /// Checks the API token, if one is set.
    ///
    /// # Errors
    ///
    /// [`Failure::Unauthorized`]
    pub(super) fn admit(&self, headers: &HeaderMap) -> Result<(), Failure> {
        match &self.settings.token {
            Some(token) if !token.is_borne_by(headers) => Err(Failure::Unauthorized),
            _ => Ok(()),
        }
    }

    /// Checks the API token or the read token, and that the method is GET or HEAD.
    ///
    /// # Errors
    ///
    /// [`Failure::Unauthorized`] first, then [`Failure::MethodNotAllowed`].
    pub(super) fn admit_reader(&self, request: &Request) -> Result<(), Failure> {
        let may_read = |token: &ApiToken| token.is_borne_by(request.headers());
        if !self.settings.read_token.as_ref().is_some_and(may_read) {
            self.admit(request.headers())?;
        }
        match *request.method() {
            Method::GET | Method::HEAD => Ok(()),
            _ => Err(ONLY_READ),
        }
    }

    pub(super) fn window_now(&self) -> Window {
        self.counting.window.window_at(self.clock.now())
    }

    /// The window that is running. If the clock is behind the last closed window, it is the one after that.
    pub(super) fn running_window(&self) -> Window {
        let closed = self.closed.last();
        closed.map_or(self.window_now(), |closed| self.window_now().max(closed.window.next()))
    }
}

/// The answer of routes that only read. axum's `get` answers HEAD too.
pub(super) const ONLY_READ: Failure = Failure::MethodNotAllowed { allow: "GET, HEAD" };

/// Whether load balancers should send requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Not yet listening.
    Starting,
    /// Accepting requests.
    Ready,
    /// Stopping: still accepting requests, but load balancers should send no more.
    Draining,
}
