//! The server: accepts connections, serves them, and closes them when the service stops.
//!
//! Our own accept loop drives hyper's HTTP/1 connections. Ready-made servers lack three things that we need: time-outs
//! for each stage, a 503 beyond the limits of connections, and a drain with a deadline. The server does not speak HTTP/2:
//! a load balancer can.

mod addresses;
pub(super) mod late;
mod timeouts;

use std::convert::Infallible;
use std::error::Error as _;
use std::io;
use std::net::Ipv6Addr;
use std::sync::Arc;
use std::time::Duration;

use ::metrics::{Counter, Gauge};
use axum::body::Body;
use axum::extract::Request;
use axum::http::header::{HOST, TRANSFER_ENCODING};
use axum::http::{HeaderMap, Version};
use axum::response::IntoResponse;
use hyper::body::Incoming;
use hyper::server::conn::http1::{self, Parts};
use hyper::service::{HttpService, service_fn};
use hyper_util::rt::TokioIo;
use memchr::memchr;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;
use tracing::{debug, warn};

use self::addresses::{AddressPermit, Addresses};
use self::late::LateRouter;
use self::timeouts::{Late, Timeouts, Watch, WatchedStream};
use super::error::Failure;
use super::routes::bulk;
use super::routes::ops::LIVEZ;
use super::settings::Settings;
use crate::platform::workers::Workers;
use crate::telemetry::metrics::Metrics;

/// Pause after an accept failed, for example without free descriptors. Some may be free again then.
const ACCEPT_RETRY_AFTER: Duration = Duration::from_millis(100);
/// The longest head of a request, in bytes, and the most that a connection reads at a time. Clients that never finish
/// their heads can fill this much memory on every connection. So it is far below hyper's default.
const LONGEST_HEAD: usize = 32 * 1024;
/// Connections beyond each limit that get a 503 at a time. The server closes any more without an answer.
const REFUSALS: usize = 64;
/// Deadline of a connection that gets a 503.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);

/// The reasons to refuse a request before any route sees it.
const REFUSED_HEADS: [Failure; 3] =
    [Failure::InvalidHost, Failure::UnsupportedTransferEncoding, Failure::InvalidBody { line: None }];
/// Input that hyper refuses with 400.
const NO_HTTP: &[u8] = b"?";

/// When a server stops.
#[derive(Clone, Default)]
pub struct Stop {
    /// Accept no more connections, and finish the requests that have begun.
    pub drain: CancellationToken,
    /// Close all connections now.
    pub abort: CancellationToken,
}

/// Serves connections on `workers` until `stop.drain`. Returns when all are closed.
pub async fn serve(
    listener: TcpListener,
    router: impl Into<LateRouter>,
    limits: &Settings,
    metrics: Arc<Metrics>,
    workers: Arc<Workers>,
    stop: Stop,
) {
    let timed_out = Late::ALL.map(|late| metrics.connections_timed_out(late.reason()));
    let server = Server {
        router: router.into(),
        http: http(limits),
        timeouts: Timeouts::new(limits),
        timed_out: Arc::new(timed_out),
        refused: metrics.requests("other", Failure::Overloaded.reason()),
        refused_heads: Arc::new(
            REFUSED_HEADS.map(|failure| (failure, metrics.requests("other", failure.reason()))),
        ),
        metrics,
        workers,
        stop,
        connections: TaskTracker::new(),
        refusals: Arc::new(Semaphore::new(REFUSALS)),
        address_refusals: Arc::new(Semaphore::new(REFUSALS)),
    };
    let room = Arc::new(Semaphore::new(limits.max_connections as usize));
    let addresses = Addresses::new(limits.max_connections_per_address);
    let mut failing = false;
    loop {
        let accepted = tokio::select! {
            // In this order: a connection accepted during the drain would only be closed.
            biased;
            () = server.stop.drain.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                if !failing {
                    warn!(%error, "accepting connections fails, trying again");
                }
                failing = true;
                tokio::time::sleep(ACCEPT_RETRY_AFTER).await;
                continue;
            }
        };
        failing = false;
        let permit = Arc::clone(&room).try_acquire_owned().ok();
        match (permit, addresses.permit_for(peer.ip())) {
            (Some(permit), Some(of_address)) => {
                server.spawn_connection(stream, server.admit(permit, of_address));
            }
            (None, Some(_)) => server.spawn_refusal(stream, &server.refusals),
            (_, None) => server.spawn_refusal(stream, &server.address_refusals),
        }
    }
    // Closed before the wait: the kernel refuses new connections, and their clients try another instance.
    drop(listener);
    server.connections.close();
    server.connections.wait().await;
}

fn http(limits: &Settings) -> http1::Builder {
    let mut http = http1::Builder::new();
    // The watch has the time-outs.
    http.header_read_timeout(None)
        .max_buf_size(LONGEST_HEAD)
        .writev(false)
        .keep_alive(limits.keep_alive)
        // A client that has closed its sending side may still read answers. If it does not, the watch ends it.
        .half_close(true);
    http
}

/// Refuses heads that another server could read as a different request, before any route sees them.
///
/// # Errors
///
/// One of [`REFUSED_HEADS`].
fn check_head<B>(request: &Request<B>) -> Result<(), Failure> {
    if host_is_sound(request) { check_transfer(request.headers()) } else { Err(Failure::InvalidHost) }
}

/// Whether a request has one valid `host`, as HTTP/1.1 demands (RFC 9112, 3.2). Proxies and servers may disagree on a
/// request with two or none. Attackers exploit that.
fn host_is_sound<B>(request: &Request<B>) -> bool {
    let mut hosts = request.headers().get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, _) => request.version() < Version::HTTP_11,
        (Some(host), None) => is_host(host.as_bytes()),
        (Some(_), Some(_)) => false,
    }
}

/// Whether it is a name or an address, with or without a port (RFC 9112, 3.2; RFC 3986, 3.2.2 and 3.2.3). Name and port
/// may be empty.
fn is_host(value: &[u8]) -> bool {
    let (is_sound, port) = if let Some(value) = value.strip_prefix(b"[") {
        let Some(end) = memchr(b']', value) else { return false };
        (is_ip_literal(&value[..end]), &value[end + 1..])
    } else {
        let end = memchr(b':', value).unwrap_or(value.len());
        (is_name(&value[..end]), &value[end..])
    };
    is_sound && matches!(port, [] | [b':', ..]) && port.iter().skip(1).all(u8::is_ascii_digit)
}

fn is_name(mut rest: &[u8]) -> bool {
    loop {
        rest = match rest {
            [] => return true,
            [b'%', high, low, rest @ ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => rest,
            [byte, rest @ ..] if is_of_name(*byte) => rest,
            _ => return false,
        }
    }
}

/// Whether it may stand in brackets: an IPv6 address, or an address of a future version.
fn is_ip_literal(literal: &[u8]) -> bool {
    let Some(future) = literal.strip_prefix(b"v").or_else(|| literal.strip_prefix(b"V")) else {
        return str::from_utf8(literal).is_ok_and(|literal| literal.parse::<Ipv6Addr>().is_ok());
    };
    let Some(dot) = memchr(b'.', future) else { return false };
    let (version, address) = (&future[..dot], &future[dot + 1..]);
    let is_of_address = |byte: &u8| *byte == b':' || is_of_name(*byte);
    !version.is_empty()
        && version.iter().all(u8::is_ascii_hexdigit)
        && !address.is_empty()
        && address.iter().all(is_of_address)
}

/// Whether a name may have it unescaped.
fn is_of_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=".contains(&byte)
}

/// Checks that the only transfer coding is `chunked`, at most once (RFC 9112, 6.1 and 7). hyper only checks that it is
/// the last one.
fn check_transfer(headers: &HeaderMap) -> Result<(), Failure> {
    let lines = headers.get_all(TRANSFER_ENCODING).iter();
    let codings = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
    let mut times = 0;
    for coding in codings.map(<[u8]>::trim_ascii).filter(|coding| !coding.is_empty()) {
        if !coding.eq_ignore_ascii_case(b"chunked") {
            return Err(Failure::UnsupportedTransferEncoding);
        }
        times += 1;
    }
    if times > 1 { Err(Failure::InvalidBody { line: None }) } else { Ok(()) }
}

/// Ends a connection after hyper is done with it: answers HTTP/2, and reads for a while what the client still sends.
///
/// Without that the kernel would reset the connection. A client that sends everything before it reads would lose the
/// answer.
async fn see_off<S>(
    http: &http1::Builder,
    watch: &Watch,
    served: &Result<(), hyper::Error>,
    parts: Parts<TokioIo<WatchedStream>, S>,
) where
    S: HttpService<Incoming, ResBody = Body, Error = Infallible>,
{
    if !watch.body_is_left() && !served.as_ref().is_err_and(hyper::Error::is_parse) {
        return;
    }
    let (most, time) = bulk::LINGER;
    let _ = tokio::time::timeout(time, async {
        let mut stream = parts.io.into_inner();
        if served.as_ref().is_err_and(hyper::Error::is_parse_version_h2) {
            // hyper does not answer the preface of HTTP/2 (RFC 9113, 3.4). It answers other invalid input with 400.
            let other = TokioIo::new(tokio::io::join(NO_HTTP, stream));
            let mut connection = http.serve_connection(other, parts.service);
            let _ = (&mut connection).await;
            (_, stream) = connection.into_parts().io.into_inner().into_inner();
        }
        let _ = tokio::io::copy(&mut stream.take(most as u64), &mut tokio::io::sink()).await;
    })
    .await;
}

/// Whether the kernel noticed before the watch that the client reads nothing. The kernel's time-out is the same.
fn took_nothing(error: &hyper::Error) -> bool {
    let error = error.source().and_then(|source| source.downcast_ref::<io::Error>());
    error.is_some_and(|error| error.kind() == io::ErrorKind::TimedOut)
}

/// A connection's permits and its part of the gauge. Dropping it returns them.
struct Admission {
    _permit: OwnedSemaphorePermit,
    _of_address: AddressPermit,
    gauge: Gauge,
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.gauge.decrement(1.0);
    }
}

struct Server {
    router: LateRouter,
    http: http1::Builder,
    timeouts: Timeouts,
    /// In the order of [`Late::ALL`].
    timed_out: Arc<[Counter; 3]>,
    refused: Counter,
    refused_heads: Arc<[(Failure, Counter); REFUSED_HEADS.len()]>,
    metrics: Arc<Metrics>,
    workers: Arc<Workers>,
    stop: Stop,
    connections: TaskTracker,
    refusals: Arc<Semaphore>,
    /// Separate, so that an address beyond its limit cannot keep probes of other addresses from `/livez`.
    address_refusals: Arc<Semaphore>,
}

impl Server {
    fn admit(&self, permit: OwnedSemaphorePermit, of_address: AddressPermit) -> Admission {
        let gauge = self.metrics.connections.clone();
        gauge.increment(1.0);
        Admission { _permit: permit, _of_address: of_address, gauge }
    }

    fn spawn_connection(&self, stream: TcpStream, admission: Admission) {
        // Answers are small: Nagle's algorithm would only delay them.
        let _ = stream.set_nodelay(true);
        let watch = Watch::new(self.timeouts);
        let (router, of_service) = (self.router.clone(), Arc::clone(&watch));
        let refused = Arc::clone(&self.refused_heads);
        let service = service_fn(move |request: Request<Incoming>| {
            let (router, watch) = (router.clone(), Arc::clone(&of_service));
            let checked = check_head(&request);
            if let Err(refusal) = checked
                && let Some((_, counter)) = refused.iter().find(|(failure, _)| *failure == refusal)
            {
                counter.increment(1);
            }
            let request = request.map(|body| watch.called(body));
            async move {
                let answer = match checked {
                    Ok(()) => router.now().oneshot(request).await,
                    Err(failure) => Ok(failure.into_response()),
                };
                watch.answered();
                answer
            }
        });
        let (http, timed_out) = (self.http.clone(), Arc::clone(&self.timed_out));
        // A child token, because every poll checks it: connections that share one token would share its lock.
        let (drain, abort) = (self.stop.drain.child_token(), self.stop.abort.clone());
        // Unregistered from this runtime: the worker registers it with its own.
        let Ok(stream) = stream.into_std() else { return };
        let serve = |seat| async move {
            let _seat = seat;
            let Ok(stream) = TcpStream::from_std(stream) else { return };
            let stream = WatchedStream::new(stream, Arc::clone(&watch));
            let mut connection = http.serve_connection(TokioIo::new(stream), service);
            let served = tokio::select! {
                // In this order: a request that has arrived is served before the drain starts.
                biased;
                served = watch.over(&mut connection) => served,
                () = drain.cancelled() => {
                    std::pin::Pin::new(&mut connection).graceful_shutdown();
                    tokio::select! {
                        served = watch.over(&mut connection) => served,
                        () = abort.cancelled() => Ok(Ok(())),
                    }
                }
            };
            if let Ok(served) = &served {
                // Boxed: otherwise every connection's future would reserve memory for it.
                let see_off = Box::pin(see_off(&http, &watch, served, connection.into_parts()));
                tokio::select! {
                    () = see_off => {}
                    () = abort.cancelled() => {}
                }
            }
            drop(admission);
            let late = match served {
                Ok(Ok(())) => return,
                Ok(Err(error)) if took_nothing(&error) => Late::Write,
                Ok(Err(error)) => return debug!(%error, "a connection ended early"),
                Err(late) => late,
            };
            debug!(reason = late.reason(), "a connection timed out");
            timed_out[late as usize].increment(1);
        };
        self.workers.spawn_connection(|seat| self.connections.track_future(serve(seat)));
    }

    /// Answers the first request of a connection beyond a limit with 503. It still serves `/livez`: an orchestrator
    /// should not restart an instance because it is full.
    fn spawn_refusal(&self, stream: TcpStream, refusals: &Arc<Semaphore>) {
        self.refused.increment(1);
        let Ok(permit) = Arc::clone(refusals).try_acquire_owned() else { return };
        let watch = Watch::new(self.timeouts);
        let (router, of_service) = (self.router.clone(), Arc::clone(&watch));
        let service = service_fn(move |request: Request<Incoming>| {
            let router = router.clone();
            let request = request.map(|body| of_service.called(body));
            async move {
                match request.uri().path() {
                    LIVEZ => router.now().oneshot(request).await,
                    _ => Ok(Failure::Overloaded.into_response()),
                }
            }
        });
        let mut http = self.http.clone();
        http.keep_alive(false);
        self.connections.spawn(async move {
            let _ = tokio::time::timeout(REFUSAL_TIMEOUT, async {
                let stream = WatchedStream::new(stream, Arc::clone(&watch));
                let mut connection = http.serve_connection(TokioIo::new(stream), service);
                let served = (&mut connection).await;
                see_off(&http, &watch, &served, connection.into_parts()).await;
            })
            .await;
            drop(permit);
        });
    }
}
