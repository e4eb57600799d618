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

mod counting;
pub mod guard;
mod hosts;
mod outcome;
mod sender;
mod sending;
pub mod signature;
mod special_purpose;

use std::net::SocketAddr;
use std::sync::Arc;

use clap::Args;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use self::counting::{Callback, Counting};
use self::guard::{Allow, Endpoint, Guard};
use self::outcome::{Outcome, Outcomes};
pub use self::sender::NoClient;
use self::sender::Sender;
use self::sending::Sending;
use self::signature::SigningKey;
use crate::coordination::ClosedWindows;
use crate::model::window::{Clock, Window};
use crate::platform::args;
use crate::platform::secret::{Secret, SecretArg};
use crate::store::UniqueCounter;
use crate::telemetry::metrics::Metrics;

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
    #[arg(long, env = "HEADCOUNT_CALLBACK_ALLOW", value_name = "BLOCK|NAME", value_delimiter = ',')]
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
    pub fn signing_key(&self) -> Result<Option<Secret<SigningKey>>, String> {
        let secret = self.callback_secret.as_ref();
        secret.map(|arg| Secret::new(arg, "--callback-secret <SECRET>", SigningKey::parse)).transpose()
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

/// What callbacks have to do with.
pub struct Surroundings {
    /// Signs them; they are not signed without.
    pub signing_key: Option<Secret<SigningKey>>,
    /// The addresses that this service listens on.
    pub own: Vec<SocketAddr>,
    /// Has the numbers.
    pub counter: Arc<dyn UniqueCounter>,
    /// Has the numbers that the counter has just forgotten.
    pub closed: ClosedWindows,
    /// Stamps them.
    pub clock: Arc<dyn Clock>,
}

impl Callbacks {
    /// Callbacks, and the tasks that send them: they have to run.
    ///
    /// # Errors
    ///
    /// [`NoClient`] when there cannot be TLS.
    pub fn new(
        args: &CallbackArgs,
        surroundings: Surroundings,
        metrics: &Metrics,
    ) -> Result<(Self, CallbackTasks), NoClient> {
        let Surroundings { signing_key, own, counter, closed, clock } = surroundings;
        let guard = Arc::new(Guard::new(args.callbacks, args.callback_allow.clone(), own));
        let outcomes = Outcomes::new(metrics);
        let (queue, waiting) = mpsc::unbounded_channel();
        let (letters, to_send) = mpsc::unbounded_channel();
        let size = args.callback_queue as usize;
        let tasks = if args.callbacks {
            let sender = Sender::new(&guard, signing_key, clock, outcomes.clone())?;
            let counting = Counting::new(waiting, letters, counter, closed, outcomes.clone());
            let (rate, concurrency) = (args.callback_host_rate, args.callback_concurrency);
            let sending = Sending::new(to_send, rate, concurrency, sender, outcomes.clone());
            Some(Tasks { counting, sending, outcomes: outcomes.clone() })
        } else {
            None
        };
        let places = Arc::new(Semaphore::new(size));
        Ok((Self { guard, queue, places, size, outcomes }, CallbackTasks(tasks)))
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

/// The tasks behind the callbacks; none where they are off.
pub struct CallbackTasks(Option<Tasks>);

struct Tasks {
    counting: Counting,
    sending: Sending,
    outcomes: Outcomes,
}

impl CallbackTasks {
    /// Sends callbacks until `stop`, then those that wait, until `abort`.
    pub async fn run(self, stop: CancellationToken, abort: CancellationToken) {
        let Some(Tasks { counting, sending, outcomes }) = self.0 else { return stop.cancelled().await };
        let (uncounted, unsent) = tokio::join!(counting.run(stop, abort.clone()), sending.run(abort));
        let unsent = uncounted + unsent;
        if unsent > 0 {
            warn!(unsent, "callbacks dropped: the service stops");
            outcomes.add(Outcome::Unsent, unsent);
        }
    }
}
