//! Zipf's law: campaign-<k> has a share in proportion to 1 / k^skew. wrk.lua draws names by the same law.

use std::fmt::Write;
use std::iter::repeat_n;

use crate::support::SplitMix;

/// Ids of a bulk body.
const IDS_A_BODY: usize = 10_000;

/// How popular so many counters are.
#[derive(Debug, Clone, Copy)]
pub struct Zipf {
    pub counters: u64,
    pub skew: f64,
}

impl Zipf {
    /// The share of the most frequent one, campaign-1.
    pub fn first_share(self) -> f64 {
        1.0 / self.weights().sum::<f64>()
    }

    fn weights(self) -> impl Iterator<Item = f64> {
        (1..=self.counters).map(move |k| (k as f64).powf(-self.skew))
    }

    /// How many ids each counter gets, the most frequent first: one, and its share of the rest.
    pub fn ids_of_each(self, ids: u64) -> Vec<u64> {
        let (sum, rest) = (self.weights().sum::<f64>(), (ids - self.counters) as f64);
        let (mut weight, mut given) = (0.0, 0);
        let mut next = |one: f64| {
            weight += one;
            let until_here = (rest * weight / sum).round() as u64;
            1 + until_here - std::mem::replace(&mut given, until_here)
        };
        self.weights().map(&mut next).collect()
    }

    /// Bulk bodies of so many ids, which are all different, each with the name of a counter. The names come in random order.
    pub fn bodies(self, first_id: u64, ids: u64) -> Vec<String> {
        let each = (1..=self.counters).zip(self.ids_of_each(ids));
        let mut names: Vec<_> = each.flat_map(|(k, ids)| repeat_n(k, ids as usize)).collect();
        shuffle(&mut names);
        let body = |(number, names): (usize, &[u64])| {
            let mut body = String::new();
            for (id, k) in (first_id + (number * IDS_A_BODY) as u64..).zip(names) {
                let _ = writeln!(body, r#"{{"id":{id},"counters":["campaign-{k}"]}}"#);
            }
            body
        };
        names.chunks(IDS_A_BODY).enumerate().map(body).collect()
    }
}

fn shuffle(names: &mut [u64]) {
    for (last, random) in (1..names.len()).rev().zip(SplitMix(1)) {
        names.swap(last, (random % (last as u64 + 1)) as usize);
    }
}
