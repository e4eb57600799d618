//! All tests against real servers and the real binary, in one test program.

#![allow(
    unreachable_pub,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "tests end at what they do not expect, and print their figures"
)]
#![allow(clippy::float_cmp, reason = "metrics and stated errors are exact")]

mod support;

mod accuracy;
mod agreement;
mod alerts;
mod api_tokens;
mod attack;
mod callbacks;
mod check;
mod coming_back;
mod command_line;
mod completeness;
mod connections;
mod coordination;
mod counter_contract;
mod dashboards;
mod documentation;
mod drain;
mod forbidden;
mod guard;
mod hostile;
mod http_table;
mod id_keys;
mod instances;
mod kafka;
mod kafka_faults;
mod kafka_topic;
mod layouts;
mod leadership;
mod lines;
mod live_page;
mod log_sink;
mod losses;
mod memory;
mod metrics;
mod namespaces;
mod openapi;
mod outages;
mod publishing;
mod redis_refusals;
mod redis_writes;
mod router_properties;
mod secrets;
mod signals;
mod sketch_properties;
mod stack;
mod status;
mod stream;
mod support_works;
mod verify;
mod windows;
