//! A watch over a connection: it ends the connection when the client is too slow.
//!
//! The server waits for a client in three situations: for the next request, for the rest of a head, and for the client
//! to read an answer. Each has its own time-out. A single one would be too short for an idle connection, or too long for
//! the others. hyper has one timer, from an answer to the end of the next head, and none for writing.
//!
//! So a connection is in one of four stages. In two of them the server waits for the client, and a time-out runs. In the
//! others the server works. A bulk body is read then, and `routes::bulk` has its own deadline.
//!
//! | stage | from | until the next | time-out |
//! | --- | --- | --- | --- |
//! | idle | the connection's start, or a sent answer | first byte | idle |
//! | head | the first byte | complete head | header |
//! | serving | the complete head | complete answer | |
//! | answering | the complete answer | sent answer | write |
//!
//! The write time-out runs in every stage while the client reads nothing. It restarts whenever the client reads a byte.
//!
//! The watch sees the stages from outside hyper. The stream notes when bytes come and go. The service notes when hyper
//! calls it and when it has an answer. The first bytes of the next head may arrive together with a request. The watch
//! does not see these: the header time-out starts with a later byte, and until then the idle time-out runs.
//!
//! **There is no timer for each request.** To move a timer takes a lock that all connections share. So a connection has
//! one alarm, and each poll moves it only if the deadline is now earlier. That is rare, because the idle time-out, which
//! follows an answer, is the longest. An alarm that fires too early is set to the current deadline. A request costs two
//! readings of the clock.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use hyper::body::{Frame, Incoming, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until};

use crate::http::settings::Settings;

/// Stands for "none" in place of a time.
const NEVER: u64 = u64::MAX;

#[derive(Debug, Clone, Copy)]
pub(super) struct Timeouts {
    idle: Duration,
    header: Duration,
    write: Duration,
}

impl Timeouts {
    pub(super) fn new(limits: &Settings) -> Self {
        Self { idle: limits.idle_timeout, header: limits.header_read_timeout, write: limits.write_timeout }
    }
}

/// What the client was too slow to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Late {
    /// Send the next request.
    Idle,
    /// Send the rest of a head.
    Header,
    /// Read an answer.
    Write,
}

impl Late {
    /// In the order of their numbers: `late as usize` is an index.
    pub(super) const ALL: [Self; 3] = [Self::Idle, Self::Header, Self::Write];

    /// The name in metrics.
    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Header => "header",
            Self::Write => "write",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Stage {
    Idle,
    Head,
    Serving,
    Answering,
}

/// The state of a connection. Only one task uses it. The fields are atomics because the task may move between threads;
/// their order does not matter, so `Relaxed` is enough.
#[derive(Debug)]
pub(super) struct Watch {
    timeouts: Timeouts,
    opened: Instant,
    stage: AtomicU8,
    /// When the stage idle or head began, in nanoseconds after `opened`, as all times here.
    since: AtomicU64,
    /// Since when the client has not read what is ready for it, or [`NEVER`].
    stuck: AtomicU64,
    /// The end of the last request's body has not been read.
    body_is_left: AtomicBool,
}

impl Watch {
    /// A watch over a connection that opens now.
    pub(super) fn new(timeouts: Timeouts) -> Arc<Self> {
        Arc::new(Self {
            timeouts,
            opened: Instant::now(),
            stage: AtomicU8::new(Stage::Idle as u8),
            since: AtomicU64::new(0),
            stuck: AtomicU64::new(NEVER),
            body_is_left: AtomicBool::new(false),
        })
    }

    /// Notes that a request has arrived. Returns its body, which the watch sees too.
    pub(super) fn called(self: &Arc<Self>, body: Incoming) -> Body {
        self.enter(Stage::Serving);
        let has_body = !body.is_end_stream();
        self.body_is_left.store(has_body, Ordering::Relaxed);
        if has_body {
            Body::new(WatchedBody { body, watch: Arc::clone(self), is_broken: false })
        } else {
            Body::empty()
        }
    }

    /// Notes that its answer is complete.
    pub(super) fn answered(&self) {
        self.enter(Stage::Answering);
    }

    /// Whether the client may still be sending the body of the last request.
    pub(super) fn body_is_left(&self) -> bool {
        self.body_is_left.load(Ordering::Relaxed)
    }

    /// Drives the connection until it ends or the client is too slow.
    pub(super) async fn over<C: Future + Unpin>(&self, connection: &mut C) -> Result<C::Output, Late> {
        let mut alarm = pin!(sleep_until(self.opened));
        let mut set_for = None;
        poll_fn(|context| {
            if let Poll::Ready(ended) = Pin::new(&mut *connection).poll(context) {
                return Poll::Ready(Ok(ended));
            }
            while let Some((deadline, late)) = self.deadline() {
                if set_for.is_none_or(|set_for| deadline < set_for) {
                    alarm.as_mut().reset(self.opened + deadline);
                    set_for = Some(deadline);
                }
                ready!(alarm.as_mut().poll(context));
                if set_for == Some(deadline) {
                    return Poll::Ready(Err(late));
                }
                // The client met that deadline. Now set the alarm for the next.
                set_for = None;
            }
            Poll::Pending
        })
        .await
    }

    /// The next deadline of the client, after `opened`, and what it is for. None while the server works.
    fn deadline(&self) -> Option<(Duration, Late)> {
        let stuck = self.stuck.load(Ordering::Relaxed);
        let (since, timeout, late) = if stuck == NEVER {
            let since = self.since.load(Ordering::Relaxed);
            if self.is_at(Stage::Idle) {
                (since, self.timeouts.idle, Late::Idle)
            } else if self.is_at(Stage::Head) {
                (since, self.timeouts.header, Late::Header)
            } else {
                return None;
            }
        } else {
            (stuck, self.timeouts.write, Late::Write)
        };
        Some((Duration::from_nanos(since) + timeout, late))
    }

    fn received(&self) {
        if self.is_at(Stage::Idle) {
            self.since.store(self.now(), Ordering::Relaxed);
            self.enter(Stage::Head);
        }
    }

    fn wrote(&self, written: &Poll<io::Result<usize>>) {
        match written {
            Poll::Pending if self.is_stuck() => {}
            Poll::Pending => self.stuck.store(self.now(), Ordering::Relaxed),
            Poll::Ready(_) => self.stuck.store(NEVER, Ordering::Relaxed),
        }
    }

    /// hyper flushes when it has written everything.
    fn flushed(&self) {
        if self.is_at(Stage::Answering) {
            self.since.store(self.now(), Ordering::Relaxed);
            self.enter(Stage::Idle);
        }
    }

    fn enter(&self, stage: Stage) {
        self.stage.store(stage as u8, Ordering::Relaxed);
    }

    fn is_at(&self, stage: Stage) -> bool {
        self.stage.load(Ordering::Relaxed) == stage as u8
    }

    fn is_stuck(&self) -> bool {
        self.stuck.load(Ordering::Relaxed) != NEVER
    }

    fn now(&self) -> u64 {
        // Enough for 500 years.
        self.opened.elapsed().as_nanos() as u64
    }
}

/// The body of a request. It tells the connection's watch when it ends.
struct WatchedBody {
    body: Incoming,
    watch: Arc<Watch>,
    /// The body failed: the connection may still carry the rest of it.
    is_broken: bool,
}

impl HttpBody for WatchedBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        match frame {
            Some(Ok(_)) => {}
            Some(Err(_)) => self.is_broken = true,
            None => self.watch.body_is_left.store(self.is_broken, Ordering::Relaxed),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A connection's stream. It tells the watch when bytes come and go.
#[derive(Debug)]
pub(super) struct WatchedStream {
    stream: TcpStream,
    watch: Arc<Watch>,
}

impl WatchedStream {
    pub(super) fn new(stream: TcpStream, watch: Arc<Watch>) -> Self {
        Self { stream, watch }
    }
}

impl Drop for WatchedStream {
    fn drop(&mut self) {
        if self.watch.is_stuck() {
            // Otherwise the kernel would keep the unread answer, up to megabytes, for minutes.
            let _ = self.stream.set_zero_linger();
        }
    }
}

impl AsyncRead for WatchedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() > before {
            self.watch.received();
        }
        read
    }
}

impl AsyncWrite for WatchedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watch.wrote(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, bytes);
        self.watch.wrote(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(context))?;
        self.watch.flushed();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
