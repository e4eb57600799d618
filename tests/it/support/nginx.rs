//! A load balancer for tests: nginx.

use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Command, Stdio};

use tempfile::TempDir;

use super::process::Process;
use super::{free_port, wait_blocking};

/// nginx on a free loopback port, in a directory of its own. It sends requests round robin to its upstreams.
///
/// If an upstream refuses, hangs or answers 503, nginx retries with the next. It tries the upstream again in the next
/// round. So two instances may count a request that the first did not answer in time.
pub struct Nginx {
    pub address: SocketAddr,
    process: Process,
    dir: TempDir,
}

impl Nginx {
    /// Starts and waits until it listens.
    pub fn start(upstreams: &[SocketAddr]) -> Self {
        Self::start_with(|_, address| configuration(address, upstreams))
    }

    /// The same with another configuration. `config` makes it from a directory and an address.
    pub fn start_with(configuration: impl FnOnce(&Path, SocketAddr) -> String) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        configure(dir.path(), &configuration(dir.path(), address));
        let child = Command::new("nginx")
            .arg("-p")
            .arg(dir.path())
            .args(["-c", "nginx.conf", "-e", "error.log"])
            // As root, nginx would run its worker as a user without access to the directory. For other users nginx
            // ignores this with a warning.
            .args(["-g", "daemon off; user root root;"])
            .stdin(Stdio::null())
            .spawn()
            .expect("nginx starts: is it installed? ./scripts/test does that");
        let mut nginx = Self { address, process: Process(child), dir };
        nginx.process.wait_listening(address, || errors_in(&nginx.dir));
        nginx
    }

    /// Changes the upstreams. When this returns, no request goes to the old ones any more.
    ///
    /// nginx closes the idle client connections at that moment. So a client under load must reopen a connection that
    /// closes before an answer.
    pub fn reload(&self, upstreams: &[SocketAddr]) {
        configure(self.dir.path(), &configuration(self.address, upstreams));
        let old = self.workers();
        self.process.signal("HUP");
        wait_blocking("nginx to load its new configuration", || {
            let workers = self.workers();
            !workers.is_empty() && workers.iter().all(|worker| !old.contains(worker))
        });
    }

    /// The directory with its files.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Its error log.
    pub fn errors(&self) -> String {
        errors_in(&self.dir)
    }

    /// The process ids of its workers.
    pub fn workers(&self) -> Vec<u32> {
        let master = self.process.0.id();
        let children = std::fs::read_to_string(format!("/proc/{master}/task/{master}/children"));
        let children = children.expect("a living nginx");
        children.split_whitespace().map(|child| child.parse().expect("a process id")).collect()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // Not with SIGKILL, as `Process` does: the worker would keep running.
        self.process.terminate();
    }
}

fn errors_in(dir: &TempDir) -> String {
    std::fs::read_to_string(dir.path().join("error.log")).unwrap_or_default()
}

fn configure(dir: &Path, configuration: &str) {
    std::fs::write(dir.join("nginx.conf"), configuration).expect("a configuration");
}

/// The short time-outs are for an upstream that hangs.
fn configuration(address: SocketAddr, upstreams: &[SocketAddr]) -> String {
    let mut servers = String::new();
    for upstream in upstreams {
        let _ = writeln!(servers, "    server {upstream} max_fails=0;");
    }
    format!(
        "
master_process on;
worker_processes 1;
worker_shutdown_timeout 5s;
pid nginx.pid;
error_log error.log;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  client_body_temp_path body;
  proxy_temp_path proxy;
  fastcgi_temp_path fastcgi;
  uwsgi_temp_path uwsgi;
  scgi_temp_path scgi;
  keepalive_requests 1000000000;
  upstream instances {{
{servers}    keepalive 64;
  }}
  server {{
    listen {address} backlog=4096;
    location / {{
      proxy_pass http://instances;
      proxy_http_version 1.1;
      proxy_set_header Connection \"\";
      proxy_connect_timeout 1s;
      proxy_read_timeout 5s;
      proxy_next_upstream error timeout http_503;
    }}
  }}
}}
"
    )
}
