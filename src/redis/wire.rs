//! A connection for many short commands at a time: bytes out, numbers in.
//!
//! redis-rs's connection has a task of its own, which takes commands from a queue and gives replies back through channels,
//! and a parser for all that Redis can say. For an administrator's command now and then that is what one wants. For
//! each id of each request it costs more than Redis itself. Here whoever sends has the socket to himself, the commands are
//! bytes already, and a reply is a number or an error.
//!
//! What is hard about connecting (who we are, which database, which protocol, what an old server does not know) is left to
//! redis-rs: it is lent the stream until that is done.
//!
//! The protocol is RESP (<https://redis.io/docs/latest/develop/reference/protocol-spec/>): a command is `*`, the number of its
//! words, and for each word `$`, its length and itself, each part ended by CR LF. `:` begins a number, `+` a
//! status, `-` an error.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::{ConnectionAddr, ErrorKind, RedisError, RedisResult, ServerError, Value};
use parking_lot::Mutex;
use rustls::pki_types::ServerName;
use smallvec::SmallVec;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Mutex as AsyncMutex;
use tokio_rustls::TlsConnector;

use super::connection::{Connection, Destination, run_of};
use crate::platform::tls;
use crate::platform::words::{read_decimal, write_decimal};

/// In bytes: two thousand replies.
const READ_AT_A_TIME: usize = 8 * 1024;

/// A number, or why there is none; a status is 0.
pub type Reply = Result<u64, ServerError>;
/// To each command, in their order; few need no room elsewhere.
pub type Replies = SmallVec<[Reply; 8]>;

/// A connection that one caller uses at a time. Clones are the same one.
#[derive(Clone)]
pub struct Wire {
    socket: Arc<AsyncMutex<Socket>>,
    /// From before a command is sent until its reply is there: if the caller gives up in between, the next one would
    /// read replies that are not his.
    in_between: Arc<AtomicBool>,
}

struct Socket {
    stream: Box<dyn Stream>,
    /// What has come and is not a whole reply yet.
    received: Vec<u8>,
    timeout: Duration,
}

impl Wire {
    /// Sends commands and reads as many replies.
    ///
    /// # Errors
    ///
    /// When the connection fails, or a reply does not come in time. What the server refuses is a [`Reply`].
    pub async fn exchange(&self, commands: &[u8], count: usize) -> RedisResult<Replies> {
        let mut socket = self.socket.lock().await;
        // Whoever had it before may have given up while this one waited.
        if self.in_between.swap(true, Ordering::Relaxed) {
            return Err(io::Error::from(io::ErrorKind::ConnectionAborted).into());
        }
        let timeout = socket.timeout;
        let replies = tokio::time::timeout(timeout, socket.exchange(commands, count)).await;
        let replies = replies.map_err(|_| RedisError::from(io::Error::from(io::ErrorKind::TimedOut)))??;
        self.in_between.store(false, Ordering::Relaxed);
        Ok(replies)
    }
}

impl Connection for Wire {
    async fn open(to: &Destination) -> RedisResult<(Self, Option<String>)> {
        let client = to.client();
        let info = client.get_connection_info();
        let introduced = to.in_time(async {
            let lent = Lent(Arc::new(Mutex::new(connect(info.addr()).await?)));
            let stream = Arc::clone(&lent.0);
            let made = MultiplexedConnection::new_with_config(info.redis_settings(), lent, to.config());
            Ok((stream, made.await?))
        });
        let (stream, (mut connection, driver)) = introduced.await?;
        let run = {
            let mut driver = std::pin::pin!(driver);
            tokio::select! {
                run = run_of(&mut connection) => run?,
                () = &mut driver => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            }
        };
        drop(connection);
        // The last one: what it was lent to is gone.
        let stream = Arc::into_inner(stream).ok_or((ErrorKind::Client, "the stream was not given back"))?;
        let socket = Socket {
            stream: stream.into_inner(),
            received: Vec::with_capacity(READ_AT_A_TIME),
            timeout: to.timeout,
        };
        Ok((Self { socket: Arc::new(AsyncMutex::new(socket)), in_between: Arc::default() }, run))
    }

    fn is_usable(&self) -> bool {
        !self.in_between.load(Ordering::Relaxed)
    }
}

impl Socket {
    async fn exchange(&mut self, commands: &[u8], count: usize) -> RedisResult<Replies> {
        self.stream.write_all(commands).await?;
        self.stream.flush().await?;
        let mut replies = Replies::with_capacity(count);
        let mut read = 0;
        while replies.len() < count {
            if let Some((reply, length)) = first_reply(&self.received[read..])? {
                replies.push(reply);
                read += length;
                continue;
            }
            self.received.drain(..read);
            read = 0;
            if self.stream.read_buf(&mut self.received).await? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
        }
        self.received.drain(..read);
        if !self.received.is_empty() {
            // More replies than commands: nobody knows whose they are.
            return Err(unexpected());
        }
        Ok(replies)
    }
}

/// The first reply of what was received, if all of it is there, and its length.
fn first_reply(received: &[u8]) -> RedisResult<Option<(Reply, usize)>> {
    let Some(end) = received.iter().position(|byte| *byte == b'\n') else { return Ok(None) };
    let line = &received[..=end];
    let reply = match line {
        [b':', digits @ .., b'\r', b'\n'] => Ok(read_decimal(digits).ok_or_else(unexpected)?),
        [b'+', ..] => Ok(0),
        [b'-', ..] => match ::redis::parse_redis_value(line)? {
            Value::ServerError(error) => Err(error),
            _ => return Err(unexpected()),
        },
        _ => return Err(unexpected()),
    };
    Ok(Some((reply, line.len())))
}

fn unexpected() -> RedisError {
    (ErrorKind::Parse, "an answer to a write that is no number").into()
}

/// Appends a command with no words yet.
pub fn begin(commands: &mut Vec<u8>, words: usize) {
    prefixed(commands, b'*', words);
}

/// Appends a word to the last command.
pub fn word(commands: &mut Vec<u8>, word: &[u8]) {
    prefixed(commands, b'$', word.len());
    commands.extend_from_slice(word);
    commands.extend_from_slice(b"\r\n");
}

fn prefixed(commands: &mut Vec<u8>, prefix: u8, number: usize) {
    // The prefix, up to 20 digits, CR LF.
    let mut text = [b'\r'; 23];
    text[22] = b'\n';
    let before = write_decimal(&mut text[..21], number as u64) - 1;
    text[before] = prefix;
    commands.extend_from_slice(&text[before..]);
}

trait Stream: AsyncRead + AsyncWrite + Send + Sync + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Sync + Unpin> Stream for S {}

async fn connect(address: &ConnectionAddr) -> RedisResult<Box<dyn Stream>> {
    let tcp = async |host: &str, port: u16| {
        let stream = TcpStream::connect((host, port)).await?;
        stream.set_nodelay(true)?;
        Ok::<_, io::Error>(stream)
    };
    match address {
        ConnectionAddr::Tcp(host, port) => Ok(Box::new(tcp(host, *port).await?)),
        // What redis:// URLs can say of certificates is that they should not be looked at, for which redis-rs was not built.
        ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None } => {
            let (config, _) = tls::client_config()?;
            let name = ServerName::try_from(host.clone())?;
            let stream = tcp(host, *port).await?;
            Ok(Box::new(TlsConnector::from(Arc::new(config)).connect(name, stream).await?))
        }
        ConnectionAddr::Unix(path) => Ok(Box::new(UnixStream::connect(path).await?)),
        _ => Err((ErrorKind::InvalidClientConfig, "there is no such connection").into()),
    }
}

/// A stream that is to be given back. One at a time uses it, so nobody waits for the lock.
struct Lent(Arc<Mutex<Box<dyn Stream>>>);

impl AsyncRead for Lent {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.lock()).poll_read(context, buffer)
    }
}

impl AsyncWrite for Lent {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0.lock()).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.lock()).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.lock()).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_resp() {
        let mut commands = Vec::new();
        begin(&mut commands, 3);
        for part in ["PFADD", "key", "1234567890"] {
            word(&mut commands, part.as_bytes());
        }
        assert_eq!(commands, b"*3\r\n$5\r\nPFADD\r\n$3\r\nkey\r\n$10\r\n1234567890\r\n");
    }

    #[test]
    fn replies_are_read_as_they_come() {
        let read = |bytes: &[u8]| first_reply(bytes).unwrap();
        assert_eq!(read(b":1\r\n:0\r\n"), Some((Ok(1), 4)));
        assert_eq!(read(b":18446744073709551615\r\n"), Some((Ok(u64::MAX), 23)));
        assert_eq!(read(b"+OK\r\n"), Some((Ok(0), 5)));
        for part in [&b""[..], b":", b":12", b":12\r", b"-ERR no"] {
            assert_eq!(read(part), None, "{part:?}");
        }
        let refusal = b"-READONLY You can't write against a read only replica.\r\n:1\r\n";
        let Some((Err(error), 56)) = read(refusal) else { panic!("{:?}", read(refusal)) };
        assert_eq!(error.kind(), Some(::redis::ServerErrorKind::ReadOnly));
    }

    #[test]
    fn what_is_no_reply_to_a_write_is_an_error() {
        for bytes in [
            &b"$3\r\nabc\r\n"[..],
            b":\r\n",
            b":-1\r\n",
            b":1 \r\n",
            b":18446744073709551616\r\n",
            b"\r\n",
            b"_\r\n",
        ] {
            assert!(first_reply(bytes).is_err(), "{bytes:?}");
        }
    }
}
