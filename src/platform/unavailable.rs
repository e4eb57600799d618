//! The one way in which a store fails.

use std::fmt::Display;
use std::sync::Arc;

use thiserror::Error;

/// The store did not do what it was asked to, or did not say in time that it did. It may be asked again:
/// everything that stores are asked for may be done twice.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct Unavailable(Arc<str>);

impl Unavailable {
    /// Because of `reason`, which is for the log.
    pub fn because(reason: impl Display) -> Self {
        Self(reason.to_string().into())
    }
}
