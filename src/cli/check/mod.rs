//! `headcount check`: looks at everything that serving with the same flags would need, and changes nothing.
//!
//! Every finding is a line that begins with `ok`, `warn` or `FAIL`. A check does not disturb running instances: it sends
//! no heartbeat, takes no lease, and tries commands only on keys of its own.

mod kafka;
mod redis;
mod rights;

use std::io::{self, Write};
use std::path::Path;

use crate::cli::findings::{Findings, Verdict};
use crate::cli::settings::Settings;
use crate::publish::sinks::file::FileSink;

/// Writes what it finds to `out`; true if nothing failed.
pub(super) async fn run(settings: &Settings, out: impl Write) -> io::Result<bool> {
    let mut findings = Findings::new(out);
    if let Some(server) = &settings.redis {
        redis::look(settings, server, &mut findings).await?;
    } else {
        findings.add(
            Verdict::Ok,
            "store",
            "standalone, in memory; to count with other instances, use --redis-url",
        )?;
    }
    if let Some(dir) = &settings.sinks.log_dir {
        look_at_log_dir(dir, &mut findings)?;
    }
    if let Some(kafka) = &settings.sinks.kafka {
        kafka::look(settings, kafka, &mut findings).await?;
    }
    Ok(!findings.failed())
}

fn look_at_log_dir(dir: &Path, findings: &mut Findings<impl Write>) -> io::Result<()> {
    let dir_shown = dir.display();
    match FileSink::preflight(dir) {
        Ok(true) => findings.add(Verdict::Ok, "files", format_args!("{dir_shown} can be written to")),
        Ok(false) => {
            findings.add(Verdict::Ok, "files", format_args!("{dir_shown} does not exist, it will be made"))
        }
        Err(error) => findings.add(Verdict::Fail, "files", error),
    }
}
