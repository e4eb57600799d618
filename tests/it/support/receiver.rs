//! A receiver of callbacks. It counts connections, keeps requests, and answers as the test demands.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::wait_for;

/// How a receiver answers.
#[derive(Debug, Clone)]
pub enum Answering {
    /// Answers a status without a body.
    Status(u16),
    /// Answers 200 and closes the connection.
    Closing,
    /// Answers a redirect.
    Redirect(String),
    /// Answers with an endless body.
    Endless,
    /// Never answers.
    Never,
    /// Sends the head byte by byte, with pauses.
    Trickle(Duration),
}

/// A request that the receiver got.
#[derive(Debug, Clone)]
pub struct Received {
    pub line: String,
    pub headers: BTreeMap<String, String>,
    pub body: String,
}

impl Received {
    pub fn count(&self) -> u64 {
        let body: Value = serde_json::from_str(&self.body).expect("JSON");
        body["unique_request_count"].as_u64().expect("a count")
    }
}

/// The series of callbacks with this `result`.
pub fn callbacks_with(result: &str) -> String {
    format!(r#"headcount_callbacks_total{{result="{result}"}}"#)
}

/// Dropping it stops it.
pub struct Receiver {
    pub address: SocketAddr,
    connections: Arc<AtomicU32>,
    most_open: Arc<AtomicUsize>,
    received: Arc<Mutex<Vec<Received>>>,
    task: JoinHandle<()>,
}

impl Receiver {
    /// Starts on a free loopback port.
    pub async fn start(answering: Answering) -> Self {
        Self::start_on("127.0.0.1:0", answering).await
    }

    pub async fn start_on(address: &str, answering: Answering) -> Self {
        Self::launch(address, answering, None).await
    }

    /// Starts one with TLS, with the certificates of a directory.
    pub async fn start_tls(certificates: &Path) -> Self {
        let chain = CertificateDer::from_pem_file(certificates.join("server.pem")).expect("a certificate");
        let key = PrivateKeyDer::from_pem_file(certificates.join("server.key")).expect("a key");
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(vec![chain], key))
            .expect("a configuration");
        let tls = TlsAcceptor::from(Arc::new(config));
        Self::launch("127.0.0.1:0", Answering::Status(204), Some(tls)).await
    }

    async fn launch(address: &str, answering: Answering, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind(address).await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let (connections, received) = (Arc::new(AtomicU32::new(0)), Arc::default());
        let (counted, kept) = (Arc::clone(&connections), Arc::clone(&received));
        let most_open = Arc::new(AtomicUsize::new(0));
        let most = Arc::clone(&most_open);
        let task = tokio::spawn(async move {
            // Aborting this task ends its connections.
            let mut serving = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::Relaxed);
                let (tls, answering, kept) = (tls.clone(), answering.clone(), Arc::clone(&kept));
                serving.spawn(async move {
                    match tls {
                        None => serve(stream, answering, kept).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                serve(stream, answering, kept).await;
                            }
                        }
                    }
                });
                while serving.try_join_next().is_some() {}
                most.fetch_max(serving.len(), Ordering::Relaxed);
            }
        });
        Self { address, connections, most_open, received, task }
    }

    pub fn url(&self) -> String {
        format!("http://{}/hook?token=not-to-be-logged", self.address)
    }

    /// The number of connections so far.
    pub fn connections(&self) -> u32 {
        self.connections.load(Ordering::Relaxed)
    }

    /// The most connections open at a time.
    pub fn most_open(&self) -> usize {
        self.most_open.load(Ordering::Relaxed)
    }

    pub fn received(&self) -> Vec<Received> {
        self.received.lock().unwrap().clone()
    }

    pub fn requests(&self) -> usize {
        self.received.lock().unwrap().len()
    }

    pub async fn wait_received(&self, requests: usize) -> Vec<Received> {
        wait_for("callbacks", || (self.requests() >= requests).then(|| self.received())).await
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    answering: Answering,
    received: Arc<Mutex<Vec<Received>>>,
) {
    let mut buffer = Vec::new();
    while let Some(request) = read(&mut stream, &mut buffer).await {
        let closes = request.headers.get("connection").is_some_and(|value| value == "close");
        received.lock().unwrap().push(request);
        let answer = match &answering {
            Answering::Status(status) => format!("HTTP/1.1 {status} Some\r\ncontent-length: 0\r\n\r\n"),
            Answering::Closing => {
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
                let _ = stream.write_all(answer).await;
                return;
            }
            Answering::Redirect(to) => {
                format!("HTTP/1.1 307 Moved\r\nlocation: {to}\r\ncontent-length: 0\r\n\r\n")
            }
            Answering::Endless => {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
                while stream.write_all(b"1000\r\n").await.is_ok() {
                    let chunk = [[b'x'; 0x1000].as_slice(), b"\r\n"].concat();
                    if stream.write_all(&chunk).await.is_err() {
                        return;
                    }
                }
                return;
            }
            Answering::Never => {
                // Until the client closes.
                while matches!(stream.read_buf(&mut buffer).await, Ok(1..)) {}
                return;
            }
            Answering::Trickle(pause) => {
                for byte in b"HTTP/1.1 200 OK\r\n" {
                    if stream.write_all(&[*byte]).await.is_err() {
                        return;
                    }
                    tokio::time::sleep(*pause).await;
                }
                return;
            }
        };
        if stream.write_all(answer.as_bytes()).await.is_err() || closes {
            return;
        }
    }
}

/// Reads a complete request. None when the connection ends.
async fn read(stream: &mut (impl AsyncRead + Unpin), buffer: &mut Vec<u8>) -> Option<Received> {
    let end = loop {
        if let Some(end) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
            break end + 4;
        }
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(buffer.drain(..end).collect()).expect("a head in ASCII");
    let mut lines = head.lines();
    let line = lines.next()?.to_owned();
    let headers: BTreeMap<_, _> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let length = headers.get("content-length")?.parse().expect("a length");
    while buffer.len() < length {
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
    let body = String::from_utf8(buffer.drain(..length).collect()).expect("a body in UTF-8");
    Some(Received { line, headers, body })
}
