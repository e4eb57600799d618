//! What happens to a cluster: nodes end, hang, come back and are added, and slots move.

use std::process::Command;
use std::time::{Duration, Instant};

use redis::RedisResult;

use super::super::PATIENCE;
use super::super::proxy::Fault;
use super::super::tools::succeeds;
use super::{Cluster, Member, PASSWORD, State, USER};

/// What happens to a primary before its replica takes over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    Killed,
    /// It hangs. When it goes on, it still takes itself for a primary, for a moment.
    Paused,
}

impl Cluster {
    /// Kills a node. Its data is lost.
    pub fn kill(&mut self, node: usize) {
        self.nodes[node].redis.kill();
        self.nodes[node].state = State::Killed;
    }

    /// Starts a killed node again. It is empty, and knows the cluster.
    pub fn restart(&mut self, node: usize) {
        self.nodes[node].redis.restart();
        self.nodes[node].state = State::Runs;
    }

    /// A node hangs, with open connections.
    pub fn pause(&mut self, node: usize) {
        self.nodes[node].redis.signal("STOP");
        self.nodes[node].state = State::Paused;
    }

    pub fn resume(&mut self, node: usize) {
        self.nodes[node].redis.signal("CONT");
        self.nodes[node].state = State::Runs;
    }

    /// The network between a node and its clients and replicas fails, until it is [`Fault::None`]. The other nodes do not notice,
    /// so no replica takes over.
    pub fn cut_off(&self, node: usize, fault: Fault) {
        self.nodes[node].proxy.as_ref().expect("a cluster behind proxies").set(fault);
    }

    /// From now on, no replica of this primary takes over.
    pub fn forbid_fail_over(&self, primary: usize) {
        let replica = self.replica_of(primary);
        self.ask::<()>(replica, &["CONFIG", "SET", "cluster-replica-no-failover", "yes"]);
    }

    /// Loses a primary, and waits until its replica has taken over. Returns the new primary.
    pub fn fail_over(&mut self, primary: usize, loss: Loss) -> usize {
        let replica = self.replica_of(primary);
        match loss {
            Loss::Killed => self.kill(primary),
            Loss::Paused => self.pause(primary),
        }
        self.wait_for_fail_over(replica);
        replica
    }

    /// Waits until a replica has taken over, and all nodes that run know it.
    pub fn wait_for_fail_over(&self, replica: usize) {
        let knows = |node| {
            let members = self.seen_by(node)?;
            let leads = members[&replica].primary.is_none() && !members[&replica].slots.is_empty();
            Ok(leads && self.info(node)?.contains("cluster_state:ok"))
        };
        self.wait("a replica to take over", knows);
    }

    /// Waits until all nodes that run take another one for lost.
    pub fn wait_until_away(&self, lost: usize) {
        self.wait("a node to be missed", |node| Ok(self.seen_by(node)?[&lost].is_away));
    }

    /// Brings a lost node back: [`Cluster::fail_over`]. Waits until it is in step with the primary that it has now.
    pub fn bring_back(&mut self, node: usize) {
        match self.nodes[node].state {
            State::Runs => {}
            State::Paused => self.resume(node),
            State::Killed => self.restart(node),
        }
        self.wait_until_well();
    }

    /// Waits until all nodes that run see the same cluster, which has all slots, and until their replicas are in step.
    pub fn wait_until_well(&self) {
        let expected = |node| {
            let mut members = self.seen_by(node)?;
            members.retain(|node, _| self.running().any(|running| running == *node));
            Ok::<_, redis::RedisError>(members)
        };
        let is_well = |node| {
            let info = self.info(node)?;
            let says = |fact: &str| info.lines().any(|line| line.trim_end() == fact);
            let known = format!("cluster_known_nodes:{}", self.nodes.len());
            let covers = says("cluster_state:ok") && says("cluster_slots_ok:16384") && says(&known);
            let members = expected(node)?;
            let reaches = members.len() == self.running().count() && !members.values().any(|one| one.is_away);
            Ok(covers
                && reaches
                && members == expected(self.any())?
                && self.is_in_step(node, &members[&node])?)
        };
        self.wait("the cluster to be well", is_well);
    }

    fn info(&self, node: usize) -> RedisResult<String> {
        self.query(node, redis::cmd("CLUSTER").arg("INFO"))
    }

    /// A primary, or a replica that has what its primary has. A replica without its primary is in step with nobody.
    fn is_in_step(&self, node: usize, member: &Member) -> RedisResult<bool> {
        let Some(primary) = &member.primary else { return Ok(true) };
        if !self.running().any(|node| self.nodes[node].id == *primary) {
            return Ok(true);
        }
        let info: String = self.query(node, redis::cmd("INFO").arg("replication"))?;
        Ok(info.contains("role:slave") && info.contains("master_link_status:up"))
    }

    /// Waits until this is so on all nodes that run.
    fn wait(&self, what: &str, is_so: impl Fn(usize) -> RedisResult<bool>) {
        let deadline = Instant::now() + PATIENCE;
        while !self.running().all(|node| is_so(node).unwrap_or(false)) {
            let views = || self.running().map(|node| (node, self.seen_by(node))).collect::<Vec<_>>();
            assert!(Instant::now() < deadline, "waited {PATIENCE:?} for {what}: {:#?}", views());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Starts an empty primary, without slots. Returns it.
    pub fn add_node(&mut self) -> usize {
        let known = self.direct(self.any());
        self.start_node(None);
        let node = self.nodes.len() - 1;
        succeeds(self.cli("add-node").args([self.direct(node), known]));
        self.wait_until_well();
        node
    }

    /// Gives each primary as many slots.
    pub fn rebalance(&self) {
        succeeds(self.cli("rebalance").arg(self.direct(self.any())).arg("--cluster-use-empty-masters"));
        self.wait_until_well();
    }

    /// Moves slots from one primary to another one.
    pub fn reshard(&self, from: usize, to: usize, slots: usize) {
        let slots = slots.to_string();
        let ids = ["--cluster-from", &self.nodes[from].id, "--cluster-to", &self.nodes[to].id];
        let how_many = ["--cluster-slots", &slots, "--cluster-yes"];
        succeeds(self.cli("reshard").arg(self.direct(self.any())).args(ids).args(how_many));
        self.wait_until_well();
    }

    /// Takes the node that was added last, and has no slots any more, out of the cluster, and ends it.
    pub fn delete_last(&mut self) {
        let node = self.nodes.len() - 1;
        succeeds(self.cli("del-node").args([self.direct(0), self.nodes[node].id.clone()]));
        self.nodes.pop();
        self.wait_until_well();
    }

    fn direct(&self, node: usize) -> String {
        self.nodes[node].redis.address().to_string()
    }

    /// `redis-cli --cluster` with a command.
    pub(super) fn cli(&self, command: &str) -> Command {
        let mut cli = Command::new("redis-cli");
        if self.tls.is_some() {
            cli.arg("--tls").arg("--cacert").arg(self.ca_file()).args(["--user", USER]);
            cli.env("REDISCLI_AUTH", PASSWORD);
        }
        cli.args(["--cluster", command]);
        cli
    }

    /// Begins to move a slot to another primary: the old one answers `ASK` for keys that it does not have.
    pub fn begin_move(&self, slot: u16, to: usize) -> Move<'_> {
        let from = self.owner_of(slot);
        let moved = Move { cluster: self, slot, from, to };
        moved.set(to, &["IMPORTING", &self.nodes[from].id]);
        moved.set(from, &["MIGRATING", &self.nodes[to].id]);
        moved
    }
}

/// A slot that is being moved: both nodes have keys of it.
/// (<https://redis.io/docs/latest/commands/cluster-setslot/>)
pub struct Move<'a> {
    cluster: &'a Cluster,
    slot: u16,
    from: usize,
    to: usize,
}

impl Move<'_> {
    /// Moves some of the keys that the old primary still has. Returns how many.
    pub fn move_keys(&self, most: usize) -> usize {
        let (slot, most) = (self.slot.to_string(), most.to_string());
        let keys: Vec<String> = self.cluster.ask(self.from, &["CLUSTER", "GETKEYSINSLOT", &slot, &most]);
        if !keys.is_empty() {
            let to = self.cluster.nodes[self.to].redis.address();
            let mut migrate = redis::cmd("MIGRATE");
            migrate.arg(to.ip().to_string()).arg(to.port()).arg("").arg(0).arg(5_000);
            if self.cluster.tls.is_some() {
                migrate.arg(&["AUTH2", USER, PASSWORD]);
            }
            // Keys that have expired in the meantime are no error.
            let done: RedisResult<String> = self.cluster.query(self.from, migrate.arg("KEYS").arg(&keys));
            done.expect("the keys move");
        }
        keys.len()
    }

    /// Moves the rest, and gives the slot to the new primary. The old one answers `MOVED` from now on.
    pub fn finish(self) {
        // While the slot is being moved, no key can come into being at the old one.
        while self.move_keys(100) > 0 {}
        let id = &self.cluster.nodes[self.to].id;
        // The new one first: otherwise nobody has the slot for a moment.
        self.set(self.to, &["NODE", id]);
        self.set(self.from, &["NODE", id]);
        self.cluster.wait_until_well();
    }

    fn set(&self, node: usize, words: &[&str]) {
        let slot = self.slot.to_string();
        self.cluster.ask::<()>(node, &[&["CLUSTER", "SETSLOT", &slot], words].concat());
    }
}
