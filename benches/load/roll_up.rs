//! The roll-up of many counters into their hour, through Redis.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use headcount::model::counter::{CounterCount, CounterLimits};
use headcount::model::mode::Mode;
use headcount::model::period::Level;
use headcount::model::shard::Shards;
use headcount::model::window::{Window, WindowLength};
use headcount::platform::workers::Workers;
use headcount::redis::keys::Keys;
use headcount::redis::{Address, Redis};
use headcount::store::redis::{OnRedisDown, RedisStore, RedisStoreConfig, RedisWrites};
use headcount::store::{Keep, KeepPeriods, Store};
use headcount::telemetry::metrics::Metrics;
use serde_json::{Value, json};

use crate::report::{Target, head, line, median};
use crate::slow_log::{self, SlowCommands};
use crate::support::SplitMix;
use crate::support::redis::Redis as RedisServer;

const COUNTERS: usize = 10_000;
/// Windows of the hour: the first makes the sketches of the hour, later ones find them.
const WINDOWS: u64 = 3;
const HOUR: u64 = 3_600;

pub fn measure() -> Result<Value, String> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(text)?;
    head(&format!("roll-up of {COUNTERS} counters, s"), &["median of a window", "worst"]);
    let mut figures = BTreeMap::new();
    for (ids, target) in [(10, 2.0), (1_000, 2.0), (5_000, f64::INFINITY)] {
        let server = RedisServer::start();
        let (took, slow) = runtime.block_on(roll_up(&server, ids))?;
        let worst = took.iter().copied().fold(0.0, f64::max);
        let target = if target.is_finite() { Target::AtMost(target) } else { Target::None };
        line(&format!("{ids} ids each"), &[target.judge(median(took.clone())), target.judge(worst)]);
        figures.insert(ids.to_string(), json!({ "seconds": took, "slow_commands": slow }));
    }
    Ok(json!(figures))
}

/// Seconds for each window, and the slow commands of the last one.
async fn roll_up(server: &RedisServer, ids: usize) -> Result<(Vec<f64>, SlowCommands), String> {
    let mut redis = server.connect();
    let store = store(server)?;
    let mut took = Vec::new();
    for number in 0..WINDOWS {
        let window =
            WindowLength::new(Duration::from_secs(60)).map_err(text)?.starting_at(HOUR + 60 * number);
        let counters = fill(server, window, ids).map_err(text)?;
        slow_log::begin(&mut redis)?;
        let started = Instant::now();
        let hour = [Level::Hour.at(HOUR)];
        store.roll_up_counters(window, &counters, &hour).await.map_err(text)?;
        took.push(started.elapsed().as_secs_f64());
    }
    Ok((took, slow_log::print(&mut redis)?))
}

fn store(server: &RedisServer) -> Result<Store, String> {
    let hours = KeepPeriods { hours: Duration::from_secs(1_000_000_000), ..KeepPeriods::default() };
    let config = RedisStoreConfig {
        mode: Mode::Hll,
        shards: Shards::ONE,
        close_timeout: Duration::from_secs(10),
        retention: Duration::from_secs(HOUR),
        keep: Keep { counters: hours, ..Keep::default() },
        writes: RedisWrites::All,
        on_redis_down: OnRedisDown::Count,
        pending_max: 1,
        counters: CounterLimits { most: COUNTERS, memory: 1 << 30 },
        timeout: Duration::from_secs(5),
        keys: Keys::new("bench"),
        instance_id: "bench".to_owned(),
    };
    let address = Address::parse(&server.url()).map_err(text)?;
    let redis = Redis::new(&address, config.timeout, &Metrics::new());
    let (store, tasks) = RedisStore::new(config, &redis, 1, &Metrics::new().into());
    tokio::spawn(tasks.run(Arc::new(Workers::start(1).map_err(text)?)));
    Ok(Store::Redis(store))
}

/// Adds other ids to each counter of a window.
fn fill(server: &RedisServer, window: Window, ids: usize) -> ::redis::RedisResult<Vec<CounterCount>> {
    let (keys, mut connection) = (Keys::new("bench"), server.connect());
    let mut random = SplitMix(window.unix_seconds());
    let mut counters = Vec::with_capacity(COUNTERS);
    for number in 0..COUNTERS {
        let name = format!("campaign-{number}");
        let key = keys.counter(Mode::Hll, &name, window);
        let ids: Vec<u64> = random.by_ref().take(ids).collect();
        let mut add = ::redis::pipe();
        add.cmd("PFADD").arg(&key).arg(ids).ignore().cmd("PFCOUNT").arg(&key);
        let (unique_ids,): (u64,) = add.query(&mut connection)?;
        counters.push(CounterCount { name: name.into(), unique_ids, is_whole: true });
    }
    Ok(counters)
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn text(error: impl ToString) -> String {
    error.to_string()
}
