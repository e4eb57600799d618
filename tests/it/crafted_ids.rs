//! Ids that an attacker crafts against the public hash mislead the sketch; an id key makes them harmless.

use std::sync::OnceLock;

use headcount::hll::Observation;
use headcount::model::id::IntegerId;

use crate::support::fleet::sketch_of;
use crate::support::http::Connection;
use crate::support::redis::Redis;
use crate::support::server::Server;

const REGISTERS: usize = 16_384;
/// Of 1 024 ids one has it.
const RANK: u8 = 11;
/// Some 36 million are to be expected: an id for each register, of twice the rank that it would have had.
const REPORTED: u64 = 20_000_000;
const KEY: &str = "6a09e667f3bcc908b2fb1366ea957d3e";

/// An id for every register, each the first integer of at least [`RANK`] there.
struct Crafted {
    ids: Vec<u64>,
    hashes: u64,
}

/// The search takes seconds; all tests share its result.
fn crafted() -> &'static Crafted {
    static CRAFTED: OnceLock<Crafted> = OnceLock::new();
    CRAFTED.get_or_init(|| {
        /// Integers that a thread goes through before it is looked whether that is enough.
        const PIECE: u64 = 1 << 22;
        const THREADS: u64 = 2;
        const NONE: u64 = u64::MAX;
        let mut first = vec![NONE; REGISTERS];
        let mut hashes = 0;
        while first.contains(&NONE) {
            let found = std::thread::scope(|scope| {
                let pieces = (0..THREADS).map(|thread| hashes + thread * PIECE);
                let workers: Vec<_> =
                    pieces.map(|start| scope.spawn(move || high_ones(start..start + PIECE))).collect();
                workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect::<Vec<_>>()
            });
            for (register, id) in found {
                first[register] = first[register].min(id);
            }
            hashes += THREADS * PIECE;
        }
        Crafted { ids: first, hashes }
    })
}

/// Those of rank [`RANK`] or more, and the registers that they are for.
fn high_ones(ids: std::ops::Range<u64>) -> Vec<(usize, u64)> {
    let seen = ids.map(|id| (Observation::of(IntegerId::from(id).as_bytes()), id));
    seen.filter(|(seen, _)| seen.rank() >= RANK)
        .map(|(seen, id)| (usize::from(seen.register()), id))
        .collect()
}

/// The count of a service after one bulk request with the crafted ids.
async fn reported(args: &[&str]) -> u64 {
    let server = Server::start(&[&["--window", "24h"], args].concat()).await;
    let body: Vec<_> = crafted().ids.iter().map(u64::to_string).collect();
    let mut connection = Connection::open(server.address).await.unwrap();
    let answer = connection.post("text/plain", body.join("\n").as_bytes()).await.unwrap();
    assert_eq!(answer.body, "ok");
    let count = server.get("/api/verve/unique").await.json();
    count["current"]["unique_request_count"].as_u64().unwrap()
}

#[test]
fn crafted_ids_mislead_the_hyperloglog_of_redis() {
    let Crafted { ids, hashes } = crafted();
    assert!(ids.len() <= 20_000);
    let ours = sketch_of(ids).estimate();

    let server = Redis::start();
    let mut redis = server.connect();
    let mut pfadd = ::redis::cmd("PFADD");
    pfadd.arg("crafted").arg(ids).exec(&mut redis).unwrap();
    let theirs: u64 = ::redis::cmd("PFCOUNT").arg("crafted").query(&mut redis).unwrap();
    println!("{hashes} hashes, {} ids: ours {ours}, Redis {theirs}", ids.len());
    assert!(ours > REPORTED, "{ours}");
    assert_eq!(ours, theirs);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_key_makes_crafted_ids_harmless() {
    let redis = Redis::start();
    let url = redis.url();
    for (name, backend) in [("memory", vec![]), ("Redis", vec!["--redis-url", &url])] {
        let fooled = reported(&backend).await;
        let keyed = reported(&[&backend[..], &["--namespace", "keyed", "--id-key", KEY]].concat()).await;
        println!("{name}: {fooled}, with a key {keyed}");
        assert!(fooled > REPORTED, "{name}: {fooled}");
        let right = crafted().ids.len() as f64;
        assert!((keyed as f64 - right).abs() / right < 0.03, "{name}: {keyed}");
    }
}
