//! Properties of every sketch, and of every string that claims to be one.

use headcount::hll::{GrowingSketch, InvalidSketch, Sketch};
use proptest::collection::vec;
use proptest::prelude::*;

const DENSE_LENGTH: usize = 12_304;

fn sketch_of(elements: &[u64]) -> Sketch {
    let sketch = Sketch::new();
    for element in elements {
        sketch.add(element.to_string().as_bytes());
    }
    sketch
}

fn union(a: &Sketch, b: &Sketch) -> Sketch {
    let union = a.clone();
    union.merge(b);
    union
}

fn header(encoding: u8, body: &[u8]) -> Vec<u8> {
    let mut string = b"HYLL\0\0\0\0\0\0\0\0\0\0\0\x80".to_vec();
    string[4] = encoding;
    string.extend_from_slice(body);
    string
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn merge_is_commutative_associative_and_idempotent(
        a in vec(any::<u64>(), 0..2_000), b in vec(any::<u64>(), 0..2_000), c in vec(any::<u64>(), 0..2_000),
    ) {
        let (a, b, c) = (sketch_of(&a), sketch_of(&b), sketch_of(&c));
        prop_assert_eq!(union(&a, &b), union(&b, &a));
        prop_assert_eq!(union(&union(&a, &b), &c), union(&a, &union(&b, &c)));
        prop_assert_eq!(union(&a, &a), a.clone());
        prop_assert_eq!(union(&a, &Sketch::new()), a);
    }

    #[test]
    fn a_union_is_the_sketch_of_the_union(elements in vec(any::<u64>(), 0..4_000), at in any::<prop::sample::Index>()) {
        let (left, right) = elements.split_at(at.index(elements.len() + 1));
        prop_assert_eq!(union(&sketch_of(left), &sketch_of(right)), sketch_of(&elements));
    }

    #[test]
    fn what_is_written_is_read(elements in vec(any::<u64>(), 0..20_000)) {
        let sketch = sketch_of(&elements);
        let string = sketch.to_bytes();
        prop_assert!(string.len() < DENSE_LENGTH || string.len() == DENSE_LENGTH && string[4] == 0);
        prop_assert_eq!(Sketch::from_bytes(&string), Ok(sketch));
    }

    /// Whether it still lists registers, has just become dense, or is dense for long.
    #[test]
    fn a_growing_sketch_is_the_sketch_of_its_elements(
        elements in prop_oneof![vec(any::<u64>(), 0..100), vec(any::<u64>(), 1_900..2_700), vec(any::<u64>(), 0..9_000)],
    ) {
        let (growing, sketch, merged) = (GrowingSketch::default(), Sketch::new(), Sketch::new());
        for element in &elements {
            let element = element.to_string();
            prop_assert_eq!(growing.add(element.as_bytes()), sketch.add(element.as_bytes()));
        }
        prop_assert_eq!(growing.estimate(), sketch.estimate());
        prop_assert_eq!(growing.to_bytes(), sketch.to_bytes());
        growing.merge_into(&merged);
        prop_assert_eq!(merged, sketch);
    }

    /// Adding again, in any order, changes nothing.
    #[test]
    fn repeats_change_nothing(elements in vec(any::<u64>(), 1..1_000)) {
        let sketch = sketch_of(&elements);
        for element in elements.iter().rev() {
            prop_assert!(!sketch.add(element.to_string().as_bytes()));
        }
        prop_assert_eq!(sketch, sketch_of(&elements));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, ..ProptestConfig::default() })]

    /// Any string gives a sketch or an error, never a panic. A sketch can be counted and written.
    #[test]
    fn any_string_is_a_sketch_or_an_error(string in strings()) {
        if let Ok(sketch) = Sketch::from_bytes(&string) {
            sketch.estimate();
            prop_assert_eq!(Sketch::from_bytes(&sketch.to_bytes()), Ok(sketch));
        }
    }
}

/// Random strings, and strings with a valid header: dense ones of the right length, and runs that may or may not cover
/// the registers.
fn strings() -> impl Strategy<Value = Vec<u8>> {
    let anything = vec(any::<u8>(), 0..64);
    let headed = (0..4_u8, vec(any::<u8>(), 0..64)).prop_map(|(encoding, body)| header(encoding, &body));
    let dense = vec(any::<u8>(), 48).prop_map(|piece| header(0, &piece.repeat(256)));
    let runs = vec(any::<u8>(), 0..2_000).prop_map(|body| header(1, &body));
    prop_oneof![30 => anything, 30 => headed, 1 => dense, 30 => runs]
}

#[test]
fn broken_strings_say_what_is_wrong() {
    let many: Vec<u64> = (0..100_000).collect();
    let whole = sketch_of(&many).to_bytes();
    let cover = |length: u16| [0b0100_0000 | (length >> 8) as u8, length as u8];
    for (string, error) in [
        (Vec::new(), InvalidSketch::NoHeader),
        (b"HYLL".to_vec(), InvalidSketch::NoHeader),
        (b"HELLO, this is no sketch".to_vec(), InvalidSketch::NoHeader),
        (header(2, &[]), InvalidSketch::UnknownEncoding(2)),
        (header(0, &[]), InvalidSketch::DenseLength(16)),
        (whole[..whole.len() - 1].to_vec(), InvalidSketch::DenseLength(12_303)),
        ([&whole[..], &[0]].concat(), InvalidSketch::DenseLength(12_305)),
        (header(0, &[0xff; 12_288]), InvalidSketch::ImpossibleRegister(63)),
        (header(1, &[]), InvalidSketch::BrokenRuns),
        (header(1, &cover(16_382)), InvalidSketch::BrokenRuns),
        (header(1, &[&cover(16_383)[..], &[0]].concat()), InvalidSketch::BrokenRuns),
        (header(1, &[&cover(16_383)[..], &[0x80]].concat()), InvalidSketch::BrokenRuns),
        (header(1, &[&cover(16_382)[..], &[0x40]].concat()), InvalidSketch::BrokenRuns),
    ] {
        assert_eq!(Sketch::from_bytes(&string), Err(error));
    }
    assert_eq!(Sketch::from_bytes(&header(1, &cover(16_383))), Ok(Sketch::new()));
}

/// A register that a sparse string cannot hold, beside one that it can.
#[test]
fn a_high_register_is_written_dense() {
    let with_register = |rank: u8| {
        let mut body = vec![0; 12_288];
        body[0] = rank;
        Sketch::from_bytes(&header(0, &body)).unwrap()
    };
    for (rank, encoding) in [(1, 1), (32, 1), (33, 0), (51, 0)] {
        let string = with_register(rank).to_bytes();
        assert_eq!((string[4], Sketch::from_bytes(&string)), (encoding, Ok(with_register(rank))), "{rank}");
    }
}

/// 64 threads, one sketch: no addition is lost while it becomes dense.
#[test]
fn threads_share_a_growing_sketch() {
    for elements in [500_u64, 8_000] {
        let shared = GrowingSketch::default();
        let changes: usize = std::thread::scope(|scope| {
            let add = |thread: u64| {
                let elements = (0..elements).map(move |n| (thread * 7_919 + n * 31) % elements);
                elements.filter(|element| shared.add(element.to_string().as_bytes())).count()
            };
            let threads: Vec<_> = (0..64).map(|thread| scope.spawn(move || add(thread))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        let all: Vec<u64> = (0..elements).collect();
        assert_eq!(shared.to_bytes(), sketch_of(&all).to_bytes());
        assert!(changes >= 400, "{changes}");
    }
}

/// 64 threads, one sketch, no lock.
#[test]
fn threads_share_a_sketch() {
    let shared = Sketch::new();
    std::thread::scope(|scope| {
        for thread in 0..64_u64 {
            let shared = &shared;
            scope.spawn(move || {
                for id in thread * 1_000..(thread + 2) * 1_000 {
                    shared.add(id.to_string().as_bytes());
                }
            });
        }
    });
    assert_eq!(shared, sketch_of(&(0..65_000).collect::<Vec<_>>()));
}
