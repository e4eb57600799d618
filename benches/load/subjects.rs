//! The subjects: the service with each way of counting, the no-op as the floor, and other programs.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::support::process::{Process, headcount};
use crate::support::redis::Redis;
use crate::support::{free_port, wait_blocking};

const ACCEPT: &str = "/api/verve/accept";
/// The Redis key in which the other programs count.
const PEER_KEY: &str = "hll";
/// wrk draws its ids below this.
const IDS: f64 = 1e6;
/// The tolerance of counts, in standard errors. A correct count exceeds it once in a million runs.
const STANDARD_ERRORS: f64 = 5.0;
const NGINX_MODULES: &str = "/usr/lib/nginx/modules";
const LUA_REDIS: &str = "/usr/share/lua/5.1/nginx/redis.lua";

/// One request, without its id.
pub struct Request {
    pub prefix: String,
    /// Ids in a body. 0: the request is a GET with one id.
    pub bulk: u64,
    /// The body that every answer has.
    pub answer: &'static str,
}

impl Request {
    fn one() -> Self {
        Self { prefix: format!("{ACCEPT}?id="), bulk: 0, answer: "ok" }
    }

    fn many() -> Self {
        Self { prefix: ACCEPT.to_owned(), bulk: 1_000, answer: "ok" }
    }
}

/// How the service counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counter {
    pub redis: bool,
    pub args: &'static [&'static str],
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
    pub const MEMORY: Self = Self::Service(Counter { redis: false, args: &[] });
    pub const HLL: Self = Self::Service(Counter { redis: true, args: &[] });
    pub const CHANGED: Self = Self::Service(Counter { redis: true, args: &["--redis-writes", "changed"] });
    pub const FOUR_SHARDS: Self = Self::Service(Counter { redis: true, args: &["--shards", "4"] });
    pub const EIGHT_SHARDS: Self = Self::Service(Counter { redis: true, args: &["--shards", "8"] });
    /// Allows ten thousand connections from one address.
    pub const CROWDED: Self = Self::Service(Counter {
        redis: false,
        args: &["--max-connections", "10010", "--max-connections-per-address", "10010"],
    });
    pub const EXACT: Self = Self::Service(Counter { redis: true, args: &["--mode", "exact"] });

    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "axum::serve, no-op",
            Self::Noop => "no-op",
            Self::MEMORY => "memory hll",
            Self::HLL => "Redis hll",
            Self::CHANGED => "Redis hll, changed",
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
            Self::Webdis => there_is("webdis"),
            Self::NginxLua => {
                let module = Path::new(NGINX_MODULES).join("ngx_http_lua_module.so");
                there_is("nginx") && module.exists() && Path::new(LUA_REDIS).exists()
            }
            _ => true,
        }
    }

    /// Starts another build of the service, with additional arguments.
    pub fn start_of(self, binary: &Path, args: &[&str], bulk: bool) -> Subject {
        let Self::Service(counter) = self else { panic!("{} has no other build", self.name()) };
        let request = if bulk { Request::many() } else { Request::one() };
        Service::start_with(counter, 1, || {
            let mut command = Command::new(binary);
            command.args(args);
            command
        })
        .subject(request)
    }

    /// Starts it with an empty count.
    pub fn start(self, bulk: bool) -> Subject {
        let request = if bulk { Request::many() } else { Request::one() };
        match self {
            Self::Plain => noop(&["--plain"], request),
            Self::Noop => noop(&[], request),
            Self::Service(counter) => Service::start(counter, 1).subject(request),
            Self::Webdis => webdis(),
            Self::NginxLua => nginx_lua(),
        }
    }
}

fn there_is(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).exists())
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
    redis: Option<Redis>,
    counted: Counted,
    _dir: Option<TempDir>,
}

impl Subject {
    /// User and system time of all its processes so far.
    pub fn cpu(&self) -> Duration {
        let own = self.processes.iter().flat_map(|process| with_children(process.0.id()));
        own.chain(self.redis.as_ref().map(|redis| redis.process.0.id())).map(cpu_of).sum()
    }

    /// Checks that the subject counted what was sent: the ids of `requests`, and of up to `more` that were under way. The
    /// subject had accepted `before` ids earlier.
    pub fn check_count(&self, requests: u64, more: u64, before: u64) -> Result<(), String> {
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
                let count = redis::cmd("PFCOUNT").arg(PEER_KEY).query::<f64>(&mut connection);
                count.map_err(|error| error.to_string())?
            }
        };
        if self.request.bulk > 0 {
            // wrk draws the ids of the bodies, so the number of different ids is not known here.
            return Ok(());
        }
        // The expected number of different ids after so many draws.
        let [least, most] = [requests, requests + more].map(|draws| -IDS * (-(draws as f64) / IDS).exp_m1());
        let off = STANDARD_ERRORS * 0.0081;
        if !(least * (1.0 - off)..=most * (1.0 + off)).contains(&unique) {
            return Err(format!("{unique} different ids were counted, not about {least:.0} to {most:.0}"));
        }
        Ok(())
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

/// Reads the count from the service.
mod service {
    use std::io::{Read, Write};
    use std::net::{SocketAddr, TcpStream};

    pub fn accepted(address: SocketAddr) -> u64 {
        total(address, "headcount_accepted_ids_total")
    }

    pub fn total(address: SocketAddr, name: &str) -> u64 {
        let metrics = get(address, "/metrics");
        let values = metrics.lines().filter_map(|line| line.rsplit_once(' '));
        let mut values = values.filter(|(series, _)| *series == name);
        values.next().map_or(0, |(_, ids)| ids.parse().expect("a number"))
    }

    pub fn unique(address: SocketAddr) -> f64 {
        // On a busy machine Redis may have been away for a moment. Then the service has no count yet.
        for _ in 0..100 {
            let json = serde_json::from_str::<serde_json::Value>(&get(address, "/api/verve/unique"));
            if let Some(count) = json.ok().and_then(|json| json["current"]["unique_request_count"].as_f64()) {
                return count;
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        panic!("{address} has had no count for ten seconds");
    }

    fn get(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).expect("a connection");
        let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("a request");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer.split_once("\r\n\r\n").expect("a body").1.to_owned()
    }
}

fn with_children(pid: u32) -> Vec<u32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let children = children.split_whitespace().filter_map(|child| child.parse().ok());
    std::iter::once(pid).chain(children).collect()
}

fn cpu_of(pid: u32) -> Duration {
    /// The kernel's ticks in /proc: a hundred a second on every machine.
    const TICK: Duration = Duration::from_millis(10);
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("a living process");
    // The name may have spaces, so start after it. User and system time are fields twelve and thirteen from there.
    let fields = stat.rsplit_once(')').expect("a name").1.split_whitespace();
    let ticks: u32 = fields.skip(11).take(2).map(|ticks| ticks.parse::<u32>().expect("ticks")).sum();
    TICK * ticks
}

/// Processes of the service that count together.
pub struct Service {
    pub addresses: Vec<SocketAddr>,
    processes: Vec<Process>,
    redis: Option<Redis>,
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

    fn start_with(counter: Counter, processes: usize, program: impl Fn() -> Command) -> Self {
        let redis = counter.redis.then(Redis::start);
        let url = redis.as_ref().map(Redis::url);
        let start = |_| {
            let mut command = program();
            command.args(["--log-level", "warn"]).args(counter.args);
            if let Some(url) = &url {
                command.args(["--redis-url", url]);
            }
            listen(command)
        };
        let (addresses, processes) = (0..processes).map(start).unzip();
        Self { addresses, processes, redis }
    }

    /// Combines them behind the first one's address.
    fn subject(self, request: Request) -> Subject {
        let Self { addresses, processes, redis } = self;
        let (address, counted) = (addresses[0], Counted::Service);
        Subject { address, request, processes, redis, counted, _dir: None }
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
            counted: Counted::Part,
            _dir: None,
        })
        .collect()
    }
}

fn noop(args: &[&str], request: Request) -> Subject {
    let service = PathBuf::from(env!("CARGO_BIN_EXE_headcount"));
    let mut command = Command::new(service.with_file_name("examples").join("noop"));
    command.args(args);
    let (address, process) = listen(command);
    Subject { address, request, processes: vec![process], redis: None, counted: Counted::Nothing, _dir: None }
}

/// Starts a command that takes `--listen`.
fn listen(mut command: Command) -> (SocketAddr, Process) {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    command.args(["--listen", &address.to_string()]);
    (address, spawn(command, address))
}

fn spawn(mut command: Command, address: SocketAddr) -> Process {
    let child = command.stdin(Stdio::null()).spawn().expect("it starts");
    let mut process = Process(child);
    wait_blocking("it to listen", || {
        assert!(process.0.try_wait().expect("a child can be waited for").is_none(), "it ended");
        TcpStream::connect(address).is_ok()
    });
    process
}

/// Two threads, because there are two cores.
fn webdis() -> Subject {
    let redis = Redis::start();
    let dir = tempfile::tempdir().expect("a temporary directory");
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    let config = serde_json::json!({
        "redis_host": "127.0.0.1", "redis_port": redis.address().port(), "http_host": "127.0.0.1",
        "http_port": address.port(), "threads": 2, "pool_size": 10, "daemonize": false, "websockets": false,
        "database": 0, "verbosity": 0, "logfile": dir.path().join("log"), "acl": [{ "enabled": ["PFADD"] }]
    });
    let file = dir.path().join("webdis.json");
    std::fs::write(&file, config.to_string()).expect("a configuration");
    let mut command = Command::new("webdis");
    command.arg(file);
    let request = Request { prefix: format!("/PFADD/{PEER_KEY}/"), bulk: 0, answer: r#"{"PFADD":1}"# };
    peer(address, request, spawn(command, address), redis, dir)
}

/// nginx has two workers, and keeps its connections to Redis.
fn nginx_lua() -> Subject {
    let redis = Redis::start();
    let dir = tempfile::tempdir().expect("a temporary directory");
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    let port = redis.address().port();
    let config = format!(
        "
load_module {NGINX_MODULES}/ndk_http_module.so;
load_module {NGINX_MODULES}/ngx_http_lua_module.so;
daemon off;
worker_processes 2;
user root root;
pid nginx.pid;
error_log error.log;
events {{ worker_connections 8192; }}
http {{
  access_log off;
  keepalive_requests 1000000000;
  client_body_temp_path body;
  proxy_temp_path proxy;
  fastcgi_temp_path fastcgi;
  uwsgi_temp_path uwsgi;
  scgi_temp_path scgi;
  lua_socket_pool_size 128;
  init_by_lua_block {{ redis = require 'nginx.redis' }}
  server {{
    listen {address} backlog=4096;
    default_type text/plain;
    location = {ACCEPT} {{
      content_by_lua_block {{
        local id = ngx.var.arg_id
        if not id or not ngx.re.find(id, [[^-?\\d+$]], 'jo') then
          ngx.status = 400
          return ngx.print('failed')
        end
        local connection = redis:new()
        connection:set_timeout(350)
        local added = connection:connect('127.0.0.1', {port}) and connection:pfadd('{PEER_KEY}', id)
        if not added then
          ngx.status = 503
          return ngx.print('failed')
        end
        connection:set_keepalive(10000, 128)
        ngx.header.content_length = 2
        ngx.print('ok')
      }}
    }}
  }}
}}
"
    );
    std::fs::write(dir.path().join("nginx.conf"), config).expect("a configuration");
    let mut command = Command::new("nginx");
    command.arg("-p").arg(dir.path()).args(["-c", "nginx.conf", "-e", "error.log"]);
    peer(address, Request::one(), spawn(command, address), redis, dir)
}

fn peer(address: SocketAddr, request: Request, process: Process, redis: Redis, dir: TempDir) -> Subject {
    let (processes, redis) = (vec![process], Some(redis));
    Subject { address, request, processes, redis, counted: Counted::Key, _dir: Some(dir) }
}
