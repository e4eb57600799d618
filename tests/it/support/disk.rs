//! A disk that can be filled.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A file system of 64 KiB in memory, mounted for a test; needs root.
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    pub fn mount(at: &Path) -> Self {
        let status = Command::new("mount").args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"]).arg(at).status();
        assert!(status.expect("mount starts").success(), "a small disk can be mounted: are you root?");
        Self(at.to_owned())
    }

    pub fn fill(&self) {
        let full = std::fs::write(self.0.join("filling"), vec![0; 1 << 20]);
        assert!(full.is_err(), "it is small");
        // The last page of the log's own file may have room still: that is used up by and by.
    }

    pub fn free(&self) {
        std::fs::remove_file(self.0.join("filling")).expect("what fills it");
    }

    /// The lines of all logs, in the order of their dates.
    pub fn lines(&self) -> Vec<String> {
        let mut files: Vec<_> =
            std::fs::read_dir(&self.0).expect("the disk").map(|file| file.unwrap().path()).collect();
        files.sort();
        let text: String = files.iter().map(|file| std::fs::read_to_string(file).unwrap()).collect();
        text.lines().map(str::to_owned).collect()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}
