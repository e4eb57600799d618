//! A redis-server of the test's own.

use std::net::TcpListener;
use std::process::{Command, Stdio};

use redis::Connection;
use tempfile::TempDir;

use super::PATIENCE;
use super::process::Process;

/// On loopback, on a free port, in a directory of its own, without persistence.
pub struct Redis {
    port: u16,
    _process: Process,
    _dir: TempDir,
}

impl Redis {
    pub fn start() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        // The port may be taken between here and the start: then redis-server ends, and the test with it.
        let port =
            TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port").port();
        let child = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .arg("--dir")
            .arg(dir.path())
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server starts: is it installed? ./scripts/test does that");
        Self { port, _process: Process(child), _dir: dir }
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub fn connect(&self) -> Connection {
        let client = redis::Client::open(("127.0.0.1", self.port)).expect("an address");
        let deadline = std::time::Instant::now() + PATIENCE;
        loop {
            match client.get_connection() {
                Ok(connection) => return connection,
                Err(error) => assert!(std::time::Instant::now() < deadline, "redis-server: {error}"),
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
}
