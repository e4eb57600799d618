//! What a request costs that does not depend on how busy the machine is: instructions, and system calls.
//!
//! Each row runs the service twice, with few requests and with many, and takes the difference. So the start costs nothing. Only the
//! thread counts that serves the requests. callgrind counts its instructions, and strace its system calls. `tests/allocations.rs` counts
//! allocations.
//!
//! Requests with Redis are no rows. The thread also sends what others wait for, and how often it wakes depends on when answers come.
//!
//! `costs.json` has what each row may cost: 2 % more fails. It holds for one compiler and the profile of `scripts/test`. So the test
//! runs only with `HEADCOUNT_COSTS=check`, and says "skipped" for another compiler. `HEADCOUNT_COSTS=store` writes the file anew.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::process::Command;

use serde::{Deserialize, Serialize};
use serde_json::json;
use tempfile::TempDir;

use crate::support::http::Connection;
use crate::support::process::{headcount_by, output_of};
use crate::support::server::Server;
use crate::support::tools::in_repository;
use crate::support::wait_until;

/// Requests of the two runs.
const FEW: u64 = 500;
const MANY: u64 = 2_500;
/// A row fails if it costs so much more.
const TOLERANCE: f64 = 0.02;
const FILE: &str = "tests/it/costs.json";

/// One kind of request.
struct Row {
    name: &'static str,
    request: fn(u64) -> Vec<u8>,
}

const ROWS: [Row; 3] = [
    Row { name: "memory", request: one },
    Row { name: "memory, one of ten counters", request: one_of_a_counter },
    Row { name: "memory, 100 ids in JSON", request: hundred },
];

fn get(query: &str) -> Vec<u8> {
    format!("GET /api/verve/accept?{query} HTTP/1.1\r\nhost: test\r\n\r\n").into_bytes()
}

fn one(number: u64) -> Vec<u8> {
    get(&format!("id={}", 1_000_000 + number))
}

fn one_of_a_counter(number: u64) -> Vec<u8> {
    get(&format!("id={}&counter=counter-{}", 1_000_000 + number, number % 10))
}

fn hundred(number: u64) -> Vec<u8> {
    let ids: Vec<_> = (0..100).map(|id| 1_000_000 + 100 * number + id).collect();
    let body = json!(ids).to_string();
    let head =
        "POST /api/verve/accept HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\ncontent-length:";
    format!("{head} {}\r\n\r\n{body}", body.len()).into_bytes()
}

/// What a request costs.
#[derive(Clone, Copy, Serialize, Deserialize)]
struct Costs {
    instructions: f64,
    system_calls: f64,
}

/// What requests may cost, by the name of the row.
#[derive(Serialize, Deserialize)]
struct Stored {
    compiler: String,
    rows: BTreeMap<String, Costs>,
}

impl Row {
    /// Serves so many requests, one after the other, under a tool.
    async fn serve(&self, requests: u64, tool: &[&str]) {
        let mut command = Command::new(tool[0]);
        command.args(&tool[1..]);
        let mut command = headcount_by(command);
        command.args(["--listen", "127.0.0.1:0", "--window", "24h", "--threads", "1"]);
        let mut server = Server::run(command).await;
        let mut connection = Connection::open(server.address).await.unwrap();
        for number in 0..requests {
            let answer = connection.request(&(self.request)(number)).await.unwrap();
            assert_eq!((answer.status, &*answer.body), (200, "ok"), "{answer:?}");
        }
        drop(connection);
        assert!(server.stop().await.success());
    }

    async fn costs(&self) -> Costs {
        let (mut counted, place) = (Vec::new(), TempDir::new().unwrap());
        for requests in [FEW, MANY] {
            let name = format!("profile-{requests}");
            let out = format!("--callgrind-out-file={}", place.path().join(&name).display());
            let callgrind = ["valgrind", "--quiet", "--tool=callgrind", "--separate-threads=yes", &out];
            self.serve(requests, &callgrind).await;
            let instructions = instructions_of_worker(place.path(), &name);
            let file = place.path().join("calls");
            self.serve(requests, &["strace", "-D", "-f", "-q", "-o", file.to_str().unwrap()]).await;
            // strace is a process beside the service, and ends after it.
            wait_until("strace to end", async || has_all_ends(&std::fs::read_to_string(&file).unwrap()))
                .await;
            counted.push([instructions, calls_of_worker(&std::fs::read_to_string(&file).unwrap())]);
        }
        let a_request = |of: usize| (counted[1][of] as f64 - counted[0][of] as f64) / (MANY - FEW) as f64;
        // Further digits differ from run to run.
        Costs { instructions: a_request(0).round(), system_calls: (10.0 * a_request(1)).round() / 10.0 }
    }
}

/// How many instructions the thread has that speaks HTTP. callgrind writes a file for each thread, with the functions it ran.
fn instructions_of_worker(place: &Path, name: &str) -> u64 {
    let of_threads = format!("{name}-");
    let files = std::fs::read_dir(place).unwrap().map(|entry| entry.unwrap());
    let files = files.filter(|file| file.file_name().to_str().unwrap().starts_with(&of_threads));
    let mut served = files
        .map(|file| std::fs::read_to_string(file.path()).unwrap())
        .filter(|profile| profile.contains("hyper::proto::h1::dispatch::"));
    let profile = served.next().expect("a thread that serves");
    assert!(served.next().is_none(), "one thread serves");
    let total = profile.lines().find_map(|line| line.strip_prefix("totals: ")).expect("a total");
    total.trim().parse().unwrap()
}

/// The thread of a line of strace.
fn thread_of(line: &str) -> &str {
    line.split(' ').next().unwrap_or_default()
}

/// Whether all threads have ended.
fn has_all_ends(calls: &str) -> bool {
    let ended = calls.lines().filter(|line| line.contains(" +++ ")).map(thread_of);
    calls.lines().map(thread_of).collect::<HashSet<_>>() == ended.collect()
}

/// How many system calls the thread made that received most often.
fn calls_of_worker(calls: &str) -> u64 {
    let mut of_threads = HashMap::<_, (u64, u64)>::new();
    for line in calls.lines().filter(|line| !line.contains("resumed>")) {
        let (receives, calls) = of_threads.entry(thread_of(line)).or_default();
        *receives += u64::from(line.contains(" recvfrom("));
        *calls += 1;
    }
    of_threads.into_values().max().expect("a thread").1
}

/// A row that costs more has to say why in its commit, which stores its costs anew.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_costs_no_more_than_is_stored() {
    let (wanted, file) = (std::env::var("HEADCOUNT_COSTS").unwrap_or_default(), in_repository(FILE));
    let compiler = output_of(Command::new("rustc").arg("--version")).stdout;
    let compiler = String::from_utf8(compiler).unwrap().trim().to_owned();
    if wanted == "store" {
        let stored = Stored { compiler, rows: all_costs().await };
        return std::fs::write(file, serde_json::to_string_pretty(&stored).unwrap() + "\n").unwrap();
    }
    let stored: Stored = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    if wanted != "check" || stored.compiler != compiler {
        return println!(
            "skipped: HEADCOUNT_COSTS is {wanted:?}, and the costs are those of {}",
            stored.compiler
        );
    }
    for (name, Costs { instructions, system_calls }) in all_costs().await {
        let may = stored.rows[&name];
        for (of, cost, may) in [
            ("instructions", instructions, may.instructions),
            ("system calls", system_calls, may.system_calls),
        ] {
            assert!(
                cost <= may * (1.0 + TOLERANCE),
                "{name}: {cost:.2} {of} a request, and {may:.2} are stored"
            );
        }
    }
}

async fn all_costs() -> BTreeMap<String, Costs> {
    let mut all = BTreeMap::new();
    for row in ROWS {
        let costs = row.costs().await;
        println!("{}: {}", row.name, json!(costs));
        all.insert(row.name.to_owned(), costs);
    }
    all
}
