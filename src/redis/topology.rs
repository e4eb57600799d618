//! The topology: which servers there are, and which of them has a key.
//!
//! A Redis that is alone is one [`Node`] with all keys, and so is a primary that Sentinels name. A Redis Cluster has a node for
//! each primary, and a map from slots to nodes. The map is read again when a server says that it is wrong (`MOVED`), when a node
//! does not answer, and every [`OLD_AFTER`] when there are calls. Several nodes are asked, because one that is cut off from the
//! others knows nothing of a fail-over.
//!
//! A node keeps its number for good. It is known by its id in the cluster, so a server with a new address is the same node.
//!
//! # When a slot has another primary
//!
//! If slots were moved, the new primary was one before, and has all data. In a fail-over it was a replica, and may lack the last
//! writes. Then the generation rises, and every instance gives Redis again what it has.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ::metrics::Counter;
use ::redis::aio::MultiplexedConnection;
use ::redis::{Client, ConnectionAddr, InfoDict, Pipeline, RedisResult};
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use parking_lot::Mutex;
use tokio::sync::Mutex as AsyncMutex;
use tokio::time::Instant;
use tracing::{debug, info};

use super::address::{Access, Address, host_and_port, scheme_of};
use super::call::{Call, CallMetrics};
use super::cluster::{Member, SLOTS, View, slot_of};
use super::errors::{unavailable, wrong_address};
use super::link::Link;
use super::node::{Node, Place};
use super::patience::{CONNECT_TIMEOUT, config, in_time};
use super::urls::Kind;
use super::wire::Wire;
use crate::platform::unavailable::Unavailable;
use crate::telemetry::metrics::Metrics;

/// Primaries of a cluster that are known over the life of the service, at most.
const MOST_NODES: usize = 512;
/// Nodes that are asked for the map, at most.
const MOST_ASKED: usize = 32;
/// After this the map is read again with the next call. Instances have to learn of a fail-over, and say so in a heartbeat, within
/// the grace of [`timing`](crate::model::timing).
const OLD_AFTER: Duration = Duration::from_secs(2);
/// The map is not read again so soon after the last time.
const NOT_AGAIN: Duration = Duration::from_millis(50);
/// How long to wait for other views of the cluster after the first.
const SECOND_OPINIONS: Duration = Duration::from_millis(150);

/// The servers of a Redis.
pub(super) struct Topology {
    access: Arc<Access>,
    timeout: Duration,
    metrics: CallMetrics,
    /// By their numbers.
    nodes: Box<[OnceLock<Arc<Node>>]>,
    generation: Arc<AtomicU64>,
    cluster: Option<Cluster>,
}

struct Cluster {
    /// The nodes of the URL.
    seeds: Vec<ConnectionAddr>,
    /// The number of the node that has each slot.
    slots: Box<[AtomicU16]>,
    /// Held while the map is read.
    known: AsyncMutex<Known>,
    /// A task reads the map.
    is_being_read: AtomicBool,
    /// When the map was last read; none if it never was.
    read_at: Mutex<Option<Instant>>,
    /// The connections over which nodes are asked, and over which commands follow a redirection.
    links: Box<[OnceLock<Side>]>,
    moved: Counter,
    asked: Counter,
}

/// Connections to a node for what is not sent on the usual way.
struct Side {
    control: Link<MultiplexedConnection>,
    wire: Link<Wire>,
}

/// What was known of the cluster after the map was last read.
#[derive(Default)]
struct Known {
    by_id: HashMap<String, usize>,
    primaries: HashSet<usize>,
    members: Vec<Member>,
}

impl Topology {
    /// Connects to nothing yet.
    pub(super) fn new(address: &Address, timeout: Duration, metrics: &Metrics) -> Self {
        let access = Arc::new(Access::new(address.clone()));
        let calls = CallMetrics::new(metrics);
        let generation = Arc::default();
        let (place, cluster) = match access.kind() {
            Kind::Server => (Some(Place::Url), None),
            Kind::Sentinel(watched) => (Some(Place::Watched(Arc::new(watched))), None),
            Kind::Cluster(seeds) => (None, Some(Cluster::new(seeds, metrics))),
        };
        let most = if cluster.is_some() { MOST_NODES } else { 1 };
        let nodes: Box<[OnceLock<_>]> = (0..most).map(|_| OnceLock::new()).collect();
        if let Some(place) = place {
            let _ = nodes[0].set(Arc::new(Node::new(0, &access, place, timeout, &generation)));
        }
        Self { access, timeout, metrics: calls, nodes, generation, cluster }
    }

    pub(super) fn is_cluster(&self) -> bool {
        self.cluster.is_some()
    }

    pub(super) fn metrics(&self) -> &CallMetrics {
        &self.metrics
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Relaxed)
    }

    /// How many nodes there can be.
    pub(super) fn most_nodes(&self) -> usize {
        self.nodes.len()
    }

    pub(super) fn node(&self, number: usize) -> Option<&Arc<Node>> {
        self.nodes.get(number)?.get()
    }

    /// The number of the node that has a key: 0 until the map was read.
    pub(super) fn number_for(&self, key: &str) -> usize {
        self.cluster.as_ref().map_or(0, |cluster| cluster.number_of(slot_of(key)))
    }

    pub(super) fn number_of(&self, slot: u16) -> usize {
        self.cluster.as_ref().map_or(0, |cluster| cluster.number_of(slot))
    }

    /// Whether a node has any slot.
    pub(super) fn has_slots(&self, number: usize) -> bool {
        self.cluster.as_ref().is_none_or(|cluster| {
            cluster.slots.iter().any(|owner| usize::from(owner.load(Ordering::Relaxed)) == number)
        })
    }

    /// The node at an address that a server has named.
    fn at(&self, name: &str) -> Option<&Arc<Node>> {
        let there = self.nodes.iter().map_while(OnceLock::get);
        there.into_iter().find(|node| node.is_named(name))
    }

    /// The members of the cluster when the map was last read; none if it is no cluster.
    pub(super) async fn members(&self) -> Vec<Member> {
        match &self.cluster {
            Some(cluster) => cluster.known.lock().await.members.clone(),
            None => Vec::new(),
        }
    }

    /// Makes sure that the map was read. If it is old, it is read again, but nobody waits for that.
    pub(super) async fn known(self: &Arc<Self>) -> Result<(), Unavailable> {
        let Some(cluster) = &self.cluster else { return Ok(()) };
        let read_at = *cluster.read_at.lock();
        match read_at {
            None => self.read_map().await,
            Some(at) => {
                if at.elapsed() > OLD_AFTER {
                    self.read_map_soon();
                }
                Ok(())
            }
        }
    }

    /// Reads the map again in a task of its own.
    pub(super) fn read_map_soon(self: &Arc<Self>) {
        let Some(cluster) = &self.cluster else { return };
        // One task at a time is enough.
        if cluster.is_being_read.swap(true, Ordering::Relaxed) {
            return;
        }
        let topology = Arc::clone(self);
        tokio::spawn(async move {
            if let Err(error) = topology.read_map().await {
                debug!(%error, "cannot read the slots of the cluster");
            }
            if let Some(cluster) = &topology.cluster {
                cluster.is_being_read.store(false, Ordering::Relaxed);
            }
        });
    }

    /// Reads the map, unless it was read a moment ago.
    pub(super) async fn read_map(&self) -> Result<(), Unavailable> {
        let Some(cluster) = &self.cluster else { return Ok(()) };
        let mut known = cluster.known.lock().await;
        if cluster.read_at.lock().is_some_and(|at| at.elapsed() < NOT_AGAIN) {
            return Ok(());
        }
        let view = self.best_view(cluster, &known).await?;
        self.learn(cluster, &mut known, view);
        *cluster.read_at.lock() = Some(Instant::now());
        Ok(())
    }

    /// Asks the nodes for their views. Takes the one of a healthy cluster, then the newest one.
    async fn best_view(&self, cluster: &Cluster, known: &Known) -> Result<View, Unavailable> {
        let primaries = known.primaries.iter().filter_map(|number| self.node(*number));
        let mut asked: FuturesUnordered<_> =
            primaries.take(MOST_ASKED).map(|node| self.ask_node(cluster, node).boxed()).collect();
        let mut views = Vec::new();
        let mut refused = self.gather(&mut asked, &mut views).await;
        if views.is_empty() {
            // The addresses of primaries are old, or this is the first time.
            let replicas = known.members.iter().map(|member| &member.address);
            let all = cluster.seeds.iter().chain(replicas);
            let mut asked: FuturesUnordered<_> =
                all.take(MOST_ASKED).map(|address| self.ask_address(address).boxed()).collect();
            refused = self.gather(&mut asked, &mut views).await.or(refused);
        }
        let best = views.into_iter().max_by_key(|view| (view.is_ok, view.epoch, view.covered()));
        best.ok_or_else(|| refused.unwrap_or_else(|| Unavailable::because("no node of the cluster answers")))
    }

    /// Waits for views: for the first, and a moment for others. Returns the last error.
    async fn gather(
        &self,
        asked: &mut FuturesUnordered<BoxFuture<'_, Result<View, Unavailable>>>,
        views: &mut Vec<View>,
    ) -> Option<Unavailable> {
        let mut refused = None;
        let mut patience = CONNECT_TIMEOUT;
        while let Ok(Some(answer)) = tokio::time::timeout(patience, asked.next()).await {
            match answer {
                Ok(view) => {
                    views.push(view);
                    patience = SECOND_OPINIONS;
                }
                Err(error) => refused = Some(error),
            }
        }
        refused
    }

    async fn ask_node(&self, cluster: &Cluster, node: &Arc<Node>) -> Result<View, Unavailable> {
        let address = node.address().ok_or_else(|| Unavailable::because("the node has no address"))?;
        let side = self.side(cluster, node);
        let asking = side.control.run(Call::Ask, async |connection| view_of(connection, &address).await);
        Ok(asking.await?)
    }

    async fn ask_address(&self, address: &ConnectionAddr) -> Result<View, Unavailable> {
        let asking = in_time(async {
            let mut connection = self.connect_to(address).await?;
            view_of(&mut connection, address).await
        });
        asking.await.map_err(|error| {
            if !error.to_string().contains("cluster support disabled") {
                return unavailable(&error);
            }
            let (at, scheme) = (host_and_port(address), scheme_of(address));
            unavailable(&wrong_address(format!("{at} is in no cluster: use --redis-url {scheme}://{at}")))
        })
    }

    async fn connect_to(&self, address: &ConnectionAddr) -> RedisResult<MultiplexedConnection> {
        let client = Client::open(self.access.info().set_addr(address.clone()))?;
        client.get_multiplexed_async_connection_with_config(&config(self.timeout)).await
    }

    /// What the server at an address says about itself, over a connection of its own.
    pub(super) async fn info_at(&self, address: &ConnectionAddr) -> Result<InfoDict, Unavailable> {
        let asking = in_time(async {
            let mut connection = self.connect_to(address).await?;
            ::redis::cmd("INFO").query_async(&mut connection).await
        });
        asking.await.map_err(|error| unavailable(&error))
    }

    fn side<'a>(&self, cluster: &'a Cluster, node: &Arc<Node>) -> &'a Side {
        cluster.links[node.number()].get_or_init(|| Side {
            control: Link::new(Arc::clone(node), self.metrics.clone()),
            wire: Link::new(Arc::clone(node), self.metrics.clone()),
        })
    }

    /// A connection to a node for commands that follow a redirection.
    pub(super) fn control(&self, node: &Arc<Node>) -> Option<&Link<MultiplexedConnection>> {
        self.cluster.as_ref().map(|cluster| &self.side(cluster, node).control)
    }

    /// A connection to a node for writes that follow a redirection.
    pub(super) fn wire(&self, node: &Arc<Node>) -> Option<&Link<Wire>> {
        self.cluster.as_ref().map(|cluster| &self.side(cluster, node).wire)
    }

    /// The node that a server has named for some commands: their slot has moved there, or is being moved.
    pub(super) async fn redirected(
        self: &Arc<Self>,
        name: &str,
        is_moving: bool,
        commands: u64,
    ) -> Result<&Arc<Node>, Unavailable> {
        if let Some(cluster) = &self.cluster {
            let counter = if is_moving { &cluster.asked } else { &cluster.moved };
            counter.increment(commands);
        }
        if !is_moving {
            self.read_map_soon();
        }
        if self.at(name).is_none() {
            // It is new.
            self.read_map().await?;
        }
        let unknown = || Unavailable::because(format_args!("the cluster does not know the server {name}"));
        self.at(name).ok_or_else(unknown)
    }

    /// Takes over a view.
    fn learn(&self, cluster: &Cluster, known: &mut Known, view: View) {
        let is_first = known.members.is_empty();
        let mut primaries = HashSet::new();
        let mut changed = Vec::new();
        for member in view.members.iter().filter(|member| member.is_primary) {
            let Some(number) = self.number_of_member(known, member) else { continue };
            if !member.is_failing {
                primaries.insert(number);
            }
            for slot in member.slots.iter().cloned().flatten() {
                let owner = &cluster.slots[usize::from(slot)];
                let before = usize::from(owner.swap(number as u16, Ordering::Relaxed));
                if before != number && !is_first {
                    changed.push((before, number));
                }
            }
        }
        // Slots are moved between healthy primaries. In a fail-over the new one was a replica, and the old one is no primary now.
        let is_move =
            |(before, now): &(usize, usize)| known.primaries.contains(now) && primaries.contains(before);
        let moved = changed.iter().filter(|change| is_move(change)).count();
        let failed_over = changed.len() - moved;
        if moved > 0 {
            info!(slots = moved, "slots of the Redis Cluster have moved to another primary");
        }
        if failed_over > 0 {
            info!(slots = failed_over, "a fail-over: slots of the Redis Cluster have a new primary");
            self.generation.fetch_add(1, Ordering::Relaxed);
        }
        known.primaries = primaries;
        known.members = view.members;
    }

    /// The number of the node that this member is. None if there are too many: its slots keep their node.
    fn number_of_member(&self, known: &mut Known, member: &Member) -> Option<usize> {
        let number = known.by_id.get(&member.id).copied().unwrap_or(known.by_id.len());
        let place = self.nodes.get(number)?;
        let node = place.get_or_init(|| {
            known.by_id.insert(member.id.clone(), number);
            Arc::new(Node::new(number, &self.access, member.place(), self.timeout, &self.generation))
        });
        node.is_at(member.place());
        Some(number)
    }
}

impl Cluster {
    fn new(seeds: Vec<ConnectionAddr>, metrics: &Metrics) -> Self {
        Self {
            seeds,
            slots: (0..SLOTS).map(|_| AtomicU16::new(0)).collect(),
            known: AsyncMutex::default(),
            is_being_read: AtomicBool::new(false),
            read_at: Mutex::default(),
            links: (0..MOST_NODES).map(|_| OnceLock::new()).collect(),
            moved: metrics.redis_redirects("moved"),
            asked: metrics.redis_redirects("ask"),
        }
    }

    fn number_of(&self, slot: u16) -> usize {
        self.slots[usize::from(slot)].load(Ordering::Relaxed).into()
    }
}

async fn view_of(connection: &mut MultiplexedConnection, address: &ConnectionAddr) -> RedisResult<View> {
    let mut ask = Pipeline::new();
    ask.cmd("CLUSTER").arg("INFO");
    ask.cmd("CLUSTER").arg("NODES");
    let (info, nodes): (String, String) = ask.query_async(connection).await?;
    Ok(View::read(&info, &nodes, address))
}
