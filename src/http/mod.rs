//! HTTP: the routes, and what they share.

mod accept;
mod addresses;
mod bulk;
mod error;
mod in_flight;
mod ops;
pub mod server;
mod status;
mod timeouts;
mod token;
mod ui;
mod unique;

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ::metrics::Counter;
use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use clap::Args;
use quanta::Instant;
use tokio::sync::watch;

pub use self::error::Failure;
use self::error::{NO_STORE, TEXT};
use self::in_flight::InFlight;
pub use self::token::{AccessArgs, ApiToken};
use tower::ServiceExt;

use crate::args;
use crate::callback::Callbacks;
use crate::coordinator::ClosedWindows;
use crate::counter::{CountingArgs, UniqueCounter};
use crate::id::Id;
use crate::id_key::IdKey;
use crate::metrics::{Metrics, RouteMetrics};
use crate::window::{Clock, Window};
use crate::workers::{self, Workers};

/// Where the service listens.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "HTTP")]
pub struct ListenArgs {
    /// Address to listen on
    #[arg(
        long,
        env = "HEADCOUNT_LISTEN",
        value_name = "ADDRESS",
        default_value = "0.0.0.0:8080",
        value_parser = args::address
    )]
    pub listen: SocketAddr,

    /// Address for /livez, /readyz, /metrics, /openapi.json and the live page; they leave --listen then
    #[arg(long, env = "HEADCOUNT_ADMIN_LISTEN", value_name = "ADDRESS", value_parser = args::address)]
    pub admin_listen: Option<SocketAddr>,
}

/// Addresses and limits.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "HTTP")]
pub struct HttpArgs {
    /// Where to listen.
    #[command(flatten)]
    pub addresses: ListenArgs,

    /// Who may ask.
    #[command(flatten)]
    pub access: AccessArgs,

    /// Serve no live page at /, and no /status, which it asks
    #[arg(long, env = "HEADCOUNT_NO_UI")]
    pub no_ui: bool,

    /// Threads that serve connections; if it is not said, one a core
    #[arg(long, env = "HEADCOUNT_THREADS", value_name = "NUMBER", value_parser = args::up_to::<1024>)]
    pub threads: Option<u32>,

    /// Connections that are served at a time; each one more is told 503 and closed
    #[arg(
        long, env = "HEADCOUNT_MAX_CONNECTIONS", value_name = "NUMBER", default_value = "10000",
        value_parser = args::up_to::<1_000_000>
    )]
    pub max_connections: u32,

    /// Connections of them that one address may have (an IPv6 /64 is one address); each one more is
    /// told the same. Behind a load balancer all connections come from its address
    #[arg(
        long, env = "HEADCOUNT_MAX_CONNECTIONS_PER_ADDRESS", value_name = "NUMBER", default_value = "5000",
        value_parser = args::up_to::<1_000_000>
    )]
    pub max_connections_per_address: u32,

    /// Requests to the API that wait for the counter at a time; each one more is answered 503 at once
    #[arg(
        long, env = "HEADCOUNT_MAX_IN_FLIGHT", value_name = "NUMBER", default_value = "5000",
        value_parser = args::up_to::<1_000_000>
    )]
    pub max_in_flight: u32,

    /// Keep connections open for further requests
    #[arg(
        long, env = "HEADCOUNT_KEEP_ALIVE", value_name = "on|off", default_value = "on",
        value_parser = args::on_off, action = clap::ArgAction::Set
    )]
    pub keep_alive: bool,

    /// How long a connection may be without a request, from its start or from the last answer.
    /// Longer than a load balancer keeps connections idle
    #[arg(
        long, env = "HEADCOUNT_IDLE_TIMEOUT", value_name = "DURATION", default_value = "75s",
        value_parser = args::positive_duration
    )]
    pub idle_timeout: Duration,

    /// How long the head of a request may take from its first byte
    #[arg(
        long, env = "HEADCOUNT_HEADER_READ_TIMEOUT", value_name = "DURATION", default_value = "10s",
        value_parser = args::positive_duration
    )]
    pub header_read_timeout: Duration,

    /// How long a client may take nothing of an answer
    #[arg(
        long, env = "HEADCOUNT_WRITE_TIMEOUT", value_name = "DURATION", default_value = "10s",
        value_parser = args::positive_duration
    )]
    pub write_timeout: Duration,

    /// How long a client may take to send the body of a bulk request
    #[arg(
        long, env = "HEADCOUNT_BODY_READ_TIMEOUT", value_name = "DURATION", default_value = "30s",
        value_parser = args::positive_duration
    )]
    pub body_read_timeout: Duration,

    /// Largest body of a bulk request, in bytes
    #[arg(
        long, env = "HEADCOUNT_BODY_LIMIT", value_name = "BYTES", default_value = "8388608",
        value_parser = args::up_to::<1_073_741_824>
    )]
    pub body_limit: u32,
}

impl HttpArgs {
    /// Starts the threads that serve connections.
    ///
    /// # Errors
    ///
    /// When the system does not have as many.
    pub fn workers(&self) -> io::Result<Workers> {
        Workers::start(self.threads.map_or_else(workers::cores, |threads| threads as usize))
    }
}

/// What the routes work with.
pub struct Api {
    /// Remembers the ids.
    pub counter: Arc<dyn UniqueCounter>,
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
    pub counting: CountingArgs,
    /// What ids are hashed with before they are counted; none if they are counted as they are.
    pub id_key: Option<IdKey>,
    /// What requests have to bear; none if everybody may ask.
    pub token: Option<ApiToken>,
    /// Limits of a request.
    pub limits: HttpArgs,
    /// Told about every request.
    pub metrics: Arc<Metrics>,
}

impl Api {
    /// Lets in whoever has the token.
    ///
    /// # Errors
    ///
    /// [`Failure::Unauthorized`] for the others.
    fn admit(&self, headers: &HeaderMap) -> Result<(), Failure> {
        match &self.token {
            Some(token) if !token.is_borne_by(headers) => Err(Failure::Unauthorized),
            _ => Ok(()),
        }
    }

    /// Lets in whoever has the token and only reads.
    ///
    /// # Errors
    ///
    /// [`Failure::Unauthorized`], and then [`Failure::MethodNotAllowed`].
    fn admit_reader(&self, request: &Request) -> Result<(), Failure> {
        self.admit(request.headers())?;
        match *request.method() {
            Method::GET | Method::HEAD => Ok(()),
            _ => Err(ONLY_READ),
        }
    }

    /// What is counted for an id.
    fn element(&self, id: Id) -> Id {
        self.id_key.as_ref().map_or(id, |key| key.apply(&id))
    }

    /// The window that a request which arrives now is stamped with.
    fn window_now(&self) -> Window {
        self.counting.window.window_at(self.clock.now())
    }

    /// The window that is counted now: a later one while the clock is behind what is closed.
    fn running_window(&self) -> Window {
        let closed = self.closed.last();
        closed.map_or(self.window_now(), |closed| self.window_now().max(closed.window.next()))
    }
}

/// The API and the routes for operations, each for a listener; all in one when there is no listener
/// for operations.
pub struct Routers {
    /// For `--listen`.
    pub public: Router,
    /// For `--admin-listen`.
    pub admin: Option<Router>,
}

/// Routes for `--listen` and, if it is given, `--admin-listen`.
pub fn routers(api: Api) -> Routers {
    let separate = api.limits.addresses.admin_listen.is_some();
    let ui = Router::new().route("/", get(ui::page)).route("/status", any(status::status));
    let ui = Some(ui).filter(|_| !api.limits.no_ui).unwrap_or_default();
    let routes = Arc::new(Routes::new(api));
    let public = Router::new()
        .route("/api/verve/accept", any(accept::accept))
        .route("/api/verve/unique", any(unique::unique));
    let operations = Router::new()
        .route(ops::LIVEZ, get(ops::livez))
        .route("/readyz", get(ops::readyz))
        .route("/metrics", get(ops::metrics))
        .route("/openapi.json", get(ops::openapi))
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

/// How long a request waits for a service that starts, before it is told that no id is taken yet.
const START_PATIENCE: Duration = Duration::from_secs(2);

/// Routes that come later than the connections: while the service starts, it answers that it lives and is not ready. All
/// else waits a while for the routes, which come soon where Redis is there. Clones are the same.
#[derive(Clone)]
pub struct LateRouter {
    before: Router,
    after: Arc<OnceLock<Router>>,
    arrival: watch::Sender<()>,
}

impl LateRouter {
    /// No routes yet.
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

    /// From now on these are the routes, on connections that are there already too.
    pub fn arrive(&self, routes: Router) {
        let _ = self.after.set(routes);
        self.arrival.send_replace(());
    }

    /// Those of the moment.
    fn now(&self) -> Router {
        self.after.get().unwrap_or(&self.before).clone()
    }
}

/// Routes that are there from the start.
impl From<Router> for LateRouter {
    fn from(routes: Router) -> Self {
        Self { before: routes, after: Arc::default(), arrival: watch::channel(()).0 }
    }
}

/// The API, and a handle for the results of each route.
struct Routes {
    api: Api,
    bulk_budget: bulk::Budget,
    in_flight: InFlight,
    accept: RouteHandles,
    bulk: RouteHandles,
    unique: RouteHandles,
    status: RouteHandles,
    not_found: Counter,
}

impl Routes {
    fn new(api: Api) -> Self {
        let route = |name| RouteHandles::new(&api.metrics, name);
        Self {
            accept: route("accept"),
            bulk: route("bulk"),
            unique: route("unique"),
            status: route("status"),
            not_found: api.metrics.requests("other", "not_found"),
            bulk_budget: bulk::Budget::new(&api.limits),
            in_flight: InFlight::new(&api.limits),
            api,
        }
    }
}

async fn not_found(State(routes): State<Arc<Routes>>) -> Response {
    routes.not_found.increment(1);
    let headers = [(axum::http::header::CONTENT_TYPE, TEXT), (axum::http::header::CACHE_CONTROL, NO_STORE)];
    (StatusCode::NOT_FOUND, headers, "not found").into_response()
}

/// Of routes that only read; those that are made with [`get`] answer HEAD too.
const ONLY_READ: Failure = Failure::MethodNotAllowed { allow: "GET, HEAD" };

async fn method_not_allowed() -> Failure {
    ONLY_READ
}

/// The handles of one route, made once.
struct RouteHandles {
    all: RouteMetrics,
    failed: Vec<(&'static str, Counter)>,
}

impl RouteHandles {
    fn new(metrics: &Metrics, route: &'static str) -> Self {
        let failed =
            Failure::ALL.map(|failure| (failure.reason(), metrics.requests(route, failure.reason())));
        Self { all: metrics.route(route), failed: failed.into() }
    }

    /// Records a request and makes its answer.
    fn answer<T: IntoResponse>(&self, started: Instant, result: Result<T, Failure>) -> Response {
        self.all.duration.record(started.elapsed());
        match result {
            Ok(answer) => {
                self.all.ok.increment(1);
                answer.into_response()
            }
            Err(failure) => {
                let failed = self.failed.iter().find(|(reason, _)| *reason == failure.reason());
                debug_assert!(failed.is_some(), "{failure:?} is not in Failure::ALL");
                if let Some((_, counter)) = failed {
                    counter.increment(1);
                }
                failure.into_response()
            }
        }
    }
}

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
