//! Tools that scripts/test fetches: of Debian, of `PyPI` and of npm.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::process::output_of;

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

/// Runs a tool that has to find nothing wrong; what it said.
#[track_caller]
pub fn succeeds(command: &mut Command) -> String {
    let output = output_of(command);
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(output.status.success(), "{command:?}: {}\n{said}", output.status);
    said
}

/// What a YAML file of the repository says.
pub fn yaml(path: &str) -> Value {
    let program = "import json, sys, yaml; json.dump(yaml.safe_load(open(sys.argv[1])), sys.stdout)";
    let mut python = Command::new("python3");
    python.env("PYTHONPATH", in_repository("target/tools")).args(["-c", program]).arg(in_repository(path));
    serde_json::from_str(&succeeds(&mut python)).expect("JSON")
}
