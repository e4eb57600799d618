//! Signals: the wish to stop, and the wish to stop now.
//!
//! SIGTERM is what service managers send, SIGINT is Ctrl-C, and SIGHUP is what a terminal sends when it is closed.
//! All three ask the service to stop in order. (It reads no configuration again on SIGHUP; secrets in files are read
//! again when they are refused.)
//!
//! A tool such as GNU `timeout`, a shell or a supervisor may signal both a process and its group, so that one wish
//! comes twice. What comes within [`SAME_WISH`] of the first is that same wish; what comes later means: at once.

use std::io;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Signals that come so soon after the first one say nothing new.
pub const SAME_WISH: Duration = Duration::from_secs(1);

/// The signals that ask a service to stop.
pub struct Signals([Signal; 3]);

impl Signals {
    /// From here on they do not end the process.
    ///
    /// # Errors
    ///
    /// When the system does not let us.
    pub fn new() -> io::Result<Self> {
        let [terminate, interrupt, hang_up] =
            [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()].map(signal);
        Ok(Self([terminate?, interrupt?, hang_up?]))
    }

    /// Cancels `stop` at the first signal, and returns at one that comes later than [`SAME_WISH`] after it.
    pub async fn hurry(mut self, stop: CancellationToken) {
        self.next().await;
        stop.cancel();
        let first = Instant::now();
        loop {
            self.next().await;
            if first.elapsed() > SAME_WISH {
                return;
            }
        }
    }

    async fn next(&mut self) {
        let [terminate, interrupt, hang_up] = &mut self.0;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = hang_up.recv() => {}
        }
    }
}
