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
}

#[derive(Debug, Clone)]
struct State {
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
        let state = watch::Sender::new(State { fault: Fault::None, held: None, resets: 0 });
        let of_connections = state.subscribe();
        let listening = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let state = of_connections.clone();
                let State { fault, resets, .. } = *state.borrow();
                if fault == Fault::Refuse {
                    let _ = client.set_zero_linger();
                } else {
                    tokio::spawn(connect(client, target, state, resets));
                }
            }
        });
        Self { address, state, _listening: AbortOnDropHandle::new(listening) }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
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
async fn connect(mut client: TcpStream, target: SocketAddr, state: watch::Receiver<State>, resets: u64) {
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
                    pass(from_client, to_server, state.clone()),
                    pass(from_server, to_client, state.clone()),
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
) -> std::io::Result<()> {
    let mut buffer = vec![0; 1 << 16];
    loop {
        let read = from.read(&mut buffer).await?;
        state.wait_for(|state| state.fault != Fault::Stall).await.map_err(std::io::Error::other)?;
        let passes = |state: &State| {
            let held = state.held.as_ref();
            held.is_none_or(|held| !buffer[..read].windows(held.len()).any(|part| part == held.as_bytes()))
        };
        state.wait_for(passes).await.map_err(std::io::Error::other)?;
        let fault = state.borrow().fault;
        if let Fault::Slow(by) = fault {
            tokio::time::sleep(by).await;
        }
        if read == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..read]).await?;
    }
}
