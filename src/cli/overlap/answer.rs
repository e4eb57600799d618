//! The service's answer about counters.

use serde::Deserialize;

use super::comparison::{self, Comparison};
use crate::cli::figures::{Common, state};
use crate::model::mode::Mode;
use crate::model::shard::Shards;
use crate::store;

#[derive(Debug, Deserialize)]
pub(super) struct Answer {
    mode: String,
    from: String,
    to: String,
    counters: Vec<Count>,
    union: u64,
    complete: bool,
    #[serde(flatten)]
    compared: Compared,
}

#[derive(Debug, Deserialize)]
struct Count {
    counter: String,
    unique_request_count: u64,
}

/// Of two counters, or of each two of more.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Compared {
    Two(InCommon),
    More { pairs: Vec<Pair> },
}

#[derive(Debug, Deserialize)]
struct Pair {
    counters: [String; 2],
    #[serde(flatten)]
    in_common: InCommon,
}

#[derive(Debug, Deserialize)]
struct InCommon {
    intersection: u64,
    intersection_standard_error: f64,
    jaccard: f64,
}

impl Answer {
    pub(super) fn into_comparison(self) -> Comparison {
        let mode = if self.mode == Mode::Exact.as_str() { Mode::Exact } else { Mode::Hll };
        let pairs = match self.compared {
            Compared::Two(in_common) => {
                let names = self.counters.iter().map(|count| count.counter.clone()).collect::<Vec<_>>();
                let names = <[String; 2]>::try_from(names).ok();
                names.map(|counters| Pair { counters, in_common }).into_iter().collect()
            }
            Compared::More { pairs } => pairs,
        };
        Comparison {
            counts: self
                .counters
                .into_iter()
                .map(|count| (count.counter, count.unique_request_count))
                .collect(),
            union: self.union,
            // A counter is in one sketch.
            error: store::standard_error(mode, Shards::ONE),
            when: format!(" from {} to {}, {}", self.from, self.to, state(self.complete)),
            pairs: pairs.into_iter().map(Pair::compared).collect(),
        }
    }
}

impl Pair {
    fn compared(self) -> comparison::Pair {
        let InCommon { intersection: count, intersection_standard_error: error, jaccard } = self.in_common;
        comparison::Pair { names: self.counters, intersection: Common { count, error }, jaccard }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(json: &str) -> Vec<String> {
        serde_json::from_str::<Answer>(json).unwrap().into_comparison().lines()
    }

    #[test]
    fn two_counters_are_compared() {
        let json = r#"{"mode":"hll","from":"2026-11-23T04:00:00Z","to":"2026-11-23T05:00:00Z",
            "counters":[{"counter":"de","unique_request_count":100280},{"counter":"fr","unique_request_count":99410}],
            "union":181370,"intersection":18020,"intersection_standard_error":561.2,"jaccard":0.099355,"complete":true}"#;
        assert_eq!(
            lines(json),
            [
                "100280 (standard error 0.81 %, 95 %: 98651 to 101909) in de",
                "99410 (standard error 0.81 %, 95 %: 97795 to 101025) in fr",
                "181370 (standard error 0.81 %, 95 %: 178423 to 184317) in all together \
                 from 2026-11-23T04:00:00Z to 2026-11-23T05:00:00Z, complete",
                "18020 (standard error 561.2, 95 %: 16898 to 19142) in both de and fr",
                "0.099355 Jaccard index of de and fr",
            ]
        );
    }

    #[test]
    fn of_three_counters_each_is_compared_with_each() {
        let json = r#"{"mode":"exact","from":"2026-11-23T04:00:00Z","to":"2026-11-23T05:00:00Z",
            "counters":[{"counter":"a","unique_request_count":2},{"counter":"b","unique_request_count":3},
                {"counter":"c","unique_request_count":0}],"union":4,"pairs":[
                {"counters":["a","b"],"intersection":1,"intersection_standard_error":0.0,"jaccard":0.25},
                {"counters":["a","c"],"intersection":0,"intersection_standard_error":0.0,"jaccard":0.0},
                {"counters":["b","c"],"intersection":0,"intersection_standard_error":0.0,"jaccard":0.0}],
            "complete":false}"#;
        assert_eq!(
            lines(json),
            [
                "2 (exact) in a",
                "3 (exact) in b",
                "0 (exact) in c",
                "4 (exact) in all together from 2026-11-23T04:00:00Z to 2026-11-23T05:00:00Z, \
                 incomplete: not over, or ids may be missing",
                "1 (exact) in both a and b",
                "0.250000 Jaccard index of a and b",
                "0 (exact) in both a and c",
                "0.000000 Jaccard index of a and c",
                "0 (exact) in both b and c",
                "0.000000 Jaccard index of b and c",
            ]
        );
    }

    #[test]
    fn another_answer_is_not_understood() {
        for json in [r#"{"mode":"hll","unique_request_count":1}"#, "{}", "[]"] {
            assert!(serde_json::from_str::<Answer>(json).is_err(), "{json}");
        }
    }
}
