//! How far the overlaps of sketches are from the truth, over many simulated pairs with fixed seeds.
//!
//! A sketch of n elements is drawn without hashing any: n elements fall into 16 384 registers by coins, and the rank of a register
//! with k elements is the highest of k, which one random number decides. That is exactly what a perfect hash would do.

use std::sync::atomic::{AtomicUsize, Ordering};

use headcount::hll::{Overlap, Sketch};

use crate::support::{SplitMix, soak};

const REGISTERS: usize = 1 << 14;
/// A relative standard error of an RMS over so many pairs is 1/√(2n).
const PAIRS: usize = 100;
const PAIRS_OF_SOAK: usize = 1_000;

/// Elements that only the first set has, that only the second one has, and that both have.
#[derive(Clone, Copy, Debug)]
struct Sets {
    first: u64,
    second: u64,
    both: u64,
    /// The RMS error, divided by that of |A| + |B| − |A ∪ B|, at most; as the issue of 100 %.
    gain: f64,
}

/// What a simulation of one kind of sets found.
struct Found {
    sets: Sets,
    standard_error: f64,
    rms: f64,
    bias: f64,
    /// The standard error of the bias.
    bias_error: f64,
    rms_by_addition: f64,
    /// The mean of the standard errors that were answered.
    answered: f64,
}

/// How many of so many elements show heads.
fn heads(random: &mut SplitMix, elements: u64) -> u64 {
    let whole: u64 = (0..elements / 64).map(|_| u64::from(next(random).count_ones())).sum();
    whole + u64::from((next(random) & ((1 << (elements % 64)) - 1)).count_ones())
}

fn next(random: &mut SplitMix) -> u64 {
    random.next().unwrap()
}

/// Raises registers to the ranks of so many elements.
fn raise(random: &mut SplitMix, registers: &mut [u8], elements: u64) {
    if elements == 0 {
        return;
    }
    if let [register] = registers {
        let uniform = ((next(random) >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
        // All ranks are at most r with probability (1 − 2^−r)^elements.
        let above = -(uniform.ln() / elements as f64).exp_m1();
        *register = (*register).max((-above.log2()).ceil().clamp(1.0, 51.0) as u8);
        return;
    }
    let (left, right) = registers.split_at_mut(registers.len() / 2);
    let of_left = heads(random, elements);
    raise(random, left, of_left);
    raise(random, right, elements - of_left);
}

/// The sketch with these registers, by way of the dense string of Redis.
fn sketch(registers: &[u8]) -> Sketch {
    let mut bytes = [&b"HYLL"[..], &[0; 11], &[128]].concat();
    for four in registers.chunks(4) {
        let [a, b, c, d] = [four[0], four[1], four[2], four[3]];
        bytes.extend([a | b << 6, b >> 2 | c << 4, c >> 4 | d << 2]);
    }
    Sketch::from_bytes(&bytes).unwrap()
}

fn pair(sets: Sets, seed: u64) -> (Sketch, Sketch) {
    let mut random = SplitMix(seed);
    let [mut first, mut second, mut both] = std::array::from_fn(|_| vec![0; REGISTERS]);
    raise(&mut random, &mut first, sets.first);
    raise(&mut random, &mut second, sets.second);
    raise(&mut random, &mut both, sets.both);
    for registers in [&mut first, &mut second] {
        registers.iter_mut().zip(&both).for_each(|(register, both)| *register = (*both).max(*register));
    }
    (sketch(&first), sketch(&second))
}

fn simulate(sets: Sets, pairs: usize) -> Found {
    let Sets { first, second, both, .. } = sets;
    let truth = both as f64;
    let (mut sum, mut squares, mut by_addition, mut answered) = (0.0, 0.0, 0.0, 0.0);
    for number in 0..pairs {
        let seed = [first, second, both, number as u64]
            .iter()
            .fold(7, |seed, part| next(&mut SplitMix(seed ^ part)));
        let (one, other) = pair(sets, seed);
        let found = Overlap::of(&one, &other);
        assert!(found.intersection <= found.first.min(found.second), "{sets:?}: {found:?}");
        assert!((0.0..=1.0).contains(&found.jaccard), "{sets:?}: {found:?}");
        let error = found.intersection as f64 - truth;
        sum += error;
        squares += error * error;
        by_addition += (found.first as f64 + found.second as f64 - found.union as f64 - truth).powi(2);
        answered += found.standard_error;
    }
    let mean = |sum: f64| sum / pairs as f64;
    let (rms, bias) = (mean(squares).sqrt(), mean(sum));
    Found {
        sets,
        standard_error: Overlap::standard_error_at(first as f64, second as f64, truth),
        rms,
        bias,
        bias_error: ((rms * rms - bias * bias) / pairs as f64).sqrt(),
        rms_by_addition: mean(by_addition).sqrt(),
        answered: mean(answered),
    }
}

/// Two sets of so many elements each, with a Jaccard index.
fn equal(size: u64, jaccard: f64, gain: f64) -> Sets {
    let both = (2.0 * size as f64 * jaccard / (1.0 + jaccard)).round() as u64;
    Sets { first: size - both, second: size - both, both, gain }
}

/// A set, and one a hundred times as large that has a share of it.
fn small_in_large(small: u64, share: f64) -> Sets {
    let both = (small as f64 * share).round() as u64;
    Sets { first: small - both, second: 100 * small - both, both, gain: f64::INFINITY }
}

fn all_sets() -> Vec<Sets> {
    let mut all = Vec::new();
    for exponent in 3..=7 {
        let size = 10_u64.pow(exponent);
        let (at_a_tenth, at_a_hundredth) = match exponent {
            3 => (1.05, 0.8),
            4 => (0.82, 0.55),
            _ => (0.65, 0.42),
        };
        for jaccard in [0.0, 0.001, 0.01, 0.1, 0.5, 1.0] {
            let gain = if jaccard == 0.1 {
                at_a_tenth
            } else if jaccard == 0.01 {
                at_a_hundredth
            } else {
                f64::INFINITY
            };
            all.push(equal(size, jaccard, gain));
        }
    }
    for small in [1_000, 10_000, 100_000] {
        all.extend([0.0, 0.01, 0.1, 0.5, 1.0].map(|share| small_in_large(small, share)));
    }
    all
}

/// Simulates all kinds of sets, on all processors.
fn simulate_all(all: &[Sets], pairs: usize) -> Vec<Found> {
    let taken = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut found: Vec<_> = std::thread::scope(|scope| {
        let work = || {
            let take = || Some(taken.fetch_add(1, Ordering::Relaxed)).filter(|place| *place < all.len());
            std::iter::from_fn(take).map(|place| (place, simulate(all[place], pairs))).collect::<Vec<_>>()
        };
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    found.sort_by_key(|(place, _)| *place);
    found.into_iter().map(|(_, found)| found).collect()
}

/// The bounds hold for 1 000 pairs. Fewer pairs are further off by chance: they may be by three standard errors more.
#[test]
fn an_overlap_is_within_its_standard_error_and_better_than_addition() {
    let pairs = if soak() { PAIRS_OF_SOAK } else { PAIRS };
    let chance = if soak() { 1.0 } else { 1.0 + 3.0 / (2.0 * pairs as f64).sqrt() };
    for found in simulate_all(&all_sets(), pairs) {
        let is_seen = found.sets.both as f64 >= 4.0 * found.standard_error;
        // One row of 370 is beyond that by chance. With more pairs, a bias would be further beyond.
        let again = is_seen && found.bias.abs() > 3.0 * found.bias_error;
        let found = if again { simulate(found.sets, 4 * pairs) } else { found };
        let Found { sets, standard_error, rms, bias, bias_error, rms_by_addition, answered } = found;
        println!(
            "{:>8} | {:>8} | {:>8} | {standard_error:>8.1} | {:.2} | {:>5.2} | {} | {:.2} | {:.2}",
            sets.first + sets.both,
            sets.second + sets.both,
            sets.both,
            rms / standard_error,
            bias / bias_error,
            if is_seen { "seen" } else { "    " },
            rms / rms_by_addition,
            answered / standard_error,
        );
        assert!(rms <= 1.1 * chance * standard_error, "{sets:?}: RMS {rms}, standard error {standard_error}");
        assert!(!is_seen || bias.abs() <= 3.0 * bias_error, "{sets:?}: bias {bias} ± {bias_error}");
        let gain = rms / rms_by_addition;
        assert!(gain <= sets.gain * chance, "{sets:?}: {gain} times the error of addition");
        assert!((0.9..1.1).contains(&(answered / standard_error)), "{sets:?}: {answered} is answered");
    }
}

/// The smallest overlap of two sets of so many elements that is four standard errors.
fn smallest_seen(size: u64) -> u64 {
    let is_seen = |both: &u64| {
        let own = (size - both) as f64;
        *both as f64 >= 4.0 * Overlap::standard_error_at(own, own, *both as f64)
    };
    let (mut low, mut high) = (0, size);
    while low + 1 < high {
        let middle = u64::midpoint(low, high);
        if is_seen(&middle) { high = middle } else { low = middle }
    }
    high
}

/// The table of docs/api.md. A hundred million elements take long, so they are only in the long sizes.
#[test]
fn the_smallest_overlap_that_is_seen_is_that_of_the_docs() {
    let sizes = [10_000, 1_000_000, 100_000_000];
    let simulated = if soak() { 3 } else { 2 };
    let docs = include_str!("../../docs/api.md");
    let row = |size: u64| {
        let start = format!("| {} |", spaced(size));
        let row =
            docs.lines().find(|line| line.starts_with(&start)).unwrap_or_else(|| panic!("no row '{start}'"));
        let number = |cell: &str| cell.trim().replace(' ', "").parse::<f64>().unwrap();
        let cells: Vec<_> = row.split('|').collect();
        [number(cells[2]), number(cells[4])]
    };
    let sets: Vec<_> = sizes
        .iter()
        .map(|size| {
            let both = smallest_seen(*size);
            Sets { first: size - both, second: size - both, both, gain: 0.5 }
        })
        .collect();
    for (size, sets) in sizes.iter().zip(&sets) {
        let [described, _] = row(*size);
        assert!((described / sets.both as f64 - 1.0).abs() < 0.05, "{size}: {}", sets.both);
    }
    for (size, found) in sizes.iter().zip(simulate_all(&sets[..simulated], PAIRS)) {
        let [_, by_addition] = row(*size);
        let chance = 3.0 / (2.0 * PAIRS as f64).sqrt();
        println!("{size}: {} seen, {:.0} by addition", found.sets.both, 4.0 * found.rms_by_addition);
        assert!(found.rms <= 1.1 * (1.0 + chance) * found.standard_error, "{size}: {}", found.rms);
        let ratio = 4.0 * found.rms_by_addition / by_addition;
        assert!((ratio - 1.0).abs() < chance + 0.05, "{size}: {ratio} of what the docs say");
    }
}

/// A number with a space after each thousand.
fn spaced(number: u64) -> String {
    let digits = number.to_string();
    let groups: Vec<_> =
        digits.as_bytes().rchunks(3).rev().map(|group| std::str::from_utf8(group).unwrap()).collect();
    groups.join(" ")
}
