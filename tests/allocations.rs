//! How often a request allocates, compared to a handler that does nothing.
//!
//! This is a program of its own, because its allocator counts. The client is only a socket and a buffer, so that it does
//! not allocate.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "tests end at what they do not expect, print their figures, and this one needs little of what others need"
)]
#![allow(clippy::float_cmp, reason = "metrics and stated errors are exact")]

#[path = "../examples/noop/router.rs"]
mod noop;
#[path = "it/support/mod.rs"]
mod support;

use std::alloc::System;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use clap::Parser;
use headcount::cli::flags::ServeFlags;
use headcount::cli::listeners::Listeners;
use headcount::cli::serve;
use headcount::cli::settings::Settings;
use headcount::http::server::{self, Stop};
use headcount::platform::workers::Workers;
use headcount::telemetry::logging;
use headcount::telemetry::metrics::Metrics;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use tokio_util::sync::CancellationToken;

use support::redis::Redis;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Answers that are awaited at a time.
const CONNECTIONS: usize = 16;
const REQUESTS: usize = 4_096;
const TIMES: usize = 10;
/// If that is not enough.
const AGAIN: usize = 3;
/// What the service may allocate in the background, divided by the requests. One more allocation a request would be 1.
const BACKGROUND: f64 = 0.25;

#[derive(Parser)]
struct Args {
    #[command(flatten)]
    serve: ServeFlags,
}

fn parse(more: &[&str]) -> Settings {
    let args =
        ["headcount", "--listen", "127.0.0.1:0", "--window", "24h", "--log-level", "warn", "--threads", "2"];
    Args::parse_from(args.iter().chain(more)).serve.settings().expect("good arguments")
}

/// Sends an id over each connection, then reads all answers; an id a request, none twice.
struct Client {
    streams: Vec<TcpStream>,
    answer: [u8; 512],
    next_id: u64,
}

impl Client {
    fn connect(address: SocketAddr, connections: usize) -> Self {
        let connect = |_| {
            let stream = TcpStream::connect(address).expect("a connection");
            stream.set_nodelay(true).expect("an option");
            stream
        };
        Self { streams: (0..connections).map(connect).collect(), answer: [0; 512], next_id: 0 }
    }

    fn round(&mut self) {
        for stream in &mut self.streams {
            let mut request = [0; 128];
            let mut rest = &mut request[..];
            write!(rest, "GET /api/verve/accept?id={} HTTP/1.1\r\nhost: test\r\n\r\n", self.next_id)
                .expect("room");
            let unused = rest.len();
            let used = request.len() - unused;
            stream.write_all(&request[..used]).expect("a request");
            self.next_id += 1;
        }
        for stream in &mut self.streams {
            let read = stream.read(&mut self.answer).expect("an answer");
            let answer = &self.answer[..read];
            assert!(answer.starts_with(b"HTTP/1.1 200") && answer.ends_with(b"ok"), "{answer:?}");
        }
    }
}

/// Allocations for each request, reallocations included.
///
/// Background work of the service can only add allocations. So the result is the least of several measurements.
fn allocations(address: SocketAddr, connections: usize) -> f64 {
    let mut client = Client::connect(address, connections);
    let mut measure = || {
        let region = Region::new(ALLOCATOR);
        (0..REQUESTS / connections).for_each(|_| client.round());
        let change = region.change();
        (change.allocations + change.reallocations) as f64 / REQUESTS as f64
    };
    (0..TIMES).map(|_| measure()).fold(f64::INFINITY, f64::min)
}

#[test]
fn counting_hardly_allocates() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let _in_runtime = runtime.enter();
    let redis = Redis::start();
    let (_guard, log) = logging::start(parse(&[]).logging, true);
    let serve = |args: &[&str]| {
        let settings = parse(args);
        let listeners = Listeners::bind(&settings.http).expect("listeners");
        let address = listeners.public.local_addr().expect("an address");
        let service = serve::run(settings, listeners, log.clone(), CancellationToken::new());
        runtime.spawn(async { service.await.expect("a running service") });
        address
    };
    let noop = {
        let http = parse(&[]).http;
        let listener = Listeners::bind(&http).expect("listeners").public;
        let address = listener.local_addr().expect("an address");
        let workers = Arc::new(Workers::start(http.threads).expect("threads"));
        let router = noop::router(http.body_limit as usize);
        runtime.spawn(async move {
            server::serve(listener, router, &http, Arc::new(Metrics::new()), workers, Stop::default()).await;
        });
        address
    };
    let memory = serve(&[]);
    let url = redis.url();
    let all = serve(&["--redis-url", &url, "--namespace", "all"]);
    let changed = serve(&["--redis-url", &url, "--namespace", "changed", "--redis-writes", "changed"]);
    let exact = serve(&["--redis-url", &url, "--namespace", "exact", "--mode", "exact"]);
    for connections in [1, CONNECTIONS] {
        let floor = allocations(noop, connections);
        let measure =
            || [memory, all, changed, exact].map(|address| allocations(address, connections) - floor);
        let mut figures = measure();
        // A slow machine does more background work while it serves as many requests.
        for _ in 0..AGAIN {
            let [memory, all, changed, exact] = figures;
            if memory < BACKGROUND && all < 0.9 && exact < 0.9 && changed <= all + BACKGROUND {
                break;
            }
            let again = measure();
            figures = std::array::from_fn(|at| figures[at].min(again[at]));
        }
        let [memory, all, changed, exact] = figures;
        println!(
            "{connections} connections: the no-op allocates {floor:.3} times a request; memory {memory:.3} more, \
             Redis {all:.3}, changed {changed:.3}, exact {exact:.3}"
        );
        assert!(memory < BACKGROUND, "{memory}");
        // It is about 0.3. One more allocation a request would be more.
        assert!(all < 0.9 && exact < 0.9, "{all} and {exact}");
        assert!(changed <= all + BACKGROUND, "{changed} and {all}");
    }
}
