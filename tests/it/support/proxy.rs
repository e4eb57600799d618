//! A network that fails on demand: a TCP proxy between a client and a server.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

/// A fault of the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    None,
    /// All connections are reset, new ones too.
    Refuse,
    /// Connections stay open, and new ones are accepted, but nothing passes until the fault changes.
    Stall,
    /// Open connections are reset. New ones work.
    Cut,
    /// Everything is delayed by this much, in both directions.
    Slow(Duration),
    /// Everything sent is lost, also on new connections. A connection that lost something stays open, but never passes
    /// anything again.
    Swallow,
    /// One byte a millisecond passes, in both directions.
    Trickle,
    /// Clients' requests arrive. Half of the answer passes, then the connection is reset.
    MidReply,
}

#[derive(Debug, Clone)]
struct State {
    target: SocketAddr,
    fault: Fault,
    /// A client's data that contains this does not pass, nor anything after it.
    held: Option<String>,
    /// How often the test reset all connections. A connection opened after the last reset stays.
    resets: u64,
}

/// A proxy on a free loopback port. Dropping it resets its connections.
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

    /// The URL of the Redis behind it.
    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// Connects new connections to another server.
    pub fn lead_to(&self, target: SocketAddr) {
        self.state.send_modify(|state| state.target = target);
    }

    /// Holds back any client's data that contains this, and everything after it on that connection.
    pub fn hold(&self, text: &str) {
        self.state.send_modify(|state| state.held = Some(text.to_owned()));
    }

    /// Lets the held data pass.
    pub fn release(&self) {
        self.state.send_modify(|state| state.held = None);
    }

    /// Sets the fault. For a moment the old one may still apply.
    pub fn set(&self, fault: Fault) {
        self.state.send_modify(|state| {
            state.fault = fault;
            state.resets += u64::from(matches!(fault, Fault::Refuse | Fault::Cut));
        });
    }
}

/// Serves one connection until one end closes or the fault resets it.
async fn connect(mut client: TcpStream, state: watch::Receiver<State>) {
    let State { target, resets, .. } = *state.borrow();
    let Ok(mut server) = TcpStream::connect(target).await else {
        let _ = client.set_zero_linger();
        return;
    };
    // Small writes must not be delayed more than without a proxy.
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
            // An error means that the proxy was dropped: reset the connection too.
            _ = of_reset.wait_for(|state| state.resets != resets) => false,
        }
    };
    if !ended_well {
        // With this, closing resets the connection.
        let _ = (client.set_zero_linger(), server.set_zero_linger());
    }
}

/// Passes data in one direction, and its end. Holds data while nothing may pass.
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

/// Passes a byte a millisecond while that is the fault.
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
