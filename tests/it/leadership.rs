//! Leaders that die, hang and come back.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::support::fleet::{Fleet, assert_no_gap, next_window};
use crate::support::redis::Redis;
use crate::support::{PATIENCE, SplitMix, soak, wait_for};

/// The default of `--lease-ttl`.
const LEASE_TTL: Duration = Duration::from_secs(5);

/// When the leader is killed.
#[derive(Clone, Copy)]
enum Moment {
    /// Anywhere in a window.
    MidWindow,
    /// As soon as it has stored a count: it may not have published it, or not have marked it as published.
    CountStored,
}

/// A field of a hash, or a string, as a number.
fn number(redis: &Redis, command: &[&str]) -> Option<u64> {
    let mut ask = ::redis::cmd(command[0]);
    command[1..].iter().for_each(|part| {
        ask.arg(*part);
    });
    ask.query(&mut redis.connect()).expect("an answer")
}

async fn wait_for_moment(redis: &Redis, namespace: &str, moment: Moment, random: &mut SplitMix) {
    match moment {
        Moment::MidWindow => {
            let into = Duration::from_millis(100 + random.next().expect("it never ends") % 1_800);
            next_window(into).await;
        }
        Moment::CountStored => {
            let (mut connection, counts) = (redis.connect(), format!("{{{namespace}}}:counts"));
            let mut last = ::redis::cmd("HGET");
            last.arg(counts).arg("last");
            let mut ask = || last.query::<Option<u64>>(&mut connection).expect("an answer");
            let (before, deadline) = (ask(), Instant::now() + PATIENCE);
            // Without a pause: the gap is a millisecond or less.
            while ask() == before {
                assert!(Instant::now() < deadline, "no count is stored");
                tokio::task::yield_now().await;
            }
        }
    }
}

/// Kills the leader again and again; gives how long each time the next count took.
async fn kill_leaders(redis: &Redis, namespace: &str, kills: u64, moment: Moment) -> Vec<Duration> {
    let mut fleet = Fleet::start(3, redis, namespace, &[]).await;
    let mut random = SplitMix(kills);
    let mut may_repeat = BTreeSet::new();
    let mut took = Vec::new();
    fleet.wait_published(0).await;
    for _ in 0..kills {
        wait_for_moment(redis, namespace, moment, &mut random).await;
        let leader = fleet.leader();
        fleet.servers[leader].process.signal("KILL");
        let killed = Instant::now();
        fleet.servers[leader].ended().await;
        let marked = number(redis, &["GET", &format!("{{{namespace}}}:published")]).expect("a window");
        may_repeat.extend(fleet.published().into_keys().filter(|window| *window > marked));
        let by_others = |fleet: &Fleet| {
            fleet.published().values().flatten().filter(|(publisher, _)| *publisher != leader).count()
        };
        let before = by_others(&fleet);
        wait_for("the next leader to publish", || (by_others(&fleet) > before).then_some(())).await;
        took.push(killed.elapsed());
        fleet.add().await;
    }
    fleet.wait_published(next_window(Duration::ZERO).await).await;
    let published = fleet.published();
    assert_no_gap(&published);
    for (window, closed) in &published {
        assert!(closed.iter().all(|(_, other)| *other == closed[0].1), "other numbers: {closed:?}");
        assert!(closed.len() == 1 || may_repeat.contains(window), "published twice: {closed:?}");
    }
    let repeats = published.values().filter(|closed| closed.len() > 1).count();
    println!("{namespace}: {} windows, {repeats} published twice, next after {took:?}", published.len());
    took
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_leader_is_succeeded() {
    let redis: &Redis = Box::leak(Box::new(Redis::start()));
    let kills = if soak() { 25 } else { 5 };
    let mut fleets = JoinSet::new();
    for (namespace, moment) in [
        ("mid-window-1", Moment::MidWindow),
        ("mid-window-2", Moment::MidWindow),
        ("stored-1", Moment::CountStored),
        ("stored-2", Moment::CountStored),
    ] {
        fleets.spawn(kill_leaders(redis, namespace, kills, moment));
    }
    let took = fleets.join_all().await.concat();
    let longest = took.iter().max().expect("some");
    assert!(*longest <= LEASE_TTL + Duration::from_secs(2), "{longest:?}");
}

/// A leader that was stopped for longer than its lease, and goes on where it was.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_was_stopped_publishes_nothing_more() {
    let redis = Redis::start();
    let fleet = Fleet::start(3, &redis, "stopped", &[]).await;
    fleet.wait_published(0).await;
    for into in [100, 1_000, 1_900] {
        next_window(Duration::from_millis(into)).await;
        let stopped = fleet.leader();
        fleet.servers[stopped].process.signal("STOP");
        let published = fleet.servers[stopped].closed().len();
        wait_for("another leader", || (fleet.leader() != stopped).then_some(())).await;
        let next = fleet.leader();
        let last = next_window(Duration::ZERO).await;
        fleet.wait_published(last).await;

        fleet.servers[stopped].process.signal("CONT");
        fleet.wait_published(last + 6).await;
        assert_eq!(fleet.leader(), next, "it is not the leader any more");
        assert_eq!(fleet.servers[stopped].closed().len(), published);
        assert_eq!(fleet.servers[stopped].metric("headcount_leader").await, 0.0);
    }
    let published = fleet.published();
    assert_no_gap(&published);
    assert!(published.values().all(|closed| closed.len() == 1), "{published:#?}");
}
