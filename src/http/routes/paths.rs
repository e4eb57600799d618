//! The paths of routes that are named more than once.

pub(super) const COUNTERS: &str = "/api/verve/counters";
pub(super) const UNIQUE: &str = "/api/verve/unique";
pub(super) const SERIES: &str = "/api/verve/series";
pub(super) const OVERLAP: &str = "/api/verve/overlap";
pub(super) const RETENTION: &str = "/api/verve/retention";
pub(super) const SKETCH: &str = "/api/verve/sketch";
