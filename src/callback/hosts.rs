//! Whose turn it is: what waits for each host, and how much of it there may be.
//!
//! A host that is slow or dead must not be in the way of the others, so each has a queue of its own and they
//! take turns. A host may have so many requests under way, may be sent so many a second (with a burst of as
//! many), and as many may wait for it; what is beyond that is given back.
//!
//! The rate is kept by the generic cell rate algorithm (ATM Forum, 1996): all there is to remember of a host is
//! when its next request would be due, were they sent evenly.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

/// Requests to one host that are under way at a time.
const UNDER_WAY_A_HOST: usize = 32;
/// Hosts to which connections are kept open, each on one port. To others each request makes its own: whoever can
/// name many hosts, or many ports of one, could fill this machine with idle connections.
const KEPT_HOSTS: usize = 64;
/// How long connections are kept open after the last request. The client looks only so often, so that it may be
/// twice as long.
pub(super) const KEPT_FOR: Duration = Duration::from_secs(10);
/// Idle connections to a host.
pub(super) const KEPT_A_HOST: usize = UNDER_WAY_A_HOST;
/// The burst that the rate allows, and how long it has to be remembered.
const BURST: Duration = Duration::from_secs(1);
/// How often hosts of which there is nothing to remember are forgotten.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// Idle connections that there may be at most.
pub(super) const MOST_IDLE_CONNECTIONS: usize = KEPT_HOSTS * KEPT_A_HOST;

/// Whether it is TLS, and the port.
pub(super) type Origin = (bool, u16);

/// The queues of all hosts.
pub(super) struct Hosts<T> {
    queues: HashMap<Arc<str>, HostQueue<T>>,
    /// Those that may be sent something, in the order of their turns; each once.
    ready: VecDeque<Arc<str>>,
    rate: u32,
    kept: usize,
    swept: Instant,
}

struct HostQueue<T> {
    waiting: VecDeque<(Origin, T)>,
    under_way: usize,
    is_ready: bool,
    /// Where connections to it are kept open.
    kept: Option<Origin>,
    /// When the next one would be due, if they came evenly.
    due: Instant,
    last_used: Instant,
}

/// Something that may be sent now.
pub(super) struct Turn<T> {
    pub(super) host: Arc<str>,
    pub(super) item: T,
    /// Whether the connection is kept open for others.
    pub(super) keep_alive: bool,
}

impl<T> Hosts<T> {
    /// None yet, each of which may be sent `rate` items a second.
    pub(super) fn new(rate: u32) -> Self {
        Self { queues: HashMap::new(), ready: VecDeque::new(), rate, kept: 0, swept: Instant::now() }
    }

    /// Takes an item in.
    ///
    /// # Errors
    ///
    /// The item, when the host has had its share.
    pub(super) fn push(&mut self, host: Arc<str>, origin: Origin, item: T, now: Instant) -> Result<(), T> {
        self.sweep(now);
        let may_be_kept = self.kept < KEPT_HOSTS;
        let queue = self.queues.entry(Arc::clone(&host)).or_insert_with(|| {
            self.kept += usize::from(may_be_kept);
            HostQueue::new(may_be_kept.then_some(origin), now)
        });
        let due = queue.due.max(now) + Duration::from_secs(1) / self.rate;
        if due > now + BURST || queue.waiting.len() >= self.rate as usize {
            return Err(item);
        }
        queue.due = due;
        queue.waiting.push_back((origin, item));
        self.make_ready(host);
        Ok(())
    }

    /// The next item that may be sent; it is under way from here on.
    pub(super) fn next(&mut self, now: Instant) -> Option<Turn<T>> {
        let host = self.ready.pop_front()?;
        let queue = self.queues.get_mut(&host)?;
        queue.is_ready = false;
        let (origin, item) = queue.waiting.pop_front()?;
        queue.under_way += 1;
        queue.last_used = now;
        let turn = Turn { host: Arc::clone(&host), item, keep_alive: queue.kept == Some(origin) };
        self.make_ready(host);
        Some(turn)
    }

    /// One that was under way is done.
    pub(super) fn done(&mut self, host: Arc<str>, now: Instant) {
        if let Some(queue) = self.queues.get_mut(&host) {
            queue.under_way -= 1;
            queue.last_used = now;
        }
        self.make_ready(host);
    }

    /// Items that wait.
    pub(super) fn waiting(&self) -> usize {
        self.queues.values().map(|queue| queue.waiting.len()).sum()
    }

    fn make_ready(&mut self, host: Arc<str>) {
        let Some(queue) = self.queues.get_mut(&host) else { return };
        if !queue.is_ready && !queue.waiting.is_empty() && queue.under_way < UNDER_WAY_A_HOST {
            queue.is_ready = true;
            self.ready.push_back(host);
        }
    }

    /// Forgets the hosts of which there is nothing to remember.
    fn sweep(&mut self, now: Instant) {
        if now < self.swept + SWEEP_EVERY {
            return;
        }
        self.swept = now;
        self.queues.retain(|_, queue| !queue.is_spent(now));
        self.kept = self.queues.values().filter(|queue| queue.kept.is_some()).count();
    }
}

impl<T> HostQueue<T> {
    fn new(kept: Option<Origin>, now: Instant) -> Self {
        Self { waiting: VecDeque::new(), under_way: 0, is_ready: false, kept, due: now, last_used: now }
    }

    fn is_spent(&self, now: Instant) -> bool {
        let is_idle = self.waiting.is_empty() && self.under_way == 0 && self.due <= now;
        // While there may be connections to it, it has one of the places for hosts with connections.
        is_idle && (self.kept.is_none() || now >= self.last_used + 2 * KEPT_FOR)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HTTP: Origin = (false, 80);

    fn host(name: &str) -> Arc<str> {
        name.into()
    }

    #[test]
    fn hosts_take_turns() {
        let now = Instant::now();
        let mut hosts = Hosts::new(100);
        for item in 0..40 {
            hosts.push(host("busy"), HTTP, item, now).unwrap();
        }
        hosts.push(host("quiet"), HTTP, 100, now).unwrap();
        let first: Vec<_> = (0..3).filter_map(|_| hosts.next(now)).map(|turn| turn.item).collect();
        assert_eq!(first, [0, 100, 1]);
        // Of the busy one 32 in all, and the others when some are done.
        let rest = std::iter::from_fn(|| hosts.next(now)).count();
        assert_eq!((rest, hosts.waiting()), (30, 8));
        hosts.done(host("busy"), now);
        assert_eq!(hosts.next(now).map(|turn| turn.item), Some(32));
        assert!(hosts.next(now).is_none());
    }

    #[test]
    fn a_host_has_its_rate_and_a_burst_of_a_second() {
        let now = Instant::now();
        let mut hosts = Hosts::new(100);
        let mut pushed = |at: Instant, tries: usize| {
            (0..tries)
                .filter(|_| {
                    let taken = hosts.push(host("a"), HTTP, (), at).is_ok();
                    if hosts.next(at).is_some() {
                        hosts.done(host("a"), at);
                    }
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
            .filter(|item| {
                hosts.push(host("dead"), HTTP, *item, start + Duration::from_millis(20 * item)).is_ok()
            })
            .count();
        assert_eq!((taken, hosts.waiting()), (100, 100));
    }

    #[test]
    fn hosts_are_forgotten_and_few_are_kept_connections_to() {
        let start = Instant::now();
        let mut hosts = Hosts::new(100);
        for number in 0..10_000_u64 {
            let now = start + Duration::from_millis(number);
            hosts.push(host(&format!("host{number}")), HTTP, (), now).unwrap();
            let turn = hosts.next(now).unwrap();
            assert_eq!(turn.keep_alive, number < KEPT_HOSTS as u64, "{number}");
            hosts.done(turn.host, now);
        }
        assert!(hosts.queues.len() <= 1_100, "{}", hosts.queues.len());
        let later = start + Duration::from_secs(25);
        hosts.push(host("another"), HTTP, (), later).unwrap();
        assert_eq!(hosts.queues.len(), 1);
        assert!(hosts.next(later).unwrap().keep_alive, "there is room again");
    }

    #[test]
    fn connections_to_one_port_of_a_host_are_kept() {
        let now = Instant::now();
        let mut hosts = Hosts::new(1_000);
        for port in [8_000, 8_001, 8_000, 8_002] {
            hosts.push(host("a"), (false, port), port, now).unwrap();
        }
        let kept: Vec<_> =
            std::iter::from_fn(|| hosts.next(now)).map(|turn| (turn.item, turn.keep_alive)).collect();
        assert_eq!(kept, [(8_000, true), (8_001, false), (8_000, true), (8_002, false)]);
    }
}
