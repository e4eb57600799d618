//! Sinks: where the counts of closed windows go.

pub mod file;
pub mod kafka;
mod lines;
mod log;
pub mod settings;
pub(crate) mod stream;

use std::error::Error;

use async_trait::async_trait;

use crate::coordination::term::Term;
use crate::model::mode::Mode;
use crate::model::window::{Window, WindowCount, WindowLength};

/// Where counts come from, and how they were made: the same for all that a service publishes.
#[derive(Debug, Clone)]
pub struct Origin {
    /// What the instances share.
    pub namespace: String,
    /// This process, unlike any other.
    pub instance: String,
    /// How ids are remembered.
    pub mode: Mode,
    /// Of the counts, relative to the truth.
    pub standard_error: f64,
    /// The length of windows.
    pub window: WindowLength,
}

/// Takes the counts of closed windows, in order, one at a time.
#[async_trait]
pub trait CountSink: Send {
    /// The word for it in logs and metrics.
    fn name(&self) -> &'static str;

    /// Begins under a new term, or anew after an error: says which window is the last that it has, from
    /// whichever instance. A sink that keeps no record says none, and may be given a window again.
    ///
    /// # Errors
    ///
    /// [`SinkError`]: it is asked again before it is given anything.
    async fn resume(&mut self, _grant: &Term) -> Result<Option<Window>, SinkError> {
        Ok(None)
    }

    /// Takes a count. `Ok` once it is where it belongs.
    ///
    /// # Errors
    ///
    /// [`SinkError`]: it may have the count or not. It is asked to resume, and given the same count again if it
    /// does not say that it has it.
    async fn publish(&mut self, count: &WindowCount, term: &Term) -> Result<(), SinkError>;
}

/// The sink could not take a count.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// This time; it is worth trying again.
    #[error(transparent)]
    Unavailable(Box<dyn Error + Send + Sync>),
    /// Somebody else publishes to it: this instance leads no more.
    #[error("another process publishes to it")]
    Fenced,
    /// Somebody has to set something right.
    #[error("{0}")]
    Fatal(String),
}

impl SinkError {
    /// Worth trying again.
    pub fn unavailable(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Unavailable(error.into())
    }
}
