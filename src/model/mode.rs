//! The mode: how ids are remembered.

use serde::Serialize;
use utoipa::ToSchema;

/// How ids are remembered: with a `HyperLogLog`, or exactly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// In a HyperLogLog: a few kilobytes for any number of ids, and a standard error
    Hll,
    /// In a set: no error, and memory for every id
    Exact,
}

impl Mode {
    /// The word for it in flags, logs and answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hll => "hll",
            Self::Exact => "exact",
        }
    }
}
