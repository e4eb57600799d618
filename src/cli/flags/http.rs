//! The flags of the server.

use std::net::SocketAddr;
use std::time::Duration;

use clap::Args;

use super::values;
use crate::http::{ApiToken, Settings};
use crate::platform::secret::SecretArg;
use crate::platform::workers;

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "HTTP")]
pub(super) struct ListenFlags {
    /// Address to listen on
    #[arg(
        long,
        env = "HEADCOUNT_LISTEN",
        value_name = "ADDRESS",
        default_value = "0.0.0.0:8080",
        value_parser = values::address
    )]
    pub(super) listen: SocketAddr,

    /// Address for /livez, /readyz, /metrics, /openapi.json and the live page; they leave --listen then
    #[arg(long, env = "HEADCOUNT_ADMIN_LISTEN", value_name = "ADDRESS", value_parser = values::address)]
    pub(super) admin_listen: Option<SocketAddr>,
}

/// Addresses and limits.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "HTTP")]
pub struct HttpFlags {
    #[command(flatten)]
    pub(super) addresses: ListenFlags,

    // Not a doc comment: help has no Markdown, and <TOKEN> is no tag there.
    #[arg(
        long,
        env = "HEADCOUNT_API_TOKEN",
        value_name = "TOKEN",
        hide_env_values = true,
        help = "Take only requests with the header 'authorization: Bearer <TOKEN>': 16 to 512 visible ASCII \
                characters without spaces, or file:PATH of a file that has the token. /livez, /readyz, /metrics, \
                /openapi.json and the live page, which asks for the token, stay open"
    )]
    api_token: Option<SecretArg>,

    // Not a doc comment, as above.
    #[arg(
        long,
        env = "HEADCOUNT_READ_TOKEN",
        value_name = "TOKEN",
        hide_env_values = true,
        help = "Take this token too, but only to read: for GET /api/verve/unique, /api/verve/counters, /api/verve/series, \
                /api/verve/overlap, /api/verve/retention, /api/verve/sketch and /status"
    )]
    read_token: Option<SecretArg>,

    /// Merge sketches that clients with the API token send to /api/verve/sketch. Such a client may set any count
    #[arg(long, env = "HEADCOUNT_ALLOW_SKETCHES")]
    allow_sketches: bool,

    /// Serve no live page at /, and no /status, which the page reads
    #[arg(long, env = "HEADCOUNT_NO_UI")]
    no_ui: bool,

    /// Threads that serve connections; without this flag, one a core
    #[arg(long, env = "HEADCOUNT_THREADS", value_name = "NUMBER", value_parser = values::up_to::<1024>)]
    threads: Option<u32>,

    /// Connections at a time; each one more gets 503 and is closed
    #[arg(
        long, env = "HEADCOUNT_MAX_CONNECTIONS", value_name = "NUMBER", default_value = "10000",
        value_parser = values::up_to::<1_000_000>
    )]
    max_connections: u32,

    /// Connections that one address may have (an IPv6 /64 is one address); each one more gets 503 and is
    /// closed. Behind a load balancer all connections come from its address
    #[arg(
        long, env = "HEADCOUNT_MAX_CONNECTIONS_PER_ADDRESS", value_name = "NUMBER", default_value = "5000",
        value_parser = values::up_to::<1_000_000>
    )]
    max_connections_per_address: u32,

    /// Requests to the API that wait for Redis at a time; each one more gets 503 at once
    #[arg(
        long, env = "HEADCOUNT_MAX_IN_FLIGHT", value_name = "NUMBER", default_value = "5000",
        value_parser = values::up_to::<1_000_000>
    )]
    max_in_flight: u32,

    /// Keep connections open for further requests
    #[arg(
        long, env = "HEADCOUNT_KEEP_ALIVE", value_name = "on|off", default_value = "on",
        value_parser = values::on_off, action = clap::ArgAction::Set
    )]
    keep_alive: bool,

    /// How long a connection may be idle, from its start or from the last answer.
    /// Make it longer than the load balancer keeps idle connections
    #[arg(
        long, env = "HEADCOUNT_IDLE_TIMEOUT", value_name = "DURATION", default_value = "75s",
        value_parser = values::positive_duration
    )]
    idle_timeout: Duration,

    /// How long the head of a request may take from its first byte
    #[arg(
        long, env = "HEADCOUNT_HEADER_READ_TIMEOUT", value_name = "DURATION", default_value = "10s",
        value_parser = values::positive_duration
    )]
    header_read_timeout: Duration,

    /// How long a client may read nothing of an answer
    #[arg(
        long, env = "HEADCOUNT_WRITE_TIMEOUT", value_name = "DURATION", default_value = "10s",
        value_parser = values::positive_duration
    )]
    write_timeout: Duration,

    /// How long a client may take to send the body of a bulk request
    #[arg(
        long, env = "HEADCOUNT_BODY_READ_TIMEOUT", value_name = "DURATION", default_value = "30s",
        value_parser = values::positive_duration
    )]
    body_read_timeout: Duration,

    /// Largest body of a bulk request, in bytes
    #[arg(
        long, env = "HEADCOUNT_BODY_LIMIT", value_name = "BYTES", default_value = "8388608",
        value_parser = values::up_to::<1_073_741_824>
    )]
    body_limit: u32,

    /// Lists of counters, series, ranges and overlaps that are made at a time, and sketches that are merged at a time; each one
    /// more gets 503 at once
    #[arg(
        long, env = "HEADCOUNT_MAX_QUERIES", value_name = "NUMBER", default_value = "8",
        value_parser = values::up_to::<1_000>
    )]
    max_queries: u32,
}

fn token(flag: &'static str, arg: Option<&SecretArg>) -> Result<Option<ApiToken>, String> {
    arg.map(|arg| ApiToken::new(flag, arg)).transpose()
}

impl HttpFlags {
    /// # Errors
    ///
    /// A line for the user, without the token.
    pub fn settings(self) -> Result<Settings, String> {
        let (api_token, read_token) = (
            token("--api-token <TOKEN>", self.api_token.as_ref())?,
            token("--read-token <TOKEN>", self.read_token.as_ref())?,
        );
        if read_token.is_some() && api_token.is_none() {
            return Err("'--read-token <TOKEN>' requires '--api-token <TOKEN>'".to_owned());
        }
        if self.allow_sketches && api_token.is_none() {
            return Err(
                "'--allow-sketches' requires '--api-token <TOKEN>': a sketch may set any count".to_owned()
            );
        }
        Ok(Settings {
            listen: self.addresses.listen,
            admin_listen: self.addresses.admin_listen,
            token: api_token,
            read_token,
            allow_sketches: self.allow_sketches,
            with_page: !self.no_ui,
            threads: self.threads.map_or_else(workers::cores, |threads| threads as usize),
            max_connections: self.max_connections,
            max_connections_per_address: self.max_connections_per_address,
            max_in_flight: self.max_in_flight,
            keep_alive: self.keep_alive,
            idle_timeout: self.idle_timeout,
            header_read_timeout: self.header_read_timeout,
            write_timeout: self.write_timeout,
            body_read_timeout: self.body_read_timeout,
            body_limit: self.body_limit,
            max_queries: self.max_queries,
        })
    }
}
