//! Tools that scripts/test fetches: of Debian, of `PyPI` and of npm.

use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use serde_json::Value;

use super::process::Process;

/// How long a tool may take that has much to do, on a machine that is busy with other tests.
const LONG: Duration = Duration::from_secs(600);

/// A file of the repository.
pub fn in_repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A program of `PyPI`: see tests/python.
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

/// Runs a tool to its end: how it ended, and all it said.
pub fn run(command: &mut Command) -> (ExitStatus, String) {
    // A pipe that nobody reads before the end would fill up.
    let mut said = tempfile::tempfile().expect("a temporary file");
    let [stdout, stderr] = [(); 2].map(|()| Stdio::from(said.try_clone().expect("the same file")));
    let child = command.stdin(Stdio::null()).stdout(stdout).stderr(stderr).spawn();
    let status = Process(child.expect("the tool starts")).wait_for(LONG);
    let mut text = String::new();
    said.rewind().and_then(|()| said.read_to_string(&mut text)).expect("what it said");
    (status, text)
}

/// Runs a tool that has to find nothing wrong; what it said.
#[track_caller]
pub fn succeeds(command: &mut Command) -> String {
    let (status, said) = run(command);
    assert!(status.success(), "{command:?}: {status}\n{said}");
    said
}

/// What a YAML file of the repository says.
pub fn yaml(path: &str) -> Value {
    let program = "import json, sys, yaml; json.dump(yaml.safe_load(open(sys.argv[1])), sys.stdout)";
    let mut python = Command::new("python3");
    python.env("PYTHONPATH", in_repository("target/tools")).args(["-c", program]).arg(in_repository(path));
    serde_json::from_str(&succeeds(&mut python)).expect("JSON")
}
