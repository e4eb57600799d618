//! What headcount has for a machine without containers: a unit of systemd, completions of shells, manual pages.

use std::io::{ErrorKind, Write};
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::support::process::{Process, headcount, output_of, run};
use crate::support::redis::Redis;
use crate::support::server::Server;
use crate::support::wait_for;

/// The socket that systemd would listen to.
struct Systemd {
    socket: UnixDatagram,
    dir: TempDir,
}

impl Systemd {
    fn listen() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(dir.path().join("notify")).unwrap();
        socket.set_nonblocking(true).unwrap();
        Self { socket, dir }
    }

    /// headcount with the variables that systemd sets. It has to be heard from once a second.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = headcount();
        command.args(["--listen", "127.0.0.1:0", "--window", "24h"]).args(args);
        command.env("NOTIFY_SOCKET", self.dir.path().join("notify")).env("WATCHDOG_USEC", "1000000");
        command
    }

    /// The next message; none if there is none yet.
    fn next(&self) -> Option<String> {
        let mut message = [0; 64];
        match self.socket.recv(&mut message) {
            Ok(length) => Some(String::from_utf8_lossy(&message[..length]).trim_end().to_owned()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            Err(error) => panic!("{error}"),
        }
    }

    async fn wait_for(&self, message: &str) {
        wait_for(message, || (self.next()? == message).then_some(())).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn systemd_is_told_that_the_service_is_ready_lives_and_stops() {
    let systemd = Systemd::listen();
    let mut server = Server::run(systemd.command(&[])).await;
    assert_eq!(wait_for("a message", || systemd.next()).await, "READY=1");
    assert_eq!(server.get("/readyz").await.status, 200);
    for _ in 0..3 {
        systemd.wait_for("WATCHDOG=1").await;
    }
    // A process that hangs says nothing, and that is what systemd notices.
    server.process.signal("STOP");
    tokio::time::sleep(Duration::from_millis(200)).await;
    while systemd.next().is_some() {}
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(systemd.next(), None);
    server.process.signal("CONT");
    systemd.wait_for("WATCHDOG=1").await;
    server.process.signal("TERM");
    systemd.wait_for("STOPPING=1").await;
    assert_eq!(server.ended().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_waits_for_redis_is_not_ready_for_systemd() {
    let mut redis = Redis::start();
    let url = redis.url();
    redis.kill();
    let systemd = Systemd::listen();
    let mut command = systemd.command(&["--redis-url", &url, "--redis-wait", "60s", "--log-format", "json"]);
    let process = Process(command.stdout(Stdio::null()).spawn().unwrap());
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(systemd.next(), None);
    redis.restart();
    systemd.wait_for("READY=1").await;
    drop(process);
}

/// systemd accepts the unit, and finds it as hardened as a service can be that has clients on the network.
#[test]
fn the_unit_of_systemd_is_sound_and_hardened() {
    // 1.3 of 10. docs/deployment.md says so.
    const MOST_EXPOSED: &str = "13";
    let unit = std::fs::read_to_string("deploy/systemd/headcount.service").unwrap();
    let (dir, binary) = (tempfile::tempdir().unwrap(), env!("CARGO_BIN_EXE_headcount"));
    assert!(unit.contains("ExecStart=/usr/bin/headcount serve\n"));
    // Neither the program nor its manual page is installed here.
    let here = unit.replace("/usr/bin/headcount", binary).replace("Documentation=man:headcount(1)\n", "");
    let path = dir.path().join("headcount.service");
    std::fs::write(&path, here).unwrap();
    let path = path.to_str().unwrap();
    let verified = output_of(Command::new("systemd-analyze").args(["verify", path]));
    assert!(verified.status.success() && verified.stderr.is_empty(), "{verified:?}");
    let security = ["security", "--offline=true", "--threshold", MOST_EXPOSED, path];
    let hardened = output_of(Command::new("systemd-analyze").args(security));
    assert!(hardened.status.success(), "{}", String::from_utf8_lossy(&hardened.stdout));
}

/// What a command writes to standard output.
fn written(args: &[&str]) -> String {
    let output = run(args);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a command with this text on its standard input. Returns what it wrote, without a complaint.
fn given(text: &str, program: &str, args: &[&str]) -> String {
    let mut command = Command::new(program);
    command.args(args).env("LC_ALL", "C.UTF-8").env("MANWIDTH", "120");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{program}: {error}"));
    let (mut stdin, text) = (child.stdin.take().unwrap(), text.to_owned());
    let writing = std::thread::spawn(move || stdin.write_all(text.as_bytes()));
    let output = child.wait_with_output().unwrap();
    writing.join().unwrap().unwrap();
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && complaints.is_empty(), "{program}: {complaints}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn shells_complete_flags_and_commands() {
    let bash = written(&["completions", "bash"]);
    for (typed, completed) in [("--redis-u", "--redis-url"), ("health", "healthcheck")] {
        let ask = format!(
            "{bash}\nCOMP_WORDS=(headcount {typed}); COMP_CWORD=1\n_headcount headcount {typed} headcount\necho ${{COMPREPLY[@]}}"
        );
        assert_eq!(given(&ask, "bash", &[]), format!("{completed}\n"));
    }
    for (shell, only_check) in [("zsh", "-n"), ("fish", "--no-execute")] {
        let script = written(&["completions", shell]);
        assert!(script.contains("redis-url") && script.contains("healthcheck"), "{script}");
        given(&script, shell, &[only_check]);
    }
}

/// The words of a text that begin with two hyphens.
fn flags_in(text: &str) -> Vec<&str> {
    let words = text.split(|c: char| !(c.is_ascii_lowercase() || c == '-'));
    words.filter(|word| word.starts_with("--") && word.len() > 2).collect()
}

#[test]
fn every_command_has_a_manual_page() {
    let page = |of: &[&str]| {
        let page = written(&[&["man"], of].concat());
        given(&page, "man", &["--warnings", "--no-hyphenation", "--no-justification", "-l", "-"])
    };
    let main = page(&[]);
    let help = written(&["--help"]);
    let listed =
        help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    // What a command does may take several lines.
    let named = listed.filter_map(|line| line.strip_prefix("  ").filter(|line| !line.starts_with(' ')));
    let commands: Vec<_> = named.filter_map(|line| line.split(' ').next()).collect();
    for known in ["serve", "check", "verify", "count", "unique", "healthcheck", "completions", "man"] {
        assert!(commands.contains(&known), "{known} in {commands:?}");
    }
    for command in commands.into_iter().filter(|command| *command != "help") {
        let (page, title) = (page(&[command]), format!("headcount-{command}(1)"));
        assert!(page.contains(&title) && main.contains(&title), "{title}");
        for flag in flags_in(&written(&[command, "--help"])) {
            assert!(page.contains(flag), "{flag} in the page of {command}");
        }
    }
    for flag in flags_in(&help) {
        assert!(main.contains(flag), "{flag}");
    }
    let wrong = run(&["man", "frobnicate"]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&wrong.stderr).starts_with("error: there is no command 'frobnicate'"));
}

/// `scripts/release` makes the package, so here is only what needs no build of it.
#[test]
fn the_debian_package_names_files_that_exist() {
    let manifest = std::fs::read_to_string("Cargo.toml").unwrap();
    let package =
        manifest.split_once("[package.metadata.deb]").unwrap().1.split_once("\n[profile").unwrap().0;
    let sources: Vec<_> = package
        .lines()
        .filter_map(|line| line.trim().strip_prefix("[\"")?.split_once('"'))
        .map(|(source, _)| source)
        .filter(|source| !source.starts_with("target/release/"))
        .collect();
    assert_eq!(sources, ["CHANGELOG.md", "deploy/debian/headcount.env"]);
    for source in sources.into_iter().chain(["deploy/debian/postrm", "deploy/systemd/headcount.service"]) {
        assert!(std::fs::exists(source).unwrap(), "{source}");
    }
}

/// The settings that the Debian package installs: the flags exist, and only this machine can reach the service.
#[test]
fn the_settings_of_the_debian_package_are_flags() {
    let settings = std::fs::read_to_string("deploy/debian/headcount.env").unwrap();
    let assignments: Vec<_> =
        settings.lines().filter_map(|line| line.strip_prefix('#').unwrap_or(line).split_once('=')).collect();
    let help = written(&["serve", "--help"]);
    for (variable, _) in &assignments {
        let flag = variable.strip_prefix("HEADCOUNT_").unwrap().to_lowercase().replace('_', "-");
        assert!(help.contains(&format!("--{flag} ")), "--{flag}");
    }
    assert!(settings.contains("\nHEADCOUNT_LISTEN=127.0.0.1:"), "{settings}");
    assert!(assignments.len() > 3, "{assignments:?}");
}
