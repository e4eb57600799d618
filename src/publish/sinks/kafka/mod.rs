//! The Kafka sink: every window exactly once in a topic.
//!
//! # How
//!
//! The topic itself is the record of what has been published: its partition 0 has a namespace's windows and
//! nothing else. All instances use one `transactional.id`. Whoever begins to publish, and whoever does not know
//! what became of his last transaction, makes a new producer and
//!
//! 1. runs `init_transactions`, which fences every producer before it and aborts what they left open;
//! 2. reads the last committed record ([`ledger`]): nobody can add another one now;
//! 3. goes on with the window after it, one transaction a window.
//!
//! So a leader that was stopped in the middle of a commit, and goes on while another one leads, cannot commit any
//! more; and one that died between its commit and saying so is not repeated. Readers have to read with
//! `isolation.level=read_committed`.
//!
//! (KIP-98, *Exactly Once Delivery and Transactional Messaging*.)

mod client;
pub(crate) mod ledger;
mod preflight;
mod settings;
mod sink;
mod topic;

pub(crate) use self::preflight::{Preflight, preflight};
pub use self::settings::KafkaSettings;
pub use self::sink::KafkaSink;
