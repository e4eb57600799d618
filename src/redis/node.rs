//! A server: how connections to it are made, and which run of it they lead to.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::{AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, InfoDict, RedisResult};
use parking_lot::Mutex;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use super::address::{Access, host_and_port};
use super::errors::is_fatal;
use super::patience::config;
use super::sentinel;
use super::urls::Watched;

/// How long to wait for a message that a server sends before any command.
const GREETING_TIMEOUT: Duration = Duration::from_millis(300);

/// A server that has keys of headcount.
pub struct Node {
    number: usize,
    access: Arc<Access>,
    place: Mutex<Place>,
    timeout: Duration,
    /// The `run_id` of the server that the last connection led to.
    run: Mutex<Option<String>>,
    /// See [`Redis::generation`](super::Redis::generation).
    generation: Arc<AtomicU64>,
}

/// Where a node is.
#[derive(Clone)]
pub(super) enum Place {
    /// At the address of the URL.
    Url,
    /// Where Sentinels say.
    Watched(Arc<Watched>),
    /// In a cluster, which may give it another address. Redirections may name it by another name.
    At { address: ConnectionAddr, named: Vec<String> },
}

impl Node {
    pub(super) fn new(
        number: usize,
        access: &Arc<Access>,
        place: Place,
        timeout: Duration,
        generation: &Arc<AtomicU64>,
    ) -> Self {
        Self {
            number,
            access: Arc::clone(access),
            place: Mutex::new(place),
            timeout,
            run: Mutex::default(),
            generation: Arc::clone(generation),
        }
    }

    /// Its number among the nodes, which it keeps.
    pub fn number(&self) -> usize {
        self.number
    }

    /// Where it is in the cluster, as `host:port`. None for a server that is alone.
    pub fn name(&self) -> Option<String> {
        match &*self.place.lock() {
            Place::At { address, .. } => Some(host_and_port(address)),
            Place::Url | Place::Watched(_) => None,
        }
    }

    pub(super) fn address(&self) -> Option<ConnectionAddr> {
        match &*self.place.lock() {
            Place::At { address, .. } => Some(address.clone()),
            Place::Url | Place::Watched(_) => None,
        }
    }

    /// Whether a redirection with this name leads to it.
    pub(super) fn is_named(&self, name: &str) -> bool {
        matches!(&*self.place.lock(), Place::At { address, named } if named.iter().any(|known| known == name) || host_and_port(address) == name)
    }

    /// Notes where it is in the cluster.
    pub(super) fn is_at(&self, place: Place) {
        *self.place.lock() = place;
    }

    /// The client for the next connection. Asks the Sentinels, if there are some.
    pub(super) async fn client(&self) -> RedisResult<Client> {
        let info = self.access.info();
        let place = self.place.lock().clone();
        match place {
            Place::Url => Client::open(info),
            Place::At { address, .. } => Client::open(info.set_addr(address)),
            Place::Watched(watched) => sentinel::primary(&watched, &info).await,
        }
    }

    /// The settings of connections, without the address.
    pub(super) fn info(&self) -> ConnectionInfo {
        self.access.info()
    }

    /// Reads the file of `--redis-url` again. See [`Access::has_another_password`].
    pub(super) fn has_another_password(&self) -> bool {
        self.access.has_another_password()
    }

    /// The error that a server sends before it closes a new connection: it is in protected mode, or has too many clients.
    /// A client that has sent a command by then often sees only a reset. So this connects once more, and only reads.
    pub(super) async fn greeting(&self) -> Option<String> {
        let address = match &*self.place.lock() {
            Place::Url => self.access.info().addr().clone(),
            Place::At { address, .. } => address.clone(),
            Place::Watched(_) => return None,
        };
        let ConnectionAddr::Tcp(host, port) = address else { return None };
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
        config(self.timeout)
    }

    /// Whether a newer connection has found another server, or a restarted one.
    pub(super) fn is_another_run_than(&self, run: &str) -> bool {
        self.run.lock().as_ref().is_some_and(|last| last != run)
    }

    /// A new connection leads to the server with this `run_id`. A server that does not tell it may be another one after every
    /// reconnection.
    pub(super) fn is_now(&self, id: Option<String>, is_first: bool) {
        let mut run = self.run.lock();
        let is_another = match (&*run, &id) {
            (Some(known), Some(id)) => known != id,
            _ => !is_first,
        };
        self.generation.fetch_add(u64::from(is_another), Ordering::Relaxed);
        *run = id;
    }
}

/// A kind of connection. Clones share one connection.
pub(super) trait Connection: Clone + Send + Sync + Sized + 'static {
    /// Connects, logs in, and asks for the server's `run_id`, which some servers do not tell.
    fn open(to: &Node) -> impl Future<Output = RedisResult<(Self, Option<String>)>> + Send;
}

/// The connection of redis-rs: for any command, and for many callers at a time.
impl Connection for MultiplexedConnection {
    async fn open(to: &Node) -> RedisResult<(Self, Option<String>)> {
        let client = to.client().await?;
        let mut connection = client.get_multiplexed_async_connection_with_config(&to.config()).await?;
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
