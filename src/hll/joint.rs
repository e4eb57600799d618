//! The joint estimate: how many elements two sketches have in common.
//!
//! # Why not by addition
//!
//! |A| + |B| − |A ∪ B| adds up the errors of three large numbers. If A and B have a million ids each, every one of them is off
//! by some 8 000. An overlap of 1 000 ids drowns, and is below 0 half of the time.
//!
//! # The idea
//!
//! The pairs of registers know more than the three counts. Split the elements into those that only A has, those that only B
//! has, and those that both have: three disjoint sets, each with registers of its own, which nobody sees. What is seen is the
//! higher register of A's own and the common one, and the higher of B's own and the common one. If A's register is the *higher*
//! one of a pair, an element of A alone made it so. If both are *equal*, most likely a common element did. How likely each pair
//! is depends on the three sizes only, so we take the sizes that make the pairs which are there most likely.
//!
//! * Ertl: *New cardinality estimation algorithms for HyperLogLog sketches* (arXiv:1702.01284), the section on the joint
//!   estimation of two sketches: the model, the likelihood, and that five numbers for each rank are all it needs.
//!
//! # How
//!
//! The elements are taken for arrivals at a constant rate in each of the m registers (Ertl's Poisson model). A register of rate
//! λ is at most k with probability exp(−λ x), where x = 2^−k / m. So it is k with probability z (1 − z), z = exp(−λ x); it is 0
//! with probability z, and the highest rank with probability 1 − z.
//!
//! The maximum is found by *Fisher scoring*: Newton's method with the expected curvature (the Fisher information) for the
//! curvature. That matrix of three by three is never indefinite, and it is the one that the standard error comes from. A rate
//! cannot be negative: one that would become so stays at [`LEAST`], and the others go on without it. Ertl uses a general
//! optimizer over logarithms instead, which needs more steps and no matrix.
//!
//! # The error
//!
//! The inverse of the information says how far the estimates are from the *rates*. The sets have a fixed number of elements,
//! not a random one: that takes the variance of a Poisson number away, which is the rate itself. For few elements that is nearly
//! all of it.
//!
//! Where few elements are common, or nearly all, the error at the estimate says little: at 0 it is a third of the error at an
//! overlap that would just be seen. So the error is taken where it hurts, as in Wilson's interval of a proportion: it is the
//! distance to the furthest overlap from which the estimate is one standard error away, by the error *there*.

use super::estimate::estimate;
use super::observation::{MAX_RANK, RANKS, REGISTERS};
use super::sketch::Sketch;

/// The lowest rate: none of such elements, where 0 itself would divide by 0.
const LEAST: f64 = 1e-9;
/// Steps until the estimate is taken as it is. Some 10 are enough.
const MOST_STEPS: usize = 100;
/// Times that a step is halved until it is given up.
const MOST_HALVES: usize = 40;
/// A step that can raise the logarithm of the likelihood by less than this ends the search: it is a thousandth of the standard
/// error long.
const PRECISION: f64 = 1e-6;
/// Times that the standard error is taken further away.
const MOST_WIDER: usize = 20;
/// The standard error is known when it grows by less than this.
const CLOSE: f64 = 1.01;
/// The standard error of rounding to a whole number: 1/√12.
const ROUNDING: f64 = 0.288_675_134_594_812_9;

/// What two sketches have in common.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Overlap {
    /// How many different elements the first one was shown, as `PFCOUNT` answers.
    pub first: u64,
    /// How many the second one was shown.
    pub second: u64,
    /// How many both were shown together.
    pub union: u64,
    /// How many both were shown each: never more than the smaller of the two.
    pub intersection: u64,
    /// The standard error of the intersection, in elements.
    pub standard_error: f64,
    /// The intersection, divided by the union; 0 if that is empty.
    pub jaccard: f64,
}

impl Overlap {
    /// Compares two sketches.
    pub fn of(first: &Sketch, second: &Sketch) -> Self {
        Pairs::of(first, second).overlap()
    }

    /// The standard error of the intersection of two sets with so many elements: those that only the first one has, those that
    /// only the second one has, and those that both have.
    pub fn standard_error_at(only_first: f64, only_second: f64, both: f64) -> f64 {
        Model::of(Rates([only_first, only_second, both].map(|rate| rate.max(LEAST)))).standard_error()
    }
}

/// All that the estimate needs of two sketches: how many pairs of registers are of each kind.
struct Pairs {
    /// For each sketch: where its register has a rank and is the lower one.
    lower: [[u32; RANKS]; 2],
    /// For each sketch: where its register has a rank and is the higher one.
    higher: [[u32; RANKS]; 2],
    /// Where both have a rank.
    equal: [u32; RANKS],
}

impl Pairs {
    fn of(first: &Sketch, second: &Sketch) -> Self {
        let zeros = [0; RANKS];
        let mut pairs = Self { lower: [zeros; 2], higher: [zeros; 2], equal: zeros };
        for (one, other) in first.ranks().zip(second.ranks()) {
            let (one, other, is_above) = (usize::from(one), usize::from(other), one > other);
            if one == other {
                pairs.equal[one] += 1;
            } else {
                pairs.higher[usize::from(!is_above)][one.max(other)] += 1;
                pairs.lower[usize::from(is_above)][one.min(other)] += 1;
            }
        }
        pairs
    }

    /// How many elements a sketch was shown.
    fn count(&self, sketch: usize) -> u64 {
        estimate(&std::array::from_fn(|rank| {
            self.lower[sketch][rank] + self.higher[sketch][rank] + self.equal[rank]
        }))
    }

    fn union(&self) -> u64 {
        let [first, second] = &self.higher;
        estimate(&std::array::from_fn(|rank| first[rank] + second[rank] + self.equal[rank]))
    }

    fn overlap(&self) -> Overlap {
        let (first, second, union) = (self.count(0), self.count(1), self.union());
        let start = first.saturating_add(second).saturating_sub(union) as f64;
        let model = self.most_likely(Rates(
            [first as f64 - start, second as f64 - start, start].map(|rate| rate.max(1.0)),
        ));
        let Rates([only_first, only_second, both]) = model.rates;
        let intersection = match (only_first <= LEAST, only_second <= LEAST) {
            // All of it is in the other one.
            (true, _) => first.min(second),
            (_, true) => second.min(first),
            _ => (both.round() as u64).min(first).min(second),
        };
        let jaccard = if union == 0 { 0.0 } else { intersection as f64 / union as f64 };
        Overlap { first, second, union, intersection, standard_error: model.standard_error(), jaccard }
    }

    /// Climbs from `start` to the rates that make these pairs most likely.
    fn most_likely(&self, start: Rates) -> Model {
        let mut model = Model::of(start);
        let mut likelihood = self.log_likelihood(&model);
        for _ in 0..MOST_STEPS {
            let slope = self.slope(&model);
            let Some(step) = model.step(slope) else { break };
            let gain: f64 = slope.iter().zip(step).map(|(slope, step)| slope * step).sum();
            if gain < PRECISION {
                break;
            }
            let halves = std::iter::successors(Some(1.0), |part| Some(part / 2.0)).take(MOST_HALVES);
            let mut shorter = halves.map(|part| Model::of(model.rates.moved(step, part)));
            let better = shorter.find_map(|model| {
                let is = self.log_likelihood(&model);
                (is > likelihood).then_some((model, is))
            });
            let Some(better) = better else { break };
            (model, likelihood) = better;
        }
        model
    }

    fn log_likelihood(&self, model: &Model) -> f64 {
        let mut sum = 0.0;
        for rank in 0..RANKS {
            let of = |counts: &[u32; RANKS], log: f64| f64::from(counts[rank]) * log;
            for sketch in [0, 1] {
                sum += of(&self.higher[sketch], model.own[sketch].log[rank]);
                sum += of(&self.lower[sketch], model.all[sketch].log[rank]);
            }
            sum += of(&self.equal, model.equal[rank].log);
        }
        sum
    }

    /// How the logarithm of the likelihood grows with each rate.
    fn slope(&self, model: &Model) -> [f64; 3] {
        let mut slope = [0.0; 3];
        for rank in 0..RANKS {
            for sketch in [0, 1] {
                let higher = f64::from(self.higher[sketch][rank]) * model.own[sketch].slope[rank];
                let lower = f64::from(self.lower[sketch][rank]) * model.all[sketch].slope[rank];
                slope[sketch] += higher + lower;
                slope[2] += lower;
            }
            let equal = f64::from(self.equal[rank]);
            slope.iter_mut().zip(model.equal[rank].slope).for_each(|(sum, slope)| *sum += equal * slope);
        }
        slope
    }
}

/// How many elements only the first sketch was shown, only the second one, and both.
#[derive(Clone, Copy)]
struct Rates([f64; 3]);

impl Rates {
    fn moved(self, step: [f64; 3], part: f64) -> Self {
        Self(std::array::from_fn(|place| (self.0[place] + part * step[place]).max(LEAST)))
    }
}

/// How likely each pair of registers is at some rates.
struct Model {
    rates: Rates,
    /// For each sketch: the registers of the elements that only it was shown.
    own: [Ranks; 2],
    /// For each sketch: the registers of all its elements.
    all: [Ranks; 2],
    /// That both registers are equal.
    equal: [Equal; RANKS],
}

/// A register at a rate: for each rank how likely it is, the logarithm of that, and how the logarithm grows with the rate.
struct Ranks {
    likely: [f64; RANKS],
    log: [f64; RANKS],
    slope: [f64; RANKS],
}

/// That both registers have a rank: how likely it is, the logarithm of that, and how the logarithm grows with each rate.
#[derive(Clone, Copy)]
struct Equal {
    likely: f64,
    log: f64,
    slope: [f64; 3],
}

impl Model {
    fn of(rates: Rates) -> Self {
        let Rates([first, second, both]) = rates;
        Self {
            rates,
            own: [first, second].map(Ranks::at),
            all: [first + both, second + both].map(Ranks::at),
            equal: std::array::from_fn(|rank| Equal::at(rates, rank)),
        }
    }

    /// The Fisher information of all pairs of registers.
    fn information(&self) -> [[f64; 3]; 3] {
        let mut sum = [[0.0; 3]; 3];
        let mut add = |likely: f64, slope: [f64; 3]| {
            for (row, one) in sum.iter_mut().zip(slope) {
                row.iter_mut()
                    .zip(slope)
                    .for_each(|(cell, other)| *cell += REGISTERS as f64 * likely * one * other);
            }
        };
        for equal in &self.equal {
            add(equal.likely, equal.slope);
        }
        for (sketch, other) in [(0, 1), (1, 0)] {
            let (own, all) = (&self.own[sketch], &self.all[other]);
            for higher in 1..RANKS {
                for lower in 0..higher {
                    let mut slope = [0.0; 3];
                    slope[sketch] = own.slope[higher];
                    slope[other] = all.slope[lower];
                    slope[2] = all.slope[lower];
                    add(own.likely[higher] * all.likely[lower], slope);
                }
            }
        }
        sum
    }

    /// Where to go from here. None if that cannot be said.
    fn step(&self, slope: [f64; 3]) -> Option<[f64; 3]> {
        let mut information = self.information();
        let mut right = slope;
        for place in 0..3 {
            // It would become negative.
            if self.rates.0[place] <= LEAST && slope[place] <= 0.0 {
                (0..3).for_each(|other| (information[place][other], information[other][place]) = (0.0, 0.0));
                (information[place][place], right[place]) = (1.0, 0.0);
            }
        }
        solve(&information, right)
    }

    /// The standard error of the number of common elements, if these are their numbers.
    fn error_here(&self) -> f64 {
        let variance = solve(&self.information(), [0.0, 0.0, 1.0]).map_or(f64::INFINITY, |column| column[2]);
        (variance - self.rates.0[2]).max(0.0).sqrt()
    }

    /// How far the number of common elements may be from this one, in one of three cases.
    fn standard_error(&self) -> f64 {
        let Rates([only_first, only_second, both]) = self.rates;
        let (first, second) = (only_first + both, only_second + both);
        let most = first.min(second);
        let error_at = |both: f64| {
            let both = both.clamp(LEAST, most);
            Self::of(Rates([first - both, second - both, both].map(|rate| rate.max(LEAST)))).error_here()
        };
        let mut error = self.error_here().min(most);
        for _ in 0..MOST_WIDER {
            let wider = error_at(both - error).max(error_at(both + error)).min(most);
            if wider <= error * CLOSE {
                break;
            }
            error = wider;
        }
        error.hypot(ROUNDING)
    }
}

impl Ranks {
    fn at(rate: f64) -> Self {
        let mut ranks = Self { likely: [0.0; RANKS], log: [0.0; RANKS], slope: [0.0; RANKS] };
        for rank in 0..RANKS {
            let x = width(rank);
            let (z, u) = ((-rate * x).exp(), -(-rate * x).exp_m1());
            let (mut likely, mut log, mut slope) = (1.0, 0.0, 0.0);
            if rank < RANKS - 1 {
                // No element has a higher rank.
                (likely, log, slope) = (z, -rate * x, -x);
            }
            if rank > 0 {
                // Some element has this one.
                (likely, log, slope) = (likely * u, log + u.ln(), slope + x * z / u);
            }
            (ranks.likely[rank], ranks.log[rank], ranks.slope[rank]) = (likely, log, slope);
        }
        ranks
    }
}

impl Equal {
    fn at(Rates(rates): Rates, rank: usize) -> Self {
        let x = width(rank);
        let [first, second, both] = rates.map(|rate| (-rate * x).exp());
        let [no_first, no_second, no_both] = rates.map(|rate| -(-rate * x).exp_m1());
        let mut equal = Self { likely: 1.0, log: 0.0, slope: [0.0; 3] };
        if rank < RANKS - 1 {
            // No element has a higher rank.
            let log = -x * rates.iter().sum::<f64>();
            equal = Self { likely: log.exp(), log, slope: [-x; 3] };
        }
        if rank > 0 {
            // A common element has this one, or else one of each sketch's own.
            let some = no_both + both * no_first * no_second;
            equal.likely *= some;
            equal.log += some.ln();
            equal.slope[0] += x * both * first * no_second / some;
            equal.slope[1] += x * both * second * no_first / some;
            equal.slope[2] += x * both * (1.0 - no_first * no_second) / some;
        }
        equal
    }
}

/// The share of the hashes that are in a register and have at least a rank; for the highest but one and the highest, the same.
fn width(rank: usize) -> f64 {
    2_f64.powi(-i32::from((rank as u8).min(MAX_RANK - 1))) / REGISTERS as f64
}

/// Solves a system with a matrix that is symmetric and positive definite, by Cholesky's method. None if it is not.
fn solve(matrix: &[[f64; 3]; 3], mut right: [f64; 3]) -> Option<[f64; 3]> {
    let mut rows = *matrix;
    for place in 0..3 {
        let pivot = rows[place][place];
        if !(pivot > 0.0 && pivot.is_finite()) {
            return None;
        }
        for below in place + 1..3 {
            let factor = rows[below][place] / pivot;
            (place..3).for_each(|column| rows[below][column] -= factor * rows[place][column]);
            right[below] -= factor * right[place];
        }
    }
    for place in (0..3).rev() {
        let rest: f64 = (place + 1..3).map(|column| rows[place][column] * right[column]).sum();
        right[place] = (right[place] - rest) / rows[place][place];
    }
    right.iter().all(|value| value.is_finite()).then_some(right)
}
