//! The closed windows that some sink does not have yet: one list for all sinks, and a cursor for each.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ::metrics::Counter;
use tokio::sync::watch;
use tracing::error;

use crate::coordination::term::Term;
use crate::coordination::{StoredCounters, WindowCounters};
use crate::model::window::{Window, WindowCount};
use crate::telemetry::metrics::Metrics;

/// A closed window that waits for sinks.
#[derive(Clone)]
pub(super) struct Pending {
    pub(super) count: WindowCount,
    pub(super) counters: PendingCounters,
    /// The term in which it is published.
    pub(super) term: Term,
    /// Since when it waits. Retention begins no earlier, so a clock that was wrong makes no count old.
    pub(super) since: SystemTime,
}

/// The counters of a window that waits for sinks.
#[derive(Clone)]
pub(super) enum PendingCounters {
    Here(WindowCounters),
    /// In Redis. A window may have many, so this instance reads them when it sends them.
    Stored(StoredCounters),
}

impl PendingCounters {
    /// Whether there are none that a sink could still have.
    fn are_skipped(&self) -> bool {
        matches!(self, Self::Here(WindowCounters::None | WindowCounters::Skipped))
    }

    /// How many there are.
    pub(super) fn number(&self) -> u64 {
        match self {
            Self::Here(counters) => counters.number() as u64,
            Self::Stored(stored) => stored.number(),
        }
    }
}

impl Pending {
    pub(super) fn is_past(&self, retention: Duration, now: SystemTime) -> bool {
        self.count.window.end().max(self.since) + retention < now
    }
}

/// What a sink will never have.
pub(super) struct Skipped {
    pub(super) windows: Counter,
    /// Counts of counters.
    pub(super) counters: Counter,
}

/// Shared by the leader, which appends, and by a delivery for each sink, which moves the sink's cursor.
pub(super) struct Unpublished {
    list: watch::Sender<List>,
    /// For each sink.
    skipped: Vec<Skipped>,
    capacity: usize,
    /// How long counts of counters wait.
    counter_retention: Duration,
    metrics: Arc<Metrics>,
}

struct List {
    /// Windows of one term, oldest first, without those that every sink is past.
    pending: VecDeque<Pending>,
    /// A cursor for each sink: the last window that it has, or will never have.
    cursors: Vec<Option<Window>>,
    /// Nothing more is appended.
    ended: bool,
}

impl List {
    fn next(&self, sink: usize) -> Option<&Pending> {
        let cursor = self.cursors[sink];
        let first = self.pending.partition_point(|pending| Some(pending.count.window) <= cursor);
        self.pending.get(first).filter(|pending| pending.term.is_valid())
    }

    fn delivered(&self) -> Option<Window> {
        self.cursors.iter().min().copied().flatten()
    }

    /// The sinks that lack a window.
    fn behind(&self, window: Window) -> Vec<usize> {
        (0..self.cursors.len()).filter(|sink| self.cursors[*sink] < Some(window)).collect()
    }
}

impl Unpublished {
    /// For sinks with these metrics, numbered in this order.
    pub(super) fn new(
        skipped: Vec<Skipped>,
        capacity: usize,
        counter_retention: Duration,
        metrics: Arc<Metrics>,
    ) -> Self {
        let list = List { pending: VecDeque::new(), cursors: vec![None; skipped.len()], ended: false };
        Self { list: watch::channel(list).0, skipped, capacity, counter_retention, metrics }
    }

    /// Appends a window. A full list drops the oldest, which sinks that lack it will never have.
    pub(super) fn push(&self, pending: Pending) {
        self.update(|list| {
            self.drop_old_counters(list, pending.since);
            list.pending.push_back(pending);
            if list.pending.len() > self.capacity
                && let Some(dropped) = list.pending.pop_front()
            {
                let window = dropped.count.window;
                error!(%window, "a sink hangs: a window past retention is skipped");
                for sink in list.behind(window) {
                    self.note_skipped(sink, &dropped);
                    list.cursors[sink] = Some(window);
                }
            }
        });
    }

    /// Drops the counts of counters that have waited too long by now.
    pub(super) fn skip_old_counters(&self, now: SystemTime) {
        self.update(|list| self.drop_old_counters(list, now));
    }

    /// Drops the counts of counters that have waited too long. The totals of their windows still wait.
    fn drop_old_counters(&self, list: &mut List, now: SystemTime) {
        let are_old = |pending: &Pending| pending.is_past(self.counter_retention, now);
        for window in self.skip_counters(list, are_old) {
            error!(%window, "a sink hangs: the counters of a window past --counter-retention are skipped");
        }
    }

    /// Redis does not have the counts of a window's counters any more. Its total still waits.
    pub(super) fn lose_counters(&self, window: Window) {
        self.update(|list| {
            for window in self.skip_counters(list, |pending| pending.count.window == window) {
                error!(%window, "Redis does not have the counts of a window's counters any more: they waited for longer than \
                     --counter-retention, or were deleted. The window is published without them");
            }
        });
    }

    /// Skips the counters of some windows, for all sinks that lack these. Returns the windows that had any.
    fn skip_counters(&self, list: &mut List, are_skipped: impl Fn(&Pending) -> bool) -> Vec<Window> {
        let with_counters = list.pending.iter_mut().filter(|pending| !pending.counters.are_skipped());
        let skip = |pending: &mut Pending| {
            let skipped = PendingCounters::Here(WindowCounters::Skipped);
            (pending.count.window, std::mem::replace(&mut pending.counters, skipped).number())
        };
        let skipped: Vec<_> = with_counters.filter(|pending| are_skipped(pending)).map(skip).collect();
        for (window, counters) in &skipped {
            for sink in list.behind(*window) {
                self.skipped[sink].counters.increment(*counters);
            }
        }
        skipped.into_iter().map(|(window, _)| window).collect()
    }

    /// The term is over. The next leader, which may be this instance, appends these counts again.
    pub(super) fn clear(&self) {
        self.update(|list| list.pending.clear());
    }

    /// Nothing more will be appended.
    pub(super) fn end(&self) {
        self.update(|list| list.ended = true);
    }

    /// Waits for the next count for a sink; none when no more will come, or none that is `wanted`.
    pub(super) async fn next(&self, sink: usize, wanted: impl Fn(&Pending) -> bool) -> Option<Pending> {
        let next = |list: &List| list.next(sink).filter(|pending| wanted(pending)).cloned();
        let mut list = self.list.subscribe();
        let list = list.wait_for(|list| list.ended || next(list).is_some()).await.ok()?;
        next(&list)
    }

    /// A sink has a window.
    pub(super) fn taken(&self, sink: usize, window: Window) {
        self.update(|list| list.cursors[sink] = list.cursors[sink].max(Some(window)));
    }

    /// A sink will never have a window.
    pub(super) fn skip(&self, sink: usize, pending: &Pending) {
        self.note_skipped(sink, pending);
        self.taken(sink, pending.count.window);
    }

    fn note_skipped(&self, sink: usize, pending: &Pending) {
        let Skipped { windows, counters } = &self.skipped[sink];
        windows.increment(1);
        counters.increment(pending.counters.number());
    }

    /// Counts windows as skipped that are not in the list: no sink will have them.
    pub(super) fn skip_unlisted(&self, windows: u64) {
        self.skipped.iter().for_each(|skipped| skipped.windows.increment(windows));
    }

    /// The last window that every sink is past.
    pub(super) fn delivered(&self) -> Option<Window> {
        self.list.borrow().delivered()
    }

    /// Waits until every sink is past a window after this one.
    pub(super) async fn delivered_after(&self, window: Option<Window>) {
        // This fails only when `self` is gone.
        let _ = self.list.subscribe().wait_for(|list| list.delivered() > window).await;
    }

    fn update(&self, change: impl FnOnce(&mut List)) {
        self.list.send_modify(|list| {
            change(list);
            let delivered = list.delivered();
            while list.pending.front().is_some_and(|pending| Some(pending.count.window) <= delivered) {
                list.pending.pop_front();
            }
            self.metrics.unpublished_windows.set(list.pending.len() as f64);
            if let Some(window) = delivered {
                self.metrics.last_published_window.set(window.unix_seconds() as f64);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::model::window::WindowLength;

    fn window(number: u64) -> Window {
        "10s".parse::<WindowLength>().unwrap().starting_at(number * 10)
    }

    fn push(list: &Unpublished, number: u64, term: &Term) {
        let count = WindowCount {
            window: window(number),
            unique_request_count: number,
            accepted_ids: number,
            has_imports: false,
            complete: true,
        };
        let counters = PendingCounters::Here(WindowCounters::None);
        list.push(Pending { count, counters, term: term.clone(), since: UNIX_EPOCH });
    }

    fn next(list: &Unpublished, sink: usize) -> Option<Window> {
        list.list.borrow().next(sink).map(|pending| pending.count.window)
    }

    fn list(capacity: usize) -> (Unpublished, Arc<Metrics>) {
        let metrics = Arc::new(Metrics::new());
        let skipped = ["slow", "fast"].map(|sink| Skipped {
            windows: metrics.published_windows(sink, "skipped"),
            counters: metrics.skipped_counters(sink),
        });
        (Unpublished::new(skipped.into(), capacity, Duration::from_secs(60), Arc::clone(&metrics)), metrics)
    }

    /// Sink 0 hangs: it loses the oldest windows, the other one does not.
    #[test]
    fn a_full_list_skips_only_for_sinks_that_are_behind() {
        let (list, metrics) = list(3);
        let term = Term::for_ever();
        for number in 1..=5 {
            push(&list, number, &term);
            list.taken(1, window(number));
        }
        assert_eq!((next(&list, 0), next(&list, 1)), (Some(window(3)), None));
        assert_eq!(list.delivered(), Some(window(2)));
        let skipped =
            |sink| format!(r#"headcount_published_windows_total{{sink="{sink}",result="skipped"}} "#);
        let rendered = metrics.render();
        assert!(rendered.contains(&(skipped("slow") + "2")) && rendered.contains(&(skipped("fast") + "0")));
        // The sink takes its late window: cursors never go back.
        list.taken(0, window(1));
        assert_eq!(next(&list, 0), Some(window(3)));
    }

    #[test]
    fn a_new_term_repeats_nothing_that_a_sink_has() {
        let (list, _) = list(10);
        let term = Term::until(1, tokio::time::Instant::now() + Duration::from_secs(60));
        push(&list, 1, &term);
        push(&list, 2, &term);
        list.taken(1, window(1));
        term.revoke();
        assert_eq!((next(&list, 0), next(&list, 1)), (None, None), "the term is over");
        list.clear();
        let term = Term::for_ever();
        push(&list, 1, &term);
        push(&list, 2, &term);
        assert_eq!((next(&list, 0), next(&list, 1)), (Some(window(1)), Some(window(2))));
    }
}
