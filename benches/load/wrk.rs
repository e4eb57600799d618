//! One measurement: wrk sends requests to a subject. The result has its cost, and only if every answer was right.

use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::client;
use crate::subject::{Load, Request, Subject};

impl Load {
    /// After a load of another seed.
    pub fn after(self, sample: &Sample) -> Self {
        let [least, most] = self.earlier;
        Self { earlier: [least + sample.requests, most + sample.requests + self.connections], ..self }
    }
}

/// A load before the one that is measured, so that a process does not start in the figures: connections are new, memory is cold.
const WARM_UP: Duration = Duration::from_secs(1);
/// Seeds of warm-ups are so much higher than those of rounds.
const SEED_OF_WARM_UPS: u64 = 20_000;

/// Warms up. Returns the load that follows.
///
/// # Errors
///
/// As [`measure`].
pub fn warm_up(subject: &Subject, load: Load) -> Result<Load, String> {
    let warm_up = Load { duration: WARM_UP, seed: load.seed + SEED_OF_WARM_UPS, ..load };
    Ok(load.after(&measure(subject, warm_up)?))
}

/// The result of one measurement.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Sample {
    pub requests: u64,
    /// User and system time of all processes of the subject, including Redis, for each request.
    pub cpu_micros: f64,
    /// The part of Redis in it.
    pub redis_cpu_micros: f64,
    pub requests_per_second: f64,
    pub p50_micros: f64,
    pub p99_micros: f64,
    /// The accepted ids that changed the service's sketch. The service always sends these to Redis.
    pub share_changed: f64,
}

#[derive(Deserialize)]
struct Report {
    requests: u64,
    bytes: u64,
    micros: u64,
    p50: f64,
    p99: f64,
    /// Answers with a status other than 2xx and 3xx.
    refused: u64,
    broken: u64,
}

/// Sends the load, and checks the answers: their status, their total bytes, and the final count.
///
/// # Errors
///
/// A wrong answer. The figures mean nothing then.
pub fn measure(subject: &Subject, load: Load) -> Result<Sample, String> {
    let length = length_of_answer(subject)?;
    let [accepted, changed] = subject.accepted_and_changed();
    let before = [subject.cpu(), subject.cpu_of_redis()];
    let report = wrk(subject, load)?;
    let after = [subject.cpu(), subject.cpu_of_redis()];
    let Report { requests, bytes, refused, broken, .. } = report;
    if refused + broken > 0 {
        return Err(format!("{refused} answers were refusals, {broken} connections broke"));
    }
    // A wrong answer would have another length. The last answers may be in only one of the two sums.
    let (least, most) = (requests * length, (requests + load.connections) * length);
    if requests == 0 || !(least..=most).contains(&bytes) {
        return Err(format!("{requests} answers have {bytes} bytes, not {length} each"));
    }
    subject.check_count(requests, load, accepted)?;
    let share_changed = share(subject.accepted_and_changed(), [accepted, changed]);
    let micros = |of: usize| after[of].saturating_sub(before[of]).as_secs_f64() * 1e6 / requests as f64;
    Ok(Sample {
        share_changed,
        requests,
        cpu_micros: micros(0),
        redis_cpu_micros: micros(1),
        requests_per_second: requests as f64 / (report.micros as f64 / 1e6),
        p50_micros: report.p50,
        p99_micros: report.p99,
    })
}

fn share([accepted, changed]: [u64; 2], before: [u64; 2]) -> f64 {
    (changed - before[1]) as f64 / (accepted - before[0]).max(1) as f64
}

fn wrk(subject: &Subject, load: Load) -> Result<Report, String> {
    let threads = load.threads();
    let Request { prefix, bulk, first, counters, skew, ids, .. } = &subject.request;
    let output = Command::new("wrk")
        .args(["-t", &threads.to_string(), "-c", &load.connections.to_string()])
        .args(["-d", &format!("{}s", load.duration.as_secs()), "--timeout", "10s"])
        .args(["-s", "benches/load/wrk.lua", &format!("http://{}", subject.address)])
        .arg("--")
        .arg(prefix)
        .args([bulk, &load.seed, first, counters].map(u64::to_string))
        .args([skew.to_string(), ids.to_string()])
        .output()
        .map_err(|error| format!("wrk does not start: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let report = text.lines().next_back().and_then(|line| serde_json::from_str(line).ok());
    report.ok_or_else(|| format!("wrk says {text:?} {:?}", String::from_utf8_lossy(&output.stderr)))
}

/// Sends one request by hand, and checks its answer byte by byte.
fn length_of_answer(subject: &Subject) -> Result<u64, String> {
    let Request { prefix, bulk, answer, .. } = &subject.request;
    let request = if *bulk > 0 {
        format!(
            "POST {prefix} HTTP/1.1\r\nhost: localhost\r\ncontent-type: text/plain\r\ncontent-length: 2\r\n\r\n7\n"
        )
    } else {
        format!("GET {prefix}7 HTTP/1.1\r\nhost: localhost\r\n\r\n")
    };
    let mut stream = TcpStream::connect(subject.address).map_err(|error| error.to_string())?;
    Ok(client::ask(&mut stream, &[request.as_bytes()], answer)?.len() as u64)
}
