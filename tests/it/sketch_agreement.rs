//! The sketch has the registers, bytes and estimates of a real redis-server.

use headcount::hll::Sketch;
use headcount::model::id::IntegerId;
use redis::{Commands, Connection};

use crate::support::SplitMix;
use crate::support::redis::Redis;

const HEADER: usize = 16;
/// Bytes 8 to 16: the cached cardinality, which the comparison ignores.
const CACHE: std::ops::Range<usize> = 8..HEADER;
const SPARSE: u8 = 1;

fn random_ids(seed: u64, count: usize) -> Vec<IntegerId> {
    SplitMix(seed).take(count).map(IntegerId::from).collect()
}

fn sketch_of(ids: &[IntegerId]) -> Sketch {
    let sketch = Sketch::new();
    for id in ids {
        sketch.add(id.as_bytes());
    }
    sketch
}

fn pfadd(redis: &mut Connection, key: &str, ids: &[IntegerId]) {
    // No ids at all make an empty sketch.
    redis::cmd("PFADD").arg(key).exec(redis).unwrap();
    for piece in ids.chunks(10_000) {
        let mut command = redis::cmd("PFADD");
        command.arg(key);
        for id in piece {
            command.arg(id.as_bytes());
        }
        command.exec(redis).unwrap();
    }
}

fn without_cache(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[CACHE].fill(0);
    bytes
}

#[test]
fn registers_and_estimates_are_those_of_redis() {
    let server = Redis::start();
    let mut redis = server.connect();
    let (mut sparse_strings, mut dense_strings) = (0, 0);
    for (seed, count) in [0, 1, 2, 10, 100, 1_000, 16_384, 100_000, 1_000_000].into_iter().enumerate() {
        let key = format!("ids:{count}");
        let ids = random_ids(seed as u64, count);
        let ours = sketch_of(&ids);
        pfadd(&mut redis, &key, &ids);

        let stored: Vec<u8> = redis.get(&key).unwrap();
        sparse_strings += usize::from(stored[4] == SPARSE);
        assert_eq!(Sketch::from_bytes(&stored).unwrap(), ours, "{count} ids as Redis stored them");

        redis::cmd("PFDEBUG").arg("TODENSE").arg(&key).exec(&mut redis).unwrap();
        let dense: Vec<u8> = redis.get(&key).unwrap();
        let written = ours.to_bytes();
        if written[4] != SPARSE {
            dense_strings += 1;
            assert!(without_cache(&dense) == without_cache(&written), "{count} ids, dense");
        }
        assert_eq!(Sketch::from_bytes(&dense).unwrap(), ours);

        let theirs: u64 = redis.pfcount(&key).unwrap();
        assert_eq!(ours.estimate(), theirs, "{count} ids");

        let () = redis.set("ours", ours.to_bytes()).unwrap();
        let of_ours: u64 = redis.pfcount("ours").unwrap();
        assert_eq!(of_ours, theirs, "Redis counts our string of {count} ids");
    }
    assert!(sparse_strings >= 5, "small keys are sparse: {sparse_strings}");
    assert!(dense_strings >= 2, "our large strings are dense: {dense_strings}");
}

#[test]
fn redis_merges_our_strings_as_we_do() {
    let server = Redis::start();
    let mut redis = server.connect();
    for (ours, theirs) in [(0, 100), (100, 0), (100, 100), (50_000, 10), (10, 50_000), (50_000, 50_000)] {
        let (our_ids, their_ids) = (random_ids(1, ours), random_ids(2, theirs));
        let sketch = sketch_of(&our_ids);
        let () = redis.del(&["theirs", "merged"]).unwrap();
        let () = redis.set("ours", sketch.to_bytes()).unwrap();
        pfadd(&mut redis, "theirs", &their_ids);
        let () = redis.pfmerge("merged", &["ours", "theirs"]).unwrap();

        sketch.merge(&sketch_of(&their_ids));
        let merged: Vec<u8> = redis.get("merged").unwrap();
        assert_eq!(Sketch::from_bytes(&merged).unwrap(), sketch, "{ours} of ours, {theirs} of theirs");
        let count: u64 = redis.pfcount("merged").unwrap();
        assert_eq!(count, sketch.estimate());
    }
}

/// Redis makes a key dense when its sparse string is longer than `hll-sparse-max-bytes`, 3000 by default: with some 1 000
/// ids. `PFMERGE` of our strings makes it dense no earlier.
#[test]
fn a_key_stays_sparse_under_our_strings_as_long_as_under_ids() {
    let server = Redis::start();
    let mut redis = server.connect();
    for max_bytes in [3_000, 200] {
        let () = redis::cmd("CONFIG")
            .arg("SET")
            .arg("hll-sparse-max-bytes")
            .arg(max_bytes)
            .query(&mut redis)
            .unwrap();
        let mut encodings = Vec::new();
        for count in [1, 10, 30, 50, 100, 400, 800, 1_500, 5_000] {
            let (ours, theirs) = (random_ids(1, count / 2), random_ids(2, count - count / 2));
            let () = redis.del(&["by_ids", "merged"]).unwrap();
            pfadd(&mut redis, "by_ids", &[&theirs[..], &ours].concat());
            pfadd(&mut redis, "merged", &theirs);
            let () = redis.set("ours", sketch_of(&ours).to_bytes()).unwrap();
            let () = redis.pfmerge("merged", &["ours"]).unwrap();
            let [by_ids, merged] = ["by_ids", "merged"].map(|key| redis.get::<_, Vec<u8>>(key).unwrap());
            assert_eq!(by_ids[4], merged[4], "{count} ids, {max_bytes} bytes");
            assert_eq!(Sketch::from_bytes(&merged).unwrap(), Sketch::from_bytes(&by_ids).unwrap());
            encodings.push(merged[4]);
        }
        assert!(encodings.contains(&SPARSE) && encodings.last() != Some(&SPARSE), "{encodings:?}");
    }
}

/// Many small sets: sparse strings of all shapes.
#[test]
fn every_sparse_string_is_read() {
    let server = Redis::start();
    let mut redis = server.connect();
    for seed in 0..300 {
        let ids = random_ids(1_000 + seed, seed as usize * 4);
        pfadd(&mut redis, "sparse", &ids);
        let stored: Vec<u8> = redis.get_del("sparse").unwrap();
        assert_eq!(Sketch::from_bytes(&stored).unwrap(), sketch_of(&ids), "{} ids", ids.len());
    }
}

/// Elements of every length, to test every tail of the hash. `PFADD` answers 1 exactly if our sketch changes.
#[test]
fn any_bytes_hash_as_in_redis() {
    let server = Redis::start();
    let mut redis = server.connect();
    let sketch = Sketch::new();
    let mut random = SplitMix(7);
    for length in (0..64).cycle().take(2_000) {
        let element: Vec<u8> = random.by_ref().take(length).map(|word| word as u8).collect();
        let changed: bool = redis.pfadd("bytes", &element[..]).unwrap();
        assert_eq!(sketch.add(&element), changed, "{element:?}");
    }
    let stored: Vec<u8> = redis.get("bytes").unwrap();
    assert_eq!(Sketch::from_bytes(&stored).unwrap(), sketch);
}
