//! The names of the keys.
//!
//! | key | type | holds |
//! | --- | --- | --- |
//! | `{<ns>:<s>/<S>}:hll:<window>` | HLL string | the sketch of shard s of S |
//! | `{<ns>:<s>/<S>}:exact:<window>` | set | the ids of shard s of S |
//! | `{<ns>:<s>/<S>}:hour:<start>`, `{<ns>:<s>/<S>}:day:<start>` | HLL string | the sketch of the shard in an hour or a day |
//! | `{<ns>:<s>/<S>}:merge:<instance id>` | HLL string | the sketch that an instance is merging, for a moment |
//! | `{<ns>:<s>/<S>}:part:<window>:<instance id>` | HLL string | all that an instance added to the sketch, from its seal until the window is closed |
//! | `{<ns>:c<b>}:hll:<window>:<counter>` | HLL string | the sketch of a counter, in bucket b of 64 |
//! | `{<ns>:c<b>}:exact:<window>:<counter>` | set | its ids |
//! | `{<ns>:c<b>}:names:<window>` | set | the names of a bucket's counters |
//! | `{<ns>:c<b>}:merge:<instance id>` | HLL string | the sketch of a counter that an instance is merging, for a moment |
//! | `{<ns>:c<b>}:hour:<start>:<counter>`, `{<ns>:c<b>}:day:<start>:<counter>` | HLL string | the sketch of a counter in an hour or a day |
//! | `{<ns>:c<b>}:rolled:hour:<start>`, `{<ns>:c<b>}:rolled:day:<start>` | hash | counter → how many ids its sketch of the hour or day has; with a `?` if ids are missing. The empty name → the first window |
//! | `<key of a sketch, set or hash>:damaged` | any | what another program wrote to this key: an instance put it aside |
//! | `{<ns>:c<b>}:damaged:<rest of the key>` | any | the same for a key in a bucket. A counter may have a name that ends in `:damaged` |
//! | `{<ns>:0/1}:check:<random>`, `{<ns>:c<b>}:check:<random>`, `{<ns>}:check:<random>` | any | nothing; `headcount check` tries its rights on these keys |
//! | `{<ns>}:accepted:<window>` | hash | instance id → its stats when it sealed the window, as JSON: how many ids it had accepted, and what it knows of its counters. They name counters of which Redis lost ids |
//! | `{<ns>}:lease` | string | the id of the leader |
//! | `{<ns>}:token` | string | the newest fencing token |
//! | `{<ns>}:instances` | hash | instance id → its heartbeat |
//! | `{<ns>}:counts` | hash | window → its count; `last` → the last window that has one |
//! | `{<ns>}:counter-counts:<window>:<token>:<try>` | list | what a leader counted of a window's counters. `{<ns>}:counts` names the list that counts |
//! | `{<ns>}:series:<day>` | hash | window of a day → its count, long after its ids are gone. The day is the second of its start |
//! | `{<ns>}:rolled` | hash | `window` → the last window that was merged into its hour and day |
//! | `{<ns>}:rolled:<day>` | hash | `hour:<start>` and `day:<start>` → what was merged into them; `window` → the last window of the day that was |
//! | `{<ns>}:published` | hash | `first` → the window that the stream begins with; `last` → the last published one; `window` → their length |
//! | `{<ns>}:config` | hash | the settings that all instances have to agree on |
//!
//! A window is written as the seconds of its start. The part in braces decides the slot in a Redis Cluster. So a shard's keys
//! share one slot, and so do the keys that one script uses.

use std::borrow::Cow;

use crate::model::counter::bucket_of;
use crate::model::mode::Mode;
use crate::model::period::Period;
use crate::model::shard::Shards;
use crate::model::window::Window;

/// The keys of one namespace.
#[derive(Debug, Clone)]
pub struct Keys {
    namespace: String,
}

impl Keys {
    /// For a namespace, which has no braces in its name.
    pub fn new(namespace: &str) -> Self {
        Self { namespace: namespace.to_owned() }
    }

    /// The namespace of all these keys.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The ids of a shard in a window.
    pub fn ids(&self, mode: Mode, shard: usize, shards: Shards, window: Window) -> String {
        format!("{}:{}:{}", self.shard(shard, shards), mode.as_str(), window.unix_seconds())
    }

    /// The sketch of a shard in an hour or a day.
    pub fn period(&self, shard: usize, shards: Shards, period: Period) -> String {
        format!("{}:{period}", self.shard(shard, shards))
    }

    /// The sketch that an instance is merging into a shard.
    pub fn merge(&self, shard: usize, shards: Shards, instance_id: &str) -> String {
        format!("{}:merge:{instance_id}", self.shard(shard, shards))
    }

    /// All that an instance added to a shard of a window.
    pub fn part(&self, shard: usize, shards: Shards, window: Window, instance_id: &str) -> String {
        format!("{}:part:{}:{instance_id}", self.shard(shard, shards), window.unix_seconds())
    }

    /// The ids of a counter in a window.
    pub fn counter(&self, mode: Mode, counter: &str, window: Window) -> String {
        format!("{}:{}:{}:{counter}", self.bucket(bucket_of(counter)), mode.as_str(), window.unix_seconds())
    }

    /// The names of a bucket's counters in a window.
    pub fn names(&self, bucket: usize, window: Window) -> String {
        format!("{}:names:{}", self.bucket(bucket), window.unix_seconds())
    }

    /// The sketch that an instance is merging into a counter of a bucket.
    pub fn merge_of_bucket(&self, bucket: usize, instance_id: &str) -> String {
        format!("{}:merge:{instance_id}", self.bucket(bucket))
    }

    /// The ids of a counter in an hour or a day.
    pub fn counter_period(&self, counter: &str, period: Period) -> String {
        format!("{}:{period}:{counter}", self.bucket(bucket_of(counter)))
    }

    /// What is known of the sketches of a bucket's counters in an hour or a day.
    pub fn counter_records(&self, bucket: usize, period: Period) -> String {
        format!("{}:rolled:{period}", self.bucket(bucket))
    }

    fn bucket(&self, bucket: usize) -> String {
        format!("{{{}:c{bucket}}}", self.namespace)
    }

    /// The name that a key gets when it is put aside.
    pub fn damaged(key: &str) -> String {
        match in_bucket(key) {
            Some((bucket, rest)) => format!("{bucket}:damaged:{rest}"),
            None => format!("{key}:damaged"),
        }
    }

    /// The key without the name of a counter, for the log: such a name may be somebody's.
    pub fn without_counter(key: &str) -> Cow<'_, str> {
        let Some((bucket, rest)) = in_bucket(key) else { return key.into() };
        match rest.splitn(3, ':').collect::<Vec<_>>()[..] {
            [of @ ("hll" | "exact" | "hour" | "day"), start, _] => format!("{bucket}:{of}:{start}:…").into(),
            ["damaged", of @ ("hll" | "exact" | "hour" | "day"), _] => {
                format!("{bucket}:damaged:{of}:…").into()
            }
            _ => key.into(),
        }
    }

    fn shard(&self, shard: usize, shards: Shards) -> String {
        format!("{{{}:{shard}/{}}}", self.namespace, shards.count())
    }

    /// How many ids each instance accepted in a window.
    pub fn accepted(&self, window: Window) -> String {
        format!("{{{}}}:accepted:{}", self.namespace, window.unix_seconds())
    }

    /// The id of the leader.
    pub fn lease(&self) -> String {
        self.of_namespace("lease")
    }

    /// The newest fencing token.
    pub fn token(&self) -> String {
        self.of_namespace("token")
    }

    /// The heartbeats.
    pub fn instances(&self) -> String {
        self.of_namespace("instances")
    }

    /// Counts of closed windows.
    pub fn counts(&self) -> String {
        self.of_namespace("counts")
    }

    /// What the leader with this fencing token counted of a window's counters, in one of its tries.
    pub fn counter_counts(&self, window: Window, token: u64, number: u64) -> String {
        format!("{{{}}}:counter-counts:{}:{token}:{number}", self.namespace, window.unix_seconds())
    }

    /// The counts of the windows of a day, which begins at this second.
    pub fn series(&self, day: u64) -> String {
        self.of_namespace(&format!("series:{day}"))
    }

    /// How far windows are rolled up.
    pub fn rolled(&self) -> String {
        self.of_namespace("rolled")
    }

    /// What was rolled up into the hours of a day and the day, which begins at this second.
    pub fn rolled_periods(&self, day: u64) -> String {
        self.of_namespace(&format!("rolled:{day}"))
    }

    /// The published position.
    pub fn published(&self) -> String {
        self.of_namespace("published")
    }

    /// The settings that all instances have to agree on.
    pub fn config(&self) -> String {
        self.of_namespace("config")
    }

    /// A key of a shard for `headcount check` to try its rights on.
    pub fn trial_of_shard(&self, name: &str) -> String {
        format!("{{{}:0/1}}:check:{name}", self.namespace)
    }

    /// A key of a bucket for `headcount check` to try its rights on.
    pub fn trial_of_bucket(&self, bucket: usize, name: &str) -> String {
        format!("{}:check:{name}", self.bucket(bucket))
    }

    /// A key of the namespace for `headcount check` to try its rights on.
    pub fn trial(&self, name: &str) -> String {
        self.of_namespace(&format!("check:{name}"))
    }

    fn of_namespace(&self, name: &str) -> String {
        format!("{{{}}}:{name}", self.namespace)
    }
}

/// The bucket of a key, in braces, and the rest of the key. None for a key that is in no bucket.
fn in_bucket(key: &str) -> Option<(&str, &str)> {
    let end = key.find("}:")? + 1;
    let (slot, rest) = key.split_at(end);
    // A namespace has no colon.
    slot.contains(":c").then(|| (slot, &rest[1..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::period::Level;
    use crate::model::window::WindowLength;

    #[test]
    fn what_is_put_aside_has_a_name_of_its_own_and_the_log_has_no_name_of_a_counter() {
        let (keys, window) = (Keys::new("ns"), "60s".parse::<WindowLength>().unwrap().starting_at(60));
        let shard = keys.ids(Mode::Hll, 0, Shards::ONE, window);
        assert_eq!(Keys::damaged(&shard), "{ns:0/1}:hll:60:damaged");
        assert_eq!(Keys::without_counter(&shard), shard);
        // `}:` may not be in a name, but colons may.
        let counter = keys.counter(Mode::Exact, "a:b:damaged", window);
        let bucket = format!("{{ns:c{}}}", bucket_of("a:b:damaged"));
        assert_eq!(counter, format!("{bucket}:exact:60:a:b:damaged"));
        assert_eq!(Keys::damaged(&counter), format!("{bucket}:damaged:exact:60:a:b:damaged"));
        assert_eq!(Keys::without_counter(&counter), format!("{bucket}:exact:60:…"));
        assert_eq!(Keys::without_counter(&Keys::damaged(&counter)), format!("{bucket}:damaged:exact:…"));
        let hour = keys.counter_period("a:b", Level::Hour.at(7_200));
        let bucket = format!("{{ns:c{}}}", bucket_of("a:b"));
        assert_eq!(hour, format!("{bucket}:hour:7200:a:b"));
        assert_eq!(Keys::without_counter(&hour), format!("{bucket}:hour:7200:…"));
        assert_eq!(Keys::without_counter(&Keys::damaged(&hour)), format!("{bucket}:damaged:hour:…"));
        let records = keys.counter_records(7, Level::Day.at(0));
        assert_eq!(records, "{ns:c7}:rolled:day:0");
        assert_eq!(Keys::without_counter(&records), records);
        let names = keys.names(7, window);
        assert_eq!(Keys::damaged(&names), "{ns:c7}:damaged:names:60");
        assert_eq!(Keys::without_counter(&names), names);
    }
}
