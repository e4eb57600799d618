//! A disk that can be filled.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A small file system in memory, mounted for a test; needs root.
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// A disk of 64 KiB.
    pub fn mount(at: &Path) -> Self {
        Self::mount_of("64k", at)
    }

    pub fn mount_of(size: &str, at: &Path) -> Self {
        let option = format!("size={size}");
        let status = Command::new("mount").args(["-t", "tmpfs", "-o", &option, "tmpfs"]).arg(at).status();
        assert!(status.expect("mount starts").success(), "a small disk can be mounted: are you root?");
        Self(at.to_owned())
    }

    pub fn fill(&self) {
        let full = std::fs::write(self.0.join("filling"), vec![0; 1 << 20]);
        assert!(full.is_err(), "the disk is full");
        // Files may still fill the pages that they have begun. So fill these with empty lines.
        for file in self.files() {
            let mut file = std::fs::File::options().append(true).open(file).expect("a log");
            while file.write_all(b"\n").is_ok() {}
        }
    }

    fn files(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(&self.0).expect("the disk").map(|file| file.unwrap().path());
        let mut files: Vec<_> =
            entries.filter(|file| file.extension().is_some_and(|end| end == "jsonl")).collect();
        files.sort();
        files
    }

    pub fn free(&self) {
        std::fs::remove_file(self.0.join("filling")).expect("what fills it");
    }

    /// The lines of all logs, in the order of their dates.
    pub fn lines(&self) -> Vec<String> {
        let text: String = self.files().iter().map(|file| std::fs::read_to_string(file).unwrap()).collect();
        text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// A directory that the test takes away and brings back in one step, so that nobody sees it half gone. Its path is a link.
pub struct LinkedDir {
    parent: tempfile::TempDir,
}

impl LinkedDir {
    pub fn new() -> Self {
        let dir = Self { parent: tempfile::tempdir().unwrap() };
        std::fs::create_dir(dir.real()).unwrap();
        std::fs::write(dir.parent.path().join("blocked"), "no directory").unwrap();
        dir.bring_back();
        dir
    }

    /// The path that is taken away.
    pub fn path(&self) -> PathBuf {
        self.parent.path().join("link")
    }

    /// The directory itself, which the test can always read.
    pub fn real(&self) -> PathBuf {
        self.parent.path().join("real")
    }

    pub fn take_away(&self) {
        self.lead_to("blocked");
    }

    pub fn bring_back(&self) {
        self.lead_to("real");
    }

    fn lead_to(&self, target: &str) {
        let new = self.parent.path().join("new");
        std::os::unix::fs::symlink(self.parent.path().join(target), &new).unwrap();
        std::fs::rename(&new, self.path()).unwrap();
    }
}
