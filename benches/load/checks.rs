//! Counts that are near enough to what was sent.

/// The tolerance of counts, in standard errors. A correct count exceeds it once in a million runs.
pub const STANDARD_ERRORS: f64 = 5.0;
/// The relative standard error of a sketch.
pub const ERROR: f64 = 0.0081;

/// Checks the number of different ids among so many random ones, from the least to the most. `error` is the relative standard error
/// of the count.
pub fn check_unique(unique: f64, draws: [f64; 2], ids: u64, error: f64) -> Result<(), String> {
    let ids = ids as f64;
    check_within(
        unique,
        draws.map(|draws| {
            // Each id is missing with a probability of e to the -d.
            let d = draws / ids;
            let (different, chance) =
                (-ids * (-d).exp_m1(), (ids * (-d).exp() * (1.0 - (1.0 + d) * (-d).exp())).sqrt());
            (different, chance + error * different)
        }),
    )
}

/// Checks the count of so many different ids by a sketch, from the least to the most.
pub fn check_between(unique: f64, different: [f64; 2]) -> Result<(), String> {
    check_within(unique, different.map(|different| (different, ERROR * different)))
}

/// `bounds` are the least and the most, each with its standard error.
fn check_within(unique: f64, [(least, below), (most, above)]: [(f64, f64); 2]) -> Result<(), String> {
    if (least - STANDARD_ERRORS * below..=most + STANDARD_ERRORS * above).contains(&unique) {
        Ok(())
    } else {
        Err(format!("{unique} different ids were counted, not about {least:.0} to {most:.0}"))
    }
}
