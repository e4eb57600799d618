//! Sinks: where the counts of closed windows go.

pub mod file;
pub mod kafka;
mod lines;
mod log;
pub mod settings;
pub(crate) mod stream;

use std::error::Error;

use async_trait::async_trait;

use crate::coordination::ClosedWindow;
use crate::coordination::term::Term;
use crate::model::mode::Mode;
use crate::model::window::{Window, WindowLength};

/// Where counts come from, and how they were made: the same for all counts of an instance.
#[derive(Debug, Clone)]
pub struct Origin {
    /// The namespace that the instances share.
    pub namespace: String,
    /// The instance id, unlike any other.
    pub instance: String,
    /// How ids are remembered.
    pub mode: Mode,
    /// The standard error of the counts, relative to the truth.
    pub standard_error: f64,
    /// The length of windows.
    pub window: WindowLength,
}

/// Takes the counts of closed windows, in order, one at a time.
#[async_trait]
pub trait CountSink: Send {
    /// Its name in logs and metrics.
    fn name(&self) -> &'static str;

    /// Begins under a new term, or again after an error. Returns the last window that the sink has, from any instance. A
    /// sink that keeps no record returns none, and may get a window again.
    ///
    /// # Errors
    ///
    /// [`SinkError`]: the caller calls this again before it publishes.
    async fn resume(&mut self, _term: &Term) -> Result<Option<Window>, SinkError> {
        Ok(None)
    }

    /// Publishes a window. Returns `Ok` once the sink has it for good.
    ///
    /// # Errors
    ///
    /// [`SinkError`]: the sink may have the window or not. The caller calls [`CountSink::resume`], and publishes the window
    /// again if the sink lacks it.
    async fn publish(&mut self, window: &ClosedWindow, term: &Term) -> Result<(), SinkError>;
}

/// Why a sink did not take a count.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// The sink is away, or failed this time: another try may help.
    #[error(transparent)]
    Unavailable(Box<dyn Error + Send + Sync>),
    /// Another producer publishes to the sink, so this instance no longer leads.
    #[error("another process publishes to it")]
    Fenced,
    /// An operator has to repair something first.
    #[error("{0}")]
    Fatal(String),
}

impl SinkError {
    /// An error after which another try may help.
    pub fn unavailable(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Unavailable(error.into())
    }
}
