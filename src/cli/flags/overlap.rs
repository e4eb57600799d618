//! The flags of `headcount overlap`.

use std::collections::HashSet;
use std::path::PathBuf;

use clap::parser::ValueSource;
use clap::{ArgMatches, Args};

use super::service::ServiceFlags;
use crate::cli::client::TimeRange;
use crate::cli::overlap::{Question, Task};

/// Counters of a question, at least and at most.
const LEAST: usize = 2;
const MOST: usize = 8;

#[derive(Debug, Args)]
pub(super) struct OverlapFlags {
    /// A sketch to compare, as --sketch-out of count writes it; without files, a service is asked
    #[arg(value_name = "FILE", requires = "second")]
    first: Option<PathBuf>,

    /// The sketch to compare it with
    #[arg(value_name = "FILE")]
    second: Option<PathBuf>,

    /// A counter of the service; two to eight, each with this flag
    #[arg(long = "counter", value_name = "NAME")]
    counter: Vec<String>,

    /// The start of a range: RFC 3339, or seconds since 1970. Without it, the running window
    #[arg(long, value_name = "TIME")]
    from: Option<String>,

    /// The end of the range; without it, now
    #[arg(long, value_name = "TIME", requires = "from")]
    to: Option<String>,

    /// Print JSON instead of text: that of the service as it came
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    service: ServiceFlags,
}

impl OverlapFlags {
    /// `matches` are those of these flags. The error is a line for the user, without the token.
    pub(super) fn task(self, matches: Option<&ArgMatches>) -> Result<Task, String> {
        if let (Some(first), Some(second)) = (self.first, self.second) {
            // Not a rule of clap: a variable in the environment conflicts with nothing.
            let typed = |flag: &str| {
                matches.is_some_and(|matches| matches.value_source(flag) == Some(ValueSource::CommandLine))
            };
            let mut for_services = ["counter", "from", "to"].into_iter().chain(ServiceFlags::NAMES);
            return match for_services.find(|flag| typed(flag)) {
                Some(flag) => Err(format!(
                    "the argument '--{}' cannot be used with files: it is for a service",
                    flag.replace('_', "-")
                )),
                None => Ok(Task::Files { files: [first, second], as_json: self.json }),
            };
        }
        let different: HashSet<_> = self.counter.iter().collect();
        if !(LEAST..=MOST).contains(&different.len()) {
            return Err(format!(
                "'overlap' requires two files, or {LEAST} to {MOST} different counters of a service, each with '--counter'"
            ));
        }
        Ok(Task::Ask(Question {
            service: self.service.service()?,
            range: TimeRange { from: self.from, to: self.to },
            counters: self.counter,
            as_json: self.json,
        }))
    }
}
