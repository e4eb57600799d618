//! The settings of the server.

use std::net::SocketAddr;
use std::time::Duration;

use super::token::ApiToken;

/// Addresses and limits.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The address of the API.
    pub listen: SocketAddr,
    /// The address of the routes for operations, if it is not that of the API.
    pub admin_listen: Option<SocketAddr>,
    /// The API token. Without one, every client may use the API.
    pub token: Option<ApiToken>,
    /// A token that opens only the routes that count nothing.
    pub read_token: Option<ApiToken>,
    /// Whether clients may send sketches instead of ids.
    pub allow_sketches: bool,
    /// Whether to serve the live page, and `/status`, its data.
    pub with_page: bool,
    /// Threads that serve connections.
    pub threads: usize,
    /// Most connections at a time.
    pub max_connections: u32,
    /// Most connections from one address at a time.
    pub max_connections_per_address: u32,
    /// Most requests to the API that wait for the store at a time.
    pub max_in_flight: u32,
    /// Lists and other queries that run at a time.
    pub max_queries: u32,
    /// Whether a connection stays open for further requests.
    pub keep_alive: bool,
    /// How long a connection may be idle.
    pub idle_timeout: Duration,
    /// How long a client may take to send the head of a request.
    pub header_read_timeout: Duration,
    /// How long a client may read nothing of an answer.
    pub write_timeout: Duration,
    /// How long a client may take to send the body of a bulk request.
    pub body_read_timeout: Duration,
    /// The largest body of a bulk request, in bytes.
    pub body_limit: u32,
}
