//! Redis: the client, the names of the keys, and what a server says about itself.
//!
//! [`Redis`] sends each call to the server that has its keys. A [`Writer`] is for many short writes to one server. Both get the
//! servers from the [topology], and reach them over [links](link), each of which keeps one connection.

mod address;
mod call;
mod client;
mod cluster;
pub mod damage;
mod errors;
pub mod keys;
mod link;
mod node;
mod patience;
mod routed;
mod sentinel;
pub mod server;
mod settings;
mod texts;
mod topology;
mod urls;
mod wire;
mod writer;

pub use self::address::{Address, CannotConnect};
pub use self::call::Call;
pub use self::client::Redis;
pub use self::cluster::{Member, slot_of};
pub use self::node::Node;
pub use self::routed::Routed;
pub use self::settings::Settings;
pub use self::texts::{Text, Texts};
pub use self::wire::{Commands, Replies};
pub use self::writer::Writer;
