//! Redis: the client, the names of the keys, and what a server says about itself.

mod address;
mod client;
mod connection;
pub mod damage;
mod errors;
pub mod keys;
pub mod server;
mod settings;
mod texts;
mod wire;

pub use self::address::{Address, CannotConnect};
pub use self::client::{Call, Redis};
pub use self::errors::is_fatal;
pub use self::settings::Settings;
pub use self::texts::{Text, Texts};
pub use self::wire::{Commands, Replies, Writer};
