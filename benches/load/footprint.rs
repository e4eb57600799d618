//! Resident memory: idle, with many connections, with many ids.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::{Value, json};

use crate::report::{Target, head, line};
use crate::subjects::{Kind, Subject};
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

/// Each has had an answer, and says nothing more.
fn connected() -> Result<u64, String> {
    let subject = Kind::CROWDED.start(false);
    let open = |number| -> std::io::Result<TcpStream> {
        let mut stream = TcpStream::connect(subject.address)?;
        stream.write_all(
            format!("GET {}{number} HTTP/1.1\r\nhost: x\r\n\r\n", subject.request.prefix).as_bytes(),
        )?;
        let mut answer = [0; 512];
        let read = stream.read(&mut answer)?;
        assert!(
            answer[..read].starts_with(b"HTTP/1.1 200"),
            "{:?}",
            String::from_utf8_lossy(&answer[..read])
        );
        Ok(stream)
    };
    let streams = (0..CONNECTIONS).map(open).collect::<std::io::Result<Vec<_>>>();
    let streams =
        streams.map_err(|error| format!("cannot connect, are the limits (ulimit -n) too low? {error}"))?;
    let resident = subject.resident();
    drop(streams);
    Ok(resident)
}

/// The same requests, of a hundred million ids of which so many are different.
fn after(different: u64) -> Result<u64, String> {
    after_of(&Kind::MEMORY.start(true), different)
}

fn after_of(subject: &Subject, different: u64) -> Result<u64, String> {
    let mut stream = TcpStream::connect(subject.address).map_err(|error| error.to_string())?;
    stream.set_read_timeout(Some(Duration::from_secs(30))).map_err(|error| error.to_string())?;
    for piece in 0..100_000_000 / PIECE {
        // All of one length, so that bodies are.
        let first = 1_000_000_000 + piece * PIECE % different.max(PIECE);
        let ids = lines(first..first + PIECE.min(different)).repeat((PIECE / PIECE.min(different)) as usize);
        post(&mut stream, subject.address, ids.as_bytes())?;
    }
    let mut resident = u64::MAX;
    wait_blocking("memory to be given back", || {
        let before = std::mem::replace(&mut resident, subject.resident());
        before == resident
    });
    Ok(resident)
}

fn post(stream: &mut TcpStream, address: SocketAddr, body: &[u8]) -> Result<(), String> {
    let head = format!(
        "POST /api/verve/accept HTTP/1.1\r\nhost: {address}\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let mut answer = Vec::new();
    let mut ask = || -> std::io::Result<()> {
        stream.write_all(head.as_bytes())?;
        stream.write_all(body)?;
        let mut piece = [0; 512];
        while !answer.ends_with(b"\r\n\r\nok") {
            match stream.read(&mut piece)? {
                0 => break,
                read => answer.extend_from_slice(&piece[..read]),
            }
        }
        Ok(())
    };
    let asked = ask();
    if answer.ends_with(b"\r\n\r\nok") {
        Ok(())
    } else {
        Err(format!("{asked:?}, {:?}", String::from_utf8_lossy(&answer)))
    }
}
