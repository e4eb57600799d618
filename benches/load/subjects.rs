//! The subjects: the service with each way of counting, the no-op as the floor, and other programs.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use headcount::model::mode::Mode;
use tempfile::TempDir;

use crate::support::process::{Process, headcount};
use crate::support::redis::{Flavour, Redis};
use crate::support::{free_port, wait_blocking};
use crate::wrk::Load;
use crate::zipf::Zipf;
use crate::{checks, others, service, times};

const CHANGED: &[&str] = &["--redis-writes", "changed"];
const ACCEPT: &str = "/api/verve/accept";
const UUID_WITHOUT_SEVEN: &str = "0b3f9c1e-6a0d-4a51-9d0e-2f6b1";
/// wrk draws its ids from so many.
const IDS: u64 = 1_000_000;
/// The same where all pairs of an id and a counter soon have come.
const FEW_IDS: u64 = 10;
/// How many bodies a thread of wrk makes: see wrk.lua.
const BODIES: u64 = 64;

/// One request, without its id.
pub struct Request {
    pub prefix: String,
    /// The lowest id that comes after the prefix.
    pub first: u64,
    /// Ids in a body. 0: the request is a GET with one id.
    pub bulk: u64,
    /// A GET names one of so many counters.
    pub counters: u64,
    /// How uneven their shares are, by Zipf's law. Only wrk draws them so.
    pub skew: f64,
    /// How many different ids there are.
    pub ids: u64,
    /// The body that every answer has, or its end.
    pub answer: &'static str,
}

impl Request {
    pub fn one() -> Self {
        Self {
            prefix: format!("{ACCEPT}?id="),
            first: 0,
            bulk: 0,
            counters: 0,
            skew: 1.0,
            ids: IDS,
            answer: "ok",
        }
    }

    fn many() -> Self {
        Self { prefix: ACCEPT.to_owned(), bulk: 1_000, ..Self::one() }
    }

    /// The ids end in seven digits. Together with the prefix, each is a UUID, of 36 bytes.
    fn uuid() -> Self {
        Self { prefix: format!("{ACCEPT}?id={UUID_WITHOUT_SEVEN}"), first: 1_000_000, ..Self::one() }
    }
}

/// What a GET says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Says {
    /// An integer of up to six digits.
    Integer,
    /// Such an integer, and one of so many counters.
    Counter(u64),
    /// A text of 36 bytes.
    Uuid,
}

/// Where the service counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Servers {
    Memory,
    Redis,
    /// A Redis Cluster with so many primaries, and no replicas.
    Cluster(usize),
}

/// How the service counts, and what clients say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counter {
    servers: Servers,
    args: &'static [&'static str],
    says: Says,
    ids: u64,
}

impl Counter {
    pub const fn in_memory(args: &'static [&'static str]) -> Self {
        Self { servers: Servers::Memory, args, says: Says::Integer, ids: IDS }
    }

    pub const fn in_redis(args: &'static [&'static str]) -> Self {
        Self { servers: Servers::Redis, args, says: Says::Integer, ids: IDS }
    }

    pub const fn in_cluster(primaries: usize, args: &'static [&'static str]) -> Self {
        Self { servers: Servers::Cluster(primaries), ..Self::in_redis(args) }
    }

    const fn of_few_ids(self) -> Self {
        Self { ids: FEW_IDS, ..self }
    }

    const fn saying(self, says: Says) -> Self {
        Self { says, ..self }
    }

    fn error(self) -> f64 {
        if self.args.contains(&Mode::Exact.as_str()) { 0.0 } else { checks::ERROR }
    }

    fn request(self, bulk: bool) -> Request {
        match self.says {
            _ if bulk => Request::many(),
            Says::Integer => Request { ids: self.ids, ..Request::one() },
            Says::Counter(counters) => Request { counters, ids: self.ids, ..Request::one() },
            Says::Uuid => Request::uuid(),
        }
    }
}

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `axum::serve`, which counts nothing.
    Plain,
    /// The service's server, which counts nothing.
    Noop,
    Service(Counter),
    Webdis,
    NginxLua,
}

impl Kind {
    pub const MEMORY: Self = Self::Service(Counter::in_memory(&[]));
    pub const COUNTERS: Self = Self::Service(Counter::in_memory(&[]).saying(Says::Counter(1_000)));
    /// The same ids as [`Self::MEMORY`], taken as texts.
    pub const SHORT_TEXTS: Self = Self::Service(Counter::in_memory(&["--ids", "text"]));
    pub const UUIDS: Self = Self::Service(Counter::in_memory(&["--ids", "text"]).saying(Says::Uuid));
    pub const HLL: Self = Self::Service(Counter::in_redis(&[]));
    pub const CHANGED: Self = Self::Service(Counter::in_redis(CHANGED));
    pub const HLL_COUNTERS: Self = Self::Service(Counter::in_redis(&[]).saying(Says::Counter(1_000)));
    /// The sketches soon have all ids, so none is sent to Redis.
    pub const WARM: Self = Self::Service(Counter::in_redis(CHANGED).of_few_ids());
    pub const WARM_COUNTERS: Self =
        Self::Service(Counter::in_redis(CHANGED).of_few_ids().saying(Says::Counter(1_000)));
    pub const FOUR_SHARDS: Self = Self::Service(Counter::in_redis(&["--shards", "4"]));
    pub const EIGHT_SHARDS: Self = Self::Service(Counter::in_redis(&["--shards", "8"]));
    /// Allows ten thousand connections from one address.
    pub const CROWDED: Self = Self::Service(Counter::in_memory(&[
        "--max-connections",
        "10010",
        "--max-connections-per-address",
        "10010",
    ]));
    pub const EXACT: Self = Self::Service(Counter::in_redis(&["--mode", "exact"]));

    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "axum::serve, no-op",
            Self::Noop => "no-op",
            Self::MEMORY => "memory hll",
            Self::COUNTERS => "memory, one of 1 000 counters",
            Self::SHORT_TEXTS => "memory, the same ids as texts",
            Self::UUIDS => "memory, text ids of 36 bytes",
            Self::HLL => "Redis hll",
            Self::CHANGED => "Redis hll, changed",
            Self::HLL_COUNTERS => "Redis hll, one of 1 000 counters",
            Self::WARM => "Redis hll, changed, warm",
            Self::WARM_COUNTERS => "the same, one of 1 000 counters",
            Self::FOUR_SHARDS => "Redis hll, 4 shards",
            Self::EIGHT_SHARDS => "Redis hll, 8 shards",
            Self::EXACT => "Redis exact",
            Self::Service(_) => "another service",
            Self::Webdis => "webdis PFADD",
            Self::NginxLua => "nginx + Lua PFADD",
        }
    }

    /// Whether the program is installed.
    pub fn is_there(self) -> bool {
        match self {
            Self::Webdis => others::has_webdis(),
            Self::NginxLua => others::has_nginx_lua(),
            _ => true,
        }
    }

    /// Starts another build of the service, with additional arguments.
    pub fn start_of(self, binary: &Path, args: &[&str], bulk: bool) -> Subject {
        let Self::Service(counter) = self else { panic!("{} has no other build", self.name()) };
        Service::start_with(counter, 1, || {
            let mut command = Command::new(binary);
            command.args(args);
            command
        })
        .subject(counter.request(bulk))
    }

    /// Starts it with an empty count.
    pub fn start(self, bulk: bool) -> Subject {
        let request = if bulk { Request::many() } else { Request::one() };
        match self {
            Self::Plain => noop(&["--plain"], request),
            Self::Noop => noop(&[], request),
            Self::Service(counter) => Service::start(counter, 1).subject(counter.request(bulk)),
            Self::Webdis => others::webdis(),
            Self::NginxLua => others::nginx_lua(),
        }
    }
}

/// How to read the count.
enum Counted {
    Nothing,
    /// From the service.
    Service,
    /// From one of several services that count together.
    Part,
    /// From the key in Redis.
    Key,
}

/// A running subject.
pub struct Subject {
    pub address: SocketAddr,
    pub request: Request,
    processes: Vec<Process>,
    pub redis: Option<Redis>,
    /// The other primaries of a cluster.
    others: Vec<Redis>,
    counted: Counted,
    /// The relative standard error of its counts.
    error: f64,
    _dir: Option<TempDir>,
}

impl Subject {
    /// Another program, which counts in [`others::KEY`].
    pub fn peer(address: SocketAddr, request: Request, process: Process, redis: Redis, dir: TempDir) -> Self {
        Self {
            address,
            request,
            processes: vec![process],
            redis: Some(redis),
            others: Vec::new(),
            counted: Counted::Key,
            error: checks::ERROR,
            _dir: Some(dir),
        }
    }

    /// User and system time of all its processes so far.
    pub fn cpu(&self) -> Duration {
        self.pids().concat().into_iter().map(times::cpu_of).sum()
    }

    /// The same of its Redis servers alone.
    pub fn cpu_of_redis(&self) -> Duration {
        let [_, servers] = self.pids();
        servers.into_iter().map(times::cpu_of).sum()
    }

    /// Its own processes, and those of Redis.
    pub fn pids(&self) -> [Vec<u32>; 2] {
        let own = self.processes.iter().flat_map(|process| times::with_children(process.0.id()));
        let servers = self.redis.iter().chain(&self.others).map(|redis| redis.process.0.id());
        [own.collect(), servers.collect()]
    }

    /// The memory that its Redis has allocated for data and clients, in bytes. 0 without Redis.
    pub fn memory_of_redis(&self) -> f64 {
        self.redis.as_ref().map_or(0.0, |redis| {
            let mut ask = redis::cmd("INFO");
            let info: redis::InfoDict = ask.arg("memory").query(&mut redis.connect()).expect("an answer");
            info.get("used_memory").expect("a number")
        })
    }

    /// Checks that the subject counted what was sent: the ids of `requests`, and those that were under way. The subject had accepted
    /// `before` ids earlier.
    pub fn check_count(&self, requests: u64, load: Load, before: u64) -> Result<(), String> {
        let more = load.connections;
        let unique = match self.counted {
            Counted::Nothing => return Ok(()),
            Counted::Service | Counted::Part => {
                let ids = requests * self.request.bulk.max(1);
                let most = (requests + more) * self.request.bulk.max(1);
                let accepted = service::accepted(self.address) - before;
                if !(ids..=most).contains(&accepted) {
                    return Err(format!("{accepted} ids were accepted, not {ids} to {most}"));
                }
                if matches!(self.counted, Counted::Part) {
                    return Ok(());
                }
                service::unique(self.address)
            }
            Counted::Key => {
                let mut connection = self.redis.as_ref().ok_or("no Redis")?.connect();
                let count = redis::cmd("PFCOUNT").arg(others::KEY).query::<f64>(&mut connection);
                count.map_err(|error| error.to_string())?
            }
        };
        if self.request.bulk > 0 {
            return self.check_bodies(unique, requests, load);
        }
        let [least, most] = load.earlier;
        let draws = [requests + least, requests + more + most].map(|draws| draws as f64);
        self.check_unique(unique, draws)?;
        self.check_first_counter(draws)
    }

    /// The same where each thread of wrk sends the same bodies in turn, and has sent each of them.
    fn check_bodies(&self, unique: f64, requests: u64, load: Load) -> Result<(), String> {
        let bodies = BODIES * load.threads();
        if requests < 4 * bodies {
            return Err(format!("{requests} requests may not be all of the {bodies} bodies"));
        }
        self.check_unique(unique, [(bodies * self.request.bulk) as f64; 2])
    }

    /// Checks the number of different ids among so many random ones, from the least to the most.
    pub fn check_unique(&self, unique: f64, draws: [f64; 2]) -> Result<(), String> {
        checks::check_unique(unique, draws, self.request.ids, self.error)
    }

    /// Checks the count of the most frequent counter. So it also checks that wrk draws the names by Zipf's law.
    fn check_first_counter(&self, requests: [f64; 2]) -> Result<(), String> {
        if self.request.counters == 0 {
            return Ok(());
        }
        // Another build may have no counters: it ignores the parameter.
        let Some(unique) = service::unique_of(self.address, "campaign-1") else { return Ok(()) };
        let share = Zipf { counters: self.request.counters, skew: self.request.skew }.first_share();
        let off = checks::STANDARD_ERRORS / (requests[0] * share).sqrt();
        let [least, most] = requests.map(|requests| requests * share);
        self.check_unique(unique, [least * (1.0 - off), most * (1.0 + off)])
            .map_err(|error| format!("the first counter: {error}"))
    }

    /// How many ids it has accepted, and how many of them changed its store.
    pub fn accepted_and_changed(&self) -> [u64; 2] {
        if !matches!(self.counted, Counted::Service | Counted::Part) {
            return [0; 2];
        }
        ["headcount_accepted_ids_total", "headcount_changed_ids_total"]
            .map(|name| service::total(self.address, name))
    }

    /// The resident memory of its processes, without Redis.
    pub fn resident(&self) -> u64 {
        self.processes.iter().map(Process::resident).sum()
    }
}

/// Stops nginx with SIGTERM: after SIGKILL its workers would keep running.
impl Drop for Subject {
    fn drop(&mut self) {
        self.processes.iter_mut().for_each(Process::terminate);
    }
}

/// Processes of the service that count together.
pub struct Service {
    pub addresses: Vec<SocketAddr>,
    processes: Vec<Process>,
    redis: Option<Redis>,
    others: Vec<Redis>,
    error: f64,
}

impl Service {
    /// The window does not end during a measurement.
    pub fn start(counter: Counter, processes: usize) -> Self {
        Self::start_with(counter, processes, || {
            let mut command = headcount();
            command.args(["--window", "24h"]);
            command
        })
    }

    /// The same, by commands that may have more arguments.
    pub fn start_with(counter: Counter, processes: usize, program: impl Fn() -> Command) -> Self {
        let mut servers = match counter.servers {
            Servers::Memory => Vec::new(),
            Servers::Redis => vec![Redis::start()],
            Servers::Cluster(primaries) => cluster(primaries),
        };
        let redis = (!servers.is_empty()).then(|| servers.remove(0));
        let url = redis.as_ref().map(|redis| match counter.servers {
            Servers::Cluster(_) => format!("redis-cluster://{}", redis.address()),
            Servers::Memory | Servers::Redis => redis.url(),
        });
        let start = |_| {
            let mut command = program();
            command.args(["--log-level", "warn"]).args(counter.args);
            if let Some(url) = &url {
                command.args(["--redis-url", url]);
            }
            listen(command)
        };
        let (addresses, processes) = (0..processes).map(start).unzip();
        Self { addresses, processes, redis, others: servers, error: counter.error() }
    }

    /// Combines them behind the first one's address.
    pub fn subject(self, request: Request) -> Subject {
        let Self { addresses, processes, redis, others, error } = self;
        let (address, counted) = (addresses[0], Counted::Service);
        Subject { address, request, processes, redis, others, counted, error, _dir: None }
    }

    /// One subject for each process. The first one owns Redis, so its figures include Redis.
    pub fn subjects(self) -> Vec<Subject> {
        let mut redis = self.redis;
        let each = self.addresses.into_iter().zip(self.processes);
        each.map(|(address, process)| Subject {
            address,
            request: Request::one(),
            processes: vec![process],
            redis: redis.take(),
            others: Vec::new(),
            counted: Counted::Part,
            error: self.error,
            _dir: None,
        })
        .collect()
    }
}

/// A cluster whose slots are spread evenly. Its servers have met.
pub fn cluster(primaries: usize) -> Vec<Redis> {
    const SLOTS: usize = 16_384;
    let start = |_| Redis::start_with(Flavour::Debian, &["--cluster-enabled", "yes"]);
    let servers: Vec<_> = (0..primaries).map(start).collect();
    for (number, server) in servers.iter().enumerate() {
        let mut connection = server.connect();
        let slots = [number, number + 1].map(|number| number * SLOTS / primaries);
        let mut add = redis::cmd("CLUSTER");
        add.arg("ADDSLOTSRANGE").arg(slots[0]).arg(slots[1] - 1).exec(&mut connection).expect("slots");
        let mut epoch = redis::cmd("CLUSTER");
        epoch.arg("SET-CONFIG-EPOCH").arg(number + 1).exec(&mut connection).expect("an epoch");
        let first = servers[0].address();
        let mut meet = redis::cmd("CLUSTER");
        meet.arg("MEET")
            .arg(first.ip().to_string())
            .arg(first.port())
            .exec(&mut connection)
            .expect("a meeting");
    }
    wait_blocking("the cluster to be one", || {
        servers.iter().all(|server| {
            let mut ask = redis::cmd("CLUSTER");
            let info: String = ask.arg("INFO").query(&mut server.connect()).expect("an answer");
            info.contains("cluster_state:ok") && info.contains(&format!("cluster_known_nodes:{primaries}\r"))
        })
    });
    servers
}

fn noop(args: &[&str], request: Request) -> Subject {
    let service = PathBuf::from(env!("CARGO_BIN_EXE_headcount"));
    let mut command = Command::new(service.with_file_name("examples").join("noop"));
    command.args(args);
    let (address, process) = listen(command);
    Subject {
        address,
        request,
        processes: vec![process],
        redis: None,
        others: Vec::new(),
        counted: Counted::Nothing,
        error: 0.0,
        _dir: None,
    }
}

/// Starts a command that takes `--listen`.
pub fn listen(mut command: Command) -> (SocketAddr, Process) {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    command.args(["--listen", &address.to_string()]);
    (address, spawn(command, address))
}

/// Starts a command, and waits until it listens.
pub fn spawn(mut command: Command, address: SocketAddr) -> Process {
    let child = command.stdin(Stdio::null()).spawn().expect("it starts");
    let mut process = Process(child);
    process.wait_listening(address, String::new);
    process
}
