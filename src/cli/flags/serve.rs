//! All flags of a service, and what two of them must agree on.

use std::time::Duration;

use clap::Args;

use super::callbacks::CallbackFlags;
use super::counting::CountingFlags;
use super::http::{HttpFlags, ListenFlags};
use super::logging::LoggingFlags;
use super::publishing::{KafkaFlags, PublishingFlags};
use super::redis::RedisFlags;
use super::values;
use crate::cli::settings::{Settings, Stopping};
use crate::publish::sinks::settings::Sinks;

/// All flags of a service.
#[derive(Debug, Clone, Args)]
pub struct ServeFlags {
    #[command(flatten)]
    counting: CountingFlags,
    #[command(flatten)]
    http: HttpFlags,
    #[command(flatten)]
    redis: RedisFlags,
    #[command(flatten)]
    publishing: PublishingFlags,
    #[command(flatten)]
    kafka: KafkaFlags,
    #[command(flatten)]
    callbacks: CallbackFlags,
    #[command(flatten)]
    stopping: StoppingFlags,
    #[command(flatten)]
    logging: LoggingFlags,
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Stopping")]
struct StoppingFlags {
    /// How long to go on serving after the signal to stop, while /readyz says no. Make it longer than the
    /// load balancer takes to notice
    #[arg(
        long, env = "HEADCOUNT_DRAIN_DELAY", value_name = "DURATION", default_value = "0s",
        value_parser = values::duration
    )]
    drain_delay: Duration,

    /// How long the whole stop may take
    #[arg(
        long, env = "HEADCOUNT_SHUTDOWN_TIMEOUT", value_name = "DURATION", default_value = "25s",
        value_parser = values::positive_duration
    )]
    shutdown_timeout: Duration,
}

impl ServeFlags {
    pub(super) fn listen(self) -> ListenFlags {
        self.http.addresses
    }

    /// Reads the files that flags name, and checks what flags must agree on.
    ///
    /// # Errors
    ///
    /// A line for the user, without any secret.
    pub fn settings(self) -> Result<Settings, String> {
        let Self { counting, http, redis, publishing, kafka, callbacks, stopping, logging } = self;
        let counting = counting.settings()?;
        let http = http.settings()?;
        let server = redis.settings()?;
        if redis.redis_stream.is_some() && server.is_none() {
            return Err("'--redis-stream <KEY>' requires '--redis-url'".to_owned());
        }
        let pending_max = redis.pending_max();
        let kafka = kafka.settings(&redis.namespace)?;
        Ok(Settings {
            namespace: redis.namespace,
            counting,
            http,
            redis: server,
            redis_writes: redis.redis_writes,
            on_redis_down: redis.on_redis_down,
            pending_max,
            lease_ttl: publishing.lease_ttl,
            close_timeout: publishing.close_timeout,
            sinks: Sinks { log_dir: publishing.log_dir, kafka, stream: redis.redis_stream },
            callbacks: callbacks.settings()?,
            stopping: stopping.settings()?,
            logging: logging.settings(),
        })
    }
}

impl StoppingFlags {
    fn settings(self) -> Result<Stopping, String> {
        let Self { drain_delay, shutdown_timeout } = self;
        if drain_delay >= shutdown_timeout {
            return Err(format!(
                "invalid value '{}' for '--drain-delay <DURATION>': expected less than --shutdown-timeout, {}",
                humantime::format_duration(drain_delay),
                humantime::format_duration(shutdown_timeout),
            ));
        }
        Ok(Stopping { drain_delay, shutdown_timeout })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        serve: ServeFlags,
    }

    #[test]
    fn a_renamed_flag_keeps_its_old_name() {
        for (flag, expected) in [("--pending-max", 7), ("--unacknowledged-max", 8)] {
            let cli = Cli::parse_from(["headcount", flag, &expected.to_string()]);
            assert_eq!(cli.serve.settings().unwrap().pending_max, expected, "{flag}");
        }
    }
}
