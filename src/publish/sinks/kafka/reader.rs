//! A reader of a topic: what is in a partition now.

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::{Offset, TopicPartitionList};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::client::{TIMEOUT, failure};
use super::settings::KafkaSettings;
use super::topic::Topic;
use crate::publish::sinks::SinkError;

/// Which records a reader reads.
#[derive(Clone, Copy)]
pub(super) enum Isolation {
    /// Not past another producer's open transaction.
    Committed,
    All,
}

pub(super) struct Reader<'a> {
    topic: Topic<'a>,
    consumer: BaseConsumer,
}

impl<'a> Reader<'a> {
    pub(super) fn new(
        settings: &KafkaSettings,
        topic: Topic<'a>,
        isolation: Isolation,
    ) -> Result<Self, SinkError> {
        let isolation = match isolation {
            Isolation::Committed => "read_committed",
            Isolation::All => "read_uncommitted",
        };
        let consumer = settings.consumer(isolation).create().map_err(failure)?;
        Ok(Self { topic, consumer })
    }

    /// How many partitions there are; 0 without a topic.
    pub(super) fn partitions(&self) -> Result<usize, SinkError> {
        self.topic.partitions(self.consumer.client())
    }

    /// The first offset, and the one after the last that this reader may read.
    pub(super) fn offsets(&self, partition: i32) -> Result<(i64, i64), SinkError> {
        self.consumer.fetch_watermarks(self.topic.name, partition, TIMEOUT).map_err(failure)
    }

    /// Reads what a partition has now, from an offset on.
    pub(super) fn read(
        &self,
        partition: i32,
        from: i64,
        mut each: impl FnMut(&BorrowedMessage<'_>) -> Result<(), SinkError>,
    ) -> Result<(), SinkError> {
        let mut partitions = TopicPartitionList::new();
        let from = Offset::Offset(from);
        partitions.add_partition_offset(self.topic.name, partition, from).map_err(failure)?;
        self.consumer.assign(&partitions).map_err(failure)?;
        loop {
            match self.consumer.poll(TIMEOUT) {
                None => return Err(SinkError::unavailable("Kafka does not answer in time")),
                Some(Err(KafkaError::PartitionEOF(_))) => return Ok(()),
                Some(Err(error)) if is_passing(&error) => {}
                Some(Err(error)) => return Err(failure(error)),
                Some(Ok(record)) => each(&record)?,
            }
        }
    }
}

/// The header of a record, if it is text.
pub(super) fn header<'m>(record: &'m BorrowedMessage<'_>, key: &str) -> Option<&'m str> {
    let header = record.headers()?.iter().find(|header| header.key == key)?;
    std::str::from_utf8(header.value?).ok()
}

/// The seconds since 1970 of the timestamp in a value.
pub(super) fn seconds_of(timestamp: &str) -> Option<u64> {
    let time = OffsetDateTime::parse(timestamp, &Rfc3339).ok()?;
    u64::try_from(time.unix_timestamp()).ok()
}

/// Whether this is an error of single brokers, which librdkafka handles itself.
fn is_passing(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(RDKafkaErrorCode::BrokerTransportFailure | RDKafkaErrorCode::AllBrokersDown)
    )
}
