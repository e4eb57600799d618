//! HTTP: the server, and the routes.

mod api;
mod error;
mod routes;
pub mod server;
mod settings;
mod token;

pub use self::api::{Api, Phase};
pub use self::error::Failure;
pub use self::routes::{Routers, description, routers};
pub use self::server::late::LateRouter;
pub use self::settings::Settings;
pub use self::token::ApiToken;
