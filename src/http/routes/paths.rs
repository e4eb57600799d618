//! The paths of routes that are named more than once.

pub(super) const COUNTERS: &str = "/api/verve/counters";
pub(super) const UNIQUE: &str = "/api/verve/unique";
pub(super) const SERIES: &str = "/api/verve/series";
