//! The Kafka sink: every window exactly once in a topic, and its counters in another one.
//!
//! # How
//!
//! The topic itself is the record of what has been published. Its partition 0 has the windows of a namespace and nothing else.
//! All instances use one `transactional.id`. A leader that begins to publish makes a new producer. So does a leader that does
//! not know the outcome of its last transaction. The new producer
//!
//! 1. runs `init_transactions`, which fences every producer before it and aborts their open transactions;
//! 2. reads the last committed record ([`ledger`]): no other producer can add one now;
//! 3. goes on with the window after it, one transaction a window.
//!
//! The counts of a window's counters go to a topic of their own, in the transaction of their window and before it. Only the
//! topic of windows says where to go on: what it has is never written again.
//!
//! A leader may be paused in the middle of a commit, and go on while another one leads: Kafka refuses its commit. A leader may
//! die after its commit, before Redis has the new published position. The next leader finds the window in the topic, and does
//! not repeat it. Readers have to read with `isolation.level=read_committed`.
//!
//! (KIP-98, *Exactly Once Delivery and Transactional Messaging*.)

mod client;
pub(crate) mod counters;
pub(crate) mod ledger;
mod preflight;
mod reader;
mod settings;
mod sink;
mod topic;
mod transaction;

pub(crate) use self::preflight::{Preflight, TopicPreflight, preflight};
pub use self::settings::KafkaSettings;
pub use self::sink::KafkaSink;
