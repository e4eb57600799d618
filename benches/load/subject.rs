//! One running subject: its processes, what it is asked, and whether it counted that.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::support::free_port;
use crate::support::process::Process;
use crate::support::redis::Redis;
use crate::zipf::Zipf;
use crate::{checks, service, times};

const ACCEPT: &str = "/api/verve/accept";
const UUID_WITHOUT_SEVEN: &str = "0b3f9c1e-6a0d-4a51-9d0e-2f6b1";
/// wrk draws its ids from so many.
pub const IDS: u64 = 1_000_000;
/// How many bodies a thread of wrk makes: see wrk.lua.
const BODIES: u64 = 64;
/// The Redis key in which peers count.
pub const KEY: &str = "hll";

/// Answers that can be under way when wrk stops. wrk has read them in part, or has not counted them.
const CONNECTIONS: u64 = 64;

/// The load of a measurement.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    pub connections: u64,
    pub duration: Duration,
    /// Seed of the ids.
    pub seed: u64,
    /// Requests of other seeds whose ids are in the same count, at least and at most.
    pub earlier: [u64; 2],
}

impl Load {
    pub fn new(duration: Duration, seed: u64) -> Self {
        Self { connections: CONNECTIONS, duration, seed, earlier: [0; 2] }
    }

    /// Of wrk.
    pub fn threads(&self) -> u64 {
        self.connections.min(2)
    }
}

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

    pub fn many() -> Self {
        Self { prefix: ACCEPT.to_owned(), bulk: 1_000, ..Self::one() }
    }

    /// The ids end in seven digits. Together with the prefix, each is a UUID, of 36 bytes.
    pub fn uuid() -> Self {
        Self { prefix: format!("{ACCEPT}?id={UUID_WITHOUT_SEVEN}"), first: 1_000_000, ..Self::one() }
    }
}

/// How to read the count.
pub enum Counted {
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
    pub processes: Vec<Process>,
    pub redis: Option<Redis>,
    /// The other primaries of a cluster.
    pub others: Vec<Redis>,
    pub counted: Counted,
    /// The relative standard error of its counts.
    pub error: f64,
    pub dir: Option<TempDir>,
}

impl Subject {
    /// Another program, which counts in [`KEY`].
    pub fn peer(address: SocketAddr, request: Request, process: Process, redis: Redis, dir: TempDir) -> Self {
        Self {
            address,
            request,
            processes: vec![process],
            redis: Some(redis),
            others: Vec::new(),
            counted: Counted::Key,
            error: checks::ERROR,
            dir: Some(dir),
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
                let count = redis::cmd("PFCOUNT").arg(KEY).query::<f64>(&mut connection);
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
