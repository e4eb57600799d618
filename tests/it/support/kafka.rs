//! Kafka: the broker that scripts/test starts for all tests, brokers that a test starts, and the records of a topic.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::{Offset, TopicPartitionList};
use tempfile::TempDir;

use super::process::Process;
use super::wait_blocking;

/// The broker that all tests share.
pub fn shared() -> String {
    std::env::var("HEADCOUNT_TEST_KAFKA").expect(
        "no broker: run ./scripts/test or `scripts/kafka with cargo test`, or set HEADCOUNT_TEST_KAFKA to the \
         host:port of one",
    )
}

/// A namespace that no other test or run has.
pub fn namespace(name: &str) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    format!("{name}-{}", now.as_nanos())
}

/// A broker that a test starts.
pub struct Kafka {
    port: u16,
    settings: Vec<String>,
    pub process: Process,
    pub dir: TempDir,
}

/// The name and the password of the only user of SCRAM.
pub const SCRAM_USER: [&str; 2] = ["sam", "the password of sam"];

impl Kafka {
    /// Starts a broker at a port where clients already expect it. Returns once it answers.
    pub fn start_on(port: u16) -> Self {
        Self::start_with(port, &[])
    }

    /// The same with settings of Kafka's server.properties, as in `a=b`.
    pub fn start_with(port: u16, settings: &[String]) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut kafka =
            Self { port, settings: settings.to_vec(), process: spawn(dir.path(), port, settings), dir };
        kafka.wait_until_up();
        kafka
    }

    /// Starts another broker, without a controller, in the cluster of this one.
    pub fn join(&self, port: u16) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        std::fs::create_dir(dir.path().join("data")).expect("a directory");
        let first = std::fs::read_to_string(properties(self.dir.path())).expect("what the first is");
        let cluster = first.lines().find(|line| line.starts_with("cluster.id=")).expect("the cluster");
        // Kafka's format command would make up a new cluster id.
        let second = format!("version=1\n{cluster}\nnode.id=2\n");
        std::fs::write(properties(dir.path()), second).expect("what the second is");
        let settings = vec![
            "node.id=2".to_owned(),
            "process.roles=broker".to_owned(),
            format!("controller.quorum.voters=1@127.0.0.2:{}", self.port ^ 1),
            format!("listeners=CLIENTS://127.0.0.1:{port},BROKER://127.0.0.3:{}", port ^ 2),
        ];
        let mut kafka = Self { port, process: spawn(dir.path(), port, &settings), settings, dir };
        kafka.wait_until_up();
        kafka
    }

    pub fn kill(&mut self) {
        self.process.signal("KILL");
        self.process.wait();
    }

    /// Starts again with the old data.
    pub fn restart(&mut self) {
        self.process = spawn(self.dir.path(), self.port, &self.settings);
        self.wait_until_up();
    }

    /// Starts again without data: as another cluster at the same address.
    pub fn restart_empty(&mut self) {
        std::fs::remove_dir_all(self.dir.path().join("data")).expect("its data");
        self.restart();
    }

    fn wait_until_up(&mut self) {
        let log = log(self.dir.path());
        wait_blocking("Kafka to start", || {
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            let ended = self.process.0.try_wait().expect("a child can be waited for");
            assert!(ended.is_none(), "Kafka ended:\n{said}");
            said.contains("Kafka Server started")
        });
    }
}

fn properties(dir: &Path) -> PathBuf {
    dir.join("data/meta.properties")
}

fn log(dir: &Path) -> PathBuf {
    dir.join("stderr")
}

fn spawn(dir: &Path, port: u16, settings: &[String]) -> Process {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/kafka");
    let mut command = Command::new(script);
    command
        .arg("serve")
        .arg(dir)
        .arg(port.to_string())
        .args(settings)
        .env("KAFKA_SCRAM", format!("name={},password={}", SCRAM_USER[0], SCRAM_USER[1]))
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    // Truncated, so that the last start's output is not mistaken for this one's.
    command.stderr(File::create(log(dir)).expect("a log"));
    Process(command.spawn().expect("scripts/kafka starts"))
}

/// A committed record.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    pub key: String,
    pub value: String,
    pub headers: BTreeMap<String, String>,
    /// Milliseconds since 1970.
    pub timestamp: i64,
}

impl Record {
    fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.value).expect("JSON")
    }

    /// The start of the record's window, in seconds since 1970.
    pub fn start(&self) -> u64 {
        let json = self.json();
        let text = json["timestamp"].as_str().expect("a timestamp");
        let format = &time::format_description::well_known::Rfc3339;
        time::OffsetDateTime::parse(text, format).expect("RFC 3339").unix_timestamp() as u64
    }

    pub fn count(&self) -> u64 {
        self.json()["unique_request_count"].as_u64().expect("a count")
    }
}

/// Reads committed records of a topic's first partitions from their beginning.
fn reader(brokers: &str, topic: &str, partitions: i32) -> BaseConsumer {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "test")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("isolation.level", "read_committed")
        .set("topic.metadata.refresh.interval.ms", "500")
        .set("reconnect.backoff.max.ms", "500")
        .create()
        .expect("a consumer");
    let mut assignment = TopicPartitionList::new();
    for partition in 0..partitions {
        assignment.add_partition_offset(topic, partition, Offset::Beginning).expect("a partition");
    }
    consumer.assign(&assignment).expect("an assignment");
    consumer
}

impl From<BorrowedMessage<'_>> for Record {
    fn from(message: BorrowedMessage<'_>) -> Self {
        let text = |bytes: Option<&[u8]>| String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned();
        let headers = message.headers().into_iter().flat_map(|headers| headers.iter());
        Self {
            key: text(message.key()),
            value: text(message.payload()),
            headers: headers.map(|header| (header.key.to_owned(), text(header.value))).collect(),
            timestamp: message.timestamp().to_millis().expect("a timestamp"),
        }
    }
}

/// All committed records of a topic's first partition; none if there is no topic.
pub fn committed(brokers: &str, topic: &str) -> Vec<Record> {
    committed_in(brokers, topic, 1).into_iter().map(|(_, record)| record).collect()
}

/// All committed records of a topic's first partitions, each with its partition; none if there is no topic.
pub fn committed_in(brokers: &str, topic: &str, partitions: i32) -> Vec<(i32, Record)> {
    let consumer = reader(brokers, topic, partitions);
    let (mut records, mut ended) = (Vec::new(), BTreeSet::new());
    loop {
        match consumer.poll(Duration::from_secs(10)) {
            Some(Ok(message)) => records.push((message.partition(), message.into())),
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                ended.insert(partition);
                if ended.len() == partitions as usize {
                    return records;
                }
            }
            None => return records,
            Some(Err(error))
                if error.rdkafka_error_code() == Some(RDKafkaErrorCode::UnknownTopicOrPartition) =>
            {
                return records;
            }
            Some(Err(_)) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// How many partitions a topic has; 0 if there is no topic.
pub fn partitions(brokers: &str, topic: &str) -> usize {
    let consumer = reader(brokers, topic, 0);
    let metadata = consumer.fetch_metadata(None, Duration::from_secs(10)).expect("metadata");
    let topics = metadata.topics().iter().filter(|found| found.name() == topic);
    topics.map(|topic| topic.partitions().len()).sum()
}

/// A client that makes and alters topics.
pub fn admin(brokers: &str) -> AdminClient<DefaultClientContext> {
    ClientConfig::new().set("bootstrap.servers", brokers).create().expect("a client")
}

/// Makes a topic.
pub async fn make(brokers: &str, topic: &str, partitions: i32, settings: &[(&str, &str)]) {
    let topic = NewTopic::new(topic, partitions, TopicReplication::Fixed(1));
    let topic = settings.iter().fold(topic, |topic, (key, value)| topic.set(key, value));
    for made in admin(brokers).create_topics([&topic], &AdminOptions::new()).await.expect("an answer") {
        made.expect("a topic");
    }
}

/// The first offset of a topic's first partition, and the one after the last: those of marks of transactions too.
pub fn offsets(brokers: &str, topic: &str) -> (i64, i64) {
    reader(brokers, topic, 1).fetch_watermarks(topic, 0, Duration::from_secs(10)).expect("offsets")
}

/// Follows a topic from its beginning, and notes when each record became readable.
pub struct Tail {
    read: Arc<Mutex<Vec<(Record, SystemTime)>>>,
    stop: Arc<AtomicBool>,
}

impl Tail {
    pub fn start(brokers: &str, topic: &str) -> Self {
        let (read, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (sink, stopped) = (Arc::clone(&read), Arc::clone(&stop));
        let consumer = reader(brokers, topic, 1);
        std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                // Ignored: the brokers may be away, and the topic may not exist yet.
                if let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) {
                    sink.lock().unwrap().push((message.into(), SystemTime::now()));
                }
            }
        });
        Self { read, stop }
    }

    pub fn records(&self) -> Vec<Record> {
        self.read.lock().unwrap().iter().map(|(record, _)| record.clone()).collect()
    }

    pub fn last(&self) -> Option<u64> {
        self.read.lock().unwrap().last().map(|(record, _)| record.start())
    }

    /// Waits until the window with this start can be read.
    pub async fn wait_for(&self, start: u64) -> Vec<Record> {
        super::wait_for("a record in Kafka", || (self.last() >= Some(start)).then(|| self.records())).await
    }

    /// For each record, the time from its window's end until it could be read; sorted.
    pub fn delays(&self) -> Vec<Duration> {
        let read = self.read.lock().unwrap();
        let end = |record: &Record| UNIX_EPOCH + Duration::from_millis(record.timestamp.unsigned_abs());
        let mut delays: Vec<_> =
            read.iter().map(|(record, at)| at.duration_since(end(record)).unwrap_or_default()).collect();
        delays.sort();
        delays
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Waits until a new consumer can read the window with this start.
pub async fn wait_recorded(brokers: &str, topic: &str, start: u64) -> Vec<Record> {
    let (brokers, topic) = (brokers.to_owned(), topic.to_owned());
    let read = move || {
        let mut records = Vec::new();
        wait_blocking("a record in Kafka", || {
            records = committed(&brokers, &topic);
            records.last().is_some_and(|last| last.start() >= start)
        });
        records
    };
    tokio::task::spawn_blocking(read).await.expect("records")
}

/// Asserts that every window from the first to the last is there, once and in order.
#[track_caller]
pub fn assert_each_once(records: &[Record], window_seconds: u64) {
    for pair in records.windows(2) {
        assert_eq!(
            pair[1].start(),
            pair[0].start() + window_seconds,
            "{:#?}",
            records.iter().map(Record::start).collect::<Vec<_>>()
        );
    }
}
