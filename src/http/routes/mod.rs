//! The routes, a file each.

mod accept;
pub(super) mod bulk;
mod counters;
mod description;
mod in_flight;
pub(super) mod ops;
mod overlap;
mod paths;
mod query;
mod range;
mod retention;
mod schemas;
mod series;
mod sketch;
mod state;
mod status;
mod ui;
mod unique;

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};

pub use self::description::description;
use self::paths::{COUNTERS, OVERLAP, RETENTION, SERIES, SKETCH, UNIQUE};
use self::state::Routes;
use super::api::{Api, ONLY_READ};
use super::error::{Failure, NO_STORE, TEXT};

/// A router for each listener. Without `--admin-listen`, `public` has all routes.
pub struct Routers {
    /// For `--listen`.
    pub public: Router,
    /// For `--admin-listen`.
    pub admin: Option<Router>,
}

/// The routes for `--listen` and, if it is set, `--admin-listen`.
pub fn routers(api: Api) -> Routers {
    let separate = api.settings.admin_listen.is_some();
    let mut ui = Router::new().route("/", get(ui::page)).route("/status", any(status::status));
    if separate {
        // The page asks for them where it is served.
        ui = counts(ui);
    }
    let ui = Some(ui).filter(|_| api.settings.with_page).unwrap_or_default();
    let routes = Arc::new(Routes::new(api));
    let public = counts(Router::new())
        .route("/api/verve/accept", any(accept::accept))
        .route(SKETCH, any(sketch::sketch));
    let operations = Router::new()
        .route(ops::LIVEZ, get(ops::livez))
        .route("/readyz", get(ops::readyz))
        .route("/metrics", get(ops::metrics))
        .route("/openapi.json", get(description::openapi))
        .merge(ui);
    let finish = |router: Router<Arc<Routes>>| {
        router
            .fallback(not_found)
            .method_not_allowed_fallback(method_not_allowed)
            .with_state(Arc::clone(&routes))
    };
    if separate {
        Routers { public: finish(public), admin: Some(finish(operations)) }
    } else {
        Routers { public: finish(public.merge(operations)), admin: None }
    }
}

/// Adds the routes that read counts.
fn counts(router: Router<Arc<Routes>>) -> Router<Arc<Routes>> {
    router
        .route(UNIQUE, any(unique::unique))
        .route(COUNTERS, any(counters::counters))
        .route(SERIES, any(series::series))
        .route(OVERLAP, any(overlap::overlap))
        .route(RETENTION, any(retention::retention))
}

async fn not_found(State(routes): State<Arc<Routes>>) -> Response {
    routes.not_found.increment(1);
    let headers = [(axum::http::header::CONTENT_TYPE, TEXT), (axum::http::header::CACHE_CONTROL, NO_STORE)];
    (StatusCode::NOT_FOUND, headers, "not found").into_response()
}

async fn method_not_allowed() -> Failure {
    ONLY_READ
}
