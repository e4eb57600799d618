//! A connection for many short writes at a time: bytes out, numbers in.
//!
//! redis-rs's connection has a task of its own, which takes commands from a queue and returns replies through channels. It also
//! has a parser for all that Redis can answer. For each id of each request, that costs more than Redis itself. Here one sender
//! uses the socket at a time, the commands are bytes already, and a reply is a number or an error.
//!
//! redis-rs does the handshake: user, database, protocol, and what an old server does not know. It gets the stream only until
//! the handshake is done.
//!
//! The protocol is RESP (<https://redis.io/docs/latest/develop/reference/protocol-spec/>). A command is `*` and the number of its
//! words. Each word follows as `$`, its length, and its bytes. CR LF ends each part. `:` begins a number, `+` a status, `-` an
//! error.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use ::redis::aio::MultiplexedConnection;
use ::redis::{ConnectionAddr, ErrorKind, RedisError, RedisResult, ServerError, Value};
use parking_lot::Mutex;
use rustls::pki_types::ServerName;
use smallvec::SmallVec;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Mutex as AsyncMutex;
use tokio_rustls::TlsConnector;

use super::node::{Connection, Node, run_of};
use super::patience::in_time;
use crate::platform::tls;

/// The buffer for replies, in bytes: it holds two thousand.
const READ_AT_A_TIME: usize = 8 * 1024;
/// The largest buffer of commands that is recycled, in bytes.
const LARGEST_BUFFER_KEPT: usize = 256 * 1024;

/// A reply to each command, in order: a number, or the server's error. A status is 0. Up to eight need no allocation.
pub type Replies = SmallVec<[Result<u64, ServerError>; 8]>;

/// Commands in the form that is sent, one after the other.
#[derive(Default)]
pub struct Commands {
    bytes: Vec<u8>,
    count: usize,
}

impl Commands {
    /// Appends the head of a command with so many words. [`Commands::word`] appends each.
    pub fn begin(&mut self, words: usize) {
        self.prefixed(b'*', words);
        self.count += 1;
    }

    /// Appends a word to the last command.
    pub fn word(&mut self, word: &[u8]) {
        self.prefixed(b'$', word.len());
        self.bytes.extend_from_slice(word);
        self.bytes.extend_from_slice(b"\r\n");
    }

    /// Appends a whole command.
    pub fn add(&mut self, words: &[&[u8]]) {
        self.begin(words.len());
        for word in words {
            self.word(word);
        }
    }

    /// The commands at these places, in ascending order, each after `before`.
    pub(super) fn some(&self, places: &[usize], before: Option<&[u8]>) -> Self {
        let mut some = Self::default();
        let (mut rest, mut place) = (&self.bytes[..], 0);
        for wanted in places {
            while place < *wanted {
                rest = &rest[first_command(rest).len()..];
                place += 1;
            }
            if let Some(before) = before {
                some.add(&[before]);
            }
            let command = first_command(rest);
            some.bytes.extend_from_slice(command);
            some.count += 1;
            (rest, place) = (&rest[command.len()..], place + 1);
        }
        some
    }

    fn prefixed(&mut self, prefix: u8, number: usize) {
        self.bytes.push(prefix);
        self.bytes.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
        self.bytes.extend_from_slice(b"\r\n");
    }

    /// An empty list with the same buffer, unless the buffer is larger than most lists need.
    pub fn recycled(mut self) -> Self {
        if self.bytes.capacity() > LARGEST_BUFFER_KEPT {
            return Self::default();
        }
        self.bytes.clear();
        Self { bytes: self.bytes, count: 0 }
    }
}

/// The first of some commands, which were made by [`Commands`].
fn first_command(commands: &[u8]) -> &[u8] {
    // The line after this byte, as a number, and where the next line begins.
    let line = |at: usize| {
        let end = at + commands[at..].iter().position(|byte| *byte == b'\r').unwrap_or_default();
        (number(&commands[at + 1..end]).unwrap_or_default() as usize, end + 2)
    };
    let (words, mut at) = line(0);
    for _ in 0..words {
        let (length, word) = line(at);
        at = word + length + 2;
    }
    &commands[..at]
}

/// A connection that one caller uses at a time. Clones share it.
#[derive(Clone)]
pub(super) struct Wire(Arc<AsyncMutex<Option<Socket>>>);

struct Socket {
    stream: Box<dyn Stream>,
    /// Received bytes that are no whole reply yet.
    received: Vec<u8>,
}

impl Wire {
    /// Sends commands, and waits for as many replies.
    pub(super) async fn exchange(&self, commands: &Commands) -> RedisResult<Replies> {
        let mut place = self.0.lock().await;
        // A caller that gives up during the exchange leaves the place empty. Otherwise the next caller would read replies
        // to commands that it did not send.
        let mut socket = place.take().ok_or_else(|| io::Error::from(io::ErrorKind::ConnectionAborted))?;
        let replies = socket.exchange(commands).await?;
        *place = Some(socket);
        Ok(replies)
    }
}

impl Connection for Wire {
    async fn open(to: &Node) -> RedisResult<(Self, Option<String>)> {
        let client = to.client().await?;
        let info = client.get_connection_info();
        let introduced = in_time(async {
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
        // redis-rs's connection and its driver are dropped, so this is the last reference to the stream.
        let stream = Arc::into_inner(stream).ok_or((ErrorKind::Client, "the stream was not given back"))?;
        let socket = Socket { stream: stream.into_inner(), received: Vec::with_capacity(READ_AT_A_TIME) };
        Ok((Self(Arc::new(AsyncMutex::new(Some(socket)))), run))
    }
}

impl Socket {
    async fn exchange(&mut self, commands: &Commands) -> RedisResult<Replies> {
        self.stream.write_all(&commands.bytes).await?;
        self.stream.flush().await?;
        let mut replies = Replies::with_capacity(commands.count);
        let mut read = 0;
        while replies.len() < commands.count {
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
            // More replies than commands: it is unknown which reply belongs to which command.
            return Err(unexpected());
        }
        Ok(replies)
    }
}

/// The first reply and its length in bytes, if the whole of it was received.
fn first_reply(received: &[u8]) -> RedisResult<Option<(Result<u64, ServerError>, usize)>> {
    let Some(end) = received.iter().position(|byte| *byte == b'\n') else { return Ok(None) };
    let line = &received[..=end];
    let reply = match line {
        [b':', digits @ .., b'\r', b'\n'] => Ok(number(digits).ok_or_else(unexpected)?),
        [b'+', ..] => Ok(0),
        [b'-', ..] => match ::redis::parse_redis_value(line)? {
            Value::ServerError(error) => Err(error),
            _ => return Err(unexpected()),
        },
        _ => return Err(unexpected()),
    };
    Ok(Some((reply, line.len())))
}

fn number(digits: &[u8]) -> Option<u64> {
    str::from_utf8(digits).ok()?.parse().ok()
}

fn unexpected() -> RedisError {
    (ErrorKind::Parse, "the answer to a write is no number").into()
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
        // A URL may ask to skip the check of certificates. This build of redis-rs does not support that.
        ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None } => {
            let (config, _) = tls::client_config()?;
            let name = ServerName::try_from(host.clone())?;
            let stream = tcp(host, *port).await?;
            Ok(Box::new(TlsConnector::from(Arc::new(config)).connect(name, stream).await?))
        }
        ConnectionAddr::Unix(path) => Ok(Box::new(UnixStream::connect(path).await?)),
        _ => Err((ErrorKind::InvalidClientConfig, "this kind of address is not supported").into()),
    }
}

/// A stream that its owner gets back. Only one of them uses it at a time, so no caller waits for the lock.
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
        let mut commands = Commands::default();
        commands.add(&[b"PFADD", b"key", b"1234567890"]);
        assert_eq!(commands.count, 1);
        assert_eq!(commands.bytes, b"*3\r\n$5\r\nPFADD\r\n$3\r\nkey\r\n$10\r\n1234567890\r\n");
    }

    #[test]
    fn some_commands_are_taken_out_of_many() {
        let mut commands = Commands::default();
        for word in ["", "a\r\n*1\r\n", "b", "1234567890123"] {
            commands.add(&[b"SADD", word.as_bytes(), b"x"]);
        }
        let mut expected = Commands::default();
        expected.add(&[b"ASKING"]);
        expected.add(&[b"SADD", b"a\r\n*1\r\n", b"x"]);
        expected.add(&[b"ASKING"]);
        expected.add(&[b"SADD", b"1234567890123", b"x"]);
        let some = commands.some(&[1, 3], Some(b"ASKING"));
        assert_eq!((some.count, some.bytes), (expected.count, expected.bytes));
        let all = commands.some(&[0, 1, 2, 3], None);
        assert_eq!((all.count, all.bytes), (commands.count, commands.bytes));
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
