//! A primary, its replica, and three Sentinels that watch them.

use std::collections::HashMap;
use std::fmt::Write;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use redis::{Client, Connection, RedisResult, TlsCertificates, cmd};
use tempfile::TempDir;

use super::certificates::make_certificates;
use super::process::Process;
use super::{free_port, wait_blocking};

/// The name that the Sentinels know the primary by.
pub const MASTER: &str = "mymaster";
/// User and password on the servers and on the Sentinels, if they need one.
const OF_NODES: (&str, &str) = ("counter", "pw-of-the-nodes");
const OF_SENTINELS: (&str, &str) = ("watcher", "pw-of-the-sentinels");
/// At the usual pace Sentinels take up to half a minute to make a replica of an old primary. A slow machine must not make
/// them pause for half a minute either (TILT). They forget it when they end.
const PACE: [&str; 8] =
    ["INFO-PERIOD", "1000", "PUBLISH-PERIOD", "500", "TILT-TRIGGER", "20000", "TILT-PERIOD", "1000"];

/// A server or a Sentinel. Dropping it stops it by its pid.
pub struct Member {
    pub address: SocketAddr,
    config: PathBuf,
    /// None without TLS, too.
    login: Option<(&'static str, &'static str)>,
    is_sentinel: bool,
    process: Process,
}

impl Member {
    fn start(dir: &Path, port: u16, is_secured: bool, is_sentinel: bool, more: &str) -> Self {
        let mut text = format!("bind 127.0.0.1\ndir {}\n", dir.display());
        let login = is_secured.then_some(if is_sentinel { OF_SENTINELS } else { OF_NODES });
        let _ = if let Some((user, password)) = login {
            write!(
                text,
                "port 0\ntls-port {port}\ntls-replication yes\ntls-auth-clients no\ntls-cert-file {at}/server.pem\n\
                 tls-key-file {at}/server.key\ntls-ca-cert-file {at}/ca.pem\n\
                 user default off\nuser {user} on >{password} ~* &* +@all\n",
                at = dir.display()
            )
        } else {
            writeln!(text, "port {port}")
        };
        let config = dir.join(format!("{port}.conf"));
        std::fs::write(&config, text + more).expect("a configuration");
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let process = spawn(&config, is_sentinel);
        let mut member = Self { address, config, login, is_sentinel, process };
        member.wait_until_it_answers();
        member
    }

    /// STOP makes it hang with open connections. CONT lets it continue.
    pub fn signal(&self, name: &str) {
        self.process.signal(name);
    }

    /// Kills it. The data of a server is lost.
    pub fn kill(&mut self) {
        self.process.signal("KILL");
        self.process.wait();
    }

    /// Starts it again on the same port, with its last configuration. A server is empty.
    pub fn restart(&mut self) {
        self.process = spawn(&self.config, self.is_sentinel);
        self.wait_until_it_answers();
    }

    /// The same for a server that others follow no more.
    pub fn restart_as_replica_of(&mut self, primary: SocketAddr) {
        let text = std::fs::read_to_string(&self.config).expect("a configuration");
        let text = text.replace("\nreplicaof ", "\n# before: replicaof ");
        std::fs::write(&self.config, text + &replicaof(primary.port())).expect("a configuration");
        self.restart();
    }

    /// A connection with its user and its authority. Both may take a second, so that a member that hangs holds up no test.
    pub fn try_connect(&self) -> RedisResult<Connection> {
        let client = if let Some((user, password)) = self.login {
            // Beside its own file.
            let root_cert = std::fs::read(self.config.with_file_name("ca.pem")).ok();
            let certificates = TlsCertificates { client_tls: None, root_cert };
            Client::build_with_tls(format!("rediss://{user}:{password}@{}", self.address), certificates)?
        } else {
            Client::open(format!("redis://{}", self.address))?
        };
        let patience = Duration::from_secs(1);
        let connection = client.get_connection_with_timeout(patience)?;
        connection.set_read_timeout(Some(patience)).map(|()| connection)
    }

    pub fn connect(&self) -> Connection {
        self.try_connect().expect("a connection")
    }

    /// A section of INFO; empty if it does not answer.
    pub fn info(&self, section: &str) -> String {
        let ask = |mut connection| cmd("INFO").arg(section).query(&mut connection);
        self.try_connect().and_then(ask).unwrap_or_default()
    }

    fn wait_until_it_answers(&mut self) {
        wait_blocking("a server to answer", || {
            assert!(self.process.0.try_wait().unwrap().is_none(), "{} ended", self.address);
            !self.info("server").is_empty()
        });
        if self.is_sentinel {
            cmd("SENTINEL").arg("DEBUG").arg(&PACE).exec(&mut self.connect()).expect("a pace");
        }
    }
}

/// They start with the first node as the primary.
pub struct Watched {
    pub nodes: [Member; 2],
    pub sentinels: [Member; 3],
    dir: TempDir,
}

impl Watched {
    pub fn start() -> Self {
        Self::launch(false)
    }

    /// With TLS, and with a user and a password, which are others on the Sentinels.
    pub fn start_secured() -> Self {
        Self::launch(true)
    }

    /// Returns once a fail-over is possible.
    fn launch(is_secured: bool) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (mut of_node, mut of_sentinel) = (String::new(), String::new());
        if is_secured {
            make_certificates(dir.path());
            let ((user, password), (watcher, of_watcher)) = (OF_NODES, OF_SENTINELS);
            of_node = format!("masteruser {user}\nmasterauth {password}\n");
            of_sentinel = format!(
                "sentinel auth-user {MASTER} {user}\nsentinel auth-pass {MASTER} {password}\n\
                 sentinel sentinel-user {watcher}\nsentinel sentinel-pass {of_watcher}\n"
            );
        }
        of_node += "save \"\"\nappendonly no\nrepl-diskless-sync-delay 0\n";
        let ports @ [port, replica, ..] = [(); 5].map(|()| free_port());
        let node = |port, more: &str| Member::start(dir.path(), port, is_secured, false, more);
        let nodes = [node(port, &of_node), node(replica, &(of_node.clone() + &replicaof(port)))];
        // The name has to be there before what is said of it.
        let of_sentinel = format!(
            "sentinel monitor {MASTER} 127.0.0.1 {port} 2\nsentinel down-after-milliseconds {MASTER} 1000\n\
             sentinel failover-timeout {MASTER} 3000\n{of_sentinel}"
        );
        let sentinel = |at: usize| Member::start(dir.path(), ports[at], is_secured, true, &of_sentinel);
        let sentinels = [2, 3, 4].map(sentinel);
        let all = Self { nodes, sentinels, dir };
        all.wait_until_ready();
        all
    }

    pub fn url(&self) -> String {
        let hosts = self.sentinels.each_ref().map(|sentinel| sentinel.address.to_string()).join(",");
        if self.nodes[0].login.is_none() {
            return format!("redis-sentinel://{hosts}/0?master={MASTER}");
        }
        let ((user, password), (watcher, of_watcher)) = (OF_NODES, OF_SENTINELS);
        let of_sentinels = format!("sentinel_user={watcher}&sentinel_password={of_watcher}");
        format!("rediss-sentinel://{user}:{password}@{hosts}/0?master={MASTER}&{of_sentinels}")
    }

    /// The authority that signed the certificates.
    pub fn ca_file(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// The number of the node that all Sentinels which answer call the primary, and that says so itself.
    pub fn primary(&self) -> Option<usize> {
        let named = |sentinel: &Member| -> RedisResult<(String, u16)> {
            let mut ask = cmd("SENTINEL");
            ask.arg("GET-MASTER-ADDR-BY-NAME").arg(MASTER).query(&mut sentinel.try_connect()?)
        };
        let mut named = self.sentinels.iter().filter_map(|sentinel| named(sentinel).ok());
        let (_, port) = named.next()?;
        let number = self.nodes.iter().position(|node| node.address.port() == port)?;
        let agreed = named.all(|(_, other)| other == port);
        (agreed && self.nodes[number].info("replication").contains("role:master")).then_some(number)
    }

    /// Waits until the other node is the primary.
    pub fn wait_for_fail_over_from(&self, old: usize) {
        wait_blocking("the fail-over", || self.primary() == Some(1 - old));
    }

    /// Waits until one node is the primary, the other one follows it and has its data, and all Sentinels know that.
    pub fn wait_until_ready(&self) {
        wait_blocking("a primary with a replica, and three Sentinels", || {
            let Some(primary) = self.primary() else { return false };
            let replica = self.nodes[1 - primary].info("replication");
            let follows = replica.contains("role:slave") && replica.contains("master_link_status:up");
            follows && self.sentinels.iter().all(is_content)
        });
    }

    /// Cuts the replica off from the primary. It may be promoted all the same.
    pub fn stop_replication(&self) {
        let primary = self.primary().expect("a primary");
        let replica = &self.nodes[1 - primary];
        // The primary refuses this login.
        let login = ["SET", "masteruser", "nobody", "masterauth", "wrong"];
        cmd("CONFIG").arg(&login).exec(&mut replica.connect()).expect("it is set");
        let mut kill = cmd("CLIENT");
        kill.arg(&["KILL", "TYPE", "replica"])
            .exec(&mut self.nodes[primary].connect())
            .expect("it is closed");
        wait_blocking("the replica to be cut off", || {
            replica.info("replication").contains("master_link_status:down")
        });
    }
}

/// Whether a Sentinel sees nothing amiss.
fn is_content(sentinel: &Member) -> bool {
    let mut ask = cmd("SENTINEL");
    ask.arg("REPLICAS").arg(MASTER);
    let replicas = sentinel.try_connect().and_then(|mut connection| ask.query(&mut connection));
    let in_step = |of: &HashMap<String, String>| of["flags"] == "slave" && of["master-link-status"] == "ok";
    let master = sentinel.info("sentinel");
    master.contains("status=ok")
        && master.contains("slaves=1,sentinels=3")
        && replicas.is_ok_and(|all: Vec<_>| all.iter().all(in_step))
}

fn replicaof(port: u16) -> String {
    format!("replicaof 127.0.0.1 {port}\n")
}

fn spawn(config: &Path, is_sentinel: bool) -> Process {
    let log = File::options().create(true).append(true).open(config.with_extension("log")).expect("a log");
    let mut command = Command::new("redis-server");
    command.arg(config).args(is_sentinel.then_some("--sentinel")).stdin(Stdio::null()).stdout(log);
    Process(command.spawn().expect("redis-server starts: is it installed? ./scripts/test does that"))
}
