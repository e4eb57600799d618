//! Accepts connections while the service starts, before its routes are ready.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::sync::watch;
use tower::ServiceExt;

use crate::http::error::Failure;
use crate::http::routes::ops;

/// How long a request waits for the routes, before it gets 503.
const START_PATIENCE: Duration = Duration::from_secs(2);

/// A router whose routes are set after the server has started. Until then it answers `/livez` with `alive` and `/readyz`
/// with `starting`. Other requests wait up to two seconds for the routes. Clones share the routes.
#[derive(Clone)]
pub struct LateRouter {
    before: Router,
    after: Arc<OnceLock<Router>>,
    arrival: watch::Sender<()>,
}

impl LateRouter {
    /// A router without routes.
    pub fn starting() -> Self {
        let after = Arc::<OnceLock<Router>>::default();
        let arrival = watch::channel(()).0;
        let (late, wait_for) = (Arc::clone(&after), arrival.clone());
        let wait = async move |request: Request| -> Response {
            let mut arrived = wait_for.subscribe();
            if late.get().is_none() {
                let _ = tokio::time::timeout(START_PATIENCE, arrived.changed()).await;
            }
            match late.get() {
                Some(routes) => routes.clone().oneshot(request).await.into_response(),
                None => Failure::StoreUnavailable.into_response(),
            }
        };
        let before = Router::new()
            .route(ops::LIVEZ, get(ops::livez))
            .route("/readyz", get(ops::not_ready))
            .fallback(wait);
        Self { before, after, arrival }
    }

    /// Sets the routes, also for open connections.
    pub fn arrive(&self, routes: Router) {
        let _ = self.after.set(routes);
        self.arrival.send_replace(());
    }

    pub(super) fn now(&self) -> Router {
        self.after.get().unwrap_or(&self.before).clone()
    }
}

/// For routes that are ready from the start.
impl From<Router> for LateRouter {
    fn from(routes: Router) -> Self {
        Self { before: routes, after: Arc::default(), arrival: watch::channel(()).0 }
    }
}
