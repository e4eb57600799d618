//! Where the time of a request goes: user and system time of the service and of Redis apart, wake-ups, and system calls.
//!
//! A wake-up is a voluntary context switch: a thread slept, and something woke it. strace counts the system calls in a run
//! of its own, because it slows the processes down.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::Effort;
use crate::report::{head, line, median};
use crate::subject::Load;
use crate::subjects::Kind;
use crate::times::times_of;
use crate::wrk;

const KINDS: [Kind; 6] = [Kind::Noop, Kind::MEMORY, Kind::WARM, Kind::CHANGED, Kind::HLL, Kind::EXACT];
/// strace has attached to all threads by then.
const ATTACHED: Duration = Duration::from_secs(1);
/// System calls that are shown by name.
const SHOWN: usize = 5;

/// What the processes of a subject have used.
#[derive(Debug, Clone, Copy, Default)]
struct Used {
    user: f64,
    system: f64,
    wake_ups: f64,
}

pub fn measure(effort: Effort) -> Result<Value, String> {
    let mut all_rounds = KINDS.map(|_| Vec::new());
    let failed = |kind: Kind| move |error| format!("{}: {error}", kind.name());
    for round in 0..effort.rounds {
        for (kind, rounds) in KINDS.into_iter().zip(&mut all_rounds) {
            rounds.push(one_round(kind, effort.duration, round).map_err(failed(kind))?);
        }
    }
    let mut all_calls = Vec::new();
    for kind in KINDS {
        all_calls.push(system_calls(kind, effort.duration).map_err(failed(kind))?);
    }
    Ok(show(&all_rounds, &all_calls))
}

fn show(all_rounds: &[Vec<[Used; 2]>], all_calls: &[[Vec<(String, f64)>; 2]]) -> Value {
    let sides = ["service", "Redis"];
    head("for each request", &["", "user, µs", "system, µs", "wake-ups", "system calls", "most of them"]);
    let mut figures = Vec::new();
    for ((kind, rounds), calls) in KINDS.into_iter().zip(all_rounds).zip(all_calls) {
        for (side, calls) in calls.iter().enumerate().filter(|(_, calls)| !calls.is_empty()) {
            let median =
                |figure: fn(&Used) -> f64| median(rounds.iter().map(|used| figure(&used[side])).collect());
            let [user, system, wake_ups] =
                [median(|used| used.user), median(|used| used.system), median(|used| used.wake_ups)];
            let all: f64 = calls.iter().map(|(_, calls)| calls).sum();
            let most = calls.iter().take(SHOWN).map(|(name, calls)| format!("{name} {calls:.2}"));
            let most = most.collect::<Vec<_>>().join(", ");
            line(
                kind.name(),
                &[
                    sides[side].to_owned(),
                    format!("{user:.2}"),
                    format!("{system:.2}"),
                    format!("{wake_ups:.3}"),
                    format!("{all:.2}"),
                    most,
                ],
            );
            figures.push(json!({
                "row": kind.name(), "of": sides[side], "user_micros": user, "system_micros": system,
                "wake_ups": wake_ups, "system_calls": calls,
            }));
        }
    }
    figures.into()
}

/// What a request used: of the service, and of Redis.
fn one_round(kind: Kind, duration: Duration, seed: u64) -> Result<[Used; 2], String> {
    let subject = kind.start(false);
    let load = wrk::warm_up(&subject, Load::new(duration, seed))?;
    let pids = subject.pids();
    let before = pids.each_ref().map(|pids| used(pids));
    let requests = wrk::measure(&subject, load)?.requests as f64;
    let after = pids.each_ref().map(|pids| used(pids));
    Ok([0, 1].map(|side| {
        let (before, after): (Used, Used) = (before[side], after[side]);
        Used {
            user: (after.user - before.user) / requests,
            system: (after.system - before.system) / requests,
            wake_ups: (after.wake_ups - before.wake_ups) / requests,
        }
    }))
}

/// Times in microseconds.
fn used(pids: &[u32]) -> Used {
    let mut all = Used::default();
    for pid in pids {
        let [user, system] = times_of(*pid).map(|time| time.as_secs_f64() * 1e6);
        all.user += user;
        all.system += system;
        all.wake_ups += wake_ups(*pid);
    }
    all
}

/// Of all threads of a process.
fn wake_ups(pid: u32) -> f64 {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("a living process");
    let of_thread = |status: String| {
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        line.and_then(|number| number.trim().parse::<f64>().ok())
    };
    let statuses =
        threads.filter_map(|thread| std::fs::read_to_string(thread.ok()?.path().join("status")).ok());
    statuses.filter_map(of_thread).sum()
}

/// How often a request calls the system, by the name of the call: of the service, and of Redis. The most frequent are first.
fn system_calls(kind: Kind, duration: Duration) -> Result<[Vec<(String, f64)>; 2], String> {
    let subject = kind.start(false);
    let load = wrk::warm_up(&subject, Load::new(duration, 0))?;
    let traces = subject.pids().map(|pids| pids.first().map(|pid| strace(*pid)));
    thread::sleep(ATTACHED);
    let sample = wrk::measure(&subject, load);
    let tables = traces.map(|trace| trace.map(summary));
    let requests = sample?.requests as f64;
    let calls = |table: Option<String>| {
        let Some(table) = table else { return Ok(Vec::new()) };
        let calls = table.lines().filter_map(of_line).map(|(name, calls)| (name, calls / requests));
        let mut calls: Vec<_> = calls.collect();
        if calls.is_empty() {
            return Err(format!("strace says {table:?}"));
        }
        calls.sort_by(|(_, one), (_, other)| other.total_cmp(one));
        Ok(calls)
    };
    let [service, redis] = tables.map(calls);
    Ok([service?, redis?])
}

fn strace(pid: u32) -> Child {
    let mut command = Command::new("strace");
    command.args(["-c", "-f", "-q", "-U", "name,calls", "-p", &pid.to_string()]);
    command.stderr(Stdio::piped()).spawn().expect("strace")
}

/// Stops strace, which then writes its table.
fn summary(mut strace: Child) -> String {
    let _ = kill_process(Pid::from_child(&strace), Signal::INT);
    let mut text = String::new();
    let _ = strace.stderr.take().expect("it is piped").read_to_string(&mut text);
    let _ = strace.wait();
    text
}

/// A line of strace's table: the name, and the number of calls.
fn of_line(line: &str) -> Option<(String, f64)> {
    let mut fields = line.split_whitespace();
    let (name, calls) = (fields.next()?, fields.next()?.parse().ok()?);
    (name != "total").then(|| (name.to_owned(), calls))
}
