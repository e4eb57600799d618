//! The Redis stream: every window once in a stream of the Redis that counts.
//!
//! An entry's id is made of its window's start, in milliseconds. Redis takes ids in ascending order only, so it is
//! the server that refuses a repeat, also of an entry that was read and deleted. As many entries are kept as there are
//! windows in `--retention`.

use std::collections::HashMap;
use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ::redis::{FromRedisValue, ParsingError, RedisError, Value, from_redis_value, from_redis_value_ref};
use async_trait::async_trait;

use super::{CountSink, Origin, SinkError};
use crate::coordination::term::Term;
use crate::model::window::{UniqueCount, Window, WindowCount};
use crate::publish::record::{Record, WINDOW_SECONDS};
use crate::redis::{Call, Redis};

/// The field that says whose it is.
const NAMESPACE: &str = "namespace";

/// However short windows are, clocks of instances may differ by so much.
const CLOCKS_DIFFER: Duration = Duration::from_secs(5);

pub(crate) struct StreamSink {
    redis: Redis,
    key: String,
    origin: Origin,
    length: u64,
}

/// Where an entry is in a stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Id {
    milliseconds: u64,
    sequence: u64,
}

/// An entry: its id and its fields.
type Entry = (Id, HashMap<String, String>);

/// What is in a stream. One that does not exist is like one that never had an entry.
#[derive(Default)]
struct Contents {
    newest: Option<Entry>,
    /// The highest id that it ever had.
    remembered: Id,
}

/// What there is before the start.
pub(crate) struct StreamPreflight {
    pub(crate) last: Option<Window>,
    /// What will keep counts waiting, and what to do.
    pub(crate) holds_up: Option<String>,
}

impl StreamSink {
    pub(crate) fn new(redis: &Redis, key: String, origin: Origin, retention: Duration) -> Self {
        let length = retention.as_secs() / u64::from(origin.window.seconds());
        Self { redis: redis.another(), key, origin, length }
    }

    /// Looks at the stream as the sink would, and changes nothing.
    pub(crate) async fn preflight(&self) -> Result<StreamPreflight, SinkError> {
        let contents = self.contents().await?;
        let last = self.last_of(&contents)?;
        let Contents { newest, remembered } = contents;
        let was_deleted = newest.is_none_or(|(newest, _)| newest != remembered);
        let in_the_future =
            self.window_of(remembered).is_none() && remembered.milliseconds > unix_milliseconds();
        let holds_up = (was_deleted && in_the_future).then(|| deleted_later(&self.key, remembered));
        Ok(StreamPreflight { last, holds_up })
    }

    /// Fatal where the key holds something else.
    async fn contents(&self) -> Result<Contents, SinkError> {
        let mut about = ::redis::cmd("XINFO");
        about.arg("STREAM").arg(&self.key);
        let asked = self.redis.run(Call::Publish, async |connection| {
            match about.query_async::<HashMap<String, Value>>(connection).await {
                Err(error) if is_missing(&error) => Ok(Ok(HashMap::new())),
                Err(error) if is_wrong_type(&error) => {
                    Ok(Err(SinkError::Fatal(format!("{}: {error}", self.key))))
                }
                about => about.map(Ok),
            }
        });
        let about = asked.await.map_err(SinkError::unavailable)??;
        let Some(remembered) = about.get("last-generated-id") else { return Ok(Contents::default()) };
        let newest = about.get("last-entry").unwrap_or(&Value::Nil);
        Ok(Contents {
            newest: from_redis_value_ref(newest).map_err(SinkError::unavailable)?,
            remembered: from_redis_value_ref(remembered).map_err(SinkError::unavailable)?,
        })
    }

    /// The window that the stream had last, be it that its entry was deleted. Fatal where the newest entry is not ours.
    fn last_of(&self, Contents { newest, remembered }: &Contents) -> Result<Option<Window>, SinkError> {
        let foreign = |id: Id| {
            SinkError::Fatal(format!(
                "the stream {key} has an entry {id} that is no count of this namespace: XDEL {key} {id}, or give \
                 another key with --redis-stream",
                key = self.key
            ))
        };
        let newest = newest.as_ref();
        let there = newest.map(|entry| self.window(entry).ok_or_else(|| foreign(entry.0))).transpose()?;
        let is_deleted = newest.is_none_or(|(id, _)| id < remembered);
        let deleted = self.window_of(*remembered).filter(|_| is_deleted);
        Ok(there.max(deleted))
    }

    /// Why the stream did not take a count. It is tried again.
    ///
    /// A stream remembers the highest id that it ever had, and takes none before it. If that can be a window's, the stream has
    /// had the count, be it that a consumer has deleted it since. An entry of another program with a later id, which was
    /// deleted, would stop the stream until that time comes. So what the stream remembers is set back: no further than to
    /// just before the count, so that it goes on to refuse older ones.
    async fn give_way(&self, count: &WindowCount) -> Result<String, SinkError> {
        let key = &self.key;
        let Contents { newest, remembered } = self.contents().await?;
        if remembered < Id::of(count.window) {
            return Ok(format!("the stream {key} was changed just now"));
        }
        if let Some(newest) = newest.as_ref().filter(|(id, _)| *id == remembered) {
            return Ok(match self.window(newest) {
                Some(_) => format!(
                    "the stream {key} has a later count already: another instance published it, or the clock was set back"
                ),
                None => format!(
                    "the stream {key} has an entry {remembered} that is later than the count: delete it with XDEL"
                ),
            });
        }
        if self.window_of(remembered).is_some() {
            return Ok(format!(
                "the stream {key} has had a count {remembered}, which was deleted: this one is no later"
            ));
        }
        let set_back_to = newest.map_or(Id::FIRST, |(id, _)| id).max(Id::before(count.window));
        let mut set_back = ::redis::cmd("XSETID");
        set_back.arg(key).arg(set_back_to.to_string());
        let done =
            self.redis.run(Call::Publish, async |connection| set_back.exec_async(connection).await).await;
        Ok(match done {
            Ok(()) => format!(
                "somebody added an entry {remembered} to the stream {key}, and deleted it: the stream was set back to \
                 {set_back_to}"
            ),
            Err(error) => format!("{} ({error})", deleted_later(key, remembered)),
        })
    }

    /// The window of an entry or, if windows had another length then, the one of ours in which it ends.
    fn window(&self, (id, fields): &Entry) -> Option<Window> {
        fields.get(NAMESPACE).filter(|namespace| **namespace == self.origin.namespace)?;
        let seconds = fields.get(WINDOW_SECONDS)?.parse::<u64>().ok()?;
        Some(self.origin.window.starting_at(id.milliseconds / 1000 + seconds.max(1) - 1))
    }

    /// The window of ours that a deleted entry can have been, by its id alone. Windows may have had another length then; of
    /// whatever length, they begin with a whole second, and not in the future, be it that another instance's clock is ahead.
    fn window_of(&self, id: Id) -> Option<Window> {
        let ahead = self.origin.window.duration().max(CLOCKS_DIFFER).as_millis() as u64;
        let can_be = id.sequence == 0
            && id.milliseconds > 0
            && id.milliseconds.is_multiple_of(1000)
            && id.milliseconds <= unix_milliseconds() + ahead;
        can_be.then(|| self.origin.window.starting_at(id.milliseconds / 1000))
    }
}

#[async_trait]
impl CountSink for StreamSink {
    fn name(&self) -> &'static str {
        "stream"
    }

    async fn resume(&mut self, _grant: &Term) -> Result<Option<Window>, SinkError> {
        self.last_of(&self.contents().await?)
    }

    async fn publish(&mut self, count: &WindowCount, term: &Term) -> Result<(), SinkError> {
        let record = Record::new(count, &self.origin, term);
        let UniqueCount { timestamp, unique_request_count } = record.value();
        let mut add = ::redis::cmd("XADD");
        add.arg(&self.key).arg("MAXLEN").arg(self.length);
        add.arg(Id::of(count.window).to_string());
        add.arg("timestamp").arg(timestamp.to_string());
        add.arg("unique_request_count").arg(unique_request_count);
        add.arg(NAMESPACE).arg(&self.origin.namespace);
        for (field, value) in record.attributes() {
            add.arg(field).arg(value);
        }
        // What is not newer is refused. Whose the newest entry is, and whether it is this one, is seen when the sink
        // is asked to resume.
        let answer =
            self.redis.run(Call::Publish, async |connection| match add.exec_async(connection).await {
                Err(error) if is_not_newer(&error) => Ok(false),
                done => done.map(|()| true),
            });
        if answer.await.map_err(SinkError::unavailable)? {
            return Ok(());
        }
        Err(SinkError::unavailable(self.give_way(count).await?))
    }
}

impl Id {
    /// The first that there can be.
    const FIRST: Self = Self { milliseconds: 0, sequence: 1 };

    /// Of a count.
    fn of(window: Window) -> Self {
        Self { milliseconds: window.unix_seconds() * 1000, sequence: 0 }
    }

    /// After those of all earlier counts.
    fn before(window: Window) -> Self {
        Self { milliseconds: Self::of(window).milliseconds.saturating_sub(1), sequence: 0 }
    }
}

impl FromRedisValue for Id {
    fn from_redis_value(value: Value) -> Result<Self, ParsingError> {
        let text: String = from_redis_value(value)?;
        let parts = text.split_once('-').and_then(|(milliseconds, sequence)| {
            Some(Self { milliseconds: milliseconds.parse().ok()?, sequence: sequence.parse().ok()? })
        });
        parts.ok_or_else(|| format!("'{text}' is no id of a stream").into())
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.milliseconds, self.sequence)
    }
}

/// What there is to say of a stream whose entry `later` was deleted.
fn deleted_later(key: &str, later: Id) -> String {
    format!(
        "the stream {key} takes nothing before {later}, an entry that somebody added and deleted. Where Redis does not \
         let it be set back, give it another name, RENAME {key} {key}.old, and it begins anew"
    )
}

fn unix_milliseconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

fn is_not_newer(error: &RedisError) -> bool {
    error.detail().is_some_and(|detail| detail.contains("equal or smaller"))
}

fn is_wrong_type(error: &RedisError) -> bool {
    error.code() == Some("WRONGTYPE")
}

fn is_missing(error: &RedisError) -> bool {
    error.detail().is_some_and(|detail| detail.contains("no such key"))
}
