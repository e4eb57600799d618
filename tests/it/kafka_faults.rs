//! Errors that no real broker shows on demand: librdkafka's mock broker injects them. It neither fences nor hides aborted
//! records, so it proves nothing about exactly once. It proves that the sink recovers from each error.

use std::time::{Duration, Instant, SystemTime};

use headcount::coordination::term::Term;
use headcount::model::mode::Mode;
use headcount::model::window::{Window, WindowCount, WindowLength};
use headcount::publish::sinks::kafka::{KafkaSettings, KafkaSink};
use headcount::publish::sinks::{CountSink, Origin, SinkError};
use headcount::telemetry::metrics::Metrics;
use rdkafka::mocking::{MockCluster, MockCoordinator};
use rdkafka::producer::DefaultProducerContext;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

use crate::support::kafka::{Record, committed};

type Cluster = MockCluster<'static, DefaultProducerContext>;

fn first_window() -> Window {
    "1s".parse::<WindowLength>().unwrap().window_at(SystemTime::now())
}

/// A sink, and the errors that it saw.
struct Sink {
    kafka: KafkaSink,
    next: Window,
    resumed: bool,
    errors: Vec<SinkError>,
}

impl Sink {
    fn new(cluster: &Cluster) -> Self {
        let brokers = cluster.bootstrap_servers();
        let settings = KafkaSettings::new(&brokers, "counts".to_owned(), "counters".to_owned(), &[]);
        let settings = settings.expect("settings");
        let next = first_window();
        let origin = Origin {
            namespace: "faults".to_owned(),
            instance: "test/1".to_owned(),
            mode: Mode::Exact,
            standard_error: 0.0,
            window: next.length(),
        };
        Self {
            kafka: KafkaSink::new(settings, origin, &Metrics::new()),
            next,
            resumed: false,
            errors: Vec::new(),
        }
    }

    /// Publishes the next windows as a delivery does; each has its time.
    async fn publish(&mut self, windows: u64) {
        let term = Term::for_ever();
        for _ in 0..windows {
            let count = WindowCount {
                window: self.next,
                unique_request_count: 1,
                accepted_ids: 1,
                has_imports: false,
                complete: true,
            };
            let deadline = Instant::now() + Duration::from_secs(60);
            while let Err(error) = self.try_to_publish(&count, &term).await {
                assert!(!matches!(error, SinkError::Fatal(_)), "{error}");
                assert!(Instant::now() < deadline, "it does not get over {error}");
                self.resumed = false;
                self.errors.push(error);
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            self.next = self.next.next();
        }
    }

    async fn try_to_publish(&mut self, count: &WindowCount, term: &Term) -> Result<(), SinkError> {
        if !self.resumed {
            let last = self.kafka.resume(term).await?;
            self.resumed = true;
            if last >= Some(count.window) {
                return Ok(());
            }
        }
        self.kafka.publish(&(*count).into(), term).await
    }
}

/// Three brokers, a sink, and the first of two windows that it has published.
async fn start() -> (Cluster, Sink, Window) {
    let cluster = MockCluster::new(3).unwrap();
    cluster.create_topic("counts", 1, 3).unwrap();
    let mut sink = Sink::new(&cluster);
    let first = sink.next;
    sink.publish(2).await;
    (cluster, sink, first)
}

#[track_caller]
fn assert_all_there(cluster: &Cluster, first: Window, windows: u64) {
    let mut starts: Vec<_> =
        committed(&cluster.bootstrap_servers(), "counts").iter().map(Record::start).collect();
    // The mock shows what was aborted too.
    starts.dedup();
    let first = first.unix_seconds();
    assert_eq!(starts, (first..first + windows).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_error_ends_in_a_retry_or_a_new_producer() {
    use RDKafkaApiKey as Api;
    use RDKafkaRespErr as Code;

    let (cluster, mut sink, first) = start().await;
    assert!(sink.errors.is_empty(), "{:?}", sink.errors);

    // (what is asked, the errors it is answered, whether librdkafka deals with them by itself)
    let cases = [
        (Api::Produce, &[Code::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION; 2][..], true),
        (Api::Produce, &[Code::RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT; 2], true),
        (Api::AddPartitionsToTxn, &[Code::RD_KAFKA_RESP_ERR_NOT_COORDINATOR; 2], true),
        (Api::EndTxn, &[Code::RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE; 2], true),
        (Api::Produce, &[Code::RD_KAFKA_RESP_ERR_INVALID_PRODUCER_EPOCH], false),
        (Api::AddPartitionsToTxn, &[Code::RD_KAFKA_RESP_ERR_PRODUCER_FENCED], false),
        (Api::EndTxn, &[Code::RD_KAFKA_RESP_ERR_INVALID_TXN_STATE], false),
        (Api::Produce, &[Code::RD_KAFKA_RESP_ERR_INVALID_RECORD], false),
        (Api::AddPartitionsToTxn, &[Code::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED], false),
    ];
    let mut windows = 2;
    for (api, errors, by_itself) in cases {
        let before = sink.errors.len();
        cluster.request_errors(api, errors);
        sink.publish(2).await;
        windows += 2;
        let met = &sink.errors[before..];
        assert_eq!(met.is_empty(), by_itself, "{errors:?}: {met:?}");
        let epoch = Code::RD_KAFKA_RESP_ERR_INVALID_PRODUCER_EPOCH;
        if errors.contains(&epoch) || errors.contains(&Code::RD_KAFKA_RESP_ERR_PRODUCER_FENCED) {
            assert!(matches!(met[0], SinkError::Fenced), "{met:?}");
        }
    }
    assert_all_there(&cluster, first, windows);
}

#[tokio::test(flavor = "multi_thread")]
async fn brokers_that_move_hang_and_vanish_are_survived() {
    let (cluster, mut sink, first) = start().await;
    for broker in 1..=3 {
        let name = MockCoordinator::Transaction("headcount.counts".to_owned());
        cluster.coordinator(name, broker).unwrap();
        cluster.partition_leader("counts", 0, Some(broker % 3 + 1)).unwrap();
        sink.publish(2).await;
    }
    assert!(sink.errors.is_empty(), "librdkafka follows by itself: {:?}", sink.errors);

    // A commit with an unknown outcome: its answer comes too late.
    let slow = |delay| (1..=3).for_each(|broker| cluster.broker_round_trip_time(broker, delay).unwrap());
    slow(Duration::from_secs(11));
    let fast_again = async {
        tokio::time::sleep(Duration::from_secs(12)).await;
        slow(Duration::ZERO);
    };
    tokio::join!(sink.publish(2), fast_again);
    let slow_errors = sink.errors.len();
    assert!(slow_errors > 0, "it was noticed");

    (1..=3).for_each(|broker| cluster.broker_down(broker).unwrap());
    let back = async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        (1..=3).for_each(|broker| cluster.broker_up(broker).unwrap());
    };
    tokio::join!(sink.publish(2), back);
    assert_all_there(&cluster, first, 12);
}
