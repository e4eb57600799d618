//! Connections to Redis: how they are made.

use std::future::Future;
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::{AsyncConnectionConfig, Client, ConnectionAddr, InfoDict, RedisResult};
use parking_lot::Mutex;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use super::address::Address;
use super::errors::is_fatal;

/// How long it may take to connect, authentication included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// How long to wait for a message that a server sends before any command.
const GREETING_TIMEOUT: Duration = Duration::from_millis(300);

/// The address to connect to, and how long an answer may take.
pub struct Destination {
    address: Mutex<(Address, Client)>,
    timeout: Duration,
}

impl Destination {
    pub(super) fn new(address: Address, timeout: Duration) -> RedisResult<Self> {
        let client = Client::open(address.info.clone())?;
        Ok(Self { address: Mutex::new((address, client)), timeout })
    }

    pub(super) fn client(&self) -> Client {
        self.address.lock().1.clone()
    }

    /// Reads the file of `--redis-url` again, after Redis refused the password. True if it has another password now.
    pub(super) fn has_another_password(&self) -> bool {
        let mut address = self.address.lock();
        let Some(new) = address.0.read_again() else { return false };
        let Ok(client) = Client::open(new.info.clone()) else { return false };
        *address = (new, client);
        true
    }

    /// The error that a server sends before it closes a new connection: it is in protected mode, or has too many clients.
    /// A client that has sent a command by then often sees only a reset. So this connects once more, and only reads.
    pub(super) async fn greeting(&self) -> Option<String> {
        let ConnectionAddr::Tcp(host, port) = self.client().get_connection_info().addr().clone() else {
            return None;
        };
        let greeting = async {
            let mut stream = TcpStream::connect((host, port)).await.ok()?;
            let mut said = [0; 256];
            let length = stream.read(&mut said).await.ok()?;
            let said = String::from_utf8_lossy(&said[..length]).into_owned();
            // Only the first sentence: the rest is advice for the server's administrator.
            let said = said.strip_prefix('-')?.split(". ").next()?.trim().to_owned();
            Some(said)
        };
        tokio::time::timeout(GREETING_TIMEOUT, greeting).await.ok().flatten()
    }

    pub(super) fn config(&self) -> AsyncConnectionConfig {
        AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(self.timeout))
    }

    /// Waits for a connection, at most [`CONNECT_TIMEOUT`].
    pub(super) async fn in_time<T>(&self, made: impl Future<Output = RedisResult<T>>) -> RedisResult<T> {
        match tokio::time::timeout(CONNECT_TIMEOUT, made).await {
            Ok(made) => made,
            Err(_) => Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()),
        }
    }
}

/// A kind of connection. Clones share one connection.
pub trait Connection: Clone + Send + Sync + Sized + 'static {
    /// Connects, logs in, and asks for the server's `run_id`, which some servers do not tell.
    fn open(to: &Destination) -> impl Future<Output = RedisResult<(Self, Option<String>)>> + Send;
}

/// The connection of redis-rs: for any command, and for many callers at a time.
impl Connection for MultiplexedConnection {
    async fn open(to: &Destination) -> RedisResult<(Self, Option<String>)> {
        let mut connection = to.client().get_multiplexed_async_connection_with_config(&to.config()).await?;
        let run = run_of(&mut connection).await?;
        Ok((connection, run))
    }
}

/// The server's `run_id`, which is another one after each restart.
pub(super) async fn run_of(connection: &mut MultiplexedConnection) -> RedisResult<Option<String>> {
    let mut info = ::redis::cmd("INFO");
    info.arg("server");
    match info.query_async::<InfoDict>(connection).await {
        Ok(info) => Ok(info.get("run_id")),
        Err(error) if is_fatal(&error) => Err(error),
        Err(_) => Ok(None),
    }
}
