//! Which commands hold up Redis.

use std::collections::BTreeMap;
use std::time::Duration;

use redis::Connection;

/// Commands that take longer are in Redis's slow log.
const SLOW: Duration = Duration::from_millis(1);
const MOST: u32 = 10_000;

/// How often each command was slow, and how long it took at most, in µs.
pub type SlowCommands = BTreeMap<String, (u64, u64)>;

/// Begins the log anew.
pub fn begin(redis: &mut Connection) -> Result<(), String> {
    let settings =
        [("slowlog-log-slower-than", SLOW.as_micros().to_string()), ("slowlog-max-len", MOST.to_string())];
    let mut begin = redis::pipe();
    for (setting, value) in settings {
        begin.cmd("CONFIG").arg("SET").arg(setting).arg(value).ignore();
    }
    begin.cmd("SLOWLOG").arg("RESET").ignore();
    begin.exec(redis).map_err(|error| error.to_string())
}

/// Prints what the log has, and returns it.
pub fn print(redis: &mut Connection) -> Result<SlowCommands, String> {
    let slow = read(redis)?;
    println!("commands of more than {SLOW:?} in Redis, with the longest in µs: {slow:?}");
    Ok(slow)
}

/// What the log has.
pub fn read(redis: &mut Connection) -> Result<SlowCommands, String> {
    type Entry = (u64, u64, u64, Vec<Vec<u8>>, redis::Value, redis::Value);
    let mut get = redis::cmd("SLOWLOG");
    get.arg("GET").arg(MOST);
    let entries: Vec<Entry> = get.query(redis).map_err(|error| error.to_string())?;
    let mut slow = SlowCommands::new();
    for (_, _, micros, words, ..) in entries {
        let command = String::from_utf8_lossy(words.first().map_or(b"", Vec::as_slice)).to_uppercase();
        let (times, longest) = slow.entry(command).or_default();
        (*times, *longest) = (*times + 1, (*longest).max(micros));
    }
    Ok(slow)
}
