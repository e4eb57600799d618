//! The stream of counters that `--redis-stream` writes beside that of windows.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::support::fleet::{Fleet, next_window, seconds};
use crate::support::http::Connection;
use crate::support::redis::{Flavour, Redis};
use crate::support::server::Server;
use crate::support::{wait_for, wait_until};

type Entry = (String, HashMap<String, String>);

const OF_COUNTERS: &str = "counts:counters";

fn entries(redis: &Redis, key: &str) -> Vec<Entry> {
    ::redis::cmd("XRANGE").arg(key).arg("-").arg("+").query(&mut redis.connect()).unwrap()
}

/// The start of an entry's window in seconds, and its place in it.
fn id((id, _): &Entry) -> (u64, usize) {
    let (start, place) = id.split_once('-').unwrap();
    let start: u64 = start.strip_suffix("000").expect("a whole second").parse().unwrap();
    (start, place.parse().unwrap())
}

async fn serve(redis: &Redis, args: &[&str]) -> Server {
    let url = redis.url();
    let fixed = ["--redis-url", &url, "--redis-stream", "counts"];
    let window = if args.contains(&"--window") { &[][..] } else { &["--window", "1s"] };
    Server::start(&[&fixed, window, args].concat()).await
}

/// Sends ids from a number on, one to each of these counters.
async fn send(server: &Server, from: u64, counters: impl IntoIterator<Item = String>) {
    let body = counters.into_iter().zip(from..).fold(String::new(), |mut body, (counter, id)| {
        writeln!(body, r#"{{"id":{id},"counters":["{counter}"]}}"#).unwrap();
        body
    });
    let mut connection = Connection::open(server.address).await.unwrap();
    let answer = connection.post("application/x-ndjson", body.as_bytes()).await.unwrap();
    assert_eq!((answer.status, answer.body.as_str()), (200, "ok"));
}

fn names(number: u64) -> impl Iterator<Item = String> {
    (0..number).map(|number| format!("c-{number:04}"))
}

/// Waits until the windows have so many accepted ids in all. Sketches of parts of them may count a few less.
async fn wait_counted(redis: &Redis, ids: u64) -> Vec<Entry> {
    let counted = |windows: &[Entry]| -> u64 {
        windows.iter().map(|(_, fields)| fields["accepted_ids"].parse::<u64>().unwrap()).sum()
    };
    let there = || Some(entries(redis, "counts")).filter(|windows| counted(windows) >= ids);
    wait_for("windows in the stream", there).await
}

/// Asserts that each window has as many entries of counters as it says, in one row.
#[track_caller]
fn assert_agree(windows: &[Entry], counters: &[Entry]) {
    let mut places = BTreeMap::<u64, Vec<usize>>::new();
    for entry in counters {
        let (start, place) = id(entry);
        places.entry(start).or_default().push(place);
    }
    for window in windows {
        let said = window.1.get("counters").map_or(0, |number| number.parse().unwrap());
        let places = places.remove(&id(window).0).unwrap_or_default();
        assert!(places.iter().copied().eq(0..said), "{window:?}: {places:?}");
    }
    assert!(places.is_empty(), "counters without a window: {:?}", places.keys());
}

#[tokio::test(flavor = "multi_thread")]
async fn counters_come_before_their_window() {
    for flavour in Flavour::at_hand() {
        let redis = Redis::start_with(flavour, &[]);
        let mut server = serve(&redis, &["--shards", "4"]).await;
        // More than are added at once.
        send(&server, 0, names(450)).await;
        send(&server, 1_000, ["c-0007".to_owned()]).await;
        wait_counted(&redis, 451).await;
        assert!(server.stop().await.success());
        let (windows, counters) = (entries(&redis, "counts"), entries(&redis, OF_COUNTERS));
        assert_agree(&windows, &counters);
        let order: Vec<_> = counters.iter().map(|entry| (id(entry).0, &entry.1["counter"])).collect();
        assert!(order.is_sorted_by(|one, next| one < next), "by name");
        let mut sums = BTreeMap::<&str, u64>::new();
        for entry in &counters {
            let (_, fields) = entry;
            let window = windows.iter().find(|window| id(window).0 == id(entry).0).unwrap();
            for field in ["timestamp", "namespace", "mode", "window_seconds", "complete"] {
                assert_eq!(fields[field], window.1[field], "{field}");
            }
            assert_eq!((fields.len(), &*fields["standard_error"]), (8, "0.008125"));
            *sums.entry(&fields["counter"]).or_default() +=
                fields["unique_request_count"].parse::<u64>().unwrap();
        }
        let expected: Vec<_> = names(450).map(|name| (1 + u64::from(name == "c-0007"), name)).collect();
        assert!(
            sums.iter().map(|(name, sum)| (*sum, (*name).to_owned())).eq(expected),
            "{flavour:?}: {sums:?}"
        );
    }
}

/// As if a leader had died after it had added some counters of a window: the next one adds the others.
#[tokio::test(flavor = "multi_thread")]
async fn counters_that_are_there_are_not_added_again() {
    for flavour in Flavour::at_hand() {
        let redis = Redis::start_with(flavour, &[]);
        let mut server = serve(&redis, &["--window", "2s"]).await;
        for consumed in [false, true] {
            let before = entries(&redis, "counts").len();
            let start = next_window(Duration::from_millis(50)).await;
            for place in 0..2 {
                let id = format!("{start}000-{place}");
                let add = ["counts:counters", &id, "by", "another leader"];
                ::redis::cmd("XADD").arg(&add).exec(&mut redis.connect()).unwrap();
                if consumed {
                    ::redis::cmd("XDEL").arg(&[OF_COUNTERS, &id]).exec(&mut redis.connect()).unwrap();
                }
            }
            send(&server, 0, names(5)).await;
            wait_until("the window", async || {
                entries(&redis, "counts")[before..].iter().any(|window| id(window).0 == start)
            })
            .await;
            let of_window = |entry: &Entry| id(entry).0 == start;
            let counters: Vec<_> = entries(&redis, OF_COUNTERS).into_iter().filter(of_window).collect();
            let added: Vec<_> = counters.iter().filter_map(|(_, fields)| fields.get("counter")).collect();
            assert_eq!(added, ["c-0002", "c-0003", "c-0004"], "{flavour:?}");
            assert_eq!(counters.len(), if consumed { 3 } else { 5 });
        }
        assert!(server.stop().await.success());
    }
}

/// Killed leaders leave no counter without its window, and none twice.
#[tokio::test(flavor = "multi_thread")]
async fn killed_leaders_repeat_no_counter() {
    let redis = Redis::start();
    let url = redis.url();
    let args = ["--window", "1s", "--redis-url", &url, "--redis-stream", "counts", "--lease-ttl", "1s"];
    let mut fleet = Fleet::start_with(2, &args).await;
    for kill in 0..3 {
        for _ in 0..2 {
            next_window(Duration::from_millis(50)).await;
            let newest = fleet.servers.last().unwrap();
            send(newest, kill * 10_000, names(900)).await;
        }
        let leader = fleet.leader();
        fleet.servers[leader].process.signal("KILL");
        fleet.servers[leader].ended().await;
        fleet.add().await;
    }
    let last = seconds(SystemTime::now());
    wait_until("the last window", async || {
        entries(&redis, "counts").last().is_some_and(|window| id(window).0 >= last)
    })
    .await;
    let (windows, counters) = (entries(&redis, "counts"), entries(&redis, OF_COUNTERS));
    let until: Vec<_> = counters.into_iter().filter(|entry| id(entry).0 <= last).collect();
    let windows: Vec<_> = windows.into_iter().filter(|window| id(window).0 <= last).collect();
    assert_agree(&windows, &until);
    assert!(!until.is_empty());
}

/// An entry of a far year keeps counters out, and the log says what to do. Then the windows arrive with their counters.
#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_keeps_counters_out_is_named() {
    for taken in [&["XADD", OF_COUNTERS, "99999999999000-0", "f", "v"][..], &["SET", OF_COUNTERS, "taken"]] {
        let redis = Redis::start();
        ::redis::cmd(taken[0]).arg(&taken[1..]).exec(&mut redis.connect()).unwrap();
        let mut server = serve(&redis, &[]).await;
        send(&server, 0, names(3)).await;
        let remedy = "RENAME counts:counters counts:counters.old";
        let names_it = |event: &serde_json::Value| {
            event["level"] == "WARN" && event["fields"]["error"].as_str().unwrap_or_default().contains(remedy)
        };
        wait_for("the remedy", || server.log().iter().any(names_it).then_some(())).await;
        let rename = remedy.split(' ').collect::<Vec<_>>();
        ::redis::cmd(rename[0]).arg(&rename[1..]).exec(&mut redis.connect()).unwrap();
        let windows = wait_counted(&redis, 3).await;
        let counters = entries(&redis, OF_COUNTERS);
        assert!(server.stop().await.success());
        assert_agree(&windows, &counters);
        assert_eq!(counters.len(), 3);
    }
}

/// Windows go on without counters that wait too long.
#[tokio::test(flavor = "multi_thread")]
async fn windows_do_not_wait_for_ever_for_their_counters() {
    let redis = Redis::start();
    ::redis::cmd("SET").arg(&[OF_COUNTERS, "taken"]).exec(&mut redis.connect()).unwrap();
    let mut server = serve(&redis, &["--counter-retention", "2s"]).await;
    send(&server, 0, names(3)).await;
    let windows = wait_counted(&redis, 3).await;
    assert!(windows.iter().any(|(_, fields)| fields.get("counters").is_some_and(|said| said == "skipped")));
    assert!(server.stop().await.success());
}

/// The stream of counters keeps about those of `--counter-retention`: Redis deletes whole nodes of 100 entries.
#[tokio::test(flavor = "multi_thread")]
async fn old_counters_are_deleted() {
    let redis = Redis::start();
    let mut server = serve(&redis, &["--counter-retention", "3s"]).await;
    let begun = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let mut next_id = 0;
    wait_until("old counters to be deleted", async || {
        next_window(Duration::from_millis(20)).await;
        next_id += 1_000;
        send(&server, next_id, names(300)).await;
        let first = entries(&redis, OF_COUNTERS).first().map(id);
        first.is_some_and(|(start, _)| start > begun + 2)
    })
    .await;
    let last = entries(&redis, OF_COUNTERS).last().map(id).unwrap().0;
    let first = entries(&redis, OF_COUNTERS).first().map(id).unwrap().0;
    assert!(last - first >= 3, "not more than asked for: {first} to {last}");
    assert!(server.stop().await.success());
}
