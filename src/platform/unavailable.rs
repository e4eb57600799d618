//! The error of a store that does not answer.

use std::fmt::Display;
use std::sync::Arc;

use thiserror::Error;

/// The store refused an operation, or did not confirm it in time. The caller may try again: every operation of a store
/// may be done twice.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct Unavailable(Arc<str>);

impl Unavailable {
    /// Because of `reason`, which is for the log.
    pub(crate) fn because(reason: impl Display) -> Self {
        Self(reason.to_string().into())
    }
}
