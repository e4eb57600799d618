//! Resident memory: idle, with many connections, with many ids.

use std::net::TcpStream;

use serde_json::{Value, json};

use crate::client;
use crate::report::{Target, head, line};
use crate::subject::Subject;
use crate::subjects::Kind;
use crate::support::{lines, wait_blocking};

const MB: f64 = 1e6;
const CONNECTIONS: usize = 10_000;
/// Ids of one body.
const PIECE: u64 = 100_000;

pub fn measure() -> Result<Value, String> {
    let idle = Kind::MEMORY.start(false).resident();
    let connected = connected()?;
    let [few, many] = [10_000, 100_000_000].map(after);
    let (few, many) = (few?, many?);
    let redis = [10_000, 100_000_000].map(|ids| after_of(&Kind::HLL.start(true), ids));
    let [redis_few, redis_many] = redis;
    let (redis_few, redis_many) = (redis_few?, redis_many?);
    head("resident memory", &["MB"]);
    let row = |name, bytes: u64, target: Target| line(name, &[target.judge(bytes as f64 / MB)]);
    row("idle", idle, Target::AtMost(15.0));
    row("10 000 idle connections", connected, Target::AtMost(150.0));
    row("10⁴ different ids", few, Target::None);
    row("10⁸ different ids", many, Target::AtMost(few as f64 / MB));
    row("10⁴ different ids, Redis", redis_few, Target::None);
    row("10⁸ different ids, Redis", redis_many, Target::AtMost(redis_few as f64 / MB));
    Ok(json!({
        "idle": idle, "connections": connected, "ids_1e4": few, "ids_1e8": many,
        "redis_ids_1e4": redis_few, "redis_ids_1e8": redis_many,
    }))
}

/// Connections that are idle after one answer.
fn connected() -> Result<u64, String> {
    let subject = Kind::CROWDED.start(false);
    let open = |number| {
        let mut stream = TcpStream::connect(subject.address)
            .map_err(|error| format!("cannot connect, are the limits (ulimit -n) too low? {error}"))?;
        let request = format!("GET {}{number} HTTP/1.1\r\nhost: x\r\n\r\n", subject.request.prefix);
        client::ask(&mut stream, &[request.as_bytes()], subject.request.answer)?;
        Ok(stream)
    };
    let streams = (0..CONNECTIONS).map(open).collect::<Result<Vec<_>, String>>()?;
    let resident = subject.resident();
    drop(streams);
    Ok(resident)
}

/// Sends a hundred million ids, of which `different` are different.
fn after(different: u64) -> Result<u64, String> {
    after_of(&Kind::MEMORY.start(true), different)
}

fn after_of(subject: &Subject, different: u64) -> Result<u64, String> {
    let mut stream = TcpStream::connect(subject.address).map_err(|error| error.to_string())?;
    for piece in 0..100_000_000 / PIECE {
        // All ids have the same length, so that all bodies have.
        let first = 1_000_000_000 + piece * PIECE % different.max(PIECE);
        let ids = lines(first..first + PIECE.min(different)).repeat((PIECE / PIECE.min(different)) as usize);
        let head = format!(
            "POST {} HTTP/1.1\r\nhost: x\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n\r\n",
            subject.request.prefix,
            ids.len()
        );
        client::ask(&mut stream, &[head.as_bytes(), ids.as_bytes()], subject.request.answer)?;
    }
    let mut resident = u64::MAX;
    wait_blocking("memory to be given back", || {
        let before = std::mem::replace(&mut resident, subject.resident());
        before == resident
    });
    Ok(resident)
}
