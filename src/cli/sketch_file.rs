//! Files that hold a sketch, as the string that Redis would keep.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};

use crate::hll::Sketch;

/// No sketch is longer, in bytes.
const LONGEST: u64 = Sketch::LONGEST_STRING as u64;

/// Reads a sketch. The error names the file.
pub(super) fn read(file: &Path) -> anyhow::Result<Sketch> {
    let mut bytes = Vec::new();
    // One more byte tells a file that is too long from one that just fits.
    let read = File::open(file).and_then(|file| file.take(LONGEST + 1).read_to_end(&mut bytes));
    read.with_context(|| format!("cannot read '{}'", file.display()))?;
    let why = match Sketch::from_bytes(&bytes) {
        _ if bytes.len() as u64 > LONGEST => format!("a sketch has at most {LONGEST} bytes"),
        Ok(sketch) => return Ok(sketch),
        Err(why) => why.to_string(),
    };
    Err(anyhow!("'{}' is no sketch: {why}", file.display()))
}

/// A file to write a sketch to.
pub(super) struct Destination {
    /// As the user wrote it.
    name: PathBuf,
    /// Where it is: what a link points to.
    file: PathBuf,
}

impl Destination {
    /// Fails if a file cannot be there: it would replace something else, or its directory is missing.
    pub(super) fn new(name: PathBuf) -> anyhow::Result<Self> {
        let unwritable = || format!("cannot write '{}'", name.display());
        let file = match fs::canonicalize(&name) {
            Ok(file) => {
                if !fs::metadata(&file).with_context(unwritable)?.is_file() {
                    bail!("{}: it is there and not a regular file", unwritable());
                }
                file
            }
            // A link that leads nowhere: the file would replace the link.
            Err(error) if name.is_symlink() => return Err(error).with_context(unwritable),
            Err(_) => name.clone(),
        };
        let directory = fs::metadata(directory_of(&file)).with_context(unwritable)?;
        if !directory.is_dir() || file.file_name().is_none() {
            bail!("{}: not a file in a directory", unwritable());
        }
        Ok(Self { name, file })
    }

    /// Writes all of the sketch, or leaves what was there. The error names the file.
    pub(super) fn write(&self, sketch: &Sketch) -> anyhow::Result<()> {
        let file_name = self.file.file_name().unwrap_or_default().to_string_lossy();
        let beside = directory_of(&self.file).join(format!(".{file_name}.{}.tmp", std::process::id()));
        let written = write_new(&beside, &sketch.to_bytes()).and_then(|()| fs::rename(&beside, &self.file));
        if written.is_err() {
            // The first error says more than one of this.
            let _ = fs::remove_file(&beside);
        }
        written.with_context(|| format!("cannot write '{}'", self.name.display()))
    }
}

/// A name without a directory is in the current one.
fn directory_of(file: &Path) -> &Path {
    file.parent().filter(|directory| !directory.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn write_new(file: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create_new(file)?;
    file.write_all(bytes)?;
    // Or a crash could leave an empty file under the new name.
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sketch_of(elements: std::ops::Range<u32>) -> Sketch {
        let sketch = Sketch::new();
        elements.for_each(|element| _ = sketch.add(&element.to_be_bytes()));
        sketch
    }

    /// The error of writing there or of reading it.
    fn error<T>(result: anyhow::Result<T>) -> String {
        format!("{:#}", result.err().expect("an error"))
    }

    #[test]
    fn what_was_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("sketch"), dir.path().join("link"));
        std::os::unix::fs::symlink(&file, &link).unwrap();
        for (name, elements) in [(&file, 0..0), (&file, 0..10), (&link, 0..100_000)] {
            let sketch = sketch_of(elements);
            Destination::new(name.clone()).unwrap().write(&sketch).unwrap();
            assert_eq!(read(&file).unwrap(), sketch);
        }
        assert!(link.is_symlink(), "the file behind the link is written");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "nothing else is left");
    }

    #[test]
    fn nothing_else_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("missing/sketch");
        for (name, why) in [
            (Path::new("/dev/null"), "it is there and not a regular file"),
            (dir.path(), "it is there and not a regular file"),
            (&missing, "No such file or directory"),
            (Path::new(""), "not a file in a directory"),
        ] {
            let error = error(Destination::new(name.to_owned()));
            assert!(error.starts_with(&format!("cannot write '{}': {why}", name.display())), "{error}");
        }
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&missing, &link).unwrap();
        assert!(error(Destination::new(link.clone())).contains("No such file"));
        assert!(link.is_symlink());
        fs::remove_file(&link).unwrap();
        let destination = Destination::new(dir.path().join("sketch")).unwrap();
        fs::remove_dir(dir.path()).unwrap();
        assert!(error(destination.write(&Sketch::new())).contains("/sketch': No such file"));
    }

    #[test]
    fn what_is_no_sketch_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut longest = sketch_of(0..1).to_bytes();
        longest.resize(LONGEST as usize, 0);
        let longer = [&longest[..], b"0"].concat();
        for (bytes, why) in [
            (&b""[..], "no HYLL header"),
            (b"a log of some lines\n", "no HYLL header"),
            (&longest, "whose runs do not cover its registers"),
            (&longer, "a sketch has at most 16400 bytes"),
            (&[sketch_of(0..100_000).to_bytes(), vec![b'\n']].concat(), "12305 bytes instead of 12304"),
        ] {
            fs::write(file.path(), bytes).unwrap();
            let error = error(read(file.path()));
            let begins = format!("'{}' is no sketch: ", file.path().display());
            assert!(error.starts_with(&begins) && error.ends_with(why), "{error}");
        }
        // It never ends, but one that is too long is not read to its end.
        assert!(error(read(Path::new("/dev/zero"))).contains("at most 16400 bytes"));
        assert!(error(read(Path::new("/no/such"))).starts_with("cannot read '/no/such': "));
    }
}
