//! A watch over a connection: it ends the connection when the client does not do its part.
//!
//! A client owes the server three things: the next request, for which connections are kept open; the rest of a head once it has
//! begun, which is a few packets; and to take the answer. Each has a time-out of its own, because one for all would be too short
//! for the first or too long for the others. hyper has one timer, from an answer to the end of the next head, and none for
//! writing.
//!
//! So a connection is in one of four stages. Two belong to the client and have an end. In the others the server is at work. What
//! waits for the client there, the body of a bulk request, has a deadline where it is read.
//!
//! | stage | from | until the next | time-out |
//! | --- | --- | --- | --- |
//! | idle | the connection's start, or an answer that went out | first byte | idle |
//! | head | the first byte | whole head | header |
//! | serving | the whole head | answer that is made | |
//! | answering | the answer that is made | answer that went out | write |
//!
//! The time-out for writing begins anew with every byte that the client takes. It runs only while the client takes nothing, and
//! in every stage.
//!
//! The watch sees the stages from outside of hyper: a stream notes when bytes come and go, and the service notes when it is
//! called and when it has an answer. Bytes of the next head that came together with a request are not seen as such. That head is
//! late only when a further byte of it has come, or when the connection has been idle for too long.
//!
//! **There is no timer for each request.** To move one takes a lock that all connections share. A connection has one alarm.
//! After each turn of the connection the alarm is moved only if the deadline is now before it. That is rare, because what follows
//! an answer is the longest time-out. An alarm that goes off too early is set to the deadline of that moment. A request costs two
//! looks at the clock.

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

/// Stands for "not now" where there is a moment otherwise.
const NEVER: u64 = u64::MAX;

/// How long a client may take.
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

/// For what the client took too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Late {
    /// The next request.
    Idle,
    /// The rest of a head.
    Header,
    /// Taking an answer.
    Write,
}

impl Late {
    /// One of each, in their order.
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

/// What is known of a connection. One task alone reads and writes it: the atomics are there because the
/// task may go from one thread to another, and order nothing.
#[derive(Debug)]
pub(super) struct Watch {
    timeouts: Timeouts,
    opened: Instant,
    stage: AtomicU8,
    /// Since when it is idle, or a head is coming: nanoseconds after `opened`, as all moments here.
    since: AtomicU64,
    /// Since when the client takes nothing of what there is for it, or [`NEVER`].
    stuck: AtomicU64,
    /// The last request has a body whose end nobody has seen.
    body_is_left: AtomicBool,
}

impl Watch {
    /// Over a connection that opens now.
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

    /// A request has come, and is being served. Returns its body, which is watched too.
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

    /// Its answer is made, all of it.
    pub(super) fn answered(&self) {
        self.enter(Stage::Answering);
    }

    /// Whether the client may still be sending the body of the last request.
    pub(super) fn body_is_left(&self) -> bool {
        self.body_is_left.load(Ordering::Relaxed)
    }

    /// Drives the connection, to its end or to the moment when the client is late.
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
                // It was set for a deadline that has been met since.
                set_for = None;
            }
            Poll::Pending
        })
        .await
    }

    /// When the client is late next, after `opened`, and for what. None while it is the server's turn.
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

    /// hyper flushes when all that it had is written.
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

/// The body of a request, which tells the connection's watch when it is at its end.
struct WatchedBody {
    body: Incoming,
    watch: Arc<Watch>,
    /// What comes after this is no body.
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

/// A connection's stream, which tells its watch what comes and goes.
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
            // Else the kernel would keep what the client does not take, up to megabytes, for minutes.
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
