//! Medians, ratios, and the rows of the output.

use std::fmt::Write;

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len().is_multiple_of(2) {
        f64::midpoint(values[middle - 1], values[middle])
    } else {
        values[middle]
    }
}

/// The median of the ratios within each round.
pub fn ratio(values: &[f64], base: &[f64]) -> f64 {
    median(values.iter().zip(base).map(|(value, base)| value / base).collect())
}

/// The median of the differences within each round.
pub fn difference(values: &[f64], base: &[f64]) -> f64 {
    median(values.iter().zip(base).map(|(value, base)| value - base).collect())
}

/// The target of a figure.
#[derive(Debug, Clone, Copy)]
pub enum Target {
    None,
    AtMost(f64),
    AtLeast(f64),
}

impl Target {
    /// The figure with its target, and MISSED if it misses the target.
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

/// Prints a line of a table: its label, and its columns.
pub fn line(name: &str, columns: &[String]) {
    let mut text = format!("{name:<34}");
    for column in columns {
        let _ = write!(text, " {column:>24}");
    }
    println!("{text}");
}

/// Prints the head of a table.
pub fn head(title: &str, columns: &[&str]) {
    println!();
    line(title, &columns.iter().map(|&column| column.to_owned()).collect::<Vec<_>>());
}
