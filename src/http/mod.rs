//! HTTP: the server, and the routes.

mod api;
mod args;
mod error;
mod routes;
pub mod server;
mod token;

pub use self::api::{Api, Phase};
pub use self::args::{HttpArgs, ListenArgs};
pub use self::error::Failure;
pub use self::routes::{Routers, routers};
pub use self::server::late::LateRouter;
pub use self::token::{AccessArgs, ApiToken};
