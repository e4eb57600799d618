//! A thousand ids a request, and for comparison redis-benchmark with a thousand ids a command.

use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::Effort;
use crate::checks::{ERROR, check_unique};
use crate::report::{Target, head, line, median, ratio};
use crate::subject::Load;
use crate::subjects::Kind;
use crate::support::redis::Redis;
use crate::wrk;

/// Ids of one PFADD of redis-benchmark: as many as of a request, which the service sends as one PFADD.
const IDS_A_COMMAND: usize = 1_000;
/// redis-benchmark draws its ids from so many.
const RANDOM_IDS: u64 = 1_000_000;
/// About what Redis does in a second.
const COMMANDS_A_SECOND: u64 = 9_000;

pub fn measure(effort: Effort) -> Result<Value, String> {
    let [mut reads, mut memory, mut redis, mut benchmark] = [const { Vec::new() }; 4];
    for round in 0..effort.rounds {
        for (kind, rates) in [(Kind::Noop, &mut reads), (Kind::MEMORY, &mut memory), (Kind::HLL, &mut redis)]
        {
            let subject = kind.start(true);
            let sample = wrk::measure(&subject, Load::new(effort.duration, round));
            let sample = sample.map_err(|error| format!("{}: {error}", kind.name()))?;
            rates.push(sample.requests_per_second * subject.request.bulk as f64);
        }
        benchmark.push(redis_benchmark(effort)?);
    }
    head("a thousand ids a request", &["ids a second", "of what it is beside"]);
    let millions = |rates: &[f64]| format!("{:.2} million", median(rates.to_vec()) / 1e6);
    line("a handler that reads the body", &[millions(&reads)]);
    line("memory hll / that", &[millions(&memory), Target::AtLeast(0.6).judge(ratio(&memory, &reads))]);
    line("redis-benchmark, 1 000 ids a PFADD", &[millions(&benchmark)]);
    line("Redis hll / that", &[millions(&redis), Target::AtLeast(1.0).judge(ratio(&redis, &benchmark))]);
    Ok(json!({ "reads": reads, "memory": memory, "redis": redis, "redis_benchmark": benchmark }))
}

/// How many ids a second Redis takes from redis-benchmark.
fn redis_benchmark(effort: Effort) -> Result<f64, String> {
    let redis = Redis::start();
    let commands = COMMANDS_A_SECOND * effort.duration.as_secs();
    let output = Command::new("redis-benchmark")
        .args(["-p", &redis.address().port().to_string(), "-P", "4", "-c", "50", "--csv"])
        .args(["-r", &RANDOM_IDS.to_string()])
        .args(["-n", &commands.to_string(), "PFADD", "hll"])
        .args(["__rand_int__"; IDS_A_COMMAND])
        .output()
        .map_err(|error| format!("redis-benchmark does not start: {error}"))?;
    check_benchmark(&output, &redis, commands)?;
    let text = String::from_utf8_lossy(&output.stdout);
    // The output is CSV: a line "test","rps",... and a line of values. The quoted command may have commas.
    let rate = text.lines().next_back().and_then(|line| line.split("\",\"").nth(1));
    let rate = rate.and_then(|rate| rate.trim_matches('"').parse::<f64>().ok());
    rate.map(|rate| rate * IDS_A_COMMAND as f64).ok_or_else(|| format!("redis-benchmark says {text:?}"))
}

/// Checks that it has ended well, that Redis executed so many commands, and that it has their ids.
fn check_benchmark(output: &Output, redis: &Redis, commands: u64) -> Result<(), String> {
    let mut connection = redis.connect();
    let ask = |error: redis::RedisError| error.to_string();
    let info: redis::InfoDict = redis::cmd("INFO").arg("commandstats").query(&mut connection).map_err(ask)?;
    let calls: String = info.get("cmdstat_pfadd").unwrap_or_default();
    if !output.status.success() || !calls.starts_with(&format!("calls={commands},")) {
        return Err(format!("redis-benchmark sent {calls:?}, not {commands} PFADD: {output:?}"));
    }
    let unique: f64 = redis::cmd("PFCOUNT").arg("hll").query(&mut connection).map_err(ask)?;
    check_unique(unique, [(commands * IDS_A_COMMAND as u64) as f64; 2], RANDOM_IDS, ERROR)
}
