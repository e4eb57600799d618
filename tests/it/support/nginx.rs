//! A load balancer: nginx, of the test's own.

use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};

use tempfile::TempDir;

use super::process::Process;
use super::{free_port, wait_blocking};

/// On loopback, on a free port, in a directory of its own; sends requests round robin to its upstreams.
///
/// An upstream that refuses, hangs or says 503 costs a retry with the next and is asked again the next
/// time round. A request that was sent on and not answered in time may so be counted by two.
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

    /// The same with another configuration, made for a directory and an address.
    pub fn start_with(configuration: impl FnOnce(&Path, SocketAddr) -> String) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        configure(dir.path(), &configuration(dir.path(), address));
        let child = Command::new("nginx")
            .arg("-p")
            .arg(dir.path())
            .args(["-c", "nginx.conf", "-e", "error.log"])
            // Started by root, a worker would become a user who cannot enter the directory; others cannot
            // choose, and are told that this is ignored.
            .args(["-g", "daemon off; user root root;"])
            .stdin(Stdio::null())
            .spawn()
            .expect("nginx starts: is it installed? ./scripts/test does that");
        let mut nginx = Self { address, process: Process(child), dir };
        wait_blocking("nginx to listen", || {
            let ended = nginx.process.0.try_wait().expect("a child can be waited for").is_some();
            assert!(!ended, "nginx ended:\n{}", nginx.errors());
            TcpStream::connect(address).is_ok()
        });
        nginx
    }

    /// Goes over to other upstreams. When this returns, no request goes by the old list any more.
    ///
    /// nginx closes connections from clients that are idle at that moment: a client under load has to
    /// take a connection that closes before an answer for one to be opened again.
    pub fn reload(&self, upstreams: &[SocketAddr]) {
        configure(self.dir.path(), &configuration(self.address, upstreams));
        let old = self.workers();
        self.process.signal("HUP");
        wait_blocking("nginx to go over to its new configuration", || {
            let workers = self.workers();
            !workers.is_empty() && workers.iter().all(|worker| !old.contains(worker))
        });
    }

    /// Where it has its files.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// What it complained about.
    pub fn errors(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("error.log")).unwrap_or_default()
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
        // Killed, as `Process` does, it would leave its worker behind.
        self.process.terminate();
    }
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
