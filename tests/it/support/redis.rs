//! Redis servers for tests, of every supported kind.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use redis::Connection;
use tempfile::TempDir;

use super::certificates::make_certificates;
use super::process::{Process, set_clock};
use super::{PATIENCE, free_port, wait_blocking};

/// The kinds of server: Debian's, and those that scripts/test fetches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    Debian,
    Redis62,
    Redis8,
    Valkey9,
}

impl Flavour {
    /// The kinds whose programs exist. For a missing one it prints a line; in CI the test fails instead, because people
    /// rarely read the output there.
    pub fn at_hand() -> Vec<Self> {
        let mut flavours = vec![Self::Debian, Self::Redis62, Self::Redis8, Self::Valkey9];
        flavours.retain(|flavour| {
            let there = flavour.program().is_some();
            assert!(there || std::env::var_os("CI").is_none_or(|ci| ci != "true"), "{flavour:?} is missing");
            if !there {
                // Not println: the test runner hides it when a test passes.
                let _ = writeln!(std::io::stderr(), "skipped: {flavour:?}; ./scripts/test fetches it");
            }
            there
        });
        flavours
    }

    /// The server's program, unless it was not fetched.
    pub fn program(self) -> Option<PathBuf> {
        let name = match self {
            Self::Debian => return Some(PathBuf::from("redis-server")),
            Self::Redis62 => "redis-6.2",
            Self::Redis8 => "redis-8",
            Self::Valkey9 => "valkey-9",
        };
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/servers").join(name);
        program.exists().then_some(program)
    }
}

/// A Redis on a free loopback port and a socket in its own directory, without persistence.
pub struct Redis {
    address: SocketAddr,
    tls: bool,
    program: PathBuf,
    args: Vec<String>,
    /// How far its clock is off.
    clock: Option<String>,
    pub process: Process,
    dir: TempDir,
}

/// A node of a cluster also listens 10 000 ports higher. Both have to be outside of the range of outgoing connections.
fn free_port_for_a_node() -> u16 {
    loop {
        // Not the next port below 20 000: for half of all test programs that would be 10 000.
        let port = 10_000 + free_port() % 10_000;
        if [port, port + 10_000].iter().all(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()) {
            return port;
        }
    }
}

impl Redis {
    /// Starts Debian's. Returns once it answers.
    pub fn start() -> Self {
        Self::start_with(Flavour::Debian, &[])
    }

    /// Starts one of these kinds with more arguments, each word an element: `["--user", "reader", "on", "nopass"]`.
    pub fn start_with(flavour: Flavour, args: &[&str]) -> Self {
        let port = if args.contains(&"--cluster-enabled") { free_port_for_a_node() } else { free_port() };
        Self::launch(flavour, port, args, None, None)
    }

    /// Starts one with a clock that is off by `offset`, such as `+15s`. It keeps its data when it is killed. None if only Debian's
    /// is there: its jemalloc asks for the time before faketime can answer.
    pub fn start_with_clock(offset: &str) -> Option<Self> {
        let flavour = Flavour::at_hand().into_iter().find(|flavour| *flavour != Flavour::Debian)?;
        let args = ["--appendonly", "yes", "--appendfsync", "no"];
        Some(Self::launch(flavour, free_port(), &args, None, Some(offset.to_owned())))
    }

    /// Starts a Sentinel that monitors nothing. It writes its state to `config`.
    pub fn start_sentinel(config: &Path) -> Self {
        let port = free_port();
        std::fs::write(config, format!("port {port}\nbind 127.0.0.1\n")).expect("a configuration");
        let dir = tempfile::tempdir().expect("a temporary directory");
        let program = Flavour::Debian.program().expect("Debian's");
        let args = vec![config.display().to_string(), "--sentinel".to_owned()];
        let process = spawn(&program, &args, dir.path(), None);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut redis = Self { address, tls: false, program, args, clock: None, process, dir };
        redis.wait_until_it_answers();
        redis
    }

    /// Starts Debian's with only TLS on its port. [`Redis::ca_file`] is its authority.
    pub fn start_tls() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        make_certificates(dir.path());
        let port = free_port();
        let tls_port = port.to_string();
        Self::launch(Flavour::Debian, port, tls_args(&tls_port).as_flattened(), Some(dir), None)
    }

    /// Starts a node for a cluster. With the directory of certificates it speaks only TLS, also to other nodes.
    pub fn start_node(flavour: Flavour, args: &[&str], certificates: Option<&Path>) -> Self {
        let port = free_port_for_a_node();
        let args = [&["--cluster-enabled", "yes"], args].concat();
        let Some(certificates) = certificates else {
            return Self::launch(flavour, port, &args, None, None);
        };
        let dir = tempfile::tempdir().expect("a temporary directory");
        for file in ["ca.pem", "server.pem", "server.key"] {
            std::fs::copy(certificates.join(file), dir.path().join(file)).expect("a certificate");
        }
        let tls_port = port.to_string();
        let between_nodes = ["--tls-cluster", "yes", "--tls-replication", "yes"];
        let args = [tls_args(&tls_port).as_flattened(), &between_nodes, &args].concat();
        Self::launch(flavour, port, &args, Some(dir), None)
    }

    /// With `tls`, the directory of the certificates, it speaks TLS.
    fn launch(
        flavour: Flavour,
        port: u16,
        more: &[&str],
        tls: Option<TempDir>,
        clock: Option<String>,
    ) -> Self {
        let program = flavour.program().unwrap_or_else(|| panic!("{flavour:?} was not fetched"));
        let with_tls = tls.is_some();
        let dir = tls.unwrap_or_else(|| tempfile::tempdir().expect("a temporary directory"));
        let plain_port = if with_tls { 0 } else { port }.to_string();
        let args: Vec<_> = ["--port", &plain_port, "--bind", "127.0.0.1", "--unixsocket", "redis.sock"]
            .into_iter()
            .chain(["--save", "", "--appendonly", "no"])
            .chain(more.iter().copied())
            .map(str::to_owned)
            .collect();
        let process = spawn(&program, &args, dir.path(), clock.as_deref());
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut redis = Self { address, tls: with_tls, program, args, clock, process, dir };
        redis.wait_until_it_answers();
        redis
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn url(&self) -> String {
        format!("{}://{}", if self.tls { "rediss" } else { "redis" }, self.address)
    }

    /// The same server over its Unix socket.
    pub fn unix_url(&self) -> String {
        format!("unix://{}", self.dir.path().join("redis.sock").display())
    }

    /// The authority that signed the certificate of a server with TLS.
    pub fn ca_file(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// A connection without a password and without TLS.
    pub fn connect(&self) -> Connection {
        let client = redis::Client::open(self.url()).expect("an address");
        client.get_connection().expect("a connection")
    }

    /// How often a command was called.
    pub fn calls(&self, command: &str) -> u64 {
        let stats: String = redis::cmd("INFO").arg("commandstats").query(&mut self.connect()).unwrap();
        let line = stats.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
        line.and_then(|line| line.split(',').next()).map_or(0, |calls| calls.parse().unwrap())
    }

    /// The commands that it gets from now on, a line each.
    pub fn monitor(&self) -> impl Iterator<Item = String> + use<> {
        let mut stream = TcpStream::connect(self.address).expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        stream.write_all(b"MONITOR\r\n").expect("it is sent");
        let mut lines = BufReader::new(stream).lines().map(|line| line.expect("a line in time"));
        assert_eq!(lines.next().as_deref(), Some("+OK"));
        lines
    }

    /// With 1 byte it refuses writes and still answers questions. 0 is no limit.
    pub fn set_max_memory(&self, bytes: u64) {
        redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg(bytes).exec(&mut self.connect()).unwrap();
    }

    /// STOP makes it hang with open connections. CONT lets it continue.
    pub fn signal(&self, name: &str) {
        self.process.signal(name);
    }

    /// Kills it. Its data is lost.
    pub fn kill(&mut self) {
        self.process.signal("KILL");
        self.process.wait();
    }

    /// Starts it again, empty and on the same port. Kills it first if it runs.
    pub fn restart(&mut self) {
        if self.process.0.try_wait().expect("a child can be waited for").is_none() {
            self.kill();
        }
        self.process = spawn(&self.program, &self.args, self.dir.path(), self.clock.as_deref());
        self.wait_until_it_answers();
    }

    /// Starts it again with another clock.
    pub fn restart_with_clock(&mut self, offset: &str) {
        self.clock = Some(offset.to_owned());
        self.restart();
    }

    fn wait_until_it_answers(&mut self) {
        wait_blocking("redis-server to answer", || {
            if self.process.0.try_wait().expect("a child can be waited for").is_some() {
                let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
                panic!("redis-server ended:\n{log}");
            }
            self.answers()
        });
    }

    /// True if it answers PING, even with an error about a missing password. With TLS, true if it listens, because it
    /// reads its certificate before.
    fn answers(&self) -> bool {
        let Ok(mut stream) = TcpStream::connect(self.address) else { return false };
        if self.tls {
            return true;
        }
        let mut answer = [0; 7];
        stream.set_read_timeout(Some(Duration::from_secs(1))).expect("a time-out");
        let read = stream.write_all(b"PING\r\n").and_then(|()| stream.read_exact(&mut answer));
        read.is_ok() && (answer == *b"+PONG\r\n" || answer == *b"-NOAUTH")
    }
}

/// The arguments of a server with TLS on this port. Its directory has the certificates.
fn tls_args(port: &str) -> [[&str; 2]; 5] {
    [
        ["--tls-port", port],
        ["--tls-cert-file", "server.pem"],
        ["--tls-key-file", "server.key"],
        ["--tls-ca-cert-file", "ca.pem"],
        ["--tls-auth-clients", "no"],
    ]
}

pub(super) fn spawn(program: &Path, args: &[String], dir: &Path, clock: Option<&str>) -> Process {
    let log = File::create(dir.join("log")).expect("a log");
    let mut command = Command::new(program);
    if let Some(offset) = clock {
        set_clock(&mut command, offset);
    }
    // Paths in the arguments are relative to this directory.
    command.args(args).current_dir(dir).stdin(Stdio::null()).stdout(log).stderr(Stdio::inherit());
    Process(command.spawn().expect("redis-server starts: is it installed? ./scripts/test does that"))
}
