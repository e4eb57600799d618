//! Load with counters, whose names follow Zipf's law, and what the service should count of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use headcount::model::mode::Mode;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::SplitMix;
use super::fleet::{WINDOW, next_window, seconds, sketch_of};
use super::http::{Connection, NoAnswer};

/// How many names there are.
pub const NAMES: usize = 200;

/// The name with this rank.
pub fn name(rank: usize) -> String {
    format!("campaign/{rank:03}")
}

/// Draws ranks by Zipf's law: rank n has a weight of 1/n.
struct Zipf(Vec<f64>);

impl Zipf {
    fn new(ranks: usize) -> Self {
        let mut sum = 0.0;
        let weights = (1..=ranks).map(|rank| {
            sum += 1.0 / rank as f64;
            sum
        });
        Self(weights.collect())
    }

    fn draw(&self, random: &mut SplitMix) -> usize {
        let uniform = random.next().expect("it never ends") as f64 / u64::MAX as f64;
        let aim = uniform * self.0.last().expect("a rank");
        self.0.partition_point(|sum| *sum < aim).min(self.0.len() - 1)
    }
}

/// The ids of a window that were answered `ok`.
#[derive(Debug, Default, Clone)]
pub struct Truth {
    /// How many ids were sent, repeats among them.
    pub accepted: u64,
    pub ids: BTreeSet<u64>,
    /// By counter.
    pub counters: BTreeMap<String, BTreeSet<u64>>,
}

impl Truth {
    /// What a service in this mode counts of all ids.
    pub fn count(&self, mode: Mode) -> u64 {
        count_of(mode, &self.ids)
    }

    /// What it counts of each counter.
    pub fn counts(&self, mode: Mode) -> BTreeMap<String, u64> {
        self.counters.iter().map(|(counter, ids)| (counter.clone(), count_of(mode, ids))).collect()
    }

    fn add(&mut self, id: u64, counters: &[String]) {
        self.accepted += 1;
        self.ids.insert(id);
        for counter in counters {
            self.counters.entry(counter.clone()).or_default().insert(id);
        }
    }
}

fn count_of(mode: Mode, ids: &BTreeSet<u64>) -> u64 {
    match mode {
        Mode::Exact => ids.len() as u64,
        Mode::Hll => sketch_of(ids).estimate(),
    }
}

fn target(id: u64, counters: &[String]) -> String {
    let target = format!("/api/verve/accept?id={id}");
    counters.iter().fold(target, |target, counter| target + "&counter=" + counter)
}

/// How ids are sent in the middle of a window.
#[derive(Debug, Clone)]
pub struct Traffic {
    pub addresses: Vec<SocketAddr>,
    pub connections: u64,
    /// After each answer.
    pub pause: Duration,
    /// The first id.
    pub first: u64,
}

impl Traffic {
    /// Sends ids, half of them with two counters, in the middle of every window, until it is known of so many windows what is in
    /// them. Skips a window with a late answer, because its ids may belong to the next.
    pub async fn send_by_window(&self, windows: usize) -> BTreeMap<u64, Truth> {
        let mut truth = BTreeMap::new();
        for number in (0_u64..).take(3 * windows) {
            let (start, of_window, is_certain) = self.send_in_next_window(number).await;
            if is_certain {
                truth.insert(start, of_window);
            }
            if truth.len() == windows {
                break;
            }
        }
        assert_eq!(truth.len(), windows, "this machine is too slow to say what is in which window");
        truth
    }

    /// Sends in every window until it is stopped. Windows with a late answer, as above, are not returned: at most one, and one in ten.
    pub async fn send_until(self, stop: CancellationToken) -> BTreeMap<u64, Truth> {
        let (mut truth, mut rounds) = (BTreeMap::new(), 0);
        while !stop.is_cancelled() {
            let (start, of_window, is_certain) = self.send_in_next_window(rounds).await;
            rounds += 1;
            if is_certain {
                truth.insert(start, of_window);
            }
        }
        let certain = truth.len() as u64;
        let uncertain = rounds - certain;
        assert!(
            certain > 0 && uncertain <= 1 + rounds / 10,
            "this machine is too slow to say what is in {uncertain} windows of {rounds}"
        );
        truth
    }

    async fn send_in_next_window(&self, number: u64) -> (u64, Truth, bool) {
        let start = next_window(Duration::from_millis(150)).await;
        let begin = UNIX_EPOCH + Duration::from_secs(start);
        let truth = self.burst(number, begin + Duration::from_millis(1_250)).await;
        (start, truth, SystemTime::now() < begin + WINDOW)
    }

    async fn burst(&self, number: u64, until: SystemTime) -> Truth {
        let (mut tasks, first, pause) = (JoinSet::new(), self.first + number * 3_000, self.pause);
        for (connection, address) in (0..self.connections).zip(self.addresses.iter().copied().cycle()) {
            tasks.spawn(async move {
                let (zipf, mut random) = (Zipf::new(NAMES), SplitMix(number << 8 | connection));
                let mut connection = Connection::open(address).await.expect("a connection");
                let mut sent = Vec::new();
                while SystemTime::now() < until {
                    let id = first + random.next().expect("it never ends") % 5_000;
                    let mut counters = vec![name(zipf.draw(&mut random))];
                    let other = name(zipf.draw(&mut random));
                    if id % 2 == 0 && other != counters[0] {
                        counters.push(other);
                    }
                    let answer = connection.get(&target(id, &counters)).await;
                    assert!(matches!(&answer, Ok(answer) if answer.body == "ok"), "{answer:?}");
                    sent.push((id, counters));
                    if pause > Duration::ZERO {
                        tokio::time::sleep(pause).await;
                    }
                }
                sent
            });
        }
        let mut truth = Truth::default();
        for (id, counters) in tasks.join_all().await.into_iter().flatten() {
            truth.add(id, &counters);
        }
        truth
    }
}

/// Load that sends each id once, with one counter, until stopped. In mode `exact` the counts of all windows then add up to the
/// number of answers.
pub struct CounterLoad {
    stop: CancellationToken,
    tasks: JoinSet<Outcome>,
}

/// What was answered.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Ids that were answered `ok`, by counter.
    pub ok: BTreeMap<String, u64>,
    /// Requests without an answer, by counter: the service may have counted their ids.
    pub unanswered: BTreeMap<String, u64>,
    /// Answers that were not `ok`.
    pub refused: u64,
    /// When the last answer came, in seconds since 1970.
    pub last: u64,
}

impl Outcome {
    pub fn total(&self) -> u64 {
        self.ok.values().sum()
    }

    pub fn add(&mut self, other: Self) {
        for (counter, ids) in other.ok {
            *self.ok.entry(counter).or_default() += ids;
        }
        for (counter, ids) in other.unanswered {
            *self.unanswered.entry(counter).or_default() += ids;
        }
        self.refused += other.refused;
        self.last = self.last.max(other.last);
    }

    /// Asserts that each counter has all ids that were answered `ok`, and none that was not sent.
    pub fn assert_counted(&self, counted: &BTreeMap<String, u64>) {
        for counter in self.ok.keys().chain(self.unanswered.keys()) {
            let of = |ids: &BTreeMap<String, u64>| ids.get(counter).copied().unwrap_or_default();
            let (ok, unanswered, found) = (of(&self.ok), of(&self.unanswered), of(counted));
            assert!(
                (ok..=ok + unanswered).contains(&found),
                "{counter}: {ok} + {unanswered}, counted {found}"
            );
        }
        assert!(
            counted
                .keys()
                .all(|counter| self.ok.contains_key(counter) || self.unanswered.contains_key(counter))
        );
    }
}

impl CounterLoad {
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

    /// Stops, and waits for the outstanding answers.
    pub async fn stop(self) -> Outcome {
        self.stop.cancel();
        let mut all = Outcome::default();
        for outcome in self.tasks.join_all().await {
            all.add(outcome);
        }
        all
    }
}

/// Opens the connection again when the server has closed it, until the server is gone.
async fn send(address: SocketAddr, ids: impl Iterator<Item = u64>, stop: CancellationToken) -> Outcome {
    let (zipf, mut outcome, mut connection) = (Zipf::new(NAMES), Outcome::default(), None);
    for id in ids {
        if stop.is_cancelled() {
            break;
        }
        if connection.is_none() {
            connection = Connection::open(address).await.ok();
        }
        let Some(open) = &mut connection else { break };
        let counter = name(zipf.draw(&mut SplitMix(id)));
        match open.get(&target(id, std::slice::from_ref(&counter))).await {
            Ok(answer) if answer.status == 200 && answer.body == "ok" => {
                *outcome.ok.entry(counter).or_default() += 1;
                outcome.last = seconds(SystemTime::now());
            }
            // It may be counted in part.
            Ok(_) => {
                outcome.refused += 1;
                *outcome.unanswered.entry(counter).or_default() += 1;
            }
            Err(NoAnswer::Torn | NoAnswer::Closed) => {
                *outcome.unanswered.entry(counter).or_default() += 1;
                connection = None;
            }
        }
    }
    outcome
}
