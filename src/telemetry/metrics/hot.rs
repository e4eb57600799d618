//! Metrics that every request adds to.
//!
//! The exporter's histograms keep each value until they are asked, and its counters cannot be read. These are atomics, shown
//! when somebody asks.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ::metrics::Counter;

/// Upper bounds of the buckets of every histogram of durations, in seconds. The same in all
/// instances, so that they add up.
pub(super) const DURATION_BUCKETS: [f64; 15] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];

/// A counter. Clones are the same one.
#[derive(Clone)]
pub struct HotCounter(Arc<Shown>);

struct Shown {
    sum: AtomicU64,
    /// What is shown of it.
    counter: Counter,
}

impl HotCounter {
    pub(super) fn new(counter: Counter) -> Self {
        Self(Arc::new(Shown { sum: AtomicU64::new(0), counter }))
    }

    /// Adds to it.
    pub fn increment(&self, by: u64) {
        self.0.sum.fetch_add(by, Ordering::Relaxed);
    }

    /// What was added so far.
    pub fn get(&self) -> u64 {
        self.0.sum.load(Ordering::Relaxed)
    }

    pub(super) fn show(&self) {
        self.0.counter.absolute(self.get());
    }
}

/// A histogram of durations. Clones are the same one.
#[derive(Clone, Default)]
pub struct HotDurations(Arc<Durations>);

#[derive(Default)]
struct Durations {
    /// For each bound, and for what is over all of them.
    buckets: [AtomicU64; DURATION_BUCKETS.len() + 1],
    nanoseconds: AtomicU64,
}

impl HotDurations {
    /// Adds one.
    pub fn record(&self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        // From below: most are short.
        let bucket =
            DURATION_BUCKETS.iter().position(|bound| seconds <= *bound).unwrap_or(DURATION_BUCKETS.len());
        self.0.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.0.nanoseconds.fetch_add(duration.as_nanos() as u64, Ordering::Relaxed);
    }

    /// The lines of its series, in the Prometheus text format.
    pub(super) fn show(&self, name: &str, label: &str, value: &str, lines: &mut String) {
        let mut count = 0;
        for bucket in 0..=DURATION_BUCKETS.len() {
            count += self.0.buckets[bucket].load(Ordering::Relaxed);
            let bound = DURATION_BUCKETS.get(bucket).map_or_else(|| "+Inf".to_owned(), ToString::to_string);
            let _ = writeln!(lines, r#"{name}_bucket{{{label}="{value}",le="{bound}"}} {count}"#);
        }
        let seconds = Duration::from_nanos(self.0.nanoseconds.load(Ordering::Relaxed));
        let _ = writeln!(lines, r#"{name}_sum{{{label}="{value}"}} {}"#, seconds.as_secs_f64());
        let _ = writeln!(lines, r#"{name}_count{{{label}="{value}"}} {count}"#);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_belong_to_their_bucket_and_buckets_add_up() {
        let durations = HotDurations::default();
        for micros in [0, 100, 101, 5_000_000, 6_000_000] {
            durations.record(Duration::from_micros(micros));
        }
        let mut lines = String::new();
        durations.show("d", "route", "x", &mut lines);
        for line in [
            r#"d_bucket{route="x",le="0.0001"} 2"#,
            r#"d_bucket{route="x",le="0.00025"} 3"#,
            r#"d_bucket{route="x",le="2.5"} 3"#,
            r#"d_bucket{route="x",le="5"} 4"#,
            r#"d_bucket{route="x",le="+Inf"} 5"#,
            r#"d_sum{route="x"} 11.000201"#,
            r#"d_count{route="x"} 5"#,
        ] {
            assert!(lines.lines().any(|shown| shown == line), "{line} in\n{lines}");
        }
    }
}
