//! The command line of the service that is process 1 of a container.
//!
//! The health check of the image is fixed, and `docker run IMAGE --listen 0.0.0.0:9000` gives flags only to process 1.
//! So `headcount healthcheck` reads the command line of that process. Its environment needs no look: a health check has
//! the same.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const COMMAND_LINE: &str = "/proc/1/cmdline";

/// The command line of process 1, from the name of this program on, if it runs this program.
pub(super) fn command_line() -> Option<Vec<OsString>> {
    words(&std::fs::read(COMMAND_LINE).ok()?)
}

/// Each word ends with a zero byte.
pub(super) fn words(line: &[u8]) -> Option<Vec<OsString>> {
    let words = line.strip_suffix(b"\0")?.split(|&byte| byte == 0).map(OsStr::from_bytes);
    // Before it there may be an init program, as with `docker run --init`.
    let words: Vec<_> = words.skip_while(|word| !is_this_program(word)).map(OsStr::to_owned).collect();
    (!words.is_empty()).then_some(words)
}

fn is_this_program(word: &OsStr) -> bool {
    Path::new(word).file_name() == Some(OsStr::new(env!("CARGO_PKG_NAME")))
}
