//! How long accepting an id takes before, during and after an outage of Redis, and while requests name endpoints that do
//! not answer. See `benches/faults/run`.
//!
//! Each of 64 connections sends an id every ten milliseconds, far below the service's limit. At full load the latency
//! would only show the queues in front of two cores.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::expect_used,
    clippy::float_cmp,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a bench stops at the first surprise, prints its figures, and uses few of the tests' helpers"
)]

#[path = "../../tests/it/support/mod.rs"]
mod support;
mod trouble;

use std::process::ExitCode;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use support::http::Connection;
use support::server::Server;
use trouble::{Endpoint, Kind, Trouble};

const CONNECTIONS: u64 = 64;
/// The time from one request of a connection to the next.
const PACE: Duration = Duration::from_millis(10);
/// The p99 during trouble may exceed [`Kind::times`] the p99 before it by this much.
const MORE: Duration = Duration::from_millis(5);

/// The p99 of each phase.
#[derive(Clone, Copy)]
struct Round {
    before: Duration,
    during: Duration,
    after: Duration,
}

/// When a request was sent, and how long it took.
type Sample = (Instant, Duration);

async fn send(
    server: &Server,
    number: u64,
    endpoint: Endpoint,
    stop: CancellationToken,
) -> impl Future<Output = Vec<Sample>> + use<> {
    let mut connection = Connection::open(server.address).await.expect("a connection");
    async move {
        let mut samples = Vec::new();
        let first = Instant::now() + PACE.mul_f64(number as f64 / CONNECTIONS as f64);
        let mut ticks = tokio::time::interval_at(first, PACE);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for id in (number..).step_by(CONNECTIONS as usize) {
            ticks.tick().await;
            if stop.is_cancelled() {
                break;
            }
            let target = format!("/api/verve/accept?id={id}{}", endpoint.parameter());
            let sent = Instant::now();
            let answer = connection.get(&target).await.expect("an answer");
            assert_eq!(answer.body, "ok", "{answer:?}");
            samples.push((sent, sent.elapsed()));
        }
        samples
    }
}

async fn measure(kind: Kind, phase: Duration) -> Round {
    let mut trouble = Trouble::prepare(kind).await;
    let server = Server::start(&trouble.args()).await;
    let stop = CancellationToken::new();
    let mut connections = JoinSet::new();
    for number in 0..CONNECTIONS {
        connections.spawn(send(&server, number, trouble.endpoint(), stop.clone()).await);
    }
    // A warm-up: the first requests are slow.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let begun = Instant::now();
    tokio::time::sleep(phase).await;
    trouble.begin();
    let away = Instant::now();
    tokio::time::sleep(phase).await;
    trouble.end();
    let back = Instant::now();
    server.wait_for_metric("headcount_degraded", 0.0).await;
    let well = Instant::now();
    tokio::time::sleep(phase).await;
    stop.cancel();
    let samples = connections.join_all().await.concat();
    let p99 = |from, to| p99(&samples, from, to);
    Round { before: p99(begun, away), during: p99(away, back), after: p99(well, Instant::now()) }
}

fn p99(samples: &[Sample], from: Instant, to: Instant) -> Duration {
    let mut durations: Vec<_> =
        samples.iter().filter(|(sent, _)| (from..to).contains(sent)).map(|(_, duration)| *duration).collect();
    durations.sort_unstable();
    durations[durations.len() * 99 / 100]
}

fn median(rounds: &[Round], phase: impl Fn(&Round) -> Duration) -> Duration {
    let mut durations: Vec<_> = rounds.iter().map(phase).collect();
    durations.sort_unstable();
    durations[durations.len() / 2]
}

#[tokio::main]
async fn main() -> ExitCode {
    // cargo passes --bench.
    let args: Vec<_> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let number =
        |place: usize, default| args.get(place).map_or(default, |arg| arg.parse().expect("a number"));
    let (rounds, seconds): (u64, u64) = (number(0, 5), number(1, 3));
    let is_wanted = |kind: &Kind| args.get(2).is_none_or(|part| kind.to_string().contains(part));
    let mut all_within = true;
    println!("p99 of accepting, median of {rounds}        before    during     after   during/before");
    let mut measured: Vec<_> =
        Kind::all().into_iter().filter(is_wanted).map(|kind| (kind, Vec::new())).collect();
    // The kinds alternate, because a machine's speed drifts.
    for _ in 0..rounds {
        for (kind, rounds) in &mut measured {
            rounds.push(measure(*kind, Duration::from_secs(seconds)).await);
        }
    }
    for (kind, rounds) in measured {
        let [before, during, after] = [
            median(&rounds, |round| round.before),
            median(&rounds, |round| round.during),
            median(&rounds, |round| round.after),
        ];
        let within = during <= before.mul_f64(kind.times()) + MORE;
        all_within &= within;
        let [before, during, after] = [before, during, after].map(|p99| p99.as_secs_f64() * 1e3);
        println!(
            "{:30} {before:6.2} ms {during:6.2} ms {after:6.2} ms   {:13.2}{}",
            kind.to_string(),
            during / before,
            if within { "" } else { "  too long" }
        );
    }
    ExitCode::from(u8::from(!all_within))
}
