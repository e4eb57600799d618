//! A writer: many short writes at a time to one node, over the [wire](super::wire).

use std::collections::BTreeMap;
use std::sync::Arc;

use ::redis::{ServerError, ServerErrorKind};
use tokio::time::Instant;

use super::call::Call;
use super::errors::is_passing;
use super::link::Link;
use super::node::Node;
use super::routed::{Again, again_after};
use super::topology::Topology;
use super::wire::{Commands, Replies, Wire};
use crate::platform::unavailable::Unavailable;

/// Writes to a node, over a connection of its own.
#[derive(Clone)]
pub struct Writer {
    link: Link<Wire>,
    topology: Arc<Topology>,
}

impl Writer {
    pub(super) fn new(node: Arc<Node>, topology: &Arc<Topology>) -> Self {
        let link = Link::new(node, topology.metrics().clone());
        Self { link, topology: Arc::clone(topology) }
    }

    /// The node that it writes to.
    pub fn node(&self) -> &Arc<Node> {
        self.link.node()
    }

    /// See [`Redis::generation`](super::Redis::generation).
    pub fn generation(&self) -> u64 {
        self.topology.generation()
    }

    /// Gives up the connection. The next call makes a new one.
    pub fn reconnect(&self) {
        self.link.reconnect();
    }

    /// Connects, if there is no connection. That has its own time-out, of a second.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] if there is no connection in time.
    pub async fn connect(&self, call: Call) -> Result<(), Unavailable> {
        self.link.lend(call).await.map(drop).map_err(Unavailable::from)
    }

    /// Sends commands, and waits for their replies until the deadline. Returns the replies to the first `own` commands. Commands
    /// whose slot is on another server now are sent there.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] when the replies do not come, or when the server refuses one of the later commands. So it is when the
    /// server refuses any command for a reason that will pass: the sender has to send it again.
    pub async fn send(
        &self,
        call: Call,
        commands: &Commands,
        own: usize,
        deadline: Instant,
    ) -> Result<Replies, Unavailable> {
        let sending = async {
            let mut replies = self.link.run(call, async |wire| wire.exchange(commands).await).await?;
            if self.topology.is_cluster() {
                self.follow(call, commands, &mut replies).await?;
            }
            Ok::<_, Unavailable>(replies)
        };
        let Ok(sent) = tokio::time::timeout_at(deadline, sending).await else {
            // Late replies to these commands may still come, so this connection is of no more use.
            self.link.reconnect();
            self.topology.read_map_soon();
            return Err(Unavailable::because("Redis does not answer in time"));
        };
        let mut replies = sent.inspect_err(|_| self.topology.read_map_soon())?;
        for (place, reply) in replies.iter().enumerate() {
            if let Err(error) = reply
                && (place >= own || error.kind().is_some_and(is_passing) || is_redirection(error))
            {
                self.topology.metrics().note_failed(call);
                if error.kind().is_some_and(is_passing) {
                    self.link.reconnect();
                    self.topology.read_map_soon();
                }
                return Err(Unavailable::because(format_args!("Redis: {error}")));
            }
        }
        replies.truncate(own);
        Ok(replies)
    }

    /// Sends those commands to other servers whose replies say so.
    async fn follow(
        &self,
        call: Call,
        commands: &Commands,
        replies: &mut Replies,
    ) -> Result<(), Unavailable> {
        let mut elsewhere = BTreeMap::<(String, bool), Vec<usize>>::new();
        for (place, reply) in replies.iter().enumerate() {
            if let Err(error) = reply
                && let Some(Again::To { name, is_moving }) = again_after(error)
            {
                elsewhere.entry((name, is_moving)).or_default().push(place);
            }
        }
        for ((name, is_moving), places) in elsewhere {
            let node = self.topology.redirected(&name, is_moving, places.len() as u64).await?;
            let Some(wire) = self.topology.wire(node) else { continue };
            let again = commands.some(&places, is_moving.then_some(b"ASKING"));
            let answers = wire.run(call, async |wire| wire.exchange(&again).await).await?;
            let answers =
                answers.into_iter().skip(usize::from(is_moving)).step_by(1 + usize::from(is_moving));
            for (place, answer) in places.into_iter().zip(answers) {
                replies[place] = answer;
            }
        }
        Ok(())
    }
}

fn is_redirection(error: &ServerError) -> bool {
    matches!(error.kind(), Some(ServerErrorKind::Moved | ServerErrorKind::Ask))
}
