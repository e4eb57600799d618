//! Helpers that know nothing of counting: threads, memory, bytes, TLS and secrets.

mod allocator;
pub(crate) mod budget;
pub(crate) mod pace;
pub mod secret;
pub(crate) mod service_manager;
pub mod tls;
pub(crate) mod unavailable;
pub(crate) mod words;
pub mod workers;
