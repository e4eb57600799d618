//! Standard output, line by line.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;

/// Writes lines. When standard output stops working, it says so on standard error, once each time.
pub(super) struct StandardOutput {
    /// Without a buffer, so that the caller learns whether a line was written. None if standard output is closed.
    file: Option<File>,
    failing: bool,
    /// A part of a line was written, as when a disk is full: the next one begins on a new line.
    in_line: bool,
}

impl StandardOutput {
    pub(super) fn new() -> Self {
        let file = io::stdout().as_fd().try_clone_to_owned().ok().map(File::from);
        Self { file, failing: false, in_line: false }
    }

    pub(super) fn write_line(&mut self, line: &[u8]) -> io::Result<()> {
        let written = self.try_to_write(line);
        if let Err(error) = &written
            && !self.failing
        {
            // When standard error is closed too, there is no other place for the message.
            let _ = writeln!(io::stderr(), "error: the log cannot be written to standard output: {error}");
        }
        self.failing = written.is_err();
        written
    }

    fn try_to_write(&mut self, line: &[u8]) -> io::Result<()> {
        let Some(file) = &mut self.file else { return Err(io::ErrorKind::BrokenPipe.into()) };
        if self.in_line {
            file.write_all(b"\n")?;
            self.in_line = false;
        }
        let mut rest = line;
        while !rest.is_empty() {
            match file.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(length) => rest = &rest[length..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            self.in_line = !rest.is_empty();
        }
        Ok(())
    }
}
