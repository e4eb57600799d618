//! Signals: a request to stop in order, and a request to stop at once.
//!
//! Service managers send SIGTERM, Ctrl-C sends SIGINT, and a terminal that is closed sends SIGHUP. All three ask the service to
//! stop in order. (On SIGHUP it does not read its configuration again; it reads secrets in files again when they are refused.) A
//! process that was started to ignore SIGHUP, as by `nohup`, goes on ignoring it.
//!
//! A tool such as GNU `timeout`, a shell or a supervisor may signal both a process and its group, so that one request comes
//! twice. Signals within [`SAME_REQUEST`] of the first are that same request. A later one means: at once.

use std::io;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// A signal within this time of the first one is the same request to stop.
const SAME_REQUEST: Duration = Duration::from_secs(1);

/// The signals that ask a service to stop.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    /// None if the process was started to ignore it.
    hang_up: Option<Signal>,
}

impl Signals {
    /// From now on these signals do not end the process.
    pub(super) fn new() -> io::Result<Self> {
        let hang_up = (!ignores_hang_up()).then(|| signal(SignalKind::hangup())).transpose()?;
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up,
        })
    }

    /// Cancels `stop` at the first signal. Returns at a signal that comes more than [`SAME_REQUEST`] after it.
    pub(super) async fn hurry(mut self, stop: CancellationToken) {
        self.next().await;
        stop.cancel();
        let first = Instant::now();
        loop {
            self.next().await;
            if first.elapsed() > SAME_REQUEST {
                return;
            }
        }
    }

    async fn next(&mut self) {
        let Self { terminate, interrupt, hang_up } = self;
        let hung_up = async {
            match hang_up {
                Some(hang_up) => hang_up.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = hung_up => {}
        }
    }
}

/// Whether SIGHUP was ignored when the process was started. Linux says so in a file; elsewhere only unsafe code could ask.
fn ignores_hang_up() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default();
    let bit = SignalKind::hangup().as_raw_value() - 1;
    ignored & (1 << bit) != 0
}
