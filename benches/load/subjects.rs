//! The subjects: the service with each way of counting, the no-op as the floor, and other programs.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use headcount::model::mode::Mode;

use crate::subject::{Counted, IDS, Request, Subject, listen};
use crate::support::process::{Process, headcount};
use crate::support::redis::{Flavour, Redis};
use crate::support::wait_blocking;
use crate::{checks, others};

/// How many ids wrk draws from where all pairs of an id and a counter soon have come.
const FEW_IDS: u64 = 10;
const CHANGED: &[&str] = &["--redis-writes", "changed"];

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
        Subject { address, request, processes, redis, others, counted, error, dir: None }
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
            dir: None,
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
        dir: None,
    }
}
