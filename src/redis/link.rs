//! A link: the connection to a node, which is made again after a failure.
//!
//! Every wait has a deadline: a second for a connection, `--redis-timeout` for an answer. The link gives up a connection that
//! did not answer in time, because its state is unknown. A new connection may lead to another server, or to one that has
//! restarted. So the link asks each for the `run_id` of its server. The generation of the topology rises when that changes.

use std::sync::Arc;
use std::time::Duration;

use ::redis::{RedisError, RedisResult};
use parking_lot::Mutex;
use tokio::sync::Mutex as AsyncMutex;
use tokio::time::Instant;
use tracing::info;

use super::call::{Call, CallMetrics};
use super::errors::{is_fatal, is_refused_password, unavailable};
use super::node::{Connection, Node};
use crate::platform::unavailable::Unavailable;

/// After a failure to connect, other callers get the same error for so long, without a try of their own.
const NO_NEW_TRY: Duration = Duration::from_millis(50);

/// Connects when a call needs it, and gives up a connection that fails. Cheap to clone; clones share the connection.
pub(super) struct Link<C>(Arc<Shared<C>>);

impl<C> Clone for Link<C> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

struct Shared<C> {
    node: Arc<Node>,
    state: Mutex<State<C>>,
    /// Held while a connection is made.
    connecting: AsyncMutex<()>,
    metrics: CallMetrics,
}

struct State<C> {
    connection: Option<C>,
    /// The `run_id` of the server that it leads to, if the server told it.
    run: Option<String>,
    /// How many connections were made so far.
    number: u64,
    /// When the last try to connect failed, and why.
    failed: Option<(Instant, Unavailable)>,
}

/// A connection that is lent for a call.
pub(super) struct Lent<C> {
    pub(super) connection: C,
    number: u64,
    call: Call,
    started: Instant,
}

/// Why a call failed.
pub(super) enum Failure {
    /// There is no connection.
    NotConnected(Unavailable),
    /// There was no answer, or the answer is an error.
    Answer(RedisError),
}

impl From<Failure> for Unavailable {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::NotConnected(error) => error,
            Failure::Answer(error) => unavailable(&error),
        }
    }
}

impl<C: Connection> Link<C> {
    /// Does not connect yet.
    pub(super) fn new(node: Arc<Node>, metrics: CallMetrics) -> Self {
        let state = Mutex::new(State { connection: None, run: None, number: 0, failed: None });
        Self(Arc::new(Shared { node, state, connecting: AsyncMutex::default(), metrics }))
    }

    pub(super) fn node(&self) -> &Arc<Node> {
        &self.0.node
    }

    /// Runs `work` on the connection.
    pub(super) async fn run<T>(
        &self,
        call: Call,
        work: impl AsyncFnOnce(&mut C) -> RedisResult<T>,
    ) -> Result<T, Failure> {
        let mut lent = self.lend(call).await?;
        let done = work(&mut lent.connection).await;
        self.give_back(&lent, done)
    }

    /// The connection, for a call that begins now.
    pub(super) async fn lend(&self, call: Call) -> Result<Lent<C>, Failure> {
        let connected = self.connection().await.inspect_err(|_| self.0.metrics.note_failed(call));
        let (connection, number) = connected.map_err(Failure::NotConnected)?;
        Ok(Lent { connection, number, call, started: Instant::now() })
    }

    /// Notes how the call went.
    pub(super) fn give_back<T>(&self, lent: &Lent<C>, done: RedisResult<T>) -> Result<T, Failure> {
        let metrics = &self.0.metrics;
        done.inspect(|_| metrics.note_done(lent.call, lent.started.elapsed())).map_err(|error| {
            metrics.note_failed(lent.call);
            if is_fatal(&error) {
                self.0.give_up(lent.number);
            }
            Failure::Answer(error)
        })
    }

    /// Gives up the connection. The next call makes a new one.
    pub(super) fn reconnect(&self) {
        self.0.state.lock().connection = None;
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
        let state = self.state.lock();
        let connection = state.connection.as_ref()?;
        let is_behind = state.run.as_ref().is_some_and(|run| self.node.is_another_run_than(run));
        (!is_behind).then(|| (connection.clone(), state.number))
    }

    async fn connect(&self) -> Result<(C, u64), Unavailable> {
        let _connecting = self.connecting.lock().await;
        if let Some(connection) = self.current() {
            return Ok(connection);
        }
        // A caller that waited while another one tried and failed does not try again at once.
        if let Some((at, error)) = &self.state.lock().failed
            && at.elapsed() < NO_NEW_TRY
        {
            return Err(error.clone());
        }
        let mut made = C::open(&self.node).await;
        if made.as_ref().is_err_and(is_refused_password) && self.node.has_another_password() {
            info!("Redis refused the password: using the new one from the file of --redis-url");
            made = C::open(&self.node).await;
        }
        let greeting = match &made {
            Err(error) if error.is_connection_dropped() => self.node.greeting().await,
            _ => None,
        };
        let mut state = self.state.lock();
        match made {
            Ok((connection, run)) => {
                state.run.clone_from(&run);
                self.node.is_now(run, state.number == 0);
                state.number += 1;
                state.failed = None;
                Ok((state.connection.insert(connection).clone(), state.number))
            }
            Err(error) => {
                let error = match greeting {
                    Some(said) => Unavailable::because(format_args!("Redis: {said}")),
                    None => self.cannot_connect(&error),
                };
                state.failed = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }

    /// The error without the password. A server that does not know the login command repeats its arguments in the error,
    /// or as much of them as fits.
    fn cannot_connect(&self, error: &RedisError) -> Unavailable {
        let info = self.node.info();
        let password = info.redis_settings().password();
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
        let mut state = self.state.lock();
        if state.number == number {
            state.connection = None;
        }
    }
}
