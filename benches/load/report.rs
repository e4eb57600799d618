//! Medians, ratios, and how a row is shown.

use std::fmt::Write;

/// The middle one of several.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len().is_multiple_of(2) {
        f64::midpoint(values[middle - 1], values[middle])
    } else {
        values[middle]
    }
}

/// The median of the ratios of what was measured in the same round.
pub fn ratio(values: &[f64], base: &[f64]) -> f64 {
    median(values.iter().zip(base).map(|(value, base)| value / base).collect())
}

/// What a figure is to be.
#[derive(Debug, Clone, Copy)]
pub enum Target {
    None,
    AtMost(f64),
    AtLeast(f64),
}

impl Target {
    /// The figure, what it is to be, and a mark if it is not.
    pub fn judge(self, figure: f64) -> String {
        let mut text = format!("{figure:.2}");
        let (words, missed) = match self {
            Self::None => return text,
            Self::AtMost(limit) => (format!("≤ {limit}"), figure > limit),
            Self::AtLeast(limit) => (format!("≥ {limit}"), figure < limit),
        };
        let _ = write!(text, " ({words}{})", if missed { ", MISSED" } else { "" });
        text
    }
}

/// A line of a table: what it is of, and its columns.
pub fn line(name: &str, columns: &[String]) {
    let mut text = format!("{name:<34}");
    for column in columns {
        let _ = write!(text, " {column:>24}");
    }
    println!("{text}");
}

/// The head of a table.
pub fn head(title: &str, columns: &[&str]) {
    println!();
    line(title, &columns.iter().map(|&column| column.to_owned()).collect::<Vec<_>>());
}
