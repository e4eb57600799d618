//! The time that processes have used.

use std::time::Duration;

/// A process and its children.
pub fn with_children(pid: u32) -> Vec<u32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let children = children.split_whitespace().filter_map(|child| child.parse().ok());
    std::iter::once(pid).chain(children).collect()
}

/// User and system time of a process so far.
pub fn cpu_of(pid: u32) -> Duration {
    times_of(pid).into_iter().sum()
}

/// The user time, and the system time, of a process so far.
pub fn times_of(pid: u32) -> [Duration; 2] {
    /// The kernel's ticks in /proc: a hundred a second on every machine.
    const TICK: Duration = Duration::from_millis(10);
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("a living process");
    // The name may have spaces, so start after it. User and system time are fields twelve and thirteen from there.
    let mut fields = stat.rsplit_once(')').expect("a name").1.split_whitespace().skip(11);
    [(); 2].map(|()| TICK * fields.next().and_then(|ticks| ticks.parse().ok()).expect("ticks"))
}
