//! Helpers that know nothing of counting: threads, bytes, TLS and secrets.

pub mod secret;
pub mod tls;
pub(crate) mod unavailable;
pub(crate) mod words;
pub mod workers;
