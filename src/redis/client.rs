//! The client: a connection that it makes again after a failure.
//!
//! Every wait has a deadline: a second for a connection, `--redis-timeout` for an answer. The client gives up a connection that
//! did not answer in time, because its state is unknown. A new connection may lead to another server, or to one that has
//! restarted. So the client asks each for the `run_id` of its server. [`Redis::generation`] rises when that changes. A caller
//! that stored something before then knows that it may be lost.

use std::sync::Arc;
use std::time::Duration;

use ::metrics::{Counter, Histogram};
use ::redis::aio::MultiplexedConnection;
use ::redis::{RedisError, RedisResult};
use parking_lot::Mutex;
use tokio::sync::Mutex as AsyncMutex;
use tokio::time::Instant;
use tracing::info;

use super::address::{Address, CannotConnect};
use super::connection::{Connection, Destination};
use super::errors::{is_fatal, is_refused_password, unavailable};
use crate::platform::unavailable::Unavailable;
use crate::telemetry::metrics::Metrics;

/// After a failure to connect, other callers get the same error for so long, without a try of their own.
const NO_NEW_TRY: Duration = Duration::from_millis(50);
/// The pause between two tries at the start of the service.
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(200);

/// The purpose of a call: a label in the metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// To see whether it answers, and what it is.
    Ask,
    /// To add ids.
    Write,
    /// To merge sketches and note accepted ids.
    Seal,
    /// To count a window.
    Count,
    /// To send a heartbeat, or to leave.
    Heartbeat,
    /// To resume as leader, store a count, or commit the published position.
    Close,
    /// To take, renew or release the lease.
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
        Self::Heartbeat,
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
            Self::Heartbeat => "heartbeat",
            Self::Close => "close",
            Self::Lease => "lease",
            Self::Publish => "publish",
        }
    }
}

/// Connects when a call needs it, and gives up a connection that fails. Cheap to clone; clones share the connection.
pub struct Redis<C = MultiplexedConnection>(Arc<Shared<C>>);

impl<C> Clone for Redis<C> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

struct Shared<C> {
    to: Arc<Destination>,
    link: Mutex<Link<C>>,
    /// Held while a connection is made.
    connecting: AsyncMutex<()>,
    /// For each [`Call`]: the durations of calls that succeeded, and the number of those that failed.
    handles: Arc<[(Histogram, Counter)]>,
    /// Shared by all connections to this Redis.
    server: Arc<Mutex<ServerRun>>,
}

struct Link<C> {
    connection: Option<C>,
    /// The `run_id` of the server that it leads to, if the server told it.
    run: Option<String>,
    /// How many connections were made so far.
    number: u64,
    /// When the last try to connect failed, and why.
    failed: Option<(Instant, Unavailable)>,
}

/// The `run_id` of the server that the last connection led to.
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
    /// [`CannotConnect::Address`] when the client cannot connect to such an address.
    pub fn new(address: &Address, timeout: Duration, metrics: &Metrics) -> Result<Self, CannotConnect> {
        let to = Destination::new(address.clone(), timeout);
        let to = to.map_err(|error| CannotConnect::Address(unavailable(&error)))?;
        let handles = Call::ALL
            .map(|call| (metrics.redis_command_duration(call.as_str()), metrics.redis_errors(call.as_str())));
        Ok(Self::with(Arc::new(to), Arc::new(handles), Arc::default()))
    }

    /// The same Redis over another connection.
    pub fn another(&self) -> Self {
        self.over_another()
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
}

impl<C: Connection> Redis<C> {
    /// The same Redis over another connection, perhaps of another kind.
    pub(super) fn over_another<D: Connection>(&self) -> Redis<D> {
        let Shared { to, handles, server, .. } = &*self.0;
        Redis::with(Arc::clone(to), Arc::clone(handles), Arc::clone(server))
    }

    fn with(
        to: Arc<Destination>,
        handles: Arc<[(Histogram, Counter)]>,
        server: Arc<Mutex<ServerRun>>,
    ) -> Self {
        let link = Mutex::new(Link { connection: None, run: None, number: 0, failed: None });
        Self(Arc::new(Shared { to, link, connecting: AsyncMutex::default(), handles, server }))
    }

    /// Rises when a connection leads to another server than the last, or to one that has restarted. It may lack what
    /// earlier connections wrote.
    pub fn generation(&self) -> u64 {
        self.0.server.lock().generation
    }

    /// Runs `work` on the connection.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] without a connection, without an answer in time, or when the answer is an error.
    pub async fn run<T>(
        &self,
        call: Call,
        work: impl AsyncFnOnce(&mut C) -> RedisResult<T>,
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

    /// Gives up the connection. The next call makes a new one.
    pub fn reconnect(&self) {
        self.0.link.lock().connection = None;
    }

    async fn connection(&self) -> Result<(C, u64), Unavailable> {
        if let Some(connection) = self.0.current() {
            return Ok(connection);
        }
        // In a task of its own: if this caller runs out of time, the next one gets the connection.
        let shared = Arc::clone(&self.0);
        tokio::spawn(async move { shared.connect().await }).await.map_err(Unavailable::because)?
    }
}

impl<C: Connection> Shared<C> {
    /// The connection, unless a newer one has found another server, or a restarted one.
    fn current(&self) -> Option<(C, u64)> {
        let link = self.link.lock();
        let connection = link.connection.as_ref()?;
        let server = self.server.lock();
        let is_behind = link.run.is_some() && server.id.is_some() && link.run != server.id;
        (!is_behind).then(|| (connection.clone(), link.number))
    }

    async fn connect(&self) -> Result<(C, u64), Unavailable> {
        let _connecting = self.connecting.lock().await;
        if let Some(connection) = self.current() {
            return Ok(connection);
        }
        // A caller that waited while another one tried and failed does not try again at once.
        if let Some((at, error)) = &self.link.lock().failed
            && at.elapsed() < NO_NEW_TRY
        {
            return Err(error.clone());
        }
        let mut made = C::open(&self.to).await;
        if made.as_ref().is_err_and(is_refused_password) && self.to.has_another_password() {
            info!("Redis refused the password: using the new one from the file of --redis-url");
            made = C::open(&self.to).await;
        }
        let greeting = match &made {
            Err(error) if error.is_connection_dropped() => self.to.greeting().await,
            _ => None,
        };
        let mut link = self.link.lock();
        match made {
            Ok((connection, run)) => {
                link.run.clone_from(&run);
                self.server.lock().is_now(run, link.number == 0);
                link.number += 1;
                link.failed = None;
                Ok((link.connection.insert(connection).clone(), link.number))
            }
            Err(error) => {
                let error = match greeting {
                    Some(said) => Unavailable::because(format_args!("Redis: {said}")),
                    None => self.cannot_connect(&error),
                };
                link.failed = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }

    /// The error without the password. A server that does not know the login command repeats its arguments in the error,
    /// or as much of them as fits.
    fn cannot_connect(&self, error: &RedisError) -> Unavailable {
        let client = self.to.client();
        let password = client.get_connection_info().redis_settings().password();
        let repeats = |password| {
            error.detail().is_some_and(|said| said.contains(password) || said.contains("args beginning with"))
        };
        if password.is_some_and(repeats) {
            let category = error.category();
            return Unavailable::because(format_args!(
                "Redis: {category}, message withheld, it may contain the password"
            ));
        }
        unavailable(error)
    }

    /// Gives up this connection, unless another caller has made a new one already.
    fn give_up(&self, number: u64) {
        let mut link = self.link.lock();
        if link.number == number {
            link.connection = None;
        }
    }
}

impl ServerRun {
    /// A new connection leads to the server with this `run_id`. A server that does not tell it may be another one after every
    /// reconnection.
    fn is_now(&mut self, id: Option<String>, is_first: bool) {
        let is_another = match (&self.id, &id) {
            (Some(known), Some(id)) => known != id,
            _ => !is_first,
        };
        self.generation += u64::from(is_another);
        self.id = id;
    }
}
