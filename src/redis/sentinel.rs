//! The primary that Sentinels name.
//!
//! redis-rs asks a Sentinel and checks the `ROLE` of the server that it names. Here all Sentinels are asked at a time, each with a
//! deadline: one that hangs holds up nobody. The first answer counts whose server says that it is a primary.
//! (<https://redis.io/docs/latest/develop/reference/sentinel-clients/>)
//!
//! They are asked for every new connection. A connection to a server that has become a replica fails with its first write, so
//! after a fail-over the next connection leads to the new primary.

use std::collections::{BTreeSet, HashMap};

use ::redis::sentinel::{Sentinel, SentinelNodeConnectionInfo};
use ::redis::{
    Client, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo, RedisError, RedisResult, TlsMode,
};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use super::address::{host_and_port, scheme_of};
use super::errors::wrong_address;
use super::patience::{CONNECT_TIMEOUT, config, in_time};
use super::urls::Watched;

/// The client of the current primary.
///
/// The error is that of the Sentinel which came furthest.
pub(super) async fn primary(watched: &Watched, info: &ConnectionInfo) -> RedisResult<Client> {
    let asked = watched.sentinels.iter().map(|sentinel| in_time(ask(sentinel, watched, info)));
    let mut asked: FuturesUnordered<_> = asked.collect();
    let mut refused: Option<RedisError> = None;
    while let Some(answer) = asked.next().await {
        match answer {
            Ok(client) => return Ok(client),
            // That no Sentinel answers says less than what one of them says.
            Err(error) if refused.as_ref().is_none_or(RedisError::is_io_error) => refused = Some(error),
            Err(_) => {}
        }
    }
    Err(refused.unwrap_or_else(|| (ErrorKind::EmptySentinelList, "there are no Sentinels").into()))
}

async fn ask(sentinel: &ConnectionAddr, watched: &Watched, info: &ConnectionInfo) -> RedisResult<Client> {
    let to_sentinel = sentinel.clone().into_connection_info()?.set_redis_settings(watched.login.clone());
    let mut to_node = SentinelNodeConnectionInfo::default()
        .set_redis_connection_info(info.redis_settings().clone())
        .set_tcp_settings(info.tcp_settings().clone());
    if matches!(sentinel, ConnectionAddr::TcpTls { .. }) {
        to_node = to_node.set_tls_mode(TlsMode::Secure);
    }
    let mut asked = Sentinel::build(vec![to_sentinel.clone()])?;
    match asked.async_master_for(&watched.master, Some(&to_node)).await {
        Err(error) if error.kind() == ErrorKind::MasterNameNotFoundBySentinel => {
            Err(explain(error, &to_sentinel, &watched.master).await)
        }
        // redis-rs says so of a server that is no Sentinel.
        Err(error) if error.kind() == ErrorKind::InvalidClientConfig => {
            let (at, scheme) = (host_and_port(sentinel), scheme_of(sentinel));
            let what =
                format!("{at} is no Sentinel: use --redis-url {scheme}://{at} if it is the server itself");
            Err(wrong_address(what))
        }
        found => found,
    }
}

/// A Sentinel watches no primary of that name, or that one is down.
async fn explain(error: RedisError, sentinel: &ConnectionInfo, master: &str) -> RedisError {
    let masters = async {
        let client = Client::open(sentinel.clone())?;
        let mut connection =
            client.get_multiplexed_async_connection_with_config(&config(CONNECT_TIMEOUT)).await?;
        ::redis::cmd("SENTINEL").arg("MASTERS").query_async(&mut connection).await
    };
    let masters: RedisResult<Vec<HashMap<String, String>>> = masters.await;
    let Ok(masters) = masters else { return error };
    let names: BTreeSet<_> =
        masters.iter().filter_map(|known| known.get("name")).map(String::as_str).collect();
    if names.contains(master) {
        let what = format!("the primary '{master}' is down, or no fail-over is done yet");
        return (ErrorKind::MasterNameNotFoundBySentinel, "the Sentinels wait", what).into();
    }
    let names = names.into_iter().collect::<Vec<_>>().join(", ");
    let what = format!("the Sentinels watch no master '{master}', but: {names}");
    wrong_address(what)
}
