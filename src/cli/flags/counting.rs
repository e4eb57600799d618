//! The flags that say what is counted, and how.

use std::time::Duration;

use bytesize::ByteSize;
use clap::Args;

use super::values;
use crate::model::counter::{CounterLimits, CounterName, InvalidCounter};
use crate::model::id::IdKind;
use crate::model::id_key::IdKey;
use crate::model::mode::Mode;
use crate::model::period::Level;
use crate::model::shard::Shards;
use crate::model::window::WindowLength;
use crate::platform::secret::SecretArg;
use crate::store::{Counting, Keep, KeepPeriods};

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Counting")]
pub(super) struct CountingFlags {
    /// What an id is
    #[arg(long, env = "HEADCOUNT_IDS", value_enum, default_value_t = IdKind::Integer)]
    ids: IdKind,

    /// How to count
    #[arg(long, env = "HEADCOUNT_MODE", value_enum, default_value_t = Mode::Hll)]
    mode: Mode,

    /// Length of a window: whole seconds that divide a day
    #[arg(long, env = "HEADCOUNT_WINDOW", value_name = "DURATION", default_value = "60s")]
    window: WindowLength,

    /// How long the count of a closed window is kept for a sink that does not take it
    /// [default: 24h, in mode exact 15min]
    #[arg(long, env = "HEADCOUNT_RETENTION", value_name = "DURATION", value_parser = values::retention)]
    retention: Option<Duration>,

    /// Sketches that the ids of a window are split over: the standard error is 0.81 % / √SHARDS
    #[arg(long, env = "HEADCOUNT_SHARDS", default_value = "1")]
    shards: Shards,

    // Not a doc comment: help has no Markdown.
    #[arg(
        long,
        env = "HEADCOUNT_ID_KEY",
        value_name = "KEY",
        hide_env_values = true,
        help = "Count a keyed hash of each id instead of the id, so that clients cannot choose ids that make the \
                count wrong: 32 hexadecimal digits, or file:PATH of a file that has them"
    )]
    id_key: Option<SecretArg>,

    /// Counters that clients may name in a window, those of the window before included; 0 refuses them.
    /// Ids beyond count in the counter _other
    #[arg(
        long, env = "HEADCOUNT_MAX_COUNTERS", value_name = "NUMBER", default_value = "1000",
        value_parser = clap::value_parser!(u32).range(0..=10_000_000)
    )]
    max_counters: u32,

    /// Memory for the names, sketches and sets of counters, in all windows that the instance holds
    #[arg(long, env = "HEADCOUNT_COUNTER_MEMORY", value_name = "BYTES", default_value = "256MiB")]
    counter_memory: ByteSize,

    /// How long the counts of a closed window's counters are kept for a sink that does not take them, at most
    /// --retention [default: 1h, or --retention if that is shorter]
    #[arg(
        long, env = "HEADCOUNT_COUNTER_RETENTION", value_name = "DURATION", value_parser = values::retention
    )]
    counter_retention: Option<Duration>,

    /// How long days are kept, after their end (UTC). The counts of windows, for /api/verve/series, are kept for the longer of
    /// --keep-hours and --keep-days, at most 100000. 0s for both keeps none
    #[arg(
        long, env = "HEADCOUNT_KEEP_DAYS", value_name = "DURATION", default_value = "35days",
        value_parser = values::history
    )]
    keep_days: Duration,

    /// How long hours are kept, after their end
    #[arg(
        long, env = "HEADCOUNT_KEEP_HOURS", value_name = "DURATION", default_value = "48h",
        value_parser = values::history
    )]
    keep_hours: Duration,

    /// How long days of counters are kept, after their end. A counter takes up to 12.3 KB a day. Without --keep-hours and
    /// --keep-days there are none
    #[arg(
        long, env = "HEADCOUNT_COUNTER_KEEP_DAYS", value_name = "DURATION", default_value = "0s",
        value_parser = values::history
    )]
    counter_keep_days: Duration,

    /// How long hours of counters are kept, after their end. A counter takes up to 12.3 KB an hour. Without --keep-hours and
    /// --keep-days there are none
    #[arg(
        long, env = "HEADCOUNT_COUNTER_KEEP_HOURS", value_name = "DURATION", default_value = "24h",
        value_parser = values::history
    )]
    counter_keep_hours: Duration,

    // Not a doc comment: help has no Markdown.
    #[arg(
        long,
        env = "HEADCOUNT_METRICS_COUNTER",
        value_name = "NAME",
        value_delimiter = ',',
        value_parser = counter_name,
        help = "Export the count of this counter as the metric headcount_counter_unique_ids; up to 100 names, \
                separated by commas"
    )]
    metrics_counter: Vec<String>,
}

/// How long counts of counters are kept for a sink without `--counter-retention`.
const COUNTER_RETENTION: Duration = Duration::from_secs(60 * 60);
/// Names of `--metrics-counter`, at most: each is a series of its own.
const MOST_EXPORTED: usize = 100;

fn counter_name(text: &str) -> Result<String, InvalidCounter> {
    CounterName::parse_for_reading(text.into()).map(|name| name.as_str().to_owned())
}

impl CountingFlags {
    pub(super) fn settings(self) -> Result<Counting, String> {
        let Self { ids, mode, window, shards, .. } = self;
        let id_key = self.id_key.map(|key| key.parse("--id-key <KEY>", IdKey::parse)).transpose()?;
        let shortest = 2 * window.duration();
        let retention = match self.retention {
            Some(retention) if retention < shortest => {
                return Err(format!(
                    "invalid value '{}' for '--retention <DURATION>': expected at least two windows, {}",
                    humantime::format_duration(retention),
                    humantime::format_duration(shortest),
                ));
            }
            Some(retention) => retention,
            None => shortest.max(match mode {
                Mode::Hll => Duration::from_secs(24 * 60 * 60),
                Mode::Exact => Duration::from_secs(15 * 60),
            }),
        };
        let counter_retention = match self.counter_retention {
            Some(longer) if longer > retention => {
                return Err(format!(
                    "invalid value '{}' for '--counter-retention <DURATION>': expected at most --retention, {}",
                    humantime::format_duration(longer),
                    humantime::format_duration(retention),
                ));
            }
            Some(counter_retention) => counter_retention,
            None => retention.min(COUNTER_RETENTION),
        };
        if self.metrics_counter.len() > MOST_EXPORTED {
            return Err(format!("'--metrics-counter <NAME>' takes at most {MOST_EXPORTED} names"));
        }
        let total = KeepPeriods { hours: self.keep_hours, days: self.keep_days };
        let mut keep = Keep {
            total,
            counters: KeepPeriods { hours: self.counter_keep_hours, days: self.counter_keep_days },
        };
        // Windows are rolled up from the series, which is kept with the total. Only sketches can be.
        if !total.any() || mode == Mode::Exact {
            keep.counters = KeepPeriods::default();
        } else if !Level::Hour.takes(window) {
            keep.counters.hours = Duration::ZERO;
        }
        let counters =
            CounterLimits { most: self.max_counters as usize, memory: self.counter_memory.as_u64() };
        Ok(Counting {
            ids,
            mode,
            window,
            shards,
            retention,
            counter_retention,
            keep,
            id_key,
            counters,
            exported_counters: self.metrics_counter,
        })
    }
}
