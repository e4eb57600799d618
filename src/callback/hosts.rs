//! A queue for each host, the limits of a host, and which host is next.
//!
//! A host that is slow or dead must not delay the others. So each host has its own queue, and the hosts take turns.
//! A host has limits on requests a second (with a burst of one second) and on its queue: a callback beyond them is
//! dropped. It also has a limit on requests under way: a callback beyond that waits in the queue.
//!
//! The generic cell rate algorithm (ATM Forum, 1996) limits the rate. It remembers one instant a host: when the next
//! request would be due if they were sent evenly.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// How long a callback may take in all.
pub(super) const TIMEOUT: Duration = Duration::from_secs(5);
/// Requests to one host that are under way at a time.
const UNDER_WAY_A_HOST: usize = 32;
/// Hosts to which idle connections stay open, each on one port. A request to any other host opens its own connection.
/// Otherwise a client that names many hosts, or many ports of one, could fill this machine with idle connections.
const KEPT_HOSTS: usize = 64;
/// How long an idle connection stays open. The client checks at this interval, so it may be twice as long.
pub(super) const KEPT_FOR: Duration = Duration::from_secs(10);
/// Idle connections to a host.
pub(super) const KEPT_A_HOST: usize = UNDER_WAY_A_HOST;
/// A burst may have as many requests as the rate allows in this time.
const BURST: Duration = Duration::from_secs(1);
/// How often idle hosts are evicted.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// Idle connections to all hosts, at most.
pub(crate) const MOST_IDLE_CONNECTIONS: usize = KEPT_HOSTS * KEPT_A_HOST;

/// Whether it is TLS, and the port.
pub(super) type Origin = (bool, u16);

pub(super) struct Hosts<T> {
    by_name: HashMap<Arc<str>, Host<T>>,
    /// Hosts that something waits for, in turn; each is in it once.
    turns: VecDeque<Arc<str>>,
    rate: u32,
    kept: usize,
    swept: Instant,
}

struct Host<T> {
    waiting: VecDeque<(Origin, T)>,
    /// Each request under way holds one.
    permits: Arc<Semaphore>,
    /// Where connections to it are kept open.
    kept: Option<Origin>,
    /// When the next request would be due, if they came evenly.
    due: Instant,
    last_used: Instant,
}

/// An item that may be sent now.
pub(super) struct Dispatch<T> {
    pub(super) item: T,
    /// Whether the connection is kept open afterwards.
    pub(super) keep_alive: bool,
    /// Held until the request has ended.
    pub(super) permit: OwnedSemaphorePermit,
}

impl<T> Hosts<T> {
    /// Each host may be sent `rate` items a second.
    pub(super) fn new(rate: u32) -> Self {
        Self { by_name: HashMap::new(), turns: VecDeque::new(), rate, kept: 0, swept: Instant::now() }
    }

    /// Queues an item. If the host is at its rate or its queue is full, drops the item and returns false.
    #[must_use]
    pub(super) fn push(&mut self, name: &Arc<str>, origin: Origin, item: T, now: Instant) -> bool {
        self.sweep(now);
        let host = self.by_name.entry(Arc::clone(name)).or_insert_with(|| {
            let kept = (self.kept < KEPT_HOSTS).then_some(origin);
            self.kept += usize::from(kept.is_some());
            Host::new(kept, now)
        });
        let due = host.due.max(now) + Duration::from_secs(1) / self.rate;
        if due > now + BURST || host.waiting.len() >= self.rate as usize {
            return false;
        }
        host.due = due;
        if host.waiting.is_empty() {
            self.turns.push_back(Arc::clone(name));
        }
        host.waiting.push_back((origin, item));
        true
    }

    /// The next item that may be sent.
    pub(super) fn next(&mut self, now: Instant) -> Option<Dispatch<T>> {
        // The loop is short: `--callback-concurrency` bounds the permits in use, so few hosts have none left.
        for _ in 0..self.turns.len() {
            let name = self.turns.pop_front()?;
            let host = self.by_name.get_mut(&name)?;
            let Ok(permit) = Arc::clone(&host.permits).try_acquire_owned() else {
                self.turns.push_back(name);
                continue;
            };
            let (origin, item) = host.waiting.pop_front()?;
            host.last_used = now;
            if !host.waiting.is_empty() {
                self.turns.push_back(name);
            }
            return Some(Dispatch { item, keep_alive: host.kept == Some(origin), permit });
        }
        None
    }

    /// Evicts idle hosts.
    fn sweep(&mut self, now: Instant) {
        if now < self.swept + SWEEP_EVERY {
            return;
        }
        self.swept = now;
        self.by_name.retain(|_, host| !host.is_spent(now));
        self.kept = self.by_name.values().filter(|host| host.kept.is_some()).count();
    }
}

impl<T> Host<T> {
    fn new(kept: Option<Origin>, now: Instant) -> Self {
        let permits = Arc::new(Semaphore::new(UNDER_WAY_A_HOST));
        Self { waiting: VecDeque::new(), permits, kept, due: now, last_used: now }
    }

    fn is_spent(&self, now: Instant) -> bool {
        let under_way = UNDER_WAY_A_HOST - self.permits.available_permits();
        let is_idle = self.waiting.is_empty() && under_way == 0 && self.due <= now;
        // While connections to it may be open, it counts as one of `KEPT_HOSTS`.
        is_idle && (self.kept.is_none() || now >= self.last_used + TIMEOUT + 2 * KEPT_FOR)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HTTP: Origin = (false, 80);

    fn host(name: &str) -> Arc<str> {
        name.into()
    }

    fn waiting<T>(hosts: &Hosts<T>) -> usize {
        hosts.by_name.values().map(|host| host.waiting.len()).sum()
    }

    #[test]
    fn hosts_take_turns() {
        let now = Instant::now();
        let mut hosts = Hosts::new(100);
        for item in 0..40 {
            assert!(hosts.push(&host("busy"), HTTP, item, now));
        }
        assert!(hosts.push(&host("quiet"), HTTP, 100, now));
        let mut under_way: Vec<_> = (0..3).filter_map(|_| hosts.next(now)).collect();
        assert_eq!(under_way.iter().map(|sent| sent.item).collect::<Vec<_>>(), [0, 100, 1]);
        // The busy host gets 32 at a time. Its next item waits until one of them ends.
        let rest: Vec<_> = std::iter::from_fn(|| hosts.next(now)).collect();
        assert_eq!((rest.len(), waiting(&hosts)), (30, 8));
        under_way.remove(0);
        under_way.extend(hosts.next(now));
        assert_eq!(under_way.last().map(|sent| sent.item), Some(32));
        assert!(hosts.next(now).is_none());
    }

    #[test]
    fn a_host_has_its_rate_and_a_burst_of_a_second() {
        let now = Instant::now();
        let mut hosts = Hosts::new(100);
        let mut pushed = |at: Instant, tries: usize| {
            (0..tries)
                .filter(|_| {
                    let taken = hosts.push(&host("a"), HTTP, (), at);
                    drop(hosts.next(at));
                    taken
                })
                .count()
        };
        assert_eq!(pushed(now, 500), 100);
        assert_eq!(pushed(now + Duration::from_millis(500), 500), 50);
        assert_eq!(
            pushed(now + Duration::from_secs(60), 500),
            100,
            "no more than a burst, however long it was quiet"
        );
    }

    #[test]
    fn what_waits_for_a_host_that_does_not_answer_is_bounded() {
        let start = Instant::now();
        let mut hosts = Hosts::new(100);
        let taken = (0..10_000)
            .filter(|item| hosts.push(&host("dead"), HTTP, *item, start + Duration::from_millis(20 * item)))
            .count();
        assert_eq!((taken, waiting(&hosts)), (100, 100));
    }

    #[test]
    fn idle_hosts_are_evicted_and_few_hosts_keep_connections() {
        let start = Instant::now();
        let mut hosts = Hosts::new(100);
        for number in 0..10_000_u64 {
            let now = start + Duration::from_millis(number);
            assert!(hosts.push(&host(&format!("host{number}")), HTTP, (), now));
            let sent = hosts.next(now).unwrap();
            assert_eq!(sent.keep_alive, number < KEPT_HOSTS as u64, "{number}");
        }
        assert!(hosts.by_name.len() <= 1_100, "{}", hosts.by_name.len());
        let later = start + Duration::from_secs(26);
        assert!(hosts.push(&host("another"), HTTP, (), later));
        assert_eq!(hosts.by_name.len(), 1);
        assert!(hosts.next(later).unwrap().keep_alive, "there is room again");
    }

    #[test]
    fn connections_to_one_port_of_a_host_are_kept() {
        let now = Instant::now();
        let mut hosts = Hosts::new(1_000);
        for port in [8_000, 8_001, 8_000, 8_002] {
            assert!(hosts.push(&host("a"), (false, port), port, now));
        }
        let kept: Vec<_> =
            std::iter::from_fn(|| hosts.next(now)).map(|sent| (sent.item, sent.keep_alive)).collect();
        assert_eq!(kept, [(8_000, true), (8_001, false), (8_000, true), (8_002, false)]);
    }
}
