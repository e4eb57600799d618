//! All tests against real servers and the real binary, in one test program.

#![allow(
    unreachable_pub,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "tests stop at the first surprise, and print their figures"
)]
#![allow(clippy::float_cmp, reason = "metrics and stated errors are exact")]

mod support;

mod accuracy;
mod alerts;
mod api_tokens;
mod bare_machines;
mod callbacks;
mod check_command;
mod client_limits;
mod cluster;
mod cluster_faults;
mod cluster_moves;
mod cluster_outages;
mod cluster_support;
mod command_line;
mod completeness;
mod connections;
mod coordination;
mod costs;
mod count_command;
mod counter_bounds;
mod counter_closes;
mod counter_contract;
mod counter_faults;
mod counter_files;
mod counter_losses;
mod counter_ranges;
mod counter_sinks;
mod counter_windows;
mod counters;
mod counters_together;
mod crafted_ids;
mod dashboards;
mod deployment_files;
mod documentation;
mod endpoint_guard;
mod forbidden_endpoints;
mod http_table;
mod id_keys;
mod imports;
mod instances;
mod kafka;
mod kafka_counters;
mod kafka_faults;
#[cfg(feature = "kafka-tls")]
mod kafka_security;
mod kafka_topic;
mod layouts;
mod leadership;
mod live_page;
mod load_balancers;
mod log_sink;
mod lost_ids;
mod memory_use;
mod metrics;
mod namespaces;
mod openapi;
mod overlap_accuracy;
mod overlap_command;
mod overlaps;
mod publishing;
mod range_faults;
mod range_queries;
mod ranges;
mod redis_outages;
mod redis_recovery;
mod redis_refusals;
mod redis_writes;
mod retention;
mod retention_command;
mod router_properties;
mod secrets;
mod sentinel;
mod sentinel_outages;
mod series;
mod shutdown;
mod signals;
mod sketch_agreement;
mod sketch_properties;
mod sketch_transfer;
mod status;
mod store_contract;
mod stream_counters;
mod stream_sink;
mod test_support;
mod text_ids;
mod unique_command;
mod upgrades;
mod verify_command;
mod verify_periods;
mod window_boundaries;
