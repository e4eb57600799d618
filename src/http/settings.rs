//! The settings of the server.

use std::net::SocketAddr;
use std::time::Duration;

use super::token::ApiToken;

/// Addresses and limits.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where the API is.
    pub listen: SocketAddr,
    /// Where the routes for operations are, if they have an address of their own.
    pub admin_listen: Option<SocketAddr>,
    /// What requests have to bear; none if everybody may ask.
    pub token: Option<ApiToken>,
    /// Whether there is a live page, and `/status`, which it asks.
    pub with_page: bool,
    /// Threads that serve connections.
    pub threads: usize,
    /// Connections that are served at a time.
    pub max_connections: u32,
    /// Connections of them that one address may have.
    pub max_connections_per_address: u32,
    /// Requests to the API that wait for the store at a time.
    pub max_in_flight: u32,
    /// Lists and other queries that run at a time.
    pub max_queries: u32,
    /// Whether a connection stays open for further requests.
    pub keep_alive: bool,
    /// How long a connection may be without a request.
    pub idle_timeout: Duration,
    /// How long the head of a request may take.
    pub header_read_timeout: Duration,
    /// How long a client may take nothing of an answer.
    pub write_timeout: Duration,
    /// How long the body of a bulk request may take.
    pub body_read_timeout: Duration,
    /// The largest body of a bulk request, in bytes.
    pub body_limit: u32,
}
