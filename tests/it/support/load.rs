//! Load: many connections send one id after another. No id repeats.

use std::net::SocketAddr;
use std::ops::Range;
use std::time::{Duration, SystemTime};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::SplitMix;
use super::http::{Connection, NoAnswer};

/// An id, and when it was sent.
#[derive(Debug, Clone, Copy)]
pub struct Sent {
    pub sent: SystemTime,
    pub answered: SystemTime,
}

/// The outcome of a load.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Ids that were answered `ok`.
    pub ok: Vec<Sent>,
    /// Requests without an answer: at most one a connection.
    pub unanswered: usize,
    /// Answers that were cut off in the middle, or were not `ok`.
    pub broken: Vec<String>,
}

/// Sends different ids over `connections` until stopped. It does not reopen a connection that the server closed.
pub struct Load {
    stop: CancellationToken,
    tasks: JoinSet<Outcome>,
}

impl Load {
    /// Starts with the id `first`, so that several loads send different ids.
    pub fn start(address: SocketAddr, connections: u64, first: u64) -> Self {
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        for connection in 0..connections {
            let ids = (first + connection..).step_by(connections as usize);
            tasks.spawn(send(address, ids, stop.clone()));
        }
        Self { stop, tasks }
    }

    pub async fn run_for(self, duration: Duration) -> Outcome {
        tokio::time::sleep(duration).await;
        self.stop().await
    }

    /// Stops, and waits for the outstanding answers.
    pub async fn stop(self) -> Outcome {
        self.stop.cancel();
        let mut all = Outcome::default();
        for outcome in self.tasks.join_all().await {
            all.ok.extend(outcome.ok);
            all.unanswered += outcome.unanswered;
            all.broken.extend(outcome.broken);
        }
        all
    }
}

async fn send(address: SocketAddr, ids: impl Iterator<Item = u64>, stop: CancellationToken) -> Outcome {
    let mut outcome = Outcome::default();
    let mut connection = Connection::open(address).await.expect("a connection");
    for id in ids {
        if stop.is_cancelled() {
            break;
        }
        let sent = SystemTime::now();
        match connection.get(&format!("/api/verve/accept?id={id}")).await {
            Ok(answer) if answer.status == 200 && answer.body == "ok" => {
                outcome.ok.push(Sent { sent, answered: SystemTime::now() });
            }
            Ok(answer) => outcome.broken.push(format!("{answer:?}")),
            Err(NoAnswer::Torn) => outcome.broken.push("torn".to_owned()),
            Err(NoAnswer::Closed) => {
                outcome.unanswered += 1;
                break;
            }
        }
    }
    outcome
}

/// The ids of a burst. The server answered `ok` to all of them.
pub struct Burst {
    /// The number of ids, repeats included.
    pub sent: Vec<u64>,
    /// When the last answer arrived.
    pub ended: SystemTime,
}

/// Sends random ids from `ids` over `connections` until a given time.
pub async fn burst(address: SocketAddr, connections: u64, ids: Range<u64>, until: SystemTime) -> Burst {
    paced_burst(&[address], connections, ids, until, Duration::ZERO).await
}

/// The same over connections to several servers in turn, with a pause after each answer.
pub async fn paced_burst(
    addresses: &[SocketAddr],
    connections: u64,
    ids: Range<u64>,
    until: SystemTime,
    pause: Duration,
) -> Burst {
    let mut tasks = JoinSet::new();
    for (connection, address) in (0..connections).zip(addresses.iter().copied().cycle()) {
        let (ids, mut random) = (ids.clone(), SplitMix(ids.start + connection));
        tasks.spawn(async move {
            let mut connection = Connection::open(address).await.expect("a connection");
            let mut sent = Vec::new();
            while SystemTime::now() < until {
                let id = ids.start + random.next().expect("it never ends") % (ids.end - ids.start);
                let answer = connection.get(&format!("/api/verve/accept?id={id}")).await;
                assert!(matches!(&answer, Ok(answer) if answer.body == "ok"), "{answer:?}");
                sent.push(id);
                if pause > Duration::ZERO {
                    tokio::time::sleep(pause).await;
                }
            }
            sent
        });
    }
    let sent = tasks.join_all().await.concat();
    Burst { sent, ended: SystemTime::now() }
}
