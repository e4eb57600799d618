//! What the service tells systemd: that it is ready, that it stops, and that it lives.
//!
//! This is the protocol of `sd_notify(3)`: a datagram to the socket in `NOTIFY_SOCKET`. Without that variable nothing is sent.

use std::time::Duration;

use sd_notify::NotifyState;
use tracing::warn;

/// The service answers requests.
pub(crate) fn ready() {
    tell(NotifyState::Ready);
}

/// The service has begun to stop.
pub(crate) fn stopping() {
    tell(NotifyState::Stopping);
}

/// The service lives. After a silence of `WatchdogSec=` systemd kills it, and starts it again.
pub(crate) fn alive() {
    tell(NotifyState::Watchdog);
}

/// How often systemd has to be told that the service lives, if it wants to be: twice in `WatchdogSec=`.
pub(crate) fn alive_every() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|silence| silence / 2).filter(|every| !every.is_zero())
}

fn tell(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        warn!(%error, "cannot tell systemd how the service is");
    }
}
