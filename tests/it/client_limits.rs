//! The service cuts off clients that abuse it; other clients notice nothing, and no memory is lost.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream as BlockingStream};
use std::process::Stdio;
use std::time::{Duration, Instant};

use tempfile::NamedTempFile;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::support::fuzz::hostile_bytes;
use crate::support::http::{Connection, NoAnswer, get};
use crate::support::process::headcount;
use crate::support::server::Server;
use crate::support::{PATIENCE, soak, wait_for};

/// Connections of an attack.
const CROWD: usize = 2_000;
/// How much memory may grow by an attack. The allocator keeps some.
const MEMORY_KEPT: u64 = 40 << 20;

/// A server under attack, and an honest client that it must serve meanwhile.
struct Siege {
    server: Server,
    descriptors: usize,
    resident: u64,
    errors: NamedTempFile,
    over: CancellationToken,
    witness: AbortOnDropHandle<(u32, Duration)>,
}

impl Siege {
    async fn begin(flags: &[&str]) -> Self {
        let errors = NamedTempFile::new().unwrap();
        let mut command = headcount();
        command.args(["--listen", "127.0.0.1:0", "--window", "24h"]).args(flags);
        command.stderr(Stdio::from(errors.reopen().unwrap()));
        let server = Server::run(command).await;
        for id in 0..100 {
            assert_eq!(server.get(&format!("/api/verve/accept?id={id}")).await.body, "ok");
        }
        server.wait_for_metric("headcount_connections", 1.0).await;
        let over = CancellationToken::new();
        Self {
            descriptors: descriptors(&server),
            resident: server.process.resident(),
            witness: AbortOnDropHandle::new(tokio::spawn(witness(server.address, over.clone()))),
            server,
            errors,
            over,
        }
    }

    /// Asserts that the honest client was served, and that all memory and connections were released.
    async fn end(self, what: &str) {
        self.over.cancel();
        let (requests, slowest) = self.witness.await.expect("the witness was served all the while");
        let server = self.server;
        let left = wait_for("descriptors to come back", || {
            Some(descriptors(&server)).filter(|left| *left <= self.descriptors)
        });
        let left = left.await;
        server.wait_for_metric("headcount_connections", 1.0).await;
        let right_after = server.process.resident();
        let resident = wait_for("memory to come back", || {
            Some(server.process.resident()).filter(|resident| *resident < self.resident + MEMORY_KEPT)
        });
        let resident = resident.await;
        let text = server.get("/metrics").await.body;
        let errors = std::fs::read_to_string(self.errors.path()).unwrap();
        assert_eq!(errors, "", "nothing on standard error, such as a panic");
        for event in server.log() {
            assert_ne!(event["level"], "ERROR", "{event}");
        }
        assert!(text.contains("\nheadcount_accepted_ids_total "), "{text}");
        println!(
            "{what}: descriptors {} before, {left} after; memory {} MB before, {} MB right after, {} MB then; \
             another client had {requests} answers, the slowest after {slowest:?}",
            self.descriptors,
            self.resident >> 20,
            right_after >> 20,
            resident >> 20,
        );
    }

    async fn timed_out(&self, reason: &str) -> f64 {
        let series = format!(r#"headcount_connections_timed_out_total{{reason="{reason}"}}"#);
        self.server.metric(&series).await
    }
}

fn descriptors(server: &Server) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", server.process.0.id())).expect("a living process").count()
}

/// An honest client: it opens a connection for each request. Returns the number of requests and the longest time of
/// one.
async fn witness(address: SocketAddr, over: CancellationToken) -> (u32, Duration) {
    let (mut requests, mut slowest) = (0, Duration::ZERO);
    while !over.is_cancelled() {
        let begun = Instant::now();
        let answer = get(address, "/api/verve/accept?id=1").await;
        assert_eq!((answer.status, &*answer.body), (200, "ok"));
        requests += 1;
        slowest = slowest.max(begun.elapsed());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    (requests, slowest)
}

/// Many connections of one client.
struct Crowd(Vec<BlockingStream>);

impl Crowd {
    async fn open(address: SocketAddr, size: usize) -> Self {
        // The server raises its own.
        rlimit::increase_nofile_limit(4 * CROWD as u64).expect("descriptors for a crowd");
        let mut streams = Vec::new();
        for _ in 0..size {
            let stream = TcpStream::connect(address).await.expect("a connection").into_std().unwrap();
            streams.push(stream);
        }
        Self(streams)
    }

    /// Sends the same bytes on each connection. It ignores closed ones.
    fn send(&mut self, bytes: &[u8]) {
        for stream in &mut self.0 {
            let _ = stream.write(bytes);
        }
    }

    /// Reads what has arrived, and drops the connections that the server closed. Returns how many are left.
    fn still_open(&mut self) -> usize {
        self.0.retain_mut(|stream| {
            let mut buffer = [0; 4096];
            loop {
                match stream.read(&mut buffer) {
                    Ok(0) => return false,
                    Ok(_) => {}
                    Err(error) => return error.kind() == ErrorKind::WouldBlock,
                }
            }
        });
        self.0.len()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn trickling_heads_are_cut_off() {
    let siege = Siege::begin(&["--header-read-timeout", "2s"]).await;
    let mut crowd = Crowd::open(siege.server.address, CROWD).await;
    let begun = Instant::now();
    let mut seconds = tokio::time::interval(Duration::from_secs(1));
    for byte in b"GET /api/verve/accept?id=1 HTTP/1.1\r\nhost: test\r\nx-slow: ".iter().cycle() {
        seconds.tick().await;
        crowd.send(&[*byte]);
        if crowd.still_open() == 0 {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "{} of them are still there", crowd.0.len());
    }
    assert_eq!(siege.timed_out("header").await, CROWD as f64);
    siege.end("heads that trickle").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_are_closed() {
    let siege = Siege::begin(&["--idle-timeout", "2s"]).await;
    let mut silent = Crowd::open(siege.server.address, CROWD / 2).await;
    let mut answered = Crowd::open(siege.server.address, CROWD / 2).await;
    answered.send(b"GET /api/verve/accept?id=1 HTTP/1.1\r\nhost: test\r\n\r\n");
    wait_for("all of them to be closed", || (silent.still_open() + answered.still_open() == 0).then_some(()))
        .await;
    // The honest client may itself have been too slow.
    assert!(siege.timed_out("idle").await >= CROWD as f64);
    siege.end("connections that do nothing").await;
}

/// Clients send until the server reads no more, and read no answers.
#[tokio::test(flavor = "multi_thread")]
async fn clients_that_read_no_answers_are_cut_off() {
    const EACH: usize = 5;
    let siege = Siege::begin(&["--write-timeout", "1s"]).await;
    let mut clients = JoinSet::new();
    let requests: [&[u8]; 5] = [
        b"GET /api/verve/accept?id=1 HTTP/1.1\r\nhost: a\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n",
        // The server answers before it reads the body.
        b"GET /api/verve/accept?id=1 HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello",
        b"POST /api/verve/accept HTTP/1.1\r\nhost: a\r\ncontent-type: text/plain\r\ncontent-length: 2\r\n\r\n1\n",
        b"POST /api/verve/accept HTTP/1.1\r\nhost: a\r\ncontent-type: text/plain\r\ntransfer-encoding: chunked\r\nexpect: 100-continue\r\n\r\n2\r\n1\n\r\n0\r\n\r\n",
    ];
    for request in requests.iter().flat_map(|request| [request; EACH]) {
        let (address, requests) = (siege.server.address, request.repeat(100));
        clients.spawn(async move {
            let socket = TcpSocket::new_v4().unwrap();
            socket.set_recv_buffer_size(4096).unwrap();
            let mut stream = socket.connect(address).await.unwrap();
            let cut_off = async { while stream.write_all(&requests).await.is_ok() {} };
            timeout(PATIENCE, cut_off).await.expect("the server lets go");
        });
    }
    let port = siege.server.address.port();
    let unread = || unread_by_clients(port).iter().sum::<u64>() >> 10;
    let most = async {
        let mut most = 0;
        while !clients.is_empty() {
            most = most.max(unread());
            let _ = timeout(Duration::from_millis(20), clients.join_next()).await;
        }
        most
    }
    .await;
    assert!(most < 256 * (EACH * requests.len()) as u64, "the kernel keeps {most} KiB for who does not read");
    assert_eq!(siege.timed_out("write").await, (EACH * requests.len()) as f64);
    siege.end("unread answers").await;
}

/// Bytes in the kernel that clients of a port have not received, for each connection, closed ones included.
fn unread_by_clients(port: u16) -> Vec<u64> {
    let table = std::fs::read_to_string("/proc/net/tcp").expect("the table of connections");
    let lines = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    let ours = lines.filter(|line| line[1].ends_with(&format!(":{port:04X}")) && line[3] != "0A");
    ours.map(|line| u64::from_str_radix(&line[4][..8], 16).expect("a number")).collect()
}

/// The answers just fit into the kernel's buffers: the server has nothing left to write, and closes.
#[tokio::test(flavor = "multi_thread")]
async fn connections_with_unread_answers_in_the_kernel_are_closed() {
    const CLIENTS: usize = 50;
    let siege = Siege::begin(&["--write-timeout", "1s", "--idle-timeout", "1s"]).await;
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let mut stream = socket.connect(siege.server.address).await.unwrap();
        // Small requests with large answers.
        stream.write_all(&b"GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n".repeat(3)).await.unwrap();
        clients.push(stream);
    }
    let port = siege.server.address.port();
    wait_for("answers to be there", || unread_by_clients(port).iter().any(|bytes| *bytes > 0).then_some(()))
        .await;
    // The honest client's connections appear here briefly, without bytes.
    let left = || unread_by_clients(port).iter().filter(|bytes| **bytes > 0).count();
    wait_for("nothing to be left of them", || (left() == 0).then_some(())).await;
    drop(clients);
    siege.end("answers that are left in the kernel").await;
}

/// A body uses as much memory as it has bytes, even if it arrives byte by byte.
#[tokio::test(flavor = "multi_thread")]
async fn bodies_in_small_pieces_are_bounded() {
    const CLIENTS: usize = 8;
    const PIECES: usize = 600_000;
    let siege = Siege::begin(&["--body-limit", "1000000"]).await;
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        let address = siege.server.address;
        clients.spawn(async move {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.set_nodelay(true).unwrap();
            let head = "POST /api/verve/accept HTTP/1.1\r\nhost: a\r\ncontent-type: text/plain\r\n";
            if client % 2 == 0 {
                let head = format!("{head}transfer-encoding: chunked\r\n\r\n");
                stream.write_all(head.as_bytes()).await.unwrap();
                stream.write_all(&b"1\r\n1\r\n1\r\n\n\r\n".repeat(PIECES / 2)).await.unwrap();
            } else {
                let head = format!("{head}content-length: 1000000\r\n\r\n");
                stream.write_all(head.as_bytes()).await.unwrap();
                // Each byte is a segment of its own.
                for _ in 0..PIECES / 20 {
                    stream.write_all(b"1").await.unwrap();
                }
            }
            stream
        });
    }
    let mut most = 0;
    let mut streams = Vec::new();
    while streams.len() < CLIENTS {
        if let Ok(Some(stream)) = timeout(Duration::from_millis(20), clients.join_next()).await {
            streams.push(stream.expect("a client"));
        }
        most = most.max(siege.server.process.resident());
    }
    let grown = most.saturating_sub(siege.resident) >> 20;
    println!("{CLIENTS} bodies in pieces of a byte: {grown} MB more at most");
    assert!(grown < 16, "{grown} MB for bodies of 600 KB and less");
    drop(streams);
    siege.end("bodies in small pieces").await;
}

/// Bodies without an end, and parts of bodies without an end.
#[tokio::test(flavor = "multi_thread")]
async fn endless_bodies_are_bounded() {
    let siege = Siege::begin(&["--body-read-timeout", "1s", "--body-limit", "1000000"]).await;
    let endless = [
        ("content-length: 9000000000000000000", b"1\n".repeat(10_000)),
        ("transfer-encoding: chunked", [b"4e20\r\n".as_slice(), &b"1\n".repeat(10_000), b"\r\n"].concat()),
        // Too slow to reach the limit of bytes: the time-out ends it.
        ("transfer-encoding: chunked", b"2\r\n1\n\r\n".to_vec()),
        ("transfer-encoding: chunked", b"0".repeat(1_000)),
        ("transfer-encoding: chunked", [b"2;".as_slice(), &b"x".repeat(1_000)].concat()),
        ("transfer-encoding: chunked", [b"0\r\n".as_slice(), &b"x: y\r\n".repeat(1_000)].concat()),
    ];
    let mut clients = JoinSet::new();
    for target in ["POST /api/verve/accept", "GET /api/verve/accept?id=1", "GET /api/verve/unique", "PUT /"] {
        for (length, piece) in endless.clone() {
            let address = siege.server.address;
            clients.spawn(async move {
                let head =
                    format!("{target} HTTP/1.1\r\nhost: a\r\ncontent-type: text/plain\r\n{length}\r\n\r\n");
                let mut stream = TcpStream::connect(address).await.unwrap();
                let received = timeout(PATIENCE, talk(&mut stream, head.as_bytes(), &piece)).await;
                (target, statuses(&received.expect("the server lets go")))
            });
        }
    }
    let mut answers = BTreeMap::<_, u32>::new();
    for (target, statuses) in clients.join_all().await {
        for status in statuses {
            assert!(status < 500, "{target}: {status}");
            *answers.entry((target, status)).or_default() += 1;
        }
    }
    println!("{answers:?}");
    for answer in [("POST /api/verve/accept", 413), ("POST /api/verve/accept", 400)] {
        assert!(answers.contains_key(&answer), "{answers:?}");
    }
    siege.end("bodies without an end").await;
}

/// Sends a head, and then the same piece until the server closes. Returns what arrived of the answer.
async fn talk(stream: &mut TcpStream, head: &[u8], piece: &[u8]) -> Vec<u8> {
    let (mut from, mut to) = stream.split();
    let mut received = Vec::new();
    let send = async {
        let mut sent = to.write_all(head).await;
        while sent.is_ok() {
            sent = to.write_all(piece).await;
            // A pause, so that the machine has time for other tests.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let receive = async { while matches!(from.read_buf(&mut received).await, Ok(1..)) {} };
    tokio::join!(send, receive);
    received
}

/// Garbage after a valid request does not change its answer.
#[tokio::test(flavor = "multi_thread")]
async fn garbage_after_a_request_does_not_change_its_answer() {
    let siege = Siege::begin(&[]).await;
    for seed in 0..500 {
        let mut connection = Connection::open(siege.server.address).await.unwrap();
        let request = "GET /api/verve/accept?id=1 HTTP/1.1\r\nhost: test\r\n\r\n".repeat(3);
        let garbage: &[u8] = &[0xff, b'\0', b' ', b'\x16', b'{'][seed % 5..];
        connection
            .send(&[request.as_bytes(), garbage, b"\r\n\r\n", request.as_bytes()].concat())
            .await
            .unwrap();
        for _ in 0..3 {
            assert_eq!(connection.answer(false).await.unwrap().body, "ok");
        }
        match connection.answer(false).await {
            Ok(answer) => assert_eq!(answer.status, 400),
            // The server may close with bytes unread. Then the kernel resets the connection, and the answer may be lost.
            Err(error) => assert_eq!(error, NoAnswer::Closed),
        }
        assert_eq!(connection.answer(false).await.unwrap_err(), NoAnswer::Closed);
    }
    siege.end("garbage after requests").await;
}

/// Random bytes.
#[tokio::test(flavor = "multi_thread")]
async fn random_bytes_do_not_affect_other_clients() {
    const CLIENTS: u64 = 64;
    let streams: u64 = if soak() { 1_000_000 } else { 20_000 };
    let siege = Siege::begin(&[
        "--header-read-timeout",
        "500ms",
        "--idle-timeout",
        "500ms",
        "--body-read-timeout",
        "500ms",
    ])
    .await;
    let begun = Instant::now();
    let mut clients = JoinSet::new();
    for first in 0..CLIENTS {
        let address = siege.server.address;
        clients.spawn(async move {
            let mut answers = BTreeMap::<u16, u64>::new();
            for seed in (first..streams).step_by(CLIENTS as usize) {
                for status in statuses(&attack(address, seed).await) {
                    assert!(status < 500 || [501, 503].contains(&status), "stream {seed}: {status}");
                    *answers.entry(status).or_default() += 1;
                }
            }
            answers
        });
    }
    let mut answers = BTreeMap::<u16, u64>::new();
    for (status, times) in clients.join_all().await.into_iter().flatten() {
        *answers.entry(status).or_default() += times;
    }
    println!("{streams} streams in {:?}, answered: {answers:?}", begun.elapsed());
    for status in [100, 200, 400, 404, 405, 415, 431, 501] {
        assert!(answers.contains_key(&status), "{status}: {answers:?}");
    }
    siege.end("streams of hostile bytes").await;
}

/// Sends a stream of bytes, sometimes in two pieces, and reads until the server sends no more.
async fn attack(address: SocketAddr, seed: u64) -> Vec<u8> {
    let bytes = hostile_bytes(seed);
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    let middle = if seed.is_multiple_of(8) { bytes.len() / 2 } else { bytes.len() };
    let mut received = Vec::new();
    // A server that has closed may break the pipe. Its answer can still be read.
    let _ = stream.write_all(&bytes[..middle]).await;
    if middle < bytes.len() {
        tokio::task::yield_now().await;
        let _ = stream.write_all(&bytes[middle..]).await;
    }
    if seed % 16 == 1 {
        let _ = stream.shutdown().await;
        // Now it is the server's turn to close.
        let end = async { while matches!(stream.read_buf(&mut received).await, Ok(1..)) {} };
        timeout(PATIENCE, end).await.expect("an end");
        return received;
    }
    // The server may wait for the rest of an incomplete request. This time is enough for most answers.
    while let Ok(Ok(1..)) = timeout(Duration::from_millis(20), stream.read_buf(&mut received)).await {}
    // Reset, because one port in TIME_WAIT for each stream would use up all ports.
    let _ = stream.set_zero_linger();
    received
}

/// The statuses of all answers in there.
fn statuses(received: &[u8]) -> Vec<u16> {
    let text = String::from_utf8_lossy(received);
    text.split("HTTP/1.")
        .skip(1)
        .map(|answer| {
            answer.get(2..5).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("{text}"))
        })
        .collect()
}
