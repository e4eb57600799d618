//! An HTTP client that sends exactly the given bytes. It distinguishes a connection closed before an answer from one
//! closed in the middle of it.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use super::PATIENCE;

/// A complete answer.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    headers: Vec<(String, String)>,
    pub body: String,
    /// The same as it came: a sketch is no text.
    pub bytes: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoAnswer {
    /// The server closed the connection before the first byte.
    Closed,
    /// The server closed the connection in the middle of the answer.
    Torn,
}

/// A connection that stays open.
pub struct Connection {
    stream: TcpStream,
    received: Vec<u8>,
}

impl Connection {
    pub async fn open(address: SocketAddr) -> std::io::Result<Self> {
        Ok(Self { stream: TcpStream::connect(address).await?, received: Vec::new() })
    }

    /// A connection from a chosen loopback address.
    pub async fn open_from(client: Ipv4Addr, address: SocketAddr) -> std::io::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.bind((client, 0).into())?;
        Ok(Self { stream: socket.connect(address).await?, received: Vec::new() })
    }

    pub async fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(bytes).await
    }

    /// Sends a request and reads its answer.
    pub async fn request(&mut self, request: &[u8]) -> Result<Answer, NoAnswer> {
        // A server that answers early and closes may break the pipe. Its answer can still be read.
        let _ = self.send(request).await;
        self.answer(request.starts_with(b"HEAD")).await
    }

    pub async fn get(&mut self, target: &str) -> Result<Answer, NoAnswer> {
        self.request(format!("GET {target} HTTP/1.1\r\nhost: test\r\n\r\n").as_bytes()).await
    }

    pub async fn post(&mut self, content_type: &str, body: &[u8]) -> Result<Answer, NoAnswer> {
        let head = format!(
            "POST /api/verve/accept HTTP/1.1\r\nhost: test\r\ncontent-type: {content_type}\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        self.request(&[head.as_bytes(), body].concat()).await
    }

    /// Reads an answer: its head, then a body of `content-length` bytes.
    pub async fn answer(&mut self, without_body: bool) -> Result<Answer, NoAnswer> {
        let head = loop {
            if let Some(end) = self.received.windows(4).position(|four| four == b"\r\n\r\n") {
                break self.received.drain(..end + 4).collect::<Vec<_>>();
            }
            self.receive().await?;
        };
        let head = String::from_utf8(head).expect("a head in ASCII");
        let mut lines = head.lines();
        let status =
            lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|status| status.parse().ok());
        let headers: Vec<_> = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(key, value)| (key.to_ascii_lowercase(), value.to_owned()))
            .collect();
        let mut answer =
            Answer { status: status.expect("a status"), headers, body: String::new(), bytes: Vec::new() };
        let length = answer.header("content-length").map_or(0, |length| length.parse().expect("a length"));
        if !without_body {
            while self.received.len() < length {
                self.receive().await.map_err(|_| NoAnswer::Torn)?;
            }
            answer.bytes = self.received.drain(..length).collect();
            if answer.header("content-type") != Some("application/octet-stream") {
                answer.body = String::from_utf8(answer.bytes.clone()).expect("a body in UTF-8");
            }
        }
        Ok(answer)
    }

    async fn receive(&mut self) -> Result<(), NoAnswer> {
        let none_yet = self.received.is_empty();
        let read = tokio::time::timeout(PATIENCE, self.stream.read_buf(&mut self.received)).await;
        match read.expect("an answer or an end") {
            Ok(0) | Err(_) if none_yet => Err(NoAnswer::Closed),
            Ok(0) | Err(_) => Err(NoAnswer::Torn),
            Ok(_) => Ok(()),
        }
    }

    /// True once the other side has closed without sending another byte.
    pub async fn is_closed_within(&mut self, patience: Duration) -> bool {
        matches!(tokio::time::timeout(patience, self.receive()).await, Ok(Err(NoAnswer::Closed)))
    }
}

/// One request on a connection of its own.
pub async fn once(address: SocketAddr, request: &[u8]) -> Answer {
    let mut connection = Connection::open(address).await.expect("a connection");
    connection.request(request).await.unwrap_or_else(|error| {
        panic!("{error:?} for {}", String::from_utf8_lossy(&request[..request.len().min(200)]))
    })
}

/// One GET on a connection of its own.
pub async fn get(address: SocketAddr, target: &str) -> Answer {
    once(address, format!("GET {target} HTTP/1.1\r\nhost: test\r\n\r\n").as_bytes()).await
}
