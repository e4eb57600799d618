//! headcount counts how many different integer ids arrive each minute.
//!
//! The data runs one way, down this list. A room imports only from rooms below it, and a file only from files that do not
//! import it in turn; `tests/rooms.rs` holds that.
//!
//! | room | holds |
//! | --- | --- |
//! | [`cli`] | a file for each command, and the flags; `serve` puts the parts together, and starts and stops them in order |
//! | [`http`] | the server, and a file for each route |
//! | [`callback`] | what is sent to the endpoints that requests name |
//! | [`publish`] | the leader's loop, and the sinks: log, files, Kafka, a stream |
//! | [`coordination`] | who is there, who leads, when a window is final, and when its count is complete |
//! | [`store`] | what remembers ids: in memory, or in Redis with the others |
//! | [`redis`] | the client, and the names of the keys |
//! | [`hll`] | the sketch |
//! | [`model`] | ids, windows, shards |
//! | [`telemetry`] | metrics, and the log |
//! | [`platform`] | threads, secrets: what knows nothing of counting |
//!
//! The library exists for the binary and its tests; its interface may change with every release.

pub mod callback;
pub mod cli;
pub mod coordination;
pub mod hll;
pub mod http;
pub mod model;
pub mod platform;
pub mod publish;
pub mod redis;
pub mod store;
pub mod telemetry;
