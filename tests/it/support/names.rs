//! A name server for tests, and a way to run the binary with only that name server.

use std::collections::HashMap;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use tempfile::NamedTempFile;

use super::process::headcount_by;

/// The answers for a name: each is given once, the last one again and again.
type Answers = Vec<Vec<Ipv4Addr>>;

/// A name server for addresses, over UDP (RFC 1035). It answers NXDOMAIN for unknown names.
pub struct Names {
    address: Ipv4Addr,
    asked: Arc<Mutex<HashMap<String, usize>>>,
    stop: Arc<std::sync::atomic::AtomicBool>,
    thread: Option<JoinHandle<()>>,
    config: NamedTempFile,
}

impl Names {
    pub fn start(names: &[(&str, &[&[&str]])]) -> Self {
        Self::launch(names, true)
    }

    /// A name server that never answers.
    pub fn silent() -> Self {
        Self::launch(&[], false)
    }

    fn launch(names: &[(&str, &[&[&str]])], answers_at_all: bool) -> Self {
        static NEXT: AtomicU8 = AtomicU8::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        // The system's resolver only uses port 53. So each test program has its own loopback address.
        let process = std::process::id();
        let address = Ipv4Addr::new(127, 53 + (process >> 8) as u8 % 100, process as u8, number);
        let socket = UdpSocket::bind((address, 53)).expect("port 53 of loopback: are you root?");
        socket.set_read_timeout(Some(Duration::from_millis(100))).expect("a time-out");
        let config = NamedTempFile::new().expect("a file");
        std::fs::write(config.path(), format!("nameserver {address}\noptions attempts:1\n")).expect("a file");
        let names: HashMap<String, Answers> = names
            .iter()
            .map(|(name, answers)| {
                let answers = answers.iter().map(|all| all.iter().map(|one| one.parse().unwrap()).collect());
                ((*name).to_owned(), answers.collect())
            })
            .collect();
        let asked = Arc::new(Mutex::new(HashMap::new()));
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let (counts, stopped) = (Arc::clone(&asked), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let mut packet = [0; 512];
            while !stopped.load(Ordering::Relaxed) {
                let Ok((length, from)) = socket.recv_from(&mut packet) else { continue };
                if answers_at_all && let Some(answer) = answer(&packet[..length], &names, &counts) {
                    let _ = socket.send_to(&answer, from);
                }
            }
        });
        Self { address, asked, stop, thread: Some(thread), config }
    }

    /// How many queries came for the IPv4 addresses of a name.
    pub fn asked(&self, name: &str) -> usize {
        self.asked.lock().unwrap().get(name).copied().unwrap_or_default()
    }

    /// The binary with this name server only: it runs in a mount namespace with its own resolv.conf.
    pub fn headcount(&self) -> Command {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", r#"mount --bind "$0" /etc/resolv.conf && exec "$@""#]);
        command.arg(self.config.path()).arg0("unshare");
        headcount_by(command)
    }
}

impl std::fmt::Display for Names {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.address.fmt(f)
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn answer(
    question: &[u8],
    names: &HashMap<String, Answers>,
    asked: &Mutex<HashMap<String, usize>>,
) -> Option<Vec<u8>> {
    const A: [u8; 2] = [0, 1];
    let mut labels = Vec::new();
    let mut at = 12;
    while *question.get(at)? > 0 {
        let label = question.get(at + 1..at + 1 + usize::from(question[at]))?;
        labels.push(String::from_utf8_lossy(label).to_ascii_lowercase());
        at += 1 + label.len();
    }
    let name = labels.join(".");
    let end_of_question = at + 5;
    let is_for_v4 = question.get(at + 1..at + 3)? == A;
    let addresses = match names.get(&name) {
        Some(answers) if is_for_v4 => {
            let mut asked = asked.lock().unwrap();
            let times = asked.entry(name).or_default();
            *times += 1;
            answers[(*times - 1).min(answers.len() - 1)].clone()
        }
        _ => Vec::new(),
    };
    let known_name = names.contains_key(&labels.join("."));
    let mut reply = question.get(..end_of_question)?.to_vec();
    // Flags: an answer, recursion available; NXDOMAIN for an unknown name.
    reply[2] = 0x81;
    reply[3] = if known_name { 0x80 } else { 0x83 };
    reply[6..12].copy_from_slice(&[0, addresses.len() as u8, 0, 0, 0, 0]);
    for address in addresses {
        // A pointer to the question's name; A, IN, TTL 0.
        reply.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
        reply.extend_from_slice(&address.octets());
    }
    Some(reply)
}
