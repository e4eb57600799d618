//! Sends what has a number, when it is the host's turn.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::{Id, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::error;

use super::guard::Endpoint;
use super::hosts::Hosts;
use super::outcome::{Outcome, Outcomes};
use super::sender::Sender;

/// A callback that waits to be sent.
pub(super) struct Letter {
    pub(super) endpoint: Endpoint,
    pub(super) body: Bytes,
    pub(super) place: OwnedSemaphorePermit,
}

/// Sends what has a number, when it is its turn.
pub(super) struct Sending {
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
    /// Sends what comes, `concurrency` at a time, and `rate` a second to each host.
    pub(super) fn new(
        to_send: mpsc::UnboundedReceiver<Letter>,
        rate: u32,
        concurrency: u32,
        sender: Sender,
        outcomes: Outcomes,
    ) -> Self {
        Self {
            to_send,
            hosts: Hosts::new(rate),
            concurrency: concurrency as usize,
            sender: Arc::new(sender),
            under_way: JoinSet::new(),
            destinations: HashMap::new(),
            outcomes,
        }
    }

    /// Until nothing more can come and all is sent, or until `abort`. How many were not sent.
    pub(super) async fn run(mut self, abort: CancellationToken) -> usize {
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
        self.give_up().await
    }

    fn take_in(&mut self, letter: Letter) {
        let (host, origin) = (Arc::clone(letter.endpoint.host()), letter.endpoint.origin());
        if self.hosts.push(host, origin, letter, Instant::now()).is_err() {
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

    /// There is no more time. How many are left that were not sent, or not to the end.
    async fn give_up(mut self) -> usize {
        let mut unsent = self.hosts.waiting();
        self.under_way.abort_all();
        while let Some(done) = self.under_way.join_next().await {
            unsent += usize::from(done.is_err());
        }
        unsent + self.to_send.len()
    }
}
