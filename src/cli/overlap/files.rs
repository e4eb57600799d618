//! What the sketches of two files have in common.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::comparison::{Comparison, Pair};
use crate::cli::figures::Common;
use crate::cli::sketch_file;
use crate::hll::Overlap;
use crate::model::mode::Mode;
use crate::model::shard::Shards;
use crate::store;

/// Its names are those of the service's answer.
#[derive(Serialize)]
pub(super) struct Compared {
    mode: Mode,
    standard_error: f64,
    files: [FileCount; 2],
    union: u64,
    intersection: u64,
    intersection_standard_error: f64,
    jaccard: f64,
}

#[derive(Serialize)]
struct FileCount {
    file: String,
    unique_count: u64,
}

/// The error names the file that has no sketch.
pub(super) fn compare(files: &[PathBuf; 2]) -> anyhow::Result<Compared> {
    let [first, second] = files;
    Ok(Compared::of(files, Overlap::of(&sketch_file::read(first)?, &sketch_file::read(second)?)))
}

impl Compared {
    fn of([one, other]: &[PathBuf; 2], overlap: Overlap) -> Self {
        let Overlap { first, second, union, intersection, standard_error, jaccard } = overlap;
        let count = |file: &Path, count| FileCount { file: file.display().to_string(), unique_count: count };
        Self {
            mode: Mode::Hll,
            standard_error: store::standard_error(Mode::Hll, Shards::ONE),
            files: [count(one, first), count(other, second)],
            union,
            intersection,
            // The other digits say nothing. A service leaves them out, too.
            intersection_standard_error: (standard_error * 10.0).round() / 10.0,
            jaccard: (jaccard * 1e6).round() / 1e6,
        }
    }

    pub(super) fn into_comparison(self) -> Comparison {
        let [one, other] = self.files;
        Comparison {
            counts: [&one, &other].map(|file| (file.file.clone(), file.unique_count)).into(),
            union: self.union,
            error: self.standard_error,
            when: String::new(),
            pairs: vec![Pair {
                names: [one.file, other.file],
                intersection: Common { count: self.intersection, error: self.intersection_standard_error },
                jaccard: self.jaccard,
            }],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compared(intersection: u64) -> Compared {
        let overlap = Overlap {
            first: 100_280,
            second: 99_410,
            union: 181_370,
            intersection,
            standard_error: 561.24,
            jaccard: 0.099_354_9,
        };
        Compared::of(&["a b.hll", "./c"].map(PathBuf::from), overlap)
    }

    #[test]
    fn a_line_for_each_figure() {
        assert_eq!(
            compared(18_020).into_comparison().lines(),
            [
                "100280 (standard error 0.81 %, 95 %: 98651 to 101909) in a b.hll",
                "99410 (standard error 0.81 %, 95 %: 97795 to 101025) in ./c",
                "181370 (standard error 0.81 %, 95 %: 178423 to 184317) in all together",
                "18020 (standard error 561.2, 95 %: 16898 to 19142) in both a b.hll and ./c",
                "0.099355 Jaccard index of a b.hll and ./c",
            ]
        );
        let none = compared(1_100).into_comparison().lines().remove(3);
        let begins = "1100 (standard error 561.2, 95 %: 0 to 2222, not distinguishable from none) in both ";
        assert!(none.starts_with(begins), "{none}");
    }

    #[test]
    fn programs_get_the_same_figures() {
        let json = serde_json::to_string(&compared(18_020)).unwrap();
        assert_eq!(
            json,
            concat!(
                r#"{"mode":"hll","standard_error":0.008125,"files":[{"file":"a b.hll","unique_count":100280},"#,
                r#"{"file":"./c","unique_count":99410}],"union":181370,"intersection":18020,"#,
                r#""intersection_standard_error":561.2,"jaccard":0.099355}"#,
            )
        );
    }
}
