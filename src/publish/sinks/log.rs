//! The log sink: a line in the service's own log for every closed window.

use async_trait::async_trait;
use tracing::{Value, info};

use super::lines::Lines;
use super::{CountSink, Origin, SinkError};
use crate::coordination::ClosedWindow;
use crate::coordination::term::Term;
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
        let (number, is_skipped) = (window.counters.number(), window.counters.is_skipped());
        let event = move || {
            let counters: Option<&dyn Value> = match number {
                _ if is_skipped => Some(&"skipped"),
                0 => None,
                _ => Some(&number),
            };
            info!(
                target: WINDOWS,
                timestamp = %count.window,
                unique_request_count = count.unique_request_count,
                accepted_ids = count.accepted_ids,
                accepted_ids_is_lower_bound = count.has_imports.then_some(true),
                mode = mode.as_str(),
                standard_error,
                complete = count.complete,
                counters,
                "window closed"
            );
        };
        self.lines.write(&count, "standard output", move || log.write(event)).await
    }
}
