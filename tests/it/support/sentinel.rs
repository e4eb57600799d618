//! A primary with its replica, and the three Sentinels that watch them.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use redis::{Connection, InfoDict, RedisResult, TlsCertificates};
use tempfile::TempDir;

use super::certificates::make_certificates;
use super::process::Process;
use super::redis::{Flavour, spawn};
use super::{free_port, wait_blocking, wait_until};

/// User and password on the servers, if they have some.
pub const NODE_LOGIN: (&str, &str) = ("counter", "n0de/secret@");
/// User and password on the Sentinels, if they have some.
pub const SENTINEL_LOGIN: (&str, &str) = ("asker", "w4tch&secret");

/// The name of a test's own connections.
const OWN_NAME: &str = "test";

/// How long a node may take for an answer to a test.
const ANSWER: Duration = Duration::from_secs(2);

/// What the servers and the Sentinels want from their clients.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    pub flavour: Flavour,
    /// Only TLS, with certificates of an authority of the test's own: [`Watched::ca_file`].
    pub tls: bool,
    /// [`NODE_LOGIN`] and [`SENTINEL_LOGIN`]. Nobody else may do anything.
    pub logins: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { flavour: Flavour::Debian, tls: false, logins: false }
    }
}

/// One of the servers or Sentinels.
pub struct Member {
    pub address: SocketAddr,
    program: PathBuf,
    args: Vec<String>,
    /// With its configuration and its log.
    dir: PathBuf,
    login: Option<(&'static str, &'static str)>,
    ca_file: Option<PathBuf>,
    process: Process,
    /// False while it is killed or stopped.
    is_up: bool,
}

impl Member {
    /// Its own address as a URL of the plain kind.
    pub fn url(&self) -> String {
        let scheme = if self.ca_file.is_some() { "rediss" } else { "redis" };
        let login = self.login.map_or_else(String::new, |login| format!("{}@", encoded(login)));
        format!("{scheme}://{login}{}", self.address)
    }

    pub fn try_connect(&self) -> RedisResult<Connection> {
        let client = match &self.ca_file {
            Some(file) => {
                let root_cert = Some(std::fs::read(file).expect("the authority's certificate"));
                redis::Client::build_with_tls(self.url(), TlsCertificates { client_tls: None, root_cert })?
            }
            None => redis::Client::open(self.url())?,
        };
        let mut connection = client.get_connection_with_timeout(ANSWER)?;
        connection.set_read_timeout(Some(ANSWER))?;
        redis::cmd("CLIENT").arg("SETNAME").arg(OWN_NAME).exec(&mut connection)?;
        Ok(connection)
    }

    pub fn connect(&self) -> Connection {
        self.try_connect().expect("a connection")
    }

    /// What it says about itself. None if it does not answer.
    pub fn info(&self, section: &str) -> Option<InfoDict> {
        redis::cmd("INFO").arg(section).query(&mut self.try_connect().ok()?).ok()
    }

    /// Stops it with open connections.
    pub fn stop(&mut self) {
        self.is_up = false;
        self.process.signal("STOP");
    }

    /// Lets it go on after it was stopped.
    pub fn go_on(&mut self) {
        self.process.signal("CONT");
        self.is_up = true;
    }

    /// Kills it. Data of a server is lost.
    pub fn kill(&mut self) {
        self.is_up = false;
        self.process.signal("KILL");
        self.process.wait();
    }

    /// Starts it again after it was killed, with the configuration that it wrote last.
    pub fn restart(&mut self) {
        self.process = spawn(&self.program, &self.args, &self.dir, None);
        self.wait_until_it_answers();
        self.is_up = true;
    }

    fn is_sentinel(&self) -> bool {
        self.args.iter().any(|arg| arg == "--sentinel")
    }

    fn wait_until_it_answers(&mut self) {
        wait_blocking("a server or Sentinel to answer", || {
            assert!(self.process.0.try_wait().expect("a child").is_none(), "it ended:\n{}", self.log());
            let ping = |mut connection| redis::cmd("PING").exec(&mut connection);
            self.try_connect().and_then(ping).is_ok()
        });
        if self.is_sentinel() {
            // Redis 6.2 has no such command.
            let _ = redis::cmd("SENTINEL").arg("DEBUG").arg(QUICK).exec(&mut self.connect());
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }
}

/// Milliseconds. Sentinels look more often than by default, so that tests need not wait for it. And a Sentinel whose clock jumps,
/// or that hangs for a moment on a busy machine, must not stand aside for half a minute.
const QUICK: &[&str] = &["info-period", "500", "publish-period", "500", "tilt-trigger", "120000"];

/// Two servers, and the Sentinels that watch them. The first server is the primary at the start.
pub struct Watched {
    pub nodes: [Member; 2],
    pub sentinels: [Member; 3],
    /// The name that the Sentinels know the primary by.
    pub name: String,
    options: Options,
    dir: TempDir,
}

impl Watched {
    /// Starts all. Returns once a fail-over is possible.
    pub fn start() -> Self {
        Self::start_with(Options::default())
    }

    pub fn start_with(options: Options) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        if options.tls {
            make_certificates(dir.path());
        }
        let plan = Plan { options, dir: &dir };
        let primary = plan.node("node-0", None);
        let replica = plan.node("node-1", Some(primary.address));
        let in_step = || says(&replica, "master_link_status", "up");
        wait_blocking("the replica to be in step", in_step);
        // Sentinels of other tests may run on this machine, but none of theirs has this name.
        let name = format!("primary-{}", primary.address.port());
        let sentinels = [0, 1, 2]
            .map(|number| plan.sentinel(&format!("sentinel-{number}"), &name, primary.address.port()));
        let watched = Self { nodes: [primary, replica], sentinels, name, options, dir };
        wait_blocking("a fail-over to be possible", || watched.is_well());
        watched
    }

    /// For `--redis-url`.
    pub fn url(&self) -> String {
        self.url_with(&self.name, SENTINEL_LOGIN.1)
    }

    /// The same with another name of the primary, and another password for Sentinels.
    pub fn url_with(&self, name: &str, password: &str) -> String {
        let hosts: Vec<_> = self.sentinels.iter().map(|sentinel| sentinel.address.to_string()).collect();
        self.url_at(&hosts.join(","), name, password)
    }

    /// The same with other hosts instead of the Sentinels.
    pub fn url_at(&self, hosts: &str, name: &str, password: &str) -> String {
        let scheme = if self.options.tls { "rediss" } else { "redis" };
        if !self.options.logins {
            return format!("{scheme}-sentinel://{hosts}/0?master={name}");
        }
        let password: String = url::form_urlencoded::byte_serialize(password.as_bytes()).collect();
        format!(
            "{scheme}-sentinel://{}@{hosts}/0?master={name}&sentinel_user={}&sentinel_password={password}",
            encoded(NODE_LOGIN),
            SENTINEL_LOGIN.0
        )
    }

    /// The authority that signed the certificates of all servers and Sentinels with TLS.
    pub fn ca_file(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// The current primary, as the Sentinels say.
    pub fn primary(&self) -> usize {
        let mut up = self.sentinels.iter().filter(|sentinel| sentinel.is_up);
        up.find_map(|sentinel| self.named_by(sentinel)).expect("a Sentinel that names a primary")
    }

    /// A connection to the current primary.
    pub fn connect(&self) -> Connection {
        self.nodes[self.primary()].connect()
    }

    /// Waits until all Sentinels that run name this server, and it is a primary.
    pub async fn wait_promoted(&self, node: usize) {
        wait_until("a fail-over", async || {
            let mut up = self.sentinels.iter().filter(|sentinel| sentinel.is_up);
            up.all(|sentinel| self.named_by(sentinel) == Some(node))
                && says(&self.nodes[node], "role", "master")
        })
        .await;
    }

    /// Waits until the replica is in step, and all Sentinels see that. Then the next fail-over is possible.
    pub async fn wait_well(&self) {
        wait_until("a replica to be in step", async || self.is_well()).await;
    }

    /// Lets the Sentinels promote the replica though the primary is well.
    pub fn fail_over(&self) {
        let mut sentinel = self.sentinels.iter().find(|sentinel| sentinel.is_up).expect("one").connect();
        redis::cmd("SENTINEL").arg("FAILOVER").arg(&self.name).exec(&mut sentinel).expect("a fail-over");
    }

    /// Cuts the replica off from the primary. It may be promoted all the same.
    pub fn stop_replication(&self) {
        let primary = self.primary();
        let replica = &self.nodes[1 - primary];
        // The primary refuses this login.
        let login = ["SET", "masteruser", "nobody", "masterauth", "wrong"];
        redis::cmd("CONFIG").arg(&login).exec(&mut replica.connect()).expect("it is set");
        let mut kill = redis::cmd("CLIENT");
        kill.arg(&["KILL", "TYPE", "replica"])
            .exec(&mut self.nodes[primary].connect())
            .expect("it is closed");
        wait_blocking("the replica to be cut off", || says(replica, "master_link_status", "down"));
    }

    /// The number of the server that a Sentinel names.
    fn named_by(&self, sentinel: &Member) -> Option<usize> {
        let mut ask = redis::cmd("SENTINEL");
        ask.arg("GET-MASTER-ADDR-BY-NAME").arg(&self.name);
        let (_, port): (String, u16) = ask.query(&mut sentinel.try_connect().ok()?).ok()?;
        self.nodes.iter().position(|node| node.address.port() == port)
    }

    fn is_well(&self) -> bool {
        let primary = self.primary();
        let [of, at] = [&self.nodes[primary], &self.nodes[1 - primary]];
        let port = of.address.port().to_string();
        let in_step = says(of, "role", "master")
            && says(at, "role", "slave")
            && says(at, "master_port", &port)
            && says(at, "master_link_status", "up");
        in_step
            && self.sentinels.iter().filter(|sentinel| sentinel.is_up).all(|one| self.is_seen_by(one, of, at))
    }

    /// Whether a Sentinel sees both servers as they are, and the other Sentinels.
    fn is_seen_by(&self, sentinel: &Member, primary: &Member, replica: &Member) -> bool {
        let Ok(mut connection) = sentinel.try_connect() else { return false };
        let ask = |what: &str| {
            let mut ask = redis::cmd("SENTINEL");
            ask.arg(what).arg(&self.name);
            ask
        };
        let about: RedisResult<Facts> = ask("MASTER").query(&mut connection);
        let replicas: RedisResult<Vec<Facts>> = ask("REPLICAS").query(&mut connection);
        let is = |facts: &Facts, name: &str, value: &str| facts.get(name).is_some_and(|found| found == value);
        let at = |facts: &Facts, member: &Member| is(facts, "port", &member.address.port().to_string());
        about.is_ok_and(|about| {
            is(&about, "flags", "master") && at(&about, primary) && is(&about, "num-other-sentinels", "2")
        }) && replicas.is_ok_and(|replicas| {
            replicas.iter().any(|facts| {
                at(facts, replica) && is(facts, "flags", "slave") && is(facts, "master-link-status", "ok")
            })
        })
    }
}

impl Drop for Watched {
    /// Shows what the Sentinels did if a test fails.
    fn drop(&mut self) {
        if std::thread::panicking() {
            for member in self.sentinels.iter().chain(&self.nodes) {
                println!("{}:\n{}", member.dir.display(), member.log());
            }
        }
    }
}

type Facts = HashMap<String, String>;

/// Whether a server says this about itself.
fn says(member: &Member, name: &str, value: &str) -> bool {
    let info = member.info("replication");
    info.and_then(|info| info.get::<String>(name)).is_some_and(|found| found == value)
}

/// A login as a part of a URL.
fn encoded((user, password): (&str, &str)) -> String {
    let password: String = url::form_urlencoded::byte_serialize(password.as_bytes()).collect();
    // A form's space is '+', that of a login is not.
    format!("{user}:{}", password.replace('+', "%20"))
}

/// How the members are started.
struct Plan<'a> {
    options: Options,
    dir: &'a TempDir,
}

impl Plan<'_> {
    fn node(&self, name: &str, primary: Option<SocketAddr>) -> Member {
        let mut config = "save \"\"\nappendonly no\nrepl-diskless-sync-delay 0\n".to_owned();
        if let Some(primary) = primary {
            let _ = writeln!(config, "replicaof {} {}", primary.ip(), primary.port());
        }
        if self.options.logins {
            let (user, password) = NODE_LOGIN;
            // Sentinels and the replica use the same login.
            let _ = write!(
                config,
                "user default off\nuser {user} on \">{password}\" ~* &* +@all\n\
                 masteruser {user}\nmasterauth \"{password}\"\n"
            );
        }
        self.launch(name, &config, NODE_LOGIN, &[])
    }

    fn sentinel(&self, name: &str, of: &str, port: u16) -> Member {
        let mut config = format!(
            "sentinel monitor {of} 127.0.0.1 {port} 2\n\
             sentinel down-after-milliseconds {of} 1000\n\
             sentinel failover-timeout {of} 3000\n"
        );
        if self.options.logins {
            let ((node, on_node), (user, password)) = (NODE_LOGIN, SENTINEL_LOGIN);
            let _ = write!(
                config,
                "sentinel auth-user {of} {node}\nsentinel auth-pass {of} \"{on_node}\"\n\
                 user default off\nuser {user} on \">{password}\" ~* &* +@all\n\
                 sentinel sentinel-user {user}\nsentinel sentinel-pass \"{password}\"\n"
            );
        }
        self.launch(name, &config, SENTINEL_LOGIN, &["--sentinel"])
    }

    fn launch(&self, name: &str, config: &str, login: (&'static str, &'static str), more: &[&str]) -> Member {
        let (port, dir) = (free_port(), self.dir.path().join(name));
        std::fs::create_dir(&dir).expect("a directory");
        let ports = if self.options.tls {
            // Paths are relative to the directory of the member.
            format!(
                "port 0\ntls-port {port}\ntls-cert-file ../server.pem\ntls-key-file ../server.key\n\
                 tls-ca-cert-file ../ca.pem\ntls-auth-clients no\ntls-replication yes\n"
            )
        } else {
            format!("port {port}\n")
        };
        std::fs::write(dir.join("config"), format!("bind 127.0.0.1\n{ports}{config}")).expect("a file");
        let args: Vec<_> = ["config"].iter().chain(more).map(|arg| (*arg).to_owned()).collect();
        let program = self.options.flavour.program().expect("it was fetched");
        let mut member = Member {
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
            process: spawn(&program, &args, &dir, None),
            program,
            args,
            dir,
            login: self.options.logins.then_some(login),
            ca_file: self.options.tls.then(|| self.dir.path().join("ca.pem")),
            is_up: true,
        };
        member.wait_until_it_answers();
        member
    }
}
