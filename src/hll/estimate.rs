//! The estimate: how many different elements made registers what they are.

use super::observation::{MAX_RANK, RANKS, REGISTERS};

/// Ertl's improved raw estimator (algorithm 6 of his paper), from how many registers have each rank.
///
/// The order of the operations is Redis's, so that both round alike.
pub(super) fn estimate(histogram: &[u32; RANKS]) -> u64 {
    /// 1 / (2 ln 2): the constant of HyperLogLog for infinitely many registers.
    const ALPHA: f64 = 0.721_347_520_444_481_7;
    let m = REGISTERS as f64;

    let mut z = m * tau((m - f64::from(histogram[usize::from(MAX_RANK)])) / m);
    for rank in (1..usize::from(MAX_RANK)).rev() {
        z += f64::from(histogram[rank]);
        z *= 0.5;
    }
    z += m * sigma(f64::from(histogram[0]) / m);
    // An empty sketch: z is infinite, the quotient 0.
    (ALPHA * m * m / z).round() as u64
}

// Both corrections are power series. They are summed until they change no more, so floats are compared exactly.

/// The correction for registers that are still 0 (equation 16): x + Σ x^(2^k) 2^(k−1).
#[expect(clippy::float_cmp)]
fn sigma(mut x: f64) -> f64 {
    if x == 1.0 {
        return f64::INFINITY;
    }
    let mut y = 1.0;
    let mut z = x;
    loop {
        x *= x;
        let before = z;
        z += x * y;
        y += y;
        if z == before {
            return z;
        }
    }
}

/// The correction for registers that can grow no more (equation 17).
#[expect(clippy::float_cmp)]
fn tau(mut x: f64) -> f64 {
    if x == 0.0 || x == 1.0 {
        return 0.0;
    }
    let mut y = 1.0;
    let mut z = 1.0 - x;
    loop {
        x = x.sqrt();
        let before = z;
        y *= 0.5;
        z -= (1.0 - x) * (1.0 - x) * y;
        if z == before {
            return z / 3.0;
        }
    }
}
