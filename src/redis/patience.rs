//! How long a connection may take.

use std::future::Future;
use std::io;
use std::time::Duration;

use ::redis::{AsyncConnectionConfig, RedisResult};

/// How long it may take to connect, authentication included.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// The settings of a connection that has to answer in this time.
pub(super) fn config(timeout: Duration) -> AsyncConnectionConfig {
    AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECT_TIMEOUT))
        .set_response_timeout(Some(timeout))
}

/// Waits for a connection, at most [`CONNECT_TIMEOUT`].
pub(super) async fn in_time<T>(made: impl Future<Output = RedisResult<T>>) -> RedisResult<T> {
    match tokio::time::timeout(CONNECT_TIMEOUT, made).await {
        Ok(made) => made,
        Err(_) => Err(io::Error::from(io::ErrorKind::TimedOut).into()),
    }
}
