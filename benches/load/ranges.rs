//! What the union of a range costs: how long a client waits for the count of a day, of 35 days, and of the worst range.
//!
//! Redis is filled with dense sketches, under the names and with the records that the service would have written. Then services
//! that keep different things count ranges of them. A client asks for one range after another over one connection.

use std::net::TcpStream;
use std::process::Stdio;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use headcount::hll::Sketch;
use headcount::model::counter::{Subject as Of, bucket_of};
use headcount::model::id::IntegerId;
use headcount::model::mode::Mode;
use headcount::model::parts::Part;
use headcount::model::period::{Level, Period};
use headcount::model::shard::Shards;
use headcount::model::window::WindowLength;
use headcount::redis::keys::Keys;
use headcount::store::memory::MemoryStore;
use headcount::store::{Keep, KeepPeriods, Store};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::report::{Target, head, line, median};
use crate::subject::listen;
use crate::support::SplitMix;
use crate::support::process::headcount;
use crate::support::redis::Redis;
use crate::{client, slow_log};

const MINUTE: u64 = 60;
const HOUR: u64 = 3_600;
const DAY: u64 = 86_400;
/// Days that have sketches, before today.
const DAYS: u64 = 35;
/// Different ids of a sketch: enough to make it dense.
const IDS: usize = 50_000;
/// Different sketches. The keys share them.
const SKETCHES: u64 = 256;
const COUNTER: &str = "campaign-1";
/// Questions of a round.
const QUESTIONS: u64 = 100;

/// A range, and a service that counts it.
struct Row {
    name: &'static str,
    args: &'static [&'static str],
    from: u64,
    to: u64,
    counter: bool,
    is_complete: bool,
    /// What the service keeps beside minutes.
    levels: &'static [Level],
    /// Of the median, in milliseconds.
    target: Target,
}

pub fn measure(rounds: u64) -> Result<Value, String> {
    let (redis, now) = (Redis::start(), SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970"));
    let history = History::new(now.as_secs());
    history.fill(&redis).map_err(|error| error.to_string())?;
    let mut figures = serde_json::Map::new();
    head("the count of a range, ms", &["median", "p99", "commands of more than 1 ms"]);
    for row in rows(&history) {
        slow_log::begin(&mut redis.connect())?;
        let millis = ask(&row, &history, &redis, rounds * QUESTIONS)?;
        let slow = slow_log::read(&mut redis.connect())?;
        figures.insert(row.name.to_owned(), show(row.name, &millis, row.target, &format!("{slow:?}")));
    }
    let millis = in_memory(&history, rounds * QUESTIONS);
    let name = "in memory: 35 days";
    figures.insert(name.to_owned(), show(name, &millis, Target::AtMost(1.0), ""));
    Ok(figures.into())
}

fn rows(history: &History) -> [Row; 7] {
    let History { today, minute, .. } = *history;
    let worst = &["--retention", "31days", "--keep-hours", "31days"];
    let row = |name, args, from, to, target| Row {
        name,
        args,
        from,
        to,
        counter: false,
        is_complete: true,
        levels: &Level::ALL,
        target: Target::AtMost(target),
    };
    let days = |from: u64| today - from * DAY;
    [
        Row {
            target: Target::None,
            levels: &[],
            ..row("a day of minutes", &["--keep-hours", "0s"], minute - 1_400 * MINUTE, minute, 0.0)
        },
        Row { levels: &[Level::Hour], ..row("a day of hours", &["--keep-days", "0s"], days(1), today, 20.0) },
        row("35 days", &[], days(35), today, 5.0),
        // 59 minutes, 23 hours, 28 days, 23 hours and 59 minutes. A retention of more than 31 days is refused.
        row("192 minutes, hours and days", worst, days(30) + MINUTE, today - MINUTE, 20.0),
        Row { is_complete: false, ..row("34 days and today so far", &[], days(34), minute + HOUR, 20.0) },
        Row {
            is_complete: false,
            ..row("from minutes on, and today so far", worst, days(30) + MINUTE, minute + HOUR, 20.0)
        },
        Row {
            counter: true,
            ..row("35 days of a counter", &["--counter-keep-days", "36days"], days(35), today, 20.0)
        },
    ]
}

/// Sketches, and where they belong.
struct History {
    keys: Keys,
    sketches: Vec<(Sketch, u64)>,
    /// The last midnight, and the start of the last minute but one.
    today: u64,
    minute: u64,
}

impl History {
    fn new(now: u64) -> Self {
        let sketch = |seed| {
            let sketch = Sketch::new();
            SplitMix(seed).take(IDS).for_each(|id| _ = sketch.add(id.to_string().as_bytes()));
            let unique = sketch.estimate();
            (sketch, unique)
        };
        Self {
            keys: Keys::new("headcount"),
            sketches: (0..SKETCHES).map(sketch).collect(),
            today: now / DAY * DAY,
            minute: now / MINUTE * MINUTE - MINUTE,
        }
    }

    /// Writes what a service has that rolled up all minutes so far. Of minutes it writes those that are asked for.
    fn fill(&self, redis: &Redis) -> redis::RedisResult<()> {
        let first = self.today - DAYS * DAY;
        let minutes = (first..self.minute).step_by(MINUTE as usize).filter(|minute| {
            let (of_day, is_old) = (minute % DAY, minute + DAY < self.minute);
            !is_old || !(HOUR..DAY - HOUR).contains(&of_day)
        });
        let mut connection = redis.connect();
        for minute in minutes {
            self.write_minute(minute).exec(&mut connection)?;
        }
        for level in Level::ALL {
            for start in (first..self.minute).step_by(level.seconds() as usize) {
                self.write_period(level.at(start)).exec(&mut connection)?;
            }
        }
        let mut rolled = redis::pipe();
        rolled.hset_multiple(self.keys.rolled(), &[("window", self.minute - MINUTE), ("shards", 1)]);
        rolled.exec(&mut connection)
    }

    /// The sketch of so many seconds, and its count.
    fn sketch(&self, start: u64, seconds: u64) -> &(Sketch, u64) {
        let random = SplitMix(start + seconds).next().expect("it never ends");
        &self.sketches[(random % SKETCHES) as usize]
    }

    /// What a service should count of the time of a row before the running day.
    fn unique(&self, row: &Row) -> u64 {
        let end = if row.is_complete { row.to } else { self.today };
        let (union, mut at) = (Sketch::new(), row.from);
        while at < end {
            let periods = row.levels.iter().map(|level| level.at(at));
            let longest = periods
                .filter(|period| period.start == at && period.end() <= end)
                .max_by_key(|period| period.end());
            let next = longest.map_or(at + MINUTE, Period::end);
            union.merge(&self.sketch(at, next - at).0);
            at = next;
        }
        union.estimate()
    }

    fn write_minute(&self, start: u64) -> redis::Pipeline {
        let window = minutes().starting_at(start);
        let (sketch, unique) = self.sketch(start, MINUTE);
        let count = json!({ "unique_request_count": unique, "complete": true, "window_seconds": MINUTE });
        let mut write = redis::pipe();
        write.set(self.keys.ids(Mode::Hll, 0, Shards::ONE, window), sketch.to_bytes());
        write.hset(self.keys.series(start / DAY * DAY), start, count.to_string());
        write
    }

    fn write_period(&self, period: Period) -> redis::Pipeline {
        let (sketch, unique) = self.sketch(period.start, period.end() - period.start);
        let bucket = bucket_of(COUNTER);
        let record = json!({
            "seconds": period.end().min(self.minute) - period.start, "unique_request_count": unique,
            "complete": true, "shards": 1, "has_all_counters": true, "buckets": { bucket.to_string(): period.start },
        });
        let mut write = redis::pipe();
        write.set(self.keys.period(0, Shards::ONE, period), sketch.to_bytes());
        write.set(self.keys.counter_period(COUNTER, period), sketch.to_bytes());
        let of_bucket = [("", period.start), (COUNTER, *unique)];
        write.hset_multiple(self.keys.counter_records(bucket, period), &of_bucket);
        let records = self.keys.rolled_periods(period.start / DAY * DAY);
        write.hset(records, period.to_string(), record.to_string());
        write
    }
}

fn minutes() -> WindowLength {
    "60s".parse().expect("a length")
}

/// How long each answer took, in milliseconds.
fn ask(row: &Row, history: &History, redis: &Redis, questions: u64) -> Result<Vec<f64>, String> {
    let mut command = headcount();
    command.args(["--log-level", "error", "--redis-url", &redis.url()]).args(row.args);
    // Counts of closed windows.
    command.stdout(Stdio::null());
    let (address, _process) = listen(command);
    let counter = if row.counter { format!("&counter={COUNTER}") } else { String::new() };
    let Row { from, to, .. } = row;
    let question =
        format!("GET /api/verve/unique?from={from}&to={to}{counter} HTTP/1.1\r\nhost: localhost\r\n\r\n");
    let mut stream = TcpStream::connect(address).map_err(|error| error.to_string())?;
    let (end, unique) = (format!(r#""complete":{}}}"#, row.is_complete), history.unique(row));
    let mut millis = Vec::new();
    // The first ones find new connections, and cold caches.
    for number in 0..questions + QUESTIONS / 10 {
        let asked = Instant::now();
        let answer = client::ask(&mut stream, &[question.as_bytes()], &end)
            .map_err(|error| format!("{}: {error}", row.name))?;
        let waited = asked.elapsed();
        let found = unique_of(&answer).ok_or_else(|| format!("{}: an answer has no count", row.name))?;
        // The running day has more.
        if found < unique || row.is_complete && found > unique {
            return Err(format!("{}: {found} ids were counted, not {unique}", row.name));
        }
        if number >= QUESTIONS / 10 {
            millis.push(waited.as_secs_f64() * 1e3);
        }
    }
    Ok(millis)
}

/// The count that an answer has.
fn unique_of(answer: &[u8]) -> Option<u64> {
    let text = str::from_utf8(answer).ok()?;
    let body: Value = serde_json::from_str(text.split_once("\r\n\r\n")?.1).ok()?;
    body["unique_request_count"].as_u64()
}

/// The union of 35 days of the store in this process.
fn in_memory(history: &History, questions: u64) -> Vec<f64> {
    let kept = Duration::from_secs(100 * DAY);
    let keep = Keep { total: KeepPeriods { hours: kept, days: kept }, ..Keep::default() };
    let store = Store::Memory(MemoryStore::new(Mode::Hll, Shards::ONE).keeping(keep));
    let runtime = Runtime::new().expect("threads");
    let day = |ago: u64| Level::Day.at(history.today - ago * DAY);
    let parts: Vec<_> =
        (1..=DAYS).rev().map(|ago| Part::Period { period: day(ago), end: day(ago).end() }).collect();
    let all = Sketch::new();
    for ago in (1..=DAYS).rev() {
        let window = minutes().starting_at(day(ago).start);
        let ids: Vec<_> = SplitMix(ago).take(IDS).map(|id| IntegerId::from(id.cast_signed())).collect();
        for id in &ids {
            all.add(id.as_ref());
        }
        runtime.block_on(async {
            store.add(window, &ids).await.expect("memory takes it");
            store.seal(window).await.expect("memory seals it");
            store.roll_up(window, &[day(ago)]).await.expect("memory merges it");
        });
    }
    let mut millis = Vec::new();
    for _ in 0..questions {
        let asked = Instant::now();
        let union = runtime.block_on(store.union(&Of::Total, &parts)).expect("memory answers");
        let unique: u64 = union.sketches.iter().map(Sketch::estimate).sum();
        assert_eq!(unique, all.estimate());
        millis.push(asked.elapsed().as_secs_f64() * 1e3);
    }
    millis
}

fn show(name: &str, millis: &[f64], target: Target, slow: &str) -> Value {
    let mut sorted = millis.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (middle, p99) = (median(sorted.clone()), sorted[sorted.len() * 99 / 100]);
    line(name, &[target.judge(middle), Target::None.judge(p99), slow.to_owned()]);
    json!({ "median_ms": middle, "p99_ms": p99, "slow_commands": slow })
}
