//! What a Redis Cluster costs beside a single Redis, and how the keys of a namespace spread over its primaries.

use std::collections::BTreeMap;

use headcount::model::mode::Mode;
use headcount::model::shard::Shards;
use headcount::model::window::WindowLength;
use headcount::redis::keys::Keys;
use headcount::redis::slot_of;
use serde_json::{Value, json};

use crate::Effort;
use crate::report::{head, line, median, ratio};
use crate::subject::Load;
use crate::subjects::{Counter, Kind};
use crate::wrk::{self, Sample};

/// Primaries of the cluster. `redis-cli --cluster create` gives each the same number of neighbouring slots.
const PRIMARIES: usize = 3;
const SLOTS: usize = 16_384;
const SHARDS: [u16; 3] = [8, 64, 1_024];
const BUCKETS: usize = 64;

const ALL: &[&str] = &["--shards", "8"];
const CHANGED: &[&str] = &["--shards", "8", "--redis-writes", "changed"];
const EXACT: &[&str] = &["--shards", "8", "--mode", "exact"];

pub fn measure(effort: Effort) -> Result<Value, String> {
    let mut costs = serde_json::Map::new();
    for (way, args) in [("all", ALL), ("changed", CHANGED), ("exact", EXACT)] {
        costs.insert(way.to_owned(), cost(effort, way, args)?);
    }
    Ok(json!({ "cost": costs, "spread": spread() }))
}

fn cost(effort: Effort, way: &str, args: &'static [&'static str]) -> Result<Value, String> {
    let subjects = [
        ("single Redis", Counter::in_redis(args)),
        ("cluster of 1", Counter::in_cluster(1, args)),
        ("cluster of 3", Counter::in_cluster(PRIMARIES, args)),
    ];
    let mut samples = BTreeMap::<&str, Vec<Sample>>::new();
    for round in 0..effort.rounds {
        for (name, counter) in subjects {
            let subject = Kind::Service(counter).start(false);
            let sample = wrk::measure(&subject, Load::new(effort.duration, round));
            samples.entry(name).or_default().push(sample.map_err(|error| format!("{way}, {name}: {error}"))?);
        }
    }
    head(
        &format!("an id a request, {way}, 8 shards"),
        &["CPU / single", "requests a second / single", "CPU, µs", "requests a second"],
    );
    let of = |name: &str, figure: fn(&Sample) -> f64| samples[name].iter().map(figure).collect::<Vec<_>>();
    let cpu = |name: &str| of(name, |sample| sample.cpu_micros);
    let rate = |name: &str| of(name, |sample| sample.requests_per_second);
    for (name, _) in subjects {
        let single = subjects[0].0;
        line(
            name,
            &[
                format!("{:.2}", ratio(&cpu(name), &cpu(single))),
                format!("{:.2}", ratio(&rate(name), &rate(single))),
                format!("{:.2}", median(cpu(name))),
                format!("{:.0}", median(rate(name))),
            ],
        );
    }
    Ok(json!(samples))
}

/// How many shards and buckets each of three primaries has. The names decide it, so nothing is measured.
fn spread() -> Value {
    let keys = Keys::new("headcount");
    let window = "60s".parse::<WindowLength>().expect("a length").starting_at(0);
    let primary = |key: String| usize::from(slot_of(&key)) * PRIMARIES / SLOTS;
    let count = |keys: &mut dyn Iterator<Item = String>| {
        let mut on = [0_usize; PRIMARIES];
        keys.for_each(|key| on[primary(key)] += 1);
        on
    };
    head("keys on each of three primaries", &["first", "second", "third", "different slots"]);
    let mut figures = serde_json::Map::new();
    let mut show = |name: String, all: Vec<String>| {
        let slots: std::collections::BTreeSet<_> = all.iter().map(|key| slot_of(key)).collect();
        let on = count(&mut all.into_iter());
        let mut columns = on.map(|on| on.to_string()).to_vec();
        columns.push(slots.len().to_string());
        line(&name, &columns);
        figures.insert(name, json!(on));
    };
    for number in SHARDS {
        let shards = Shards::new(number).expect("a number of shards");
        let all = (0..usize::from(number)).map(|shard| keys.ids(Mode::Hll, shard, shards, window)).collect();
        show(format!("{number} shards"), all);
    }
    show(format!("{BUCKETS} buckets"), (0..BUCKETS).map(|bucket| keys.names(bucket, window)).collect());
    figures.into()
}
