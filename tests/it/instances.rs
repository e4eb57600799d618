//! Several real instances behind a real nginx, with a real Redis, publish one right count for each window.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::support::counter_files::wait_for_sum;
use crate::support::counter_load::CounterLoad;
use crate::support::fleet::{
    Fleet, LATE_IS_NOT_AWAY, WINDOW, assert_agreed, assert_complete, assert_no_gap, assert_once_each,
    assert_same_registers, next_window, seconds, sketch_in, sketch_of,
};
use crate::support::load::{Load, burst};
use crate::support::nginx::Nginx;
use crate::support::redis::Redis;
use crate::support::server::Closed;
use crate::support::{PATIENCE, wait_for};

/// Number of windows that are compared with the sent ids.
const WINDOWS: usize = 20;

/// Sends a known set of ids in the middle of every window. Returns the ids of each window, but skips a window with a late
/// answer, because its ids may belong to the next.
async fn send_by_window(nginx: &Nginx, first: u64) -> BTreeMap<u64, Vec<u64>> {
    let mut truth = BTreeMap::new();
    for number in (0_u64..).take(3 * WINDOWS) {
        let start = next_window(Duration::from_millis(200)).await;
        let until = UNIX_EPOCH + Duration::from_secs(start) + Duration::from_millis(1_200);
        let ids = first + number * 3_000..first + number * 3_000 + 5_000;
        let burst = burst(nginx.address, 12, ids, until).await;
        if burst.ended < UNIX_EPOCH + Duration::from_secs(start) + WINDOW {
            truth.insert(start, burst.sent);
        }
        if truth.len() == WINDOWS {
            break;
        }
    }
    assert_eq!(truth.len(), WINDOWS, "this machine is too slow to say what is in which window");
    truth
}

/// The published counts of the windows of `truth`: one number each, by one instance.
async fn published_once(fleet: &Fleet, truth: &BTreeMap<u64, Vec<u64>>) -> BTreeMap<u64, Closed> {
    let (last, _) = truth.last_key_value().expect("windows");
    let published = fleet.wait_published(*last).await;
    assert_once_each(&published);
    assert_complete(&published);
    let publishers: BTreeSet<_> = published.values().flatten().map(|(publisher, _)| *publisher).collect();
    assert_eq!(publishers.len(), 1, "nothing happened to the leader");
    published.into_iter().map(|(start, closed)| (start, closed[0].1.clone())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn three_behind_nginx_publish_one_right_number_a_window() {
    let redis = Redis::start();
    let hll = Fleet::start(3, &redis, "hll", &[]).await;
    let exact = Fleet::start(3, &redis, "exact", &["--mode", "exact"]).await;
    let (nginx_hll, nginx_exact) = (Nginx::start(&hll.addresses()), Nginx::start(&exact.addresses()));
    let (truth_hll, truth_exact) =
        tokio::join!(send_by_window(&nginx_hll, 0), send_by_window(&nginx_exact, 1 << 40));

    let published = published_once(&hll, &truth_hll).await;
    for (start, sent) in &truth_hll {
        assert_same_registers(&sketch_in(&redis, "hll", *start), sent);
        assert_eq!(published[start].unique, sketch_of(sent).estimate(), "{start}");
        assert_eq!(published[start].accepted, sent.len() as u64, "{start}");
    }
    let published = published_once(&exact, &truth_exact).await;
    for (start, sent) in &truth_exact {
        let different: BTreeSet<_> = sent.iter().collect();
        assert_eq!(published[start].unique, different.len() as u64, "{start}");
        assert_eq!(published[start].accepted, sent.len() as u64, "{start}");
    }
    for fleet in [&hll, &exact] {
        for server in &fleet.servers {
            let accepted = server.metric("headcount_accepted_ids_total").await;
            assert!(accepted > 0.0, "nginx sends to all of them");
        }
    }
    let sent: usize = truth_hll.values().chain(truth_exact.values()).map(Vec::len).sum();
    println!("{sent} ids in {} windows", truth_hll.len() + truth_exact.len());
}

/// Every id with the answer `ok` is in some complete window, and in its counter there, though every instance is replaced under load.
#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_costs_nothing() {
    let (redis, files) = (Redis::start(), tempfile::tempdir().unwrap());
    let args = ["--mode", "exact", "--drain-delay", "300ms", "--log-dir", files.path().to_str().unwrap()];
    let mut fleet = Fleet::start(3, &redis, "rolling", &args).await;
    let addresses = fleet.addresses();
    let nginx = Nginx::start(&addresses);
    next_window(Duration::ZERO).await;
    let load = CounterLoad::start(nginx.address, 16, 0);
    for (index, address) in addresses.into_iter().enumerate() {
        let started = fleet.published().len();
        assert!(fleet.servers[index].stop().await.success());
        fleet.add_on(address).await;
        wait_for("two more windows", || (fleet.published().len() >= started + 2).then_some(())).await;
    }
    let outcome = load.stop().await;
    assert!(outcome.unanswered.is_empty(), "{:?}", outcome.unanswered);

    let published = fleet.wait_published(outcome.last).await;
    assert_once_each(&published);
    assert_complete(&published);
    let total: u64 = published.values().flatten().map(|(_, closed)| closed.unique).sum();
    assert_eq!(total, outcome.total(), "each id in one window");
    let counters = wait_for_sum(files.path(), outcome.total()).await;
    assert_eq!(counters, outcome.ok, "each id in one window of its counter");
    println!("{total} ids in {} windows", published.len());
}

/// Clocks that differ by a second and a half, with windows of two.
#[tokio::test(flavor = "multi_thread")]
async fn instances_with_different_clocks_agree() {
    let redis = Redis::start();
    let mut fleet = Fleet::start(1, &redis, "clocks", &["--mode", "exact"]).await;
    fleet.add_with_clock("+0.75s").await;
    fleet.add_with_clock("-0.75s").await;
    let nginx = Nginx::start(&fleet.addresses());
    let outcome = Load::start(nginx.address, 8, 0).run_for(Duration::from_secs(12)).await;
    assert!(outcome.broken.is_empty() && outcome.unanswered == 0, "{:?}", outcome.broken.first());
    // Wait for the slowest clock.
    let last = outcome.ok.iter().map(|sent| seconds(sent.answered)).max().expect("answers") + 2;
    let published = fleet.wait_published(last).await;
    assert_once_each(&published);
    assert_complete(&published);
    let total: u64 = published.values().flatten().map(|(_, closed)| closed.unique).sum();
    assert_eq!(total, outcome.ok.len() as u64);
    for (server, offset) in fleet.servers.iter().zip([0.0, -0.75, 0.75]) {
        let measured = server.metric("headcount_clock_offset_seconds").await;
        assert!((measured - offset).abs() < 0.4, "{measured} instead of {offset}");
    }
}

/// A new instance changes nothing. An instance that dies leaves its open window incomplete.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_instance_changes_nothing_and_a_dead_one_makes_its_window_incomplete() {
    let redis = Redis::start();
    let args = [&["--mode", "exact"], LATE_IS_NOT_AWAY.as_slice()].concat();
    let mut fleet = Fleet::start(2, &redis, "come-and-die", &args).await;
    let start = next_window(Duration::from_millis(100)).await;
    fleet.add().await;
    let added = fleet.servers[2].address;
    let sent = burst(added, 4, 0..1_000, UNIX_EPOCH + Duration::from_secs(start) + WINDOW / 2).await;
    let published = fleet.wait_published(start + 2).await;
    assert_complete(&published);
    let different: BTreeSet<_> = sent.sent.iter().collect();
    assert_eq!(published[&start][0].1.unique, different.len() as u64);

    let victim = (0..3).find(|index| *index != fleet.leader()).expect("a follower");
    let start = next_window(Duration::from_millis(200)).await;
    let address = fleet.servers[victim].address;
    let sent = burst(address, 4, 0..1_000, UNIX_EPOCH + Duration::from_secs(start) + WINDOW / 2).await;
    fleet.servers[victim].process.signal("KILL");
    let published = fleet.wait_published(start + 4).await;
    assert_once_each(&published);
    let complete: Vec<_> =
        [start - 2, start, start + 2, start + 4].map(|start| published[&start][0].1.complete).into();
    assert_eq!(complete, [true, false, true, true]);
    let different: BTreeSet<_> = sent.sent.iter().collect();
    assert_eq!(published[&start][0].1.unique, different.len() as u64, "what it had answered is in Redis");
}

/// Redis loses everything in the middle of a window. The count is still complete.
#[tokio::test(flavor = "multi_thread")]
async fn a_flushed_redis_loses_no_window() {
    let redis = Redis::start();
    let fleet = Fleet::start(3, &redis, "flushed", &[]).await;
    let nginx = Nginx::start(&fleet.addresses());
    fleet.wait_published(next_window(Duration::ZERO).await).await;
    let start = next_window(Duration::from_millis(100)).await;
    let at = |millis| UNIX_EPOCH + Duration::from_secs(start) + Duration::from_millis(millis);
    let before = burst(nginx.address, 8, 0..20_000, at(500)).await;
    ::redis::cmd("FLUSHALL").exec(&mut redis.connect()).expect("an answer");
    let after = burst(nginx.address, 8, 20_000..40_000, at(1_000)).await;
    assert!(after.ended < at(2_000), "this machine is too slow to say what is in which window");

    let published = fleet.wait_published(start + 4).await;
    assert_no_gap(&published);
    let all = before.sent.iter().chain(&after.sent).copied();
    assert_same_registers(&sketch_in(&redis, "flushed", start), all);
    let (_, closed) = &published[&start][0];
    assert_eq!(closed.accepted, (before.sent.len() + after.sent.len()) as u64);
    assert_complete(&published);
    assert_agreed(&published);
}

/// Redis comes back empty, and a new instance connects first. The stream continues where it was.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_instance_at_an_empty_redis_skips_nothing() {
    let mut redis = Redis::start();
    let mut fleet = Fleet::start(1, &redis, "newcomer", &[]).await;
    fleet.wait_published(0).await;
    let start = next_window(Duration::from_millis(300)).await;
    for id in 0..100 {
        assert_eq!(fleet.servers[0].get(&format!("/api/verve/accept?id={id}")).await.body, "ok");
    }
    redis.kill();
    // Its heartbeat cannot come before that of the new instance.
    fleet.servers[0].process.signal("STOP");
    next_window(Duration::ZERO).await;
    redis.restart();
    fleet.add().await;
    fleet.servers[0].process.signal("CONT");
    let published = fleet.wait_published(start + 6).await;
    assert_no_gap(&published);
    assert_eq!(published[&start][0].1.unique, 100, "{published:#?}");
}

/// A Redis with an old snapshot knows this instance, but lost ids that the instance had sealed.
#[tokio::test(flavor = "multi_thread")]
async fn an_older_snapshot_of_redis_gets_its_lost_ids_again() {
    let mut redis = Redis::start();
    let fleet = Fleet::start(2, &redis, "snapshot", &[]).await;
    fleet.wait_published(0).await;
    let follower = 1 - fleet.leader();
    let start = next_window(Duration::from_millis(200)).await;
    let address = fleet.servers[1 - follower].address;
    let at = |millis| UNIX_EPOCH + Duration::from_secs(start) + Duration::from_millis(millis);
    let before = burst(address, 4, 0..2_000, at(500)).await;
    ::redis::cmd("SAVE").exec(&mut redis.connect()).expect("an answer");
    let after = burst(address, 4, 2_000..4_000, at(1_000)).await;
    assert!(after.ended < at(2_000), "this machine is too slow to say what is in which window");
    // It has the window open, so the window does not close before its heartbeat expires.
    fleet.servers[follower].process.signal("STOP");
    next_window(Duration::from_millis(700)).await;
    redis.restart();
    fleet.servers[follower].process.signal("CONT");

    let published = fleet.wait_published(start + 4).await;
    assert_no_gap(&published);
    let all: BTreeSet<_> = before.sent.iter().chain(&after.sent).copied().collect();
    assert_same_registers(&sketch_in(&redis, "snapshot", start), &all);
    assert_eq!(published[&start][0].1.unique, sketch_of(&all).estimate());
}

/// The only instance is killed in the middle of a window. Its successor starts early in the next window: no instance ran
/// when that window began.
#[tokio::test(flavor = "multi_thread")]
async fn a_window_that_began_before_any_instance_is_incomplete() {
    let redis = Redis::start();
    let mut fleet = Fleet::start(1, &redis, "alone", &[]).await;
    fleet.wait_published(0).await;
    let start = next_window(Duration::from_secs(1)).await;
    fleet.servers[0].process.signal("KILL");
    next_window(Duration::from_millis(300)).await;
    fleet.add().await;
    let published = fleet.wait_published(start + 4).await;
    assert_no_gap(&published);
    let complete: Vec<_> = [start - 2, start, start + 2, start + 4]
        .map(|start| published[&start].iter().all(|(_, closed)| closed.complete))
        .into();
    assert_eq!(complete, [true, false, false, true], "{published:#?}");
}

/// If an instance dies in a window, the others must know that it may have had ids of it. Its seal of the window before may take
/// seconds.
#[tokio::test(flavor = "multi_thread")]
async fn an_instance_says_that_a_window_has_begun_before_it_seals_the_last_one() {
    let redis = Redis::start();
    let fleet = Fleet::start(1, &redis, "newest", &[]).await;
    let (start, mut commands) = loop {
        let start = next_window(Duration::from_millis(100)).await;
        let commands = redis.monitor();
        assert_eq!(fleet.servers[0].get("/api/verve/accept?id=1").await.body, "ok");
        if seconds(SystemTime::now()) < start + WINDOW.as_secs() {
            break (start, commands);
        }
    };
    let says = format!(r#"newest\":{}"#, start + WINDOW.as_secs());
    let seals = format!("{{newest}}:accepted:{start}");
    let deadline = Instant::now() + PATIENCE;
    let first = tokio::task::spawn_blocking(move || {
        let mut commands = commands.by_ref().take_while(|_| Instant::now() < deadline);
        commands
            .find(|command| command.contains(&says) || command.contains("HSET") && command.contains(&seals))
    });
    let first = first.await.unwrap().unwrap();
    assert!(first.contains("newest\\\":"), "{first}");
}
