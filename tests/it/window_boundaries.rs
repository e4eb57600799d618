//! Every id counts in the window of its arrival, across boundaries and under load.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::support::load::{Load, Sent};
use crate::support::server::{Closed, Server};
use crate::support::wait_for;

const WINDOW: Duration = Duration::from_secs(1);

fn window_of(time: SystemTime) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(time.duration_since(UNIX_EPOCH).unwrap().as_secs())
}

fn assert_in_order_without_gaps(closed: &[Closed]) {
    for pair in closed.windows(2) {
        assert_eq!(pair[1].start(), pair[0].start() + WINDOW, "{pair:?}");
    }
}

/// The server and the test share a clock, so an id that was sent and answered within one window was
/// stamped with it; one that was under way at a boundary, with one of the two.
fn assert_each_in_its_window(closed: &[Closed], ok: &[Sent]) {
    for count in closed {
        let start = count.start();
        let certain =
            ok.iter().filter(|id| window_of(id.sent) == start && window_of(id.answered) == start).count()
                as u64;
        let possible =
            ok.iter().filter(|id| window_of(id.sent) <= start && start <= window_of(id.answered)).count()
                as u64;
        assert!((certain..=possible).contains(&count.unique), "{count:?}: between {certain} and {possible}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_at_window_boundaries_are_counted_in_their_window() {
    let mut server = Server::start(&["--mode", "exact", "--window", "1s"]).await;
    let mut outcome = Load::start(server.address, 64, 0).run_for(Duration::from_millis(3_300)).await;
    // At least two whole windows without a single id.
    let quiet_from = server.closed().len();
    server.wait_closed(quiet_from + 4).await;
    let second = Load::start(server.address, 64, 1 << 40).run_for(Duration::from_millis(2_300)).await;
    outcome.ok.extend(second.ok);
    outcome.broken.extend(second.broken);
    assert!(outcome.broken.is_empty(), "{:?}", &outcome.broken[..1]);
    assert_eq!(outcome.unanswered + second.unanswered, 0);

    // All ids have been answered; the window after theirs ends after theirs is closed.
    let last = window_of(SystemTime::now());
    let closed = wait_for("the last window", || {
        Some(server.closed()).filter(|closed| closed.last().is_some_and(|closed| closed.start() >= last))
    })
    .await;
    assert_in_order_without_gaps(&closed);
    assert_each_in_its_window(&closed, &outcome.ok);
    let total: u64 = closed.iter().map(|closed| closed.unique).sum();
    assert_eq!(total, outcome.ok.len() as u64, "each id in exactly one window");
    assert!(closed.iter().all(|closed| closed.unique == closed.accepted), "no id was sent twice");
    assert!(
        closed.iter().filter(|closed| closed.unique == 0).count() >= 2,
        "empty windows are closed as 0: {closed:?}"
    );
    assert!(closed.len() >= 9);
    println!("{total} ids in {} windows", closed.len());

    assert!(server.stop().await.success());
    let closed = server.closed();
    assert_in_order_without_gaps(&closed);
    let complete: Vec<_> = closed.iter().map(|closed| closed.complete).collect();
    let (ends, inner) = ([complete[0], complete[complete.len() - 1]], &complete[1..complete.len() - 1]);
    assert!(ends == [false, false] && inner.iter().all(|complete| *complete), "{closed:?}");
}

/// Repeats of an id count once within a window, and again in the next.
#[tokio::test]
async fn an_id_counts_once_a_window() {
    let server = Server::start(&["--window", "1s"]).await;
    server.wait_closed(1).await;
    let until = SystemTime::now() + Duration::from_millis(2_500);
    let mut requests = 0;
    while SystemTime::now() < until {
        assert_eq!(server.get("/api/verve/accept?id=42").await.body, "ok");
        requests += 1;
    }
    let closed = server.wait_closed(4).await;
    let with_ids = closed.iter().filter(|closed| closed.unique > 0).count();
    assert!(with_ids >= 2 && closed.iter().all(|closed| closed.unique <= 1), "{closed:?}");
    let closed = wait_for("all of them", || {
        Some(server.closed())
            .filter(|closed| closed.iter().map(|closed| closed.accepted).sum::<u64>() == requests)
    })
    .await;
    assert!(closed.len() >= 4);
}
