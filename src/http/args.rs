//! The flags of the server.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use clap::Args;

use super::token::AccessArgs;
use crate::platform::args;
use crate::platform::workers::{self, Workers};

/// Where the service listens.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "HTTP")]
pub struct ListenArgs {
    /// Address to listen on
    #[arg(
        long,
        env = "HEADCOUNT_LISTEN",
        value_name = "ADDRESS",
        default_value = "0.0.0.0:8080",
        value_parser = args::address
    )]
    pub listen: SocketAddr,

    /// Address for /livez, /readyz, /metrics, /openapi.json and the live page; they leave --listen then
    #[arg(long, env = "HEADCOUNT_ADMIN_LISTEN", value_name = "ADDRESS", value_parser = args::address)]
    pub admin_listen: Option<SocketAddr>,
}

/// Addresses and limits.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "HTTP")]
pub struct HttpArgs {
    /// Where to listen.
    #[command(flatten)]
    pub addresses: ListenArgs,

    /// Who may ask.
    #[command(flatten)]
    pub access: AccessArgs,

    /// Serve no live page at /, and no /status, which it asks
    #[arg(long, env = "HEADCOUNT_NO_UI")]
    pub no_ui: bool,

    /// Threads that serve connections; if it is not said, one a core
    #[arg(long, env = "HEADCOUNT_THREADS", value_name = "NUMBER", value_parser = args::up_to::<1024>)]
    pub threads: Option<u32>,

    /// Connections that are served at a time; each one more is told 503 and closed
    #[arg(
        long, env = "HEADCOUNT_MAX_CONNECTIONS", value_name = "NUMBER", default_value = "10000",
        value_parser = args::up_to::<1_000_000>
    )]
    pub max_connections: u32,

    /// Connections of them that one address may have (an IPv6 /64 is one address); each one more is
    /// told the same. Behind a load balancer all connections come from its address
    #[arg(
        long, env = "HEADCOUNT_MAX_CONNECTIONS_PER_ADDRESS", value_name = "NUMBER", default_value = "5000",
        value_parser = args::up_to::<1_000_000>
    )]
    pub max_connections_per_address: u32,

    /// Requests to the API that wait for the counter at a time; each one more is answered 503 at once
    #[arg(
        long, env = "HEADCOUNT_MAX_IN_FLIGHT", value_name = "NUMBER", default_value = "5000",
        value_parser = args::up_to::<1_000_000>
    )]
    pub max_in_flight: u32,

    /// Keep connections open for further requests
    #[arg(
        long, env = "HEADCOUNT_KEEP_ALIVE", value_name = "on|off", default_value = "on",
        value_parser = args::on_off, action = clap::ArgAction::Set
    )]
    pub keep_alive: bool,

    /// How long a connection may be without a request, from its start or from the last answer.
    /// Longer than a load balancer keeps connections idle
    #[arg(
        long, env = "HEADCOUNT_IDLE_TIMEOUT", value_name = "DURATION", default_value = "75s",
        value_parser = args::positive_duration
    )]
    pub idle_timeout: Duration,

    /// How long the head of a request may take from its first byte
    #[arg(
        long, env = "HEADCOUNT_HEADER_READ_TIMEOUT", value_name = "DURATION", default_value = "10s",
        value_parser = args::positive_duration
    )]
    pub header_read_timeout: Duration,

    /// How long a client may take nothing of an answer
    #[arg(
        long, env = "HEADCOUNT_WRITE_TIMEOUT", value_name = "DURATION", default_value = "10s",
        value_parser = args::positive_duration
    )]
    pub write_timeout: Duration,

    /// How long a client may take to send the body of a bulk request
    #[arg(
        long, env = "HEADCOUNT_BODY_READ_TIMEOUT", value_name = "DURATION", default_value = "30s",
        value_parser = args::positive_duration
    )]
    pub body_read_timeout: Duration,

    /// Largest body of a bulk request, in bytes
    #[arg(
        long, env = "HEADCOUNT_BODY_LIMIT", value_name = "BYTES", default_value = "8388608",
        value_parser = args::up_to::<1_073_741_824>
    )]
    pub body_limit: u32,
}

impl HttpArgs {
    /// Starts the threads that serve connections.
    ///
    /// # Errors
    ///
    /// When the system does not have as many.
    pub fn workers(&self) -> io::Result<Workers> {
        Workers::start(self.threads.map_or_else(workers::cores, |threads| threads as usize))
    }
}
