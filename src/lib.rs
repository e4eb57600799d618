//! headcount counts how many different integer ids arrive each minute.
//!
//! Each room of this list imports only from rooms below it. No two files import each other. `tests/rooms.rs` checks both.
//!
//! | room | holds |
//! | --- | --- |
//! | [`cli`] | the flags, and a file for each command; `serve` builds the parts, and starts and stops them in order |
//! | [`http`] | the server, and a file for each route |
//! | [`callback`] | the POST to the endpoint that a request names |
//! | [`publish`] | the leader's loop, and the sinks: log, files, Kafka, a Redis stream |
//! | [`coordination`] | which instances are alive, which leads, when a window closes, and whether its count is complete |
//! | [`store`] | remembers ids: in memory, or in Redis for all instances |
//! | [`redis`] | the Redis client, and the names of the keys |
//! | [`hll`] | the HyperLogLog sketch |
//! | [`model`] | ids, windows, shards |
//! | [`telemetry`] | metrics, and the log |
//! | [`platform`] | threads, secrets, and other helpers unrelated to counting |
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
