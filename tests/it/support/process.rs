//! Child processes that end with the test.

use std::fs;
use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tempfile::TempDir;

use super::{PATIENCE, wait_blocking};

/// The binary under test.
pub fn headcount() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_headcount"));
    // The developer's environment must not change the tests.
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("HEADCOUNT_")) {
        command.env_remove(name);
    }
    // So must systemd's, which may run the tests.
    for name in ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"] {
        command.env_remove(name);
    }
    command
}

/// The same as the next argument of a program that runs it.
pub fn headcount_by(mut command: Command) -> Command {
    let binary = headcount();
    command.arg(binary.get_program());
    for (name, _) in binary.get_envs() {
        command.env_remove(name);
    }
    command
}

/// The same with a clock that is off by `offset`, such as `+1.5s`.
pub fn headcount_with_clock(offset: &str) -> Command {
    let mut command = headcount();
    set_clock(&mut command, offset);
    command
}

/// Gives a command a clock that is off by `offset`.
pub fn set_clock(command: &mut Command, offset: &str) {
    // faketime would run the command as a child that outlives it. So only its library is used.
    command.env("LD_PRELOAD", &*FAKETIME);
    command.env("FAKETIME", offset);
    // Time-outs use the monotonic clock, which stays right.
    command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1").env("DONT_FAKE_MONOTONIC", "1");
}

/// A clock that can be set while a process runs.
pub struct Clock(TempDir);

impl Clock {
    pub fn new() -> Self {
        let clock = Self(tempfile::tempdir().expect("a temporary directory"));
        clock.set("+0s");
        clock
    }

    /// The binary, with this clock.
    pub fn headcount(&self) -> Command {
        let mut command = headcount_with_clock("+0s");
        command.env_remove("FAKETIME").env("FAKETIME_TIMESTAMP_FILE", self.0.path().join("offset"));
        command.env("FAKETIME_NO_CACHE", "1");
        command
    }

    /// A process never reads half an offset, because the file is replaced as a whole.
    pub fn set(&self, offset: &str) {
        let next = self.0.path().join("next");
        fs::write(&next, offset).expect("a file");
        fs::rename(next, self.0.path().join("offset")).expect("the file is renamed");
    }
}

/// The library of faketime.
static FAKETIME: LazyLock<String> = LazyLock::new(|| {
    let mut library = String::new();
    // What an earlier process left in /dev/shm can make faketime fail.
    wait_blocking("faketime to name its library", || {
        let asked = Command::new("faketime").args(["-m", "-f", "+1s", "printenv", "LD_PRELOAD"]).output();
        let said = asked.expect("faketime starts: is it installed? ./scripts/test does that").stdout;
        String::from_utf8(said).expect("a path").trim().clone_into(&mut library);
        !library.is_empty()
    });
    library
});

/// The lines of a command that succeeds, and has nothing to complain about.
#[track_caller]
pub fn said(output: &Output) -> Vec<String> {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).expect("UTF-8").lines().map(str::to_owned).collect()
}

/// Runs the binary to its end.
pub fn run(args: &[&str]) -> Output {
    output_of(headcount().args(args))
}

/// Runs a command with little output to its end.
pub fn output_of(command: &mut Command) -> Output {
    let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = Process(command.spawn().expect("the command starts"));
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    // `check` may wait for time-outs of brokers, and then for a minute for a transaction that cannot end.
    let status = process.wait_for(4 * PATIENCE);
    process.0.stdout.take().expect("a pipe").read_to_end(&mut stdout).expect("output");
    process.0.stderr.take().expect("a pipe").read_to_end(&mut stderr).expect("output");
    Output { status, stdout, stderr }
}

/// The signals that tests send.
fn signal_of(name: &str) -> Signal {
    match name {
        "CONT" => Signal::CONT,
        "HUP" => Signal::HUP,
        "INT" => Signal::INT,
        "KILL" => Signal::KILL,
        "STOP" => Signal::STOP,
        "TERM" => Signal::TERM,
        _ => panic!("SIG{name} is not among the signals of the tests"),
    }
}

/// A child process. Dropping it kills it by its pid.
pub struct Process(pub Child);

impl Process {
    pub fn signal(&self, name: &str) {
        kill_process(self.pid(), signal_of(name)).unwrap_or_else(|error| panic!("SIG{name}: {error}"));
    }

    /// Sends a signal to the process group that it leads.
    pub fn signal_group(&self, name: &str) {
        kill_process_group(self.pid(), signal_of(name)).unwrap_or_else(|error| panic!("SIG{name}: {error}"));
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.0)
    }

    /// Waits for the exit status.
    pub fn wait(&mut self) -> ExitStatus {
        self.wait_for(PATIENCE)
    }

    /// The same with a longer time-out.
    pub fn wait_for(&mut self, patience: Duration) -> ExitStatus {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.0.try_wait().expect("a child can be waited for") {
                return status;
            }
            assert!(Instant::now() < deadline, "the process does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Sends SIGTERM and waits a while. It never fails, because `drop` calls it.
    pub fn terminate(&mut self) {
        let _ = kill_process(self.pid(), Signal::TERM);
        let deadline = Instant::now() + PATIENCE;
        while matches!(self.0.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until it listens at this address. If it ends before, the panic has what it `said`.
    pub fn wait_listening(&mut self, address: SocketAddr, said: impl Fn() -> String) {
        wait_blocking("a server to listen", || {
            let ended = self.0.try_wait().expect("a child can be waited for").is_some();
            assert!(!ended, "it ended:\n{}", said());
            TcpStream::connect(address).is_ok()
        });
    }

    /// Resident memory in bytes.
    pub fn resident(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0.id())).expect("a living process");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("VmRSS");
        line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("a number") * 1024
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
