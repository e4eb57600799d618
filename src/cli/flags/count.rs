//! The flags of `headcount count`.

use std::path::PathBuf;

use clap::Args;

use crate::cli::count::{Source, Task};
use crate::model::mode::Mode;

#[derive(Debug, Args)]
pub(super) struct CountFlags {
    /// The file, with any bytes; standard input without it, or with -. One whole line is in memory at a time
    file: Option<PathBuf>,

    /// How to count
    #[arg(long, env = "HEADCOUNT_MODE", value_enum, default_value_t = Mode::Hll)]
    mode: Mode,

    /// Write the sketch to this file, as Redis keeps it: to count unions, and for overlap. Needs --mode hll
    #[arg(long, value_name = "FILE")]
    sketch_out: Option<PathBuf>,

    /// Count the union of these sketches instead of lines: files of --sketch-out. Needs --mode hll
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with = "file")]
    merge: Vec<PathBuf>,

    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

impl CountFlags {
    /// The error is a line for the user.
    pub(super) fn task(self) -> Result<Task, String> {
        let Self { file, mode, sketch_out, merge, json } = self;
        let for_sketches = [("--merge", !merge.is_empty()), ("--sketch-out", sketch_out.is_some())];
        if let (Mode::Exact, Some((flag, _))) = (mode, for_sketches.iter().find(|(_, given)| *given)) {
            return Err(format!(
                "the argument '{flag}' cannot be used with '--mode exact', which keeps no sketch"
            ));
        }
        let source = if merge.is_empty() { Source::Lines(file) } else { Source::Sketches(merge) };
        Ok(Task { source, mode, sketch_out, as_json: json })
    }
}
