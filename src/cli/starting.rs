//! The first heartbeat: Redis may be slow, and the service may be told to stop before it is ready.

use std::future::Future;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::coordination::HeartbeatError;
use crate::coordination::sealer::Sealer;

/// The first wait after a first heartbeat that was not taken; it doubles up to the other.
const FIRST_HEARTBEAT_AGAIN: Duration = Duration::from_millis(100);
const FIRST_HEARTBEAT_AGAIN_MAX: Duration = Duration::from_secs(1);

/// The first heartbeat, until it is taken, there is no more time, or `shutdown`, when it is none. An instance that is refused
/// for good does not try again.
///
/// # Errors
///
/// The last [`HeartbeatError`].
pub async fn introduce_until<F>(
    deadline: Instant,
    introduce: impl Fn() -> F,
    shutdown: &CancellationToken,
) -> Result<Option<Sealer>, HeartbeatError>
where
    F: Future<Output = Result<Sealer, HeartbeatError>>,
{
    tokio::select! {
        introduced = try_until(deadline, introduce) => introduced.map(Some),
        () = shutdown.cancelled() => Ok(None),
    }
}

async fn try_until<F>(deadline: Instant, introduce: impl Fn() -> F) -> Result<Sealer, HeartbeatError>
where
    F: Future<Output = Result<Sealer, HeartbeatError>>,
{
    let mut wait = FIRST_HEARTBEAT_AGAIN;
    loop {
        match introduce().await {
            Err(HeartbeatError::Unavailable(error)) if Instant::now() + wait < deadline => {
                debug!(%error, "the first heartbeat was not taken, trying again");
                tokio::time::sleep(wait).await;
                wait = (2 * wait).min(FIRST_HEARTBEAT_AGAIN_MAX);
            }
            outcome => return outcome,
        }
    }
}
