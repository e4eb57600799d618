//! headcount counts how many different integer ids arrive each minute.
//!
//! The data runs one way: `http` takes ids and hands them to a `counter`, and endpoints to the `callback`s; the
//! `sealer` seals windows and tells the `coordinator`; the `publisher` of the instance that leads closes windows
//! that all have sealed, asks the counter for their counts and hands those to the `sink`s. `app` puts the parts
//! together. A module imports only from floors below its own:
//!
//! | floor | modules |
//! | --- | --- |
//! | 4 | [`cli`], [`exposed`], [`app`], [`backend`], [`listeners`], [`logging`], [`signals`], [`starting`], [`lines`], [`healthcheck`], [`check`], [`verify`], [`sinks`] |
//! | 3 | [`http`], [`sealer`], [`publisher`] |
//! | 2 | [`counter::memory`], [`counter::redis`], [`coordinator::alone`], [`coordinator::redis`], [`lease`], [`callback`], [`sink::log`], [`sink::kafka`], [`sink::stream`] |
//! | 1 | [`counter`], [`coordinator`], [`redis`], [`sink`] |
//! | 0 | [`completeness`], [`id`], [`id_key`], [`id_list`], [`shard`], [`sketch`], [`mode`], [`window`], [`grant`], [`findings`], [`log_progress`], [`metrics`], [`args`], [`secret`], [`tls`], [`unavailable`], [`striped`], [`read_mostly`], [`workers`], `words` |
//!
//! The library exists for the binary and its tests; its interface may change with every release.

pub mod app;
pub mod args;
pub mod backend;
pub mod callback;
pub mod check;
pub mod cli;
pub mod completeness;
pub mod coordinator;
pub mod counter;
pub mod exposed;
pub mod findings;
pub mod grant;
pub mod healthcheck;
pub mod http;
pub mod id;
pub mod id_key;
pub mod id_list;
pub mod lease;
pub mod lines;
pub mod listeners;
pub mod log_progress;
pub mod logging;
pub mod metrics;
pub mod mode;
pub mod publisher;
pub mod read_mostly;
pub mod redis;
pub mod sealer;
pub mod secret;
pub mod shard;
pub mod signals;
pub mod sink;
pub mod sinks;
pub mod sketch;
pub mod starting;
pub mod striped;
pub mod tls;
pub mod unavailable;
pub mod verify;
pub mod window;
mod words;
pub mod workers;
