//! What connects to Redis: how it is made, and when it is of no more use.

use std::future::Future;
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::{AsyncConnectionConfig, Client, RedisResult};

use super::{is_fatal, server};

/// How long a connection may take to be there, authentication included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// To whom, and how long an answer may take.
pub struct Destination {
    pub(super) client: Client,
    pub(super) timeout: Duration,
}

impl Destination {
    pub(super) fn config(&self) -> AsyncConnectionConfig {
        AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(self.timeout))
    }

    /// Makes a connection, or gives up after a while.
    pub(super) async fn in_time<T>(&self, made: impl Future<Output = RedisResult<T>>) -> RedisResult<T> {
        match tokio::time::timeout(CONNECT_TIMEOUT, made).await {
            Ok(made) => made,
            Err(_) => Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()),
        }
    }
}

/// A kind of connection. Clones are the same one.
pub trait Connection: Clone + Send + Sync + Sized + 'static {
    /// Connects, says who we are, and asks which run of a server this is; some do not say.
    fn open(to: &Destination) -> impl Future<Output = RedisResult<(Self, Option<String>)>> + Send;

    /// False when nobody knows what state it is in.
    fn is_usable(&self) -> bool {
        true
    }
}

/// redis-rs's: for any command, and for many callers at a time.
impl Connection for MultiplexedConnection {
    async fn open(to: &Destination) -> RedisResult<(Self, Option<String>)> {
        let mut connection = to.client.get_multiplexed_async_connection_with_config(&to.config()).await?;
        let run = run_of(&mut connection).await?;
        Ok((connection, run))
    }
}

/// Which run of a server it leads to.
pub(super) async fn run_of(connection: &mut MultiplexedConnection) -> RedisResult<Option<String>> {
    let mut info = ::redis::cmd("INFO");
    info.arg("server");
    match info.query_async::<String>(connection).await {
        Ok(info) => Ok(server::run_id(&info)),
        Err(error) if is_fatal(&error) => Err(error),
        Err(_) => Ok(None),
    }
}
