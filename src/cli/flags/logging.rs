//! The flags of the service's own log.

use clap::Args;
use tracing_subscriber::filter::{LevelFilter, Targets};

use crate::telemetry::logging::{Format, Settings};

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Logging")]
pub(super) struct LoggingFlags {
    /// What to log: off, error, warn, info, debug, trace, or a list such as info,hyper=debug.
    /// Closed windows are logged at info, and at every level if the log is the only sink
    #[arg(
        long, env = "HEADCOUNT_LOG_LEVEL", value_name = "LEVEL", default_value = "info",
        value_parser = level
    )]
    log_level: Targets,

    /// How to log
    #[arg(long, env = "HEADCOUNT_LOG_FORMAT", value_enum, default_value_t = Format::Text)]
    log_format: Format,
}

impl LoggingFlags {
    pub(super) fn settings(self) -> Settings {
        Settings { level: self.log_level, format: self.log_format }
    }
}

/// A single word must be a level. The parser of `Targets` would also take it for the name of a module, so a typing error
/// would silence everything.
fn level(text: &str) -> Result<Targets, String> {
    let sound = |part: &str| part.contains('=') || !part.is_empty() && part.parse::<LevelFilter>().is_ok();
    text.parse().ok().filter(|_| text.split(',').all(sound)).ok_or_else(|| {
        "expected off, error, warn, info, debug, trace, or a list such as info,hyper=debug".to_owned()
    })
}
