//! What knows nothing of counting: threads, locks, bytes and secrets.

pub mod secret;
pub mod tls;
pub mod unavailable;
pub(crate) mod words;
pub mod workers;
