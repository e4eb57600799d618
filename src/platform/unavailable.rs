//! The error of a store that does not answer.

use std::fmt::Display;
use std::sync::Arc;

use thiserror::Error;

/// The store refused an operation, or did not confirm it in time. The caller may try again: every operation of a store
/// may be done twice.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{why}")]
pub struct Unavailable {
    why: Arc<str>,
    is_refusal: bool,
}

impl Unavailable {
    /// Because of `reason`, which is for the log.
    pub(crate) fn because(reason: impl Display) -> Self {
        Self { why: reason.to_string().into(), is_refusal: false }
    }

    /// Because a server that is there has refused it.
    pub(crate) fn refused(reason: impl Display) -> Self {
        Self { is_refusal: true, ..Self::because(reason) }
    }

    /// Whether a server is there that refused it.
    pub(crate) fn is_refusal(&self) -> bool {
        self.is_refusal
    }
}
