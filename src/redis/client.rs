//! The client: it sends each call to the server that has its keys.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::{InfoDict, RedisResult};
use tokio::time::Instant;

use super::address::{Address, CannotConnect};
use super::call::Call;
use super::cluster::{Member, slot_of};
use super::link::{Failure, Link};
use super::node::Node;
use super::routed::Routed;
use super::topology::Topology;
use super::writer::Writer;
use crate::platform::unavailable::Unavailable;
use crate::telemetry::metrics::Metrics;

/// The pause between two tries at the start of the service.
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(200);

/// A Redis: a server, the primary that Sentinels name, or a cluster. Cheap to clone; clones share the connections.
#[derive(Clone)]
pub struct Redis(Arc<Shared>);

struct Shared {
    topology: Arc<Topology>,
    /// The connection to each node.
    links: Box<[OnceLock<Link<MultiplexedConnection>>]>,
}

impl Redis {
    /// Does not connect yet.
    pub fn new(address: &Address, timeout: Duration, metrics: &Metrics) -> Self {
        Self::over(Arc::new(Topology::new(address, timeout, metrics)))
    }

    /// The same Redis over other connections.
    pub fn another(&self) -> Self {
        Self::over(Arc::clone(&self.0.topology))
    }

    fn over(topology: Arc<Topology>) -> Self {
        let links = (0..topology.most_nodes()).map(|_| OnceLock::new()).collect();
        Self(Arc::new(Shared { topology, links }))
    }

    /// A writer to a node, over a connection of its own.
    pub fn writer(&self, node: &Arc<Node>) -> Writer {
        Writer::new(Arc::clone(node), &self.0.topology)
    }

    /// Waits until Redis answers, for as long as `patience`.
    ///
    /// # Errors
    ///
    /// [`CannotConnect::Refused`] with the last reason.
    pub async fn wait_for(&self, address: &Address, patience: Duration) -> Result<(), CannotConnect> {
        let deadline = Instant::now() + patience;
        loop {
            let Err(cause) = self.is_there().await else { return Ok(()) };
            if Instant::now() + TRY_AGAIN_AFTER > deadline {
                return Err(CannotConnect::Refused { address: address.to_string(), cause });
            }
            tokio::time::sleep(TRY_AGAIN_AFTER).await;
        }
    }

    /// Whether some server with slots answers. Of a cluster, one primary may be away.
    async fn is_there(&self) -> Result<(), Unavailable> {
        let ping = ::redis::cmd("PING");
        self.0.topology.known().await?;
        let mut refused = Unavailable::because("no server of the cluster has slots");
        for node in self.nodes_with_slots() {
            match self.run_on(Call::Ask, &node, async |connection| ping.exec_async(connection).await).await {
                Ok(()) => return Ok(()),
                Err(error) => refused = error,
            }
        }
        Err(refused)
    }

    /// Rises when data may be lost: a connection leads to another server than the last, or to one that has restarted, or slots
    /// have a new primary after a fail-over. It may lack what was written before.
    pub fn generation(&self) -> u64 {
        self.0.topology.generation()
    }

    /// Whether it is a cluster: then one call has keys of one slot.
    pub fn is_cluster(&self) -> bool {
        self.0.topology.is_cluster()
    }

    /// How many nodes there can be. Their numbers are below it.
    pub fn most_nodes(&self) -> usize {
        self.0.topology.most_nodes()
    }

    /// The number of the node that has a key.
    pub fn number_for(&self, key: &str) -> usize {
        self.0.topology.number_for(key)
    }

    /// The number of the node that has a slot.
    pub fn number_of(&self, slot: u16) -> usize {
        self.0.topology.number_of(slot)
    }

    /// A node by its number, if there is one.
    pub fn node(&self, number: usize) -> Option<Arc<Node>> {
        self.0.topology.node(number).cloned()
    }

    /// Nodes that have keys.
    pub fn nodes_with_slots(&self) -> Vec<Arc<Node>> {
        let topology = &self.0.topology;
        let all = (0..topology.most_nodes()).map_while(|number| topology.node(number));
        all.filter(|node| topology.has_slots(node.number())).cloned().collect()
    }

    /// The members of the cluster, primaries and replicas, as last known; none if it is no cluster.
    pub async fn members(&self) -> Vec<Member> {
        self.0.topology.members().await
    }

    /// What a member of the cluster says about itself.
    pub(super) async fn info_of(&self, member: &Member) -> Result<InfoDict, Unavailable> {
        self.0.topology.info_at(&member.address).await
    }

    /// Finds out again which server has which keys, if it is a cluster.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] when no server of the cluster answers.
    pub async fn look_around(&self) -> Result<(), Unavailable> {
        self.0.topology.read_map().await
    }

    /// Brings items together whose keys are in one slot, for [`Self::groups`]. Where there are no slots, they stay in their order.
    pub fn sort_by_slot<T>(&self, items: &mut [T], key: impl Fn(&T) -> &str) {
        if self.is_cluster() {
            items.sort_by_cached_key(|item| slot_of(key(item)));
        }
    }

    /// Splits items into groups that one call may have: at most so many, and in a cluster neighbours in one slot.
    pub fn groups<'a, T>(&self, items: &'a [T], key: impl Fn(&T) -> &str, most: usize) -> Vec<&'a [T]> {
        let is_cluster = self.is_cluster();
        let together = |one: &T, other: &T| !is_cluster || slot_of(key(one)) == slot_of(key(other));
        items.chunk_by(together).flat_map(|group| group.chunks(most.max(1))).collect()
    }

    /// Runs `work` on the connection to the server that has `key`. All keys of `work` are in the slot of this one. Commands follow
    /// the slot if it has moved: they may be sent twice.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] without a connection, without an answer in time, or when the answer is an error.
    pub async fn run<T>(
        &self,
        call: Call,
        key: &str,
        work: impl AsyncFnOnce(&mut Routed) -> RedisResult<T>,
    ) -> Result<T, Unavailable> {
        self.0.topology.known().await?;
        self.run_at(call, self.number_for(key), work).await
    }

    /// Runs `work` on the connection to a node, whatever keys it has.
    ///
    /// # Errors
    ///
    /// [`Unavailable`].
    pub async fn run_on<T>(
        &self,
        call: Call,
        node: &Node,
        work: impl AsyncFnOnce(&mut Routed) -> RedisResult<T>,
    ) -> Result<T, Unavailable> {
        self.run_at(call, node.number(), work).await
    }

    async fn run_at<T>(
        &self,
        call: Call,
        number: usize,
        work: impl AsyncFnOnce(&mut Routed) -> RedisResult<T>,
    ) -> Result<T, Unavailable> {
        let topology = &self.0.topology;
        let node = topology
            .node(number)
            .ok_or_else(|| Unavailable::because("no server of the cluster has the key"))?;
        let link =
            self.0.links[number].get_or_init(|| Link::new(Arc::clone(node), topology.metrics().clone()));
        // Perhaps another server has taken its place.
        let look_around = |_: &Failure| topology.read_map_soon();
        let lent = link.lend(call).await.inspect_err(look_around)?;
        let done = work(&mut Routed::new(lent.connection.clone(), topology)).await;
        Ok(link.give_back(&lent, done).inspect_err(look_around)?)
    }
}
