//! Tools that scripts/test fetches: of Debian, of `PyPI` and of npm.

use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use serde_json::Value;

use super::process::Process;

/// How long a slow tool may take on a busy machine.
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

/// Runs a tool to its end. Returns its status and output.
pub fn run(command: &mut Command) -> (ExitStatus, String) {
    // A file, because an unread pipe would fill up.
    let mut said = tempfile::tempfile().expect("a temporary file");
    let [stdout, stderr] = [(); 2].map(|()| Stdio::from(said.try_clone().expect("the same file")));
    let child = command.stdin(Stdio::null()).stdout(stdout).stderr(stderr).spawn();
    let status = Process(child.expect("the tool starts")).wait_for(LONG);
    let mut text = String::new();
    said.rewind().and_then(|()| said.read_to_string(&mut text)).expect("what it said");
    (status, text)
}

/// Runs a tool that must succeed. Returns its output.
#[track_caller]
pub fn succeeds(command: &mut Command) -> String {
    let (status, said) = run(command);
    assert!(status.success(), "{command:?}: {status}\n{said}");
    said
}

/// The content of a YAML file of the repository.
pub fn yaml(path: &str) -> Value {
    let mut documents = yaml_documents(&in_repository(path));
    assert_eq!(documents.len(), 1, "{path}");
    documents.remove(0)
}

/// The documents of a YAML file.
pub fn yaml_documents(path: &Path) -> Vec<Value> {
    let program = "import json, sys, yaml; print(json.dumps(list(yaml.safe_load_all(open(sys.argv[1])))))";
    let mut python = Command::new("python3");
    python.env("PYTHONPATH", in_repository("target/tools")).args(["-c", program]).arg(path);
    serde_json::from_str(&succeeds(&mut python)).expect("JSON")
}

/// A required text.
pub fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_else(|| panic!("no {field} in {value}"))
}

/// A required list.
pub fn list<'a>(value: &'a Value, field: &str) -> &'a Vec<Value> {
    value[field].as_array().unwrap_or_else(|| panic!("no {field} in {value}"))
}

/// A file's text with a part replaced for a test. The part must be there.
pub fn replaced(text: &str, part: &str, by: &str) -> String {
    assert!(text.contains(part), "no {part:?} in\n{text}");
    text.replace(part, by)
}
