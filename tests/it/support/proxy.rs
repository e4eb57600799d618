//! A network that can be made to fail: a TCP proxy between a client and a server.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

/// What is wrong with the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    None,
    /// Connections are reset, new ones too.
    Refuse,
    /// Connections stay, new ones too, and nothing passes until the fault is another.
    Stall,
    /// The connections that are open now are reset; new ones are all right.
    Cut,
    /// All that passes takes so long, either way.
    Slow(Duration),
    /// What is sent disappears, also on new connections. A connection that has lost something stays as it is,
    /// and nothing passes on it ever again.
    Swallow,
    /// A byte a millisecond passes, either way.
    Trickle,
    /// What clients send arrives; of the answer half passes, then the connection is reset.
    MidReply,
}

#[derive(Debug, Clone)]
struct State {
    target: SocketAddr,
    fault: Fault,
    /// What clients send with this in it does not pass, nor what they send after it.
    held: Option<String>,
    /// How often all connections were to be reset: one that is younger than the last time stays.
    resets: u64,
}

/// On loopback, on a free port. When it goes out of scope its connections are reset.
pub struct Proxy {
    address: SocketAddr,
    state: watch::Sender<State>,
    _listening: AbortOnDropHandle<()>,
}

impl Proxy {
    pub async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let state = watch::Sender::new(State { target, fault: Fault::None, held: None, resets: 0 });
        let of_connections = state.subscribe();
        let listening = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let state = of_connections.clone();
                if state.borrow().fault == Fault::Refuse {
                    let _ = client.set_zero_linger();
                } else {
                    tokio::spawn(connect(client, state));
                }
            }
        });
        Self { address, state, _listening: AbortOnDropHandle::new(listening) }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Of the Redis behind it.
    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// New connections lead there.
    pub fn lead_to(&self, target: SocketAddr) {
        self.state.send_modify(|state| state.target = target);
    }

    /// Holds back whatever clients send with this in it, and all that comes after it on their connections.
    pub fn hold(&self, text: &str) {
        self.state.send_modify(|state| state.held = Some(text.to_owned()));
    }

    /// Lets it pass.
    pub fn release(&self) {
        self.state.send_modify(|state| state.held = None);
    }

    /// From now on. The first moments after this may still see the network as it was.
    pub fn set(&self, fault: Fault) {
        self.state.send_modify(|state| {
            state.fault = fault;
            state.resets += u64::from(matches!(fault, Fault::Refuse | Fault::Cut));
        });
    }
}

/// Serves one connection until an end of it goes or it is to be reset.
async fn connect(mut client: TcpStream, state: watch::Receiver<State>) {
    let State { target, resets, .. } = *state.borrow();
    let Ok(mut server) = TcpStream::connect(target).await else {
        let _ = client.set_zero_linger();
        return;
    };
    // What a client sends at once is to arrive at once, as without a proxy.
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let ended_well = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let mut of_reset = state.clone();
        tokio::select! {
            passed = async {
                tokio::try_join!(
                    pass(from_client, to_server, state.clone(), false),
                    pass(from_server, to_client, state.clone(), true),
                )
            } => passed.is_ok(),
            // An error, when the proxy is gone, is a reset too.
            _ = of_reset.wait_for(|state| state.resets != resets) => false,
        }
    };
    if !ended_well {
        // Closed with this, a connection is reset.
        let _ = (client.set_zero_linger(), server.set_zero_linger());
    }
}

/// Passes one direction, its end too; keeps what has come while nothing is to pass.
async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut state: watch::Receiver<State>,
    are_answers: bool,
) -> std::io::Result<()> {
    let mut buffer = vec![0; 1 << 16];
    let mut has_lost = false;
    loop {
        let read = from.read(&mut buffer).await?;
        state.wait_for(|state| state.fault != Fault::Stall).await.map_err(std::io::Error::other)?;
        let passes = |state: &State| {
            let held = state.held.as_ref();
            held.is_none_or(|held| !buffer[..read].windows(held.len()).any(|part| part == held.as_bytes()))
        };
        state.wait_for(passes).await.map_err(std::io::Error::other)?;
        let fault = state.borrow().fault;
        has_lost |= fault == Fault::Swallow && read > 0;
        if has_lost && read > 0 {
            continue;
        }
        if read == 0 {
            return to.shutdown().await;
        }
        match fault {
            Fault::Slow(by) => {
                tokio::time::sleep(by).await;
                to.write_all(&buffer[..read]).await?;
            }
            Fault::Trickle => trickle(&buffer[..read], &mut to, &state).await?,
            Fault::MidReply if are_answers => {
                to.write_all(&buffer[..read / 2]).await?;
                to.flush().await?;
                return Err(std::io::ErrorKind::ConnectionReset.into());
            }
            _ => to.write_all(&buffer[..read]).await?,
        }
    }
}

/// A byte a millisecond, for as long as that is the fault.
async fn trickle(
    bytes: &[u8],
    to: &mut (impl AsyncWrite + Unpin),
    state: &watch::Receiver<State>,
) -> std::io::Result<()> {
    for (passed, byte) in bytes.iter().enumerate() {
        if state.borrow().fault != Fault::Trickle {
            return to.write_all(&bytes[passed..]).await;
        }
        to.write_all(&[*byte]).await?;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}
