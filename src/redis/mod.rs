//! Redis: the client, the names of the keys, and what a server says of itself.

mod address;
mod client;
mod connection;
pub mod damage;
mod errors;
mod info;
pub mod keys;
pub mod scripts;
pub mod server;
mod settings;
mod texts;
pub mod wire;

pub use self::address::{Address, CannotConnect};
pub use self::client::{Call, Redis};
pub use self::connection::Connection;
pub use self::errors::{is_fatal, is_passing};
pub use self::settings::Settings;
pub use self::texts::{Text, Texts};
