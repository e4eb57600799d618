//! Tools that scripts/test fetches: of Debian, of PyPI and of npm.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::process::Process;

/// A file of the repository.
pub fn in_repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A program of PyPI: see tests/python.
pub fn python_tool(name: &str) -> Command {
    let tools = in_repository("target/tools");
    let program = tools.join("bin").join(name);
    assert!(program.exists(), "{} is not there: ./scripts/tools fetches it", program.display());
    let mut command = Command::new(program);
    command.env("PYTHONPATH", tools);
    command
}

/// Node with a script of tests/node, or of one of its packages.
pub fn node(script: &str) -> Command {
    let dir = in_repository("tests/node");
    assert!(
        dir.join("node_modules").exists(),
        "tests/node/node_modules is not there: ./scripts/tools fetches it"
    );
    let mut command = Command::new("node");
    command.arg(dir.join(script)).current_dir(dir);
    command
}

/// How long a tool may take: browsers start slowly on a busy machine.
const PATIENCE: Duration = Duration::from_secs(300);

/// Runs a tool that has to find nothing wrong; what it said.
pub async fn succeeds(command: &mut Command) -> String {
    let (succeeded, said) = run(command).await;
    assert!(succeeded, "{command:?}\n{said}");
    said
}

/// Runs a tool to its end: whether it found nothing wrong, and what it said.
pub async fn run(command: &mut Command) -> (bool, String) {
    // A file, because a pipe that nobody reads is soon full.
    let said = tempfile::NamedTempFile::new().expect("a temporary file");
    let output = || said.reopen().expect("the same file");
    command.stdin(Stdio::null()).stdout(output()).stderr(output());
    let mut process = Process(command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}")));
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = process.0.try_wait().expect("a child can be waited for") {
            break status;
        }
        assert!(Instant::now() < deadline, "{command:?} does not end");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    (status.success(), std::fs::read_to_string(said.path()).expect("text"))
}
