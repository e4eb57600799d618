//! Callbacks: the POST to the `endpoint` that a request names.
//!
//! # The way of a callback
//!
//! A request that is accepted leaves its endpoint in a queue and is answered; nothing here makes it wait. One task
//! takes what is in the queue, asks the counter once for all of it, and hands it to another, which sends it when it
//! is the host's [turn](hosts):
//!
//! ```text
//! accept ─► queue ─► count, at most every 10 ms ─► a queue a host ─► at most so many under way ─► endpoint
//! ```
//!
//! What is counted is counted after the request was: so its own id is in the number. Requests that come while a
//! count is under way wait for the next one, so a count costs the same for one callback and for ten thousand.
//!
//! # Nothing grows
//!
//! A callback has one of the places of `--callback-queue` from the request until it is sent; when there is none, or
//! its host has had its share, it is dropped and counted. It is sent once, within a time-out; what comes of it is
//! logged, and that is all: a receiver that needs every number reads the stream.
//!
//! Where callbacks may go is for the [guard] to say.

pub mod guard;
mod hosts;
mod sender;
pub mod signature;
mod special_purpose;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ::metrics::{Counter, Histogram};
use bytes::Bytes;
use clap::Args;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{Id, JoinSet};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use self::guard::{Allow, Endpoint, Guard};
use self::hosts::Hosts;
pub use self::sender::NoClient;
use self::sender::Sender;
use self::signature::SigningKey;
use crate::args;
use crate::counter::UniqueCounter;
use crate::metrics::Metrics;
use crate::secret::SecretArg;
use crate::window::{Clock, UniqueCount, Window};

/// Between two counts for callbacks.
const COUNT_EVERY: Duration = Duration::from_millis(10);

/// Connections that may be open for callbacks, beyond those under way.
pub const MOST_IDLE_CONNECTIONS: usize = hosts::MOST_IDLE_CONNECTIONS;

/// Where callbacks may go, and how many.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Callbacks")]
pub struct CallbackArgs {
    /// Whether requests may name an endpoint; if not, those that do are refused
    #[arg(
        long, env = "HEADCOUNT_CALLBACKS", value_name = "on|off", default_value = "on",
        value_parser = args::on_off, action = clap::ArgAction::Set
    )]
    callbacks: bool,

    /// Where callbacks may go besides public addresses: blocks such as 10.0.0.0/8, host names, *.internal;
    /// also several with commas in between
    #[arg(
        long,
        env = "HEADCOUNT_CALLBACK_ALLOW",
        value_name = "BLOCK|NAME",
        value_delimiter = ',',
        allow_hyphen_values = false
    )]
    callback_allow: Vec<Allow>,

    // Not a doc comment: help has no Markdown.
    #[arg(
        long,
        env = "HEADCOUNT_CALLBACK_SECRET",
        value_name = "SECRET",
        hide_env_values = true,
        help = "Sign callbacks after Standard Webhooks with this key: whsec_ and 24 to 64 bytes in Base64, or file:PATH \
                of a file that has it"
    )]
    callback_secret: Option<SecretArg>,

    /// Callbacks that may wait; more are dropped
    #[arg(
        long, env = "HEADCOUNT_CALLBACK_QUEUE", value_name = "NUMBER", default_value = "10000",
        value_parser = args::up_to::<1_000_000>
    )]
    callback_queue: u32,

    /// Callbacks that are under way at a time
    #[arg(
        long, env = "HEADCOUNT_CALLBACK_CONCURRENCY", value_name = "NUMBER", default_value = "256",
        value_parser = args::up_to::<10_000>
    )]
    pub callback_concurrency: u32,

    /// Callbacks that one host is sent a second, and how many may wait for it; more are dropped
    #[arg(
        long, env = "HEADCOUNT_CALLBACK_HOST_RATE", value_name = "NUMBER", default_value = "100",
        value_parser = args::up_to::<1_000_000>
    )]
    callback_host_rate: u32,
}

impl CallbackArgs {
    /// The key that callbacks are signed with; none if they are not.
    ///
    /// # Errors
    ///
    /// A line for the user, without the secret.
    pub fn signing_key(&self) -> Result<Option<SigningKey>, String> {
        const FLAG: &str = "--callback-secret <SECRET>";
        let Some(secret) = &self.callback_secret else { return Ok(None) };
        let key = SigningKey::parse(&secret.read(FLAG)?);
        key.map(Some).map_err(|error| format!("invalid value for '{FLAG}': {error}"))
    }
}

/// What became of a callback: a label in the metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// Answered with a status from 200 to 299.
    Ok,
    /// Answered with another one.
    BadStatus,
    /// Not answered in time.
    Timeout,
    /// Not answered for another reason.
    Failed,
    /// Its name led to an address where callbacks must not go.
    Forbidden,
    /// Dropped: too many wait.
    QueueFull,
    /// Dropped: its host has had its share.
    HostLimit,
    /// Dropped: there was no number to send.
    NoCount,
    /// Dropped: the service stopped.
    Unsent,
}

impl Outcome {
    const ALL: [Self; 9] = [
        Self::Ok,
        Self::BadStatus,
        Self::Timeout,
        Self::Failed,
        Self::Forbidden,
        Self::QueueFull,
        Self::HostLimit,
        Self::NoCount,
        Self::Unsent,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::BadStatus => "bad_status",
            Self::Timeout => "timeout",
            Self::Failed => "failed",
            Self::Forbidden => "forbidden",
            Self::QueueFull => "queue_full",
            Self::HostLimit => "host_limit",
            Self::NoCount => "no_count",
            Self::Unsent => "unsent",
        }
    }
}

/// Counts what became of callbacks.
#[derive(Clone)]
struct Outcomes {
    counters: Arc<[Counter]>,
    duration: Histogram,
}

impl Outcomes {
    fn new(metrics: &Metrics) -> Self {
        let counters = Outcome::ALL.map(|outcome| metrics.callbacks(outcome.as_str()));
        Self { counters: Arc::new(counters), duration: metrics.callback_duration.clone() }
    }

    /// One that was sent.
    fn record(&self, outcome: Outcome, took: Duration) {
        self.duration.record(took);
        self.add(outcome, 1);
    }

    fn add(&self, outcome: Outcome, callbacks: usize) {
        self.counters[outcome as usize].increment(callbacks as u64);
    }
}

/// Takes callbacks in.
pub struct Callbacks {
    guard: Arc<Guard>,
    /// Bounded by `places`, so that a place is taken until the callback is sent, not only until it is counted.
    queue: mpsc::UnboundedSender<Callback>,
    places: Arc<Semaphore>,
    size: usize,
    outcomes: Outcomes,
}

/// A callback that waits for its number.
struct Callback {
    endpoint: Endpoint,
    window: Window,
    place: OwnedSemaphorePermit,
}

/// A callback that waits to be sent.
struct Letter {
    endpoint: Endpoint,
    body: Bytes,
    place: OwnedSemaphorePermit,
}

impl Callbacks {
    /// Callbacks, and the tasks that send them: they have to run. `own` are the addresses that this service listens on.
    ///
    /// # Errors
    ///
    /// [`NoClient`] when there cannot be TLS.
    pub fn new(
        args: &CallbackArgs,
        key: Option<SigningKey>,
        own: Vec<SocketAddr>,
        counter: Arc<dyn UniqueCounter>,
        clock: Arc<dyn Clock>,
        metrics: &Metrics,
    ) -> Result<(Self, CallbackTasks), NoClient> {
        let guard = Arc::new(Guard::new(args.callbacks, args.callback_allow.clone(), own));
        let outcomes = Outcomes::new(metrics);
        let (queue, waiting) = mpsc::unbounded_channel();
        let (letters, to_send) = mpsc::unbounded_channel();
        let size = args.callback_queue as usize;
        let places = Arc::new(Semaphore::new(size));
        let tasks = CallbackTasks {
            counting: Counting { waiting, letters, counter, outcomes: outcomes.clone() },
            sending: Sending {
                to_send,
                hosts: Hosts::new(args.callback_host_rate),
                concurrency: args.callback_concurrency as usize,
                sender: Arc::new(Sender::new(&guard, key, clock, outcomes.clone())?),
                under_way: JoinSet::new(),
                destinations: HashMap::new(),
                outcomes: outcomes.clone(),
            },
        };
        Ok((Self { guard, queue, places, size, outcomes }, tasks))
    }

    /// Says which endpoints are admitted.
    pub fn guard(&self) -> &Guard {
        &self.guard
    }

    /// Sends the count of `window` to an endpoint, soon. Never waits: what there is no place for is dropped.
    pub fn submit(&self, endpoint: Endpoint, window: Window) {
        let place = Arc::clone(&self.places).try_acquire_owned();
        let Ok(place) = place else { return self.outcomes.add(Outcome::QueueFull, 1) };
        if self.queue.send(Callback { endpoint, window, place }).is_err() {
            self.outcomes.add(Outcome::Unsent, 1);
        }
    }

    /// Callbacks that wait.
    pub fn waiting(&self) -> usize {
        self.size - self.places.available_permits()
    }
}

/// The tasks behind the callbacks.
pub struct CallbackTasks {
    counting: Counting,
    sending: Sending,
}

impl CallbackTasks {
    /// Sends callbacks until `stop`, then those that wait, until `abort`.
    pub async fn run(self, stop: CancellationToken, abort: CancellationToken) {
        tokio::join!(self.counting.run(stop), self.sending.run(abort));
    }
}

/// Finds out the numbers.
struct Counting {
    waiting: mpsc::UnboundedReceiver<Callback>,
    letters: mpsc::UnboundedSender<Letter>,
    counter: Arc<dyn UniqueCounter>,
    outcomes: Outcomes,
}

impl Counting {
    async fn run(mut self, stop: CancellationToken) {
        let mut pace = tokio::time::interval(COUNT_EVERY);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut batches: BTreeMap<Window, Vec<Callback>> = BTreeMap::new();
        loop {
            if batches.is_empty() {
                let first = tokio::select! {
                    biased;
                    first = self.waiting.recv() => first,
                    () = stop.cancelled(), if !self.waiting.is_closed() => {
                        self.waiting.close();
                        continue;
                    }
                };
                let Some(first) = first else { return };
                batches.entry(first.window).or_default().push(first);
            }
            pace.tick().await;
            // All that came while there was no count.
            while let Ok(next) = self.waiting.try_recv() {
                batches.entry(next.window).or_default().push(next);
            }
            if let Some((window, callbacks)) = batches.pop_first() {
                self.count(window, callbacks).await;
            }
        }
    }

    async fn count(&self, window: Window, callbacks: Vec<Callback>) {
        let body = match self.body(window).await {
            Ok(body) => body,
            Err(error) => {
                warn!(%window, %error, callbacks = callbacks.len(), "callbacks dropped: there is no count for them");
                return self.outcomes.add(Outcome::NoCount, callbacks.len());
            }
        };
        for Callback { endpoint, place, .. } in callbacks {
            let letter = Letter { endpoint, body: body.clone(), place };
            if self.letters.send(letter).is_err() {
                self.outcomes.add(Outcome::Unsent, 1);
            }
        }
    }

    async fn body(&self, window: Window) -> Result<Bytes, String> {
        // Nobody is to wait for a store that is away.
        if self.counter.is_degraded() {
            return Err("what is shared cannot be reached".to_owned());
        }
        let tally = self.counter.count(window).await.map_err(|error| error.to_string())?;
        let count = UniqueCount { timestamp: window, unique_request_count: tally.unique_ids };
        serde_json::to_vec(&count).map(Bytes::from).map_err(|error| error.to_string())
    }
}

/// Sends what has a number, when it is its turn.
struct Sending {
    to_send: mpsc::UnboundedReceiver<Letter>,
    hosts: Hosts<Letter>,
    concurrency: usize,
    sender: Arc<Sender>,
    under_way: JoinSet<()>,
    /// To whom each task that is under way sends.
    destinations: HashMap<Id, Arc<str>>,
    outcomes: Outcomes,
}

impl Sending {
    async fn run(mut self, abort: CancellationToken) {
        let mut is_open = true;
        while is_open || !self.under_way.is_empty() {
            tokio::select! {
                letter = self.to_send.recv(), if is_open => match letter {
                    Some(letter) => self.take_in(letter),
                    None => is_open = false,
                },
                Some(done) = self.under_way.join_next_with_id() => {
                    let id = match done {
                        Ok((id, ())) => id,
                        Err(panicked) => {
                            error!(error = %panicked, "a callback panicked");
                            self.outcomes.add(Outcome::Failed, 1);
                            panicked.id()
                        }
                    };
                    if let Some(host) = self.destinations.remove(&id) {
                        self.hosts.done(host, Instant::now());
                    }
                }
                () = abort.cancelled() => break,
            }
            self.send_what_may_be_sent();
        }
        self.give_up();
    }

    fn take_in(&mut self, letter: Letter) {
        let host = Arc::clone(letter.endpoint.host());
        if self.hosts.push(host, letter, Instant::now()).is_err() {
            self.outcomes.add(Outcome::HostLimit, 1);
        }
    }

    fn send_what_may_be_sent(&mut self) {
        while self.under_way.len() < self.concurrency
            && let Some(turn) = self.hosts.next(Instant::now())
        {
            let Letter { endpoint, body, place } = turn.item;
            // From here on it takes one of the places under way.
            drop(place);
            let sender = Arc::clone(&self.sender);
            let task =
                self.under_way.spawn(async move { sender.send(endpoint, body, turn.keep_alive).await });
            self.destinations.insert(task.id(), turn.host);
        }
    }

    /// There is no more time.
    fn give_up(&mut self) {
        let unsent = self.hosts.waiting() + self.under_way.len() + self.to_send.len();
        if unsent > 0 {
            warn!(unsent, "callbacks dropped: the service stops");
            self.outcomes.add(Outcome::Unsent, unsent);
        }
    }
}
