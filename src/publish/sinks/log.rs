//! The log sink: a line in the service's own log for every closed window.

use async_trait::async_trait;
use tracing::info;

use super::lines::Lines;
use super::{CountSink, Origin, SinkError};
use crate::coordination::term::Term;
use crate::coordination::{ClosedWindow, WindowCounters};
use crate::telemetry::logging::{WINDOWS, WindowLog};

/// Logs every count as an event at level info, and waits until the line is written to standard output.
pub(super) struct LogSink {
    origin: Origin,
    log: WindowLog,
    lines: Lines,
}

impl LogSink {
    pub(super) fn new(origin: Origin, log: WindowLog) -> Self {
        Self { origin, log, lines: Lines::default() }
    }
}

#[async_trait]
impl CountSink for LogSink {
    fn name(&self) -> &'static str {
        "log"
    }

    async fn publish(&mut self, window: &ClosedWindow, _term: &Term) -> Result<(), SinkError> {
        let Origin { mode, standard_error, .. } = self.origin;
        let (log, count) = (self.log.clone(), window.count);
        let counters =
            Some(window.counters.clone()).filter(|counters| !matches!(counters, WindowCounters::None));
        let event = move || {
            info!(
                target: WINDOWS,
                timestamp = %count.window,
                unique_request_count = count.unique_request_count,
                accepted_ids = count.accepted_ids,
                mode = mode.as_str(),
                standard_error,
                complete = count.complete,
                counters = counters.as_ref().map(tracing::field::display),
                "window closed"
            );
        };
        self.lines.write(&count, "standard output", move || log.write(event)).await
    }
}
