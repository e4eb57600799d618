//! HAProxy and Envoy, with the files of deploy/load-balancers. The tests replace the addresses in them.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use super::free_port;
use super::process::Process;
use super::tools::{in_repository, python_tool, replaced};

/// A load balancer that runs.
pub struct Balancer {
    pub address: SocketAddr,
    process: Process,
    dir: TempDir,
}

/// HAProxy in front of these two instances.
pub fn haproxy(instances: &[SocketAddr]) -> Balancer {
    let of = |number: usize| (format!("10.0.0.1{}:8080", number + 1), instances[number].to_string());
    let mut haproxy = Command::new("haproxy");
    haproxy.arg("-f");
    start(haproxy, "haproxy.cfg", |text, address| {
        let text = replaced(text, "bind :8080", &format!("bind {address}"));
        [0, 1].into_iter().map(of).fold(text, |text, (name, instance)| replaced(&text, &name, &instance))
    })
}

/// Envoy in front of these two instances.
pub fn envoy(instances: &[SocketAddr]) -> Balancer {
    let at = |address: &str, port: u16| format!("{{address: {address}, port_value: {port}}}");
    let mut envoy = python_tool("envoy");
    // Without --base-id, two of them would share memory.
    envoy.args(["--use-dynamic-base-id", "--concurrency", "2", "--log-level", "warn", "--config-path"]);
    start(envoy, "envoy.yaml", |text, address| {
        let text = replaced(text, &at("0.0.0.0", 8080), &at("127.0.0.1", address.port()));
        let of = |number: usize| {
            (at(&format!("10.0.0.1{}", number + 1), 8080), at("127.0.0.1", instances[number].port()))
        };
        [0, 1].into_iter().map(of).fold(text, |text, (name, instance)| replaced(&text, &name, &instance))
    })
}

/// `command` gets the path of the file as its last argument.
fn start(mut command: Command, file: &str, change: impl FnOnce(&str, SocketAddr) -> String) -> Balancer {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    let text = std::fs::read_to_string(in_repository("deploy/load-balancers").join(file)).expect("its file");
    let path = dir.path().join(file);
    std::fs::write(&path, change(&text, address)).expect("a configuration");
    let said = std::fs::File::create(dir.path().join("said")).expect("a file");
    let [stdout, stderr] = [(); 2].map(|()| Stdio::from(said.try_clone().expect("the same file")));
    let child = command.arg(path).stdin(Stdio::null()).stdout(stdout).stderr(stderr).spawn();
    let process = Process(child.expect("it starts: is it installed? ./scripts/test does that"));
    let mut balancer = Balancer { address, process, dir };
    balancer.process.wait_listening(address, || said_in(&balancer.dir));
    balancer
}

impl Balancer {
    /// What it wrote to its output.
    pub fn said(&self) -> String {
        said_in(&self.dir)
    }
}

fn said_in(dir: &TempDir) -> String {
    std::fs::read_to_string(dir.path().join("said")).unwrap_or_default()
}
