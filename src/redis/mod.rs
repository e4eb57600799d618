//! Redis: a connection that comes back, the names of the keys, the scripts.
//!
//! Every wait has a deadline: [`CONNECT_TIMEOUT`] for a connection, `--redis-timeout` for an answer. A
//! connection on which something was not answered in time is given up, because nobody knows what state it is
//! in, and a new one may lead to another server: each is asked which run of a server it is. Whoever
//! had something from the old one can ask for the number of the [generation](Redis::generation).

pub mod keys;
pub mod scripts;
pub mod server;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use ::metrics::{Counter, Histogram};
use ::redis::aio::MultiplexedConnection;
use ::redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo, RedisError,
    RedisResult, ServerErrorKind,
};
use clap::Args;
use parking_lot::Mutex;
use thiserror::Error;
use tokio::sync::Mutex as AsyncMutex;
use tokio::time::Instant;

use crate::args;
use crate::metrics::Metrics;
use crate::secret::SecretArg;
use crate::unavailable::Unavailable;

/// How long a connection may take to be there, authentication included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// After a connection that could not be made, how long nobody else need try.
const NO_NEW_TRY: Duration = Duration::from_millis(50);
/// Between two tries at the start.
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(200);

/// Where Redis is, and how long it may take.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Redis")]
pub struct RedisArgs {
    // Not a doc comment: help has no Markdown, and a URL is no link there.
    #[arg(
        long,
        env = "HEADCOUNT_REDIS_URL",
        value_name = "URL",
        hide_env_values = true,
        help = "Share the counter with other instances through this Redis: redis://, rediss:// (TLS) or \
                unix://, with user, password and database as in redis://user:password@host:6379/0, or \
                file:PATH of a file that has it. Without, it counts alone, in memory"
    )]
    redis_url: Option<SecretArg>,

    /// How long Redis may take to answer; if it does not, it is taken to be away
    #[arg(
        long, env = "HEADCOUNT_REDIS_TIMEOUT", value_name = "DURATION", default_value = "350ms",
        value_parser = args::positive_duration
    )]
    pub redis_timeout: Duration,

    /// How long to wait for Redis at the start
    #[arg(
        long, env = "HEADCOUNT_REDIS_WAIT", value_name = "DURATION", default_value = "10s",
        value_parser = args::duration
    )]
    pub redis_wait: Duration,

    /// What shares the counter: services with different names can use one Redis
    #[arg(
        long, env = "HEADCOUNT_NAMESPACE", value_name = "NAME", default_value = "headcount",
        value_parser = parse_namespace
    )]
    pub namespace: String,
}

impl RedisArgs {
    /// Where Redis is; none if there is to be none.
    ///
    /// # Errors
    ///
    /// A line for the user, without the password.
    pub fn address(&self) -> Result<Option<Address>, String> {
        let Some(url) = &self.redis_url else { return Ok(None) };
        Address::parse(&url.read("--redis-url <URL>")?).map(Some)
    }

    /// Connects, and waits until Redis answers.
    ///
    /// # Errors
    ///
    /// [`CannotConnect`] when it does not within `--redis-wait`.
    pub async fn connect(&self, address: &Address, metrics: &Metrics) -> Result<Redis, CannotConnect> {
        let redis = Redis::new(address, self.redis_timeout, metrics)?;
        redis.wait_for(address, self.redis_wait).await?;
        Ok(redis)
    }
}

fn parse_namespace(text: &str) -> Result<String, String> {
    let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if text.is_empty() || text.len() > 100 || !text.chars().all(valid) {
        return Err("expected up to 100 letters, digits, dots, hyphens and underscores".to_owned());
    }
    Ok(text.to_owned())
}

/// Where Redis is and who we are to it. Shown without the password.
#[derive(Clone)]
pub struct Address(ConnectionInfo);

impl Address {
    /// Reads a URL.
    ///
    /// # Errors
    ///
    /// A line for the user, without the password.
    pub fn parse(text: &str) -> Result<Self, String> {
        let info = text.into_connection_info().map_err(|_| {
            "invalid value for '--redis-url <URL>': expected redis://, rediss:// or unix://, such as \
             redis://user:password@host:6379/0"
                .to_owned()
        })?;
        let tcp = info.tcp_settings().clone().set_nodelay(true);
        Ok(Self(info.set_tcp_settings(tcp)))
    }

    /// Whether a password is in it.
    pub fn has_password(&self) -> bool {
        self.0.redis_settings().password().is_some()
    }

    /// The user that Redis knows us as.
    pub fn user(&self) -> &str {
        self.0.redis_settings().username().unwrap_or("default")
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.addr() {
            ConnectionAddr::TcpTls { host, port, .. } => write!(f, "rediss://{host}:{port}"),
            other => write!(f, "{other}"),
        }?;
        write!(f, ", database {}", self.0.redis_settings().db())
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Redis cannot be used.
#[derive(Debug, Error)]
pub enum CannotConnect {
    /// It does not answer, or refuses.
    #[error("cannot use Redis at {address}, is --redis-url right? {cause}")]
    Refused {
        /// Where.
        address: String,
        /// What it said, or what the system said.
        cause: Unavailable,
    },
    /// The address is none.
    #[error("cannot use --redis-url: {0}")]
    Address(Unavailable),
}

/// What Redis is asked for: a label in the metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// Whether it is there, and what it is.
    Ask,
    /// To add ids.
    Write,
    /// To merge sketches and note accepted ids.
    Seal,
    /// To count a window.
    Count,
    /// To take a report, or a goodbye.
    Report,
    /// To say where a leader goes on, store a count, or mark it as published.
    Close,
    /// To give, prolong or free the lease.
    Lease,
    /// To add to the stream of counts.
    Publish,
}

impl Call {
    const ALL: [Self; 8] = [
        Self::Ask,
        Self::Write,
        Self::Seal,
        Self::Count,
        Self::Report,
        Self::Close,
        Self::Lease,
        Self::Publish,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::Ask => "ask",
            Self::Write => "write",
            Self::Seal => "seal",
            Self::Count => "count",
            Self::Report => "report",
            Self::Close => "close",
            Self::Lease => "lease",
            Self::Publish => "publish",
        }
    }
}

/// A connection that is made when it is needed and given up when it fails. Cheap to clone; clones share it.
#[derive(Clone)]
pub struct Redis(Arc<Shared>);

struct Shared {
    client: Client,
    config: AsyncConnectionConfig,
    link: Mutex<Link>,
    /// Held by whoever makes a connection.
    connecting: AsyncMutex<()>,
    /// Of each call: its duration, and those without a good answer.
    handles: Arc<[(Histogram, Counter)]>,
    /// For all connections to this Redis.
    server: Arc<Mutex<ServerRun>>,
}

#[derive(Default)]
struct Link {
    connection: Option<MultiplexedConnection>,
    /// Counts the connections.
    number: u64,
    /// When it could not be made, and why.
    failed: Option<(Instant, Unavailable)>,
}

/// Which run of which server the last connection led to.
#[derive(Default)]
struct ServerRun {
    id: Option<String>,
    generation: u64,
}

impl Redis {
    /// Does not connect yet.
    ///
    /// # Errors
    ///
    /// [`CannotConnect::Address`] when there can be no connection to such an address.
    pub fn new(address: &Address, timeout: Duration, metrics: &Metrics) -> Result<Self, CannotConnect> {
        let client =
            Client::open(address.0.clone()).map_err(|error| CannotConnect::Address(unavailable(&error)))?;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(timeout));
        let handles = Call::ALL
            .map(|call| (metrics.redis_command_duration(call.as_str()), metrics.redis_errors(call.as_str())));
        let (handles, server) = (Arc::new(handles), Arc::default());
        Ok(Self::with(client, config, handles, server))
    }

    /// The same Redis over another connection.
    pub fn another(&self) -> Self {
        let Shared { client, config, handles, server, .. } = &*self.0;
        Self::with(client.clone(), config.clone(), Arc::clone(handles), Arc::clone(server))
    }

    fn with(
        client: Client,
        config: AsyncConnectionConfig,
        handles: Arc<[(Histogram, Counter)]>,
        server: Arc<Mutex<ServerRun>>,
    ) -> Self {
        let (link, connecting) = (Mutex::default(), AsyncMutex::default());
        Self(Arc::new(Shared { client, config, link, connecting, handles, server }))
    }

    /// Rises when a connection leads to another run of a server than the one before: what was written there
    /// may not be here.
    pub fn generation(&self) -> u64 {
        self.0.server.lock().generation
    }

    /// Waits until Redis answers, for as long as `patience`.
    ///
    /// # Errors
    ///
    /// [`CannotConnect::Refused`] with the last reason.
    pub async fn wait_for(&self, address: &Address, patience: Duration) -> Result<(), CannotConnect> {
        let deadline = Instant::now() + patience;
        let ping = ::redis::cmd("PING");
        loop {
            let answer = self.run(Call::Ask, async |connection| ping.exec_async(connection).await).await;
            let Err(cause) = answer else { return Ok(()) };
            if Instant::now() + TRY_AGAIN_AFTER > deadline {
                return Err(CannotConnect::Refused { address: address.to_string(), cause });
            }
            tokio::time::sleep(TRY_AGAIN_AFTER).await;
        }
    }

    /// Does something on the connection.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] when there is no connection, no answer in time, or an error for an answer.
    pub async fn run<T>(
        &self,
        call: Call,
        work: impl AsyncFnOnce(&mut MultiplexedConnection) -> RedisResult<T>,
    ) -> Result<T, Unavailable> {
        let (duration, errors) = &self.0.handles[call as usize];
        let (mut connection, number) = self.connection().await.inspect_err(|_| errors.increment(1))?;
        let started = Instant::now();
        match work(&mut connection).await {
            Ok(value) => {
                duration.record(started.elapsed());
                Ok(value)
            }
            Err(error) => {
                errors.increment(1);
                if is_fatal(&error) {
                    self.0.give_up(number);
                }
                Err(unavailable(&error))
            }
        }
    }

    async fn connection(&self) -> Result<(MultiplexedConnection, u64), Unavailable> {
        if let Some(connection) = self.0.link.lock().current() {
            return Ok(connection);
        }
        // In a task of its own: a caller who has no time left to wait leaves the connection to the next.
        let shared = Arc::clone(&self.0);
        tokio::spawn(async move { shared.connect().await }).await.map_err(Unavailable::because)?
    }
}

impl Shared {
    async fn connect(&self) -> Result<(MultiplexedConnection, u64), Unavailable> {
        let _connecting = self.connecting.lock().await;
        {
            let link = self.link.lock();
            if let Some(connection) = link.current() {
                return Ok(connection);
            }
            // Whoever waited while somebody else tried need not try again at once.
            if let Some((at, error)) = &link.failed
                && at.elapsed() < NO_NEW_TRY
            {
                return Err(error.clone());
            }
        }
        let made = match self.client.get_multiplexed_async_connection_with_config(&self.config).await {
            Ok(mut connection) => self.identify(&mut connection).await.map(|()| connection),
            Err(error) => Err(error),
        };
        let mut link = self.link.lock();
        match made {
            Ok(connection) => {
                link.number += 1;
                link.failed = None;
                Ok((link.connection.insert(connection).clone(), link.number))
            }
            Err(error) => {
                let error = self.cannot_connect(&error);
                link.failed = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }

    /// Without the password: a server that does not know the command that has it repeats what the command was
    /// given, or as much of that as fits.
    fn cannot_connect(&self, error: &RedisError) -> Unavailable {
        let password = self.client.get_connection_info().redis_settings().password();
        let repeats = |password| {
            error.detail().is_some_and(|said| said.contains(password) || said.contains("args beginning with"))
        };
        if password.is_some_and(repeats) {
            let category = error.category();
            return Unavailable::because(format_args!(
                "Redis: {category}, in words that may have the password in them"
            ));
        }
        unavailable(error)
    }

    /// Asks which run of a server this is. One that does not say is another one at every reconnection.
    async fn identify(&self, connection: &mut MultiplexedConnection) -> RedisResult<()> {
        let mut info = ::redis::cmd("INFO");
        info.arg("server");
        let id = match info.query_async::<String>(connection).await {
            Ok(info) => server::run_id(&info),
            Err(error) if is_fatal(&error) => return Err(error),
            Err(_) => None,
        };
        let is_first = self.link.lock().number == 0;
        let mut server = self.server.lock();
        let is_another = match (&server.id, &id) {
            (Some(known), Some(id)) => known != id,
            _ => !is_first,
        };
        server.generation += u64::from(is_another);
        server.id = id;
        Ok(())
    }

    /// Unless a new one has been made already.
    fn give_up(&self, number: u64) {
        let mut link = self.link.lock();
        if link.number == number {
            link.connection = None;
        }
    }
}

impl Link {
    fn current(&self) -> Option<(MultiplexedConnection, u64)> {
        self.connection.clone().map(|connection| (connection, self.number))
    }
}

/// Whether another connection could do better. A server that has become a replica, or is still loading, is
/// left in the hope that its name leads to another one.
pub fn is_fatal(error: &RedisError) -> bool {
    match error.kind() {
        // Redis 6.2 wraps what a script was told.
        ErrorKind::Server(kind) => {
            is_passing(kind) || error.detail().is_some_and(|detail| detail.contains("-READONLY"))
        }
        ErrorKind::UnexpectedReturnType | ErrorKind::Extension => false,
        _ => true,
    }
}

/// Whether the server will do it later, or another one will.
pub fn is_passing(kind: ServerErrorKind) -> bool {
    matches!(
        kind,
        ServerErrorKind::ReadOnly
            | ServerErrorKind::BusyLoading
            | ServerErrorKind::MasterDown
            | ServerErrorKind::ClusterDown
            | ServerErrorKind::TryAgain
    )
}

/// In the words of the log.
fn unavailable(error: &RedisError) -> Unavailable {
    Unavailable::because(format_args!("Redis: {error}"))
}
